"""ImageNet as its archives unpack, with the validation pictures sorted or not, and its odd files."""

from __future__ import annotations

import csv
from pathlib import Path

import data_layouts as layouts
import numpy as np
import pytest
from PIL import Image

from mmvicreg.data.imagenet import DEVKIT, KAGGLE, SOLUTION, ImageNet
from mmvicreg.data.verify import verify
from mmvicreg.datasets import open_dataset
from mmvicreg.errors import UserError
from mmvicreg.inputs.image import decode_image

WNIDS = ("n01440764", "n01443537", "n02105855")


def training(root: Path, wnids: tuple[str, ...] = WNIDS) -> Path:
    for number, wnid in enumerate(wnids):
        layouts.picture(root / "train" / wnid / f"{wnid}_{number}.JPEG", number)
    return root


def validation(root: Path, number: int = 4) -> list[str]:
    """Flat pictures of the classes 1, 0, 2, 1, ... in the order of their numbers."""
    for place in range(1, number + 1):
        layouts.picture(root / "val" / f"ILSVRC2012_val_{place:08d}.JPEG", place)
    return [WNIDS[(1, 0, 2)[place % 3]] for place in range(number)]


def solution(path: Path, wnids: list[str]) -> None:
    rows = [
        {"ImageId": f"ILSVRC2012_val_{place:08d}", "PredictionString": f"{wnid} 1 2 3 4 {wnid} 5 6 7 8 "}
        for place, wnid in reversed(list(enumerate(wnids, start=1)))
    ]
    layouts.write_csv(path, rows)


def devkit(folder: Path, wnids: list[str]) -> None:
    """meta.mat as the development kit has it: 1-based numbers in an order of their own, groups at the end."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    order = [WNIDS[2], WNIDS[0], WNIDS[1]]
    synsets = np.empty((4, 1), dtype=kinds)
    for place, wnid in enumerate([*order, "n00001740"]):
        synsets[place, 0] = (place + 1, wnid, f"words {place}", 3 if place == 3 else 0)
    savemat(folder / "meta.mat", {"synsets": synsets})
    numbers = "".join(f"{order.index(wnid) + 1}\n" for wnid in wnids)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(numbers)


def refused(root: Path) -> str:
    def read() -> None:
        data = ImageNet(root)
        for split in data.splits():
            data.samples(split)

    with pytest.raises(UserError) as caught:
        read()
    return str(caught.value)


def test_sorted_into_class_folders(tmp_path: Path) -> None:
    training(tmp_path)
    for number, wnid in enumerate(WNIDS):
        layouts.picture(tmp_path / "val" / wnid / f"ILSVRC2012_val_{number + 1:08d}.JPEG", number)
    layouts.picture(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG")
    data = ImageNet(tmp_path)
    assert data.splits() == ("train", "val")
    assert data.classes == WNIDS
    assert [(s.id, s.label) for s in data.samples("train")] == [
        (f"train/{wnid}/{wnid}_{n}.JPEG", n) for n, wnid in enumerate(WNIDS)
    ]
    assert [s.label for s in data.samples("val")] == [0, 1, 2]
    assert data.notes == (
        "3 of ImageNet's 1 000 classes",
        "3 of ImageNet (ILSVRC2012)'s 1,281,167 pictures in the split train",
        "3 of ImageNet (ILSVRC2012)'s 50,000 pictures in the split val",
    )


@pytest.mark.parametrize("kit", ["devkit", "solution", "kaggle"])
def test_flat_validation_pictures_with_their_published_classes(tmp_path: Path, kit: str) -> None:
    base = tmp_path / KAGGLE if kit == "kaggle" else tmp_path
    training(base)
    truth = validation(base, 5)
    if kit == "devkit":
        devkit(tmp_path / DEVKIT, truth)
    else:
        solution(tmp_path / SOLUTION, truth)
    found = ImageNet(tmp_path).samples("val")
    assert len(found) == 5
    for sample in found:
        assert sample.image is not None
        assert sample.image.is_file()
        place = int(sample.image.stem[-8:])
        assert sample.label is not None
        assert WNIDS[sample.label] == truth[place - 1]


def test_a_part_of_the_classes_takes_its_part_of_the_flat_validation_pictures(tmp_path: Path) -> None:
    training(tmp_path, WNIDS[:2])
    solution(tmp_path / SOLUTION, validation(tmp_path, 6))
    data = ImageNet(tmp_path)
    assert sorted(s.label for s in data.samples("val") if s.label is not None) == [0, 0, 1, 1]
    assert "2 validation pictures are of classes that train does not have, and not used" in data.notes


def test_a_class_without_validation_pictures_is_named_to_who_trains(tmp_path: Path) -> None:
    solution(tmp_path / SOLUTION, validation(training(tmp_path), 3))
    (tmp_path / "val" / "ILSVRC2012_val_00000003.JPEG").unlink()
    with pytest.raises(UserError, match=rf"a class folder holds no pictures: .*{WNIDS[2]}"):
        ImageNet(tmp_path)


def test_validation_alone_is_read(tmp_path: Path) -> None:
    solution(tmp_path / SOLUTION, validation(tmp_path, 3))
    data = ImageNet(tmp_path)
    assert data.splits() == ("val",)
    assert data.classes == WNIDS


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    truth = validation(training(tmp_path))
    assert SOLUTION in refused(tmp_path)
    solution(tmp_path / SOLUTION, truth[:-1])
    assert "1 of 4 pictures" in refused(tmp_path)
    assert "ILSVRC2012_val_00000004.JPEG" in refused(tmp_path)
    (tmp_path / SOLUTION).write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,dog 1 2\n")
    assert f"{SOLUTION}, line 2: 'dog'" in refused(tmp_path)
    (tmp_path / SOLUTION).write_text("a,b\n1,2\n")
    assert "ImageId and PredictionString" in refused(tmp_path)
    (tmp_path / SOLUTION).unlink()
    devkit(tmp_path / DEVKIT, truth)
    (tmp_path / DEVKIT / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n9\n")
    assert "ILSVRC2012_validation_ground_truth.txt (9)" in refused(tmp_path)
    (tmp_path / DEVKIT / "meta.mat").write_bytes(b"no matlab")
    assert "meta.mat" in refused(tmp_path)


def test_other_folders_and_none_at_all(tmp_path: Path) -> None:
    assert "needs an account" in refused(tmp_path / "absent")
    layouts.picture(tmp_path / "own" / "train" / "dog" / "1.jpg")
    assert "not ImageNet's classes: dog. Pictures of your own classes are read by" in refused(
        tmp_path / "own"
    )
    layouts.picture(tmp_path / "flat" / "train" / "1.jpg")
    assert "no class folders (n01440764 and so on)" in refused(tmp_path / "flat")
    layouts.coco(tmp_path / "coco")
    assert "it looks like coco" in refused(tmp_path / "coco")
    with pytest.raises(UserError, match="register at https://image-net"):
        open_dataset("imagenet")


def test_verify_counts_classes_and_pictures(tmp_path: Path) -> None:
    solution(tmp_path / SOLUTION, validation(training(tmp_path)))
    report = verify("imagenet", tmp_path, progress=False)
    assert [(s.split, s.published, s.listed, s.readable) for s in report.splits] == [
        ("train", 1_281_167, 3, 3),
        ("val", 50_000, 4, 4),
    ]
    assert report.problems == (
        "3 of 1,281,167 pictures of the split train",
        "4 of 50,000 pictures of the split val",
        "3 of 1,000 classes",
    )


def test_the_png_and_the_cmyk_pictures_called_jpeg_are_read(tmp_path: Path) -> None:
    """n02105855_2933.JPEG is a PNG, n01739381_1309.JPEG and 21 others are CMYK."""
    colours = np.zeros((16, 16, 3), dtype=np.uint8)
    colours[:, :8] = (200, 40, 40)
    colours[:, 8:] = (40, 40, 200)
    png, cmyk = tmp_path / "n02105855_2933.JPEG", tmp_path / "n01739381_1309.JPEG"
    Image.fromarray(colours).save(png, format="PNG")
    Image.fromarray(colours).convert("CMYK").save(cmyk, format="JPEG", quality=95)
    with Image.open(cmyk) as stored:
        assert stored.mode == "CMYK"
    np.testing.assert_array_equal(np.asarray(decode_image(png)), colours)
    found = np.asarray(decode_image(cmyk)).astype(int)
    assert np.abs(found[:, [2, 13]] - colours[:, [2, 13]]).max() < 12


def test_the_solution_may_be_in_any_order_and_has_one_class_a_picture(tmp_path: Path) -> None:
    truth = validation(training(tmp_path), 3)
    solution(tmp_path / SOLUTION, truth)
    with (tmp_path / SOLUTION).open(newline="") as file:
        assert next(iter(csv.DictReader(file)))["ImageId"].endswith("3")
    assert [s.id for s in ImageNet(tmp_path).samples("val")] == [
        f"val/ILSVRC2012_val_{place:08d}.JPEG"
        for place in sorted((1, 2, 3), key=lambda place: WNIDS.index(truth[place - 1]))
    ]
