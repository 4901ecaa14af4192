"""Pictures in ImageNet's layout: what is found, in which order, what is held out, and what is refused."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path

import data_layouts as layouts
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from mmvicreg.data.image_folder import ImageFolder, held_out
from mmvicreg.data.pictures import Pictures, list_pictures
from mmvicreg.data.verify import verify
from mmvicreg.datasets import evaluation_split, open_dataset, training_samples
from mmvicreg.errors import UserError
from mmvicreg.inputs.image import decode_image


def folder(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        layouts.picture(root / name, number)
    return root


def listed(data: ImageFolder, split: str) -> list[tuple[str, int | None]]:
    return [(sample.id, sample.label) for sample in data.samples(split)]


def refused(root: Path, split: str | None = None) -> str:
    def read() -> None:
        data = ImageFolder(root)
        for name in data.splits() if split is None else (split,):
            data.samples(name)

    with pytest.raises(UserError) as caught:
        read()
    return str(caught.value)


def test_train_and_val_with_a_folder_a_class(tmp_path: Path) -> None:
    folder(tmp_path, "train/dog/b.JPEG", "train/dog/a.png", "train/cat/deep/x.jpg", "train/cat/z.webp")
    data = ImageFolder(folder(tmp_path, "val/dog/1.jpg", "val/cat/2.jpg", "notes/readme/x.jpg"))
    assert data.splits() == ("train", "val")
    assert data.classes == ("cat", "dog")
    assert data.notes == (f"{tmp_path} holds pictures in notes too, which are of no split and not used",)
    assert listed(data, "train") == [
        ("train/cat/deep/x.jpg", 0),
        ("train/cat/z.webp", 0),
        ("train/dog/a.png", 1),
        ("train/dog/b.JPEG", 1),
    ]
    assert listed(data, "val") == [("val/cat/2.jpg", 0), ("val/dog/1.jpg", 1)]
    assert all(sample.image == tmp_path / sample.id for sample in data.samples("all"))
    assert len(data.samples("train+val")) == 6


@pytest.mark.parametrize(("train", "val"), [("training", "validation"), ("Train", "Val"), ("train", "valid")])
def test_other_names_of_the_splits(tmp_path: Path, train: str, val: str) -> None:
    data = ImageFolder(folder(tmp_path, f"{train}/a/1.jpg", f"{val}/a/1.jpg", "test/a/1.jpg"))
    assert data.splits() == ("train", "val", "test")
    assert listed(data, "val") == [(f"{val}/a/1.jpg", 0)]


def test_a_test_folder_alone_needs_nothing_held_out(tmp_path: Path) -> None:
    data = ImageFolder(folder(tmp_path, "train/a/1.jpg", "train/a/2.jpg", "test/a/1.jpg"))
    assert data.splits() == ("train", "test")
    assert len(data.samples("train")) == 2
    assert evaluation_split(data, None) == "test"


@pytest.mark.parametrize("above", ["train/", ""])
def test_the_last_of_each_class_are_held_out_where_nothing_else_is(tmp_path: Path, above: str) -> None:
    names = [f"{above}a/{n:02d}.jpg" for n in range(20)] + [f"{above}b/{n}.jpg" for n in range(5)]
    data = ImageFolder(folder(tmp_path, *names))
    assert data.splits() == ("train", "val")
    assert listed(data, "val") == [(f"{above}a/18.jpg", 0), (f"{above}a/19.jpg", 0), (f"{above}b/4.jpg", 1)]
    assert [name for name, _ in listed(data, "train")] == [
        n for n in names if n not in dict(listed(data, "val"))
    ]
    (note,) = data.notes
    assert "neither val nor test" in note
    assert "the last 1 to 2 of each class" in note
    assert "3 pictures, are held out as val" in note
    assert len(training_samples(data, split="train+val", fold=1)) == 25


def test_how_many_are_held_out() -> None:
    assert [held_out(n) for n in (1, 2, 9, 10, 39, 5_000, 6_000)] == [0, 1, 1, 1, 3, 500, 500]


def test_pictures_without_classes_can_be_trained_on(tmp_path: Path) -> None:
    data = ImageFolder(folder(tmp_path / "flat", "b.jpg", "a.jpg"))
    assert data.splits() == ("train",)
    assert data.classes == ()
    assert listed(data, "train") == [("a.jpg", None), ("b.jpg", None)]
    beside = ImageFolder(folder(tmp_path / "beside", "train/1.jpg", "val/a/2.jpg", "val/b/3.jpg"))
    assert listed(beside, "train") == [("train/1.jpg", None)]
    assert listed(beside, "val") == [("val/a/2.jpg", 0), ("val/b/3.jpg", 1)]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = ImageFolder(folder(tmp_path, *(f"{name}/{n}.jpg" for name in ("bus", "train") for n in range(3))))
    assert data.classes == ("bus", "train")
    assert listed(data, "val") == [("bus/2.jpg", 0), ("train/2.jpg", 1)]


def test_a_class_called_train_that_has_folders_does_not_hide_the_others(tmp_path: Path) -> None:
    """Its folders would be the classes, and the other classes not there."""
    names = ("bus", "car", "train")
    folder(tmp_path / "data", *(f"{name}/y2019/{n}.jpg" for name in names for n in range(3)))
    message = refused(tmp_path / "data")
    assert f"{tmp_path / 'data' / 'train'} holds folders" in message
    assert "other folders of pictures: bus, car." in message
    (tmp_path / "moved").mkdir()
    (tmp_path / "data").rename(tmp_path / "moved" / "train")  # the way out
    assert ImageFolder(tmp_path / "moved").classes == names
    folder(tmp_path / "zip", "train/a/1.jpg", "train/a/2.jpg", "__MACOSX/train/a/._1.jpg")
    assert len(ImageFolder(tmp_path / "zip").samples("all")) == 2


def test_files_that_are_no_pictures_are_passed_over_and_counted(tmp_path: Path) -> None:
    folder(tmp_path, "train/a/1.jpg", "train/a/2.jpg", "val/a/1.jpg")
    for name in ("train/a/labels.txt", "train/a/Thumbs.db", "train/a/.hidden.jpg", "train/.cache/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no picture")
    data = ImageFolder(tmp_path)
    assert len(data.samples("train")) == 2
    assert data.notes == (f"2 files in {tmp_path / 'train'} are no pictures by their names",)


def test_a_test_set_without_classes_is_said_not_to_be_used(tmp_path: Path) -> None:
    data = ImageFolder(folder(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "test/1.jpg"))
    assert data.splits() == ("train", "val")
    assert data.notes == (f"{tmp_path / 'test'} has no class folders, and is not used",)


def test_links_to_class_folders_are_followed(tmp_path: Path) -> None:
    folder(tmp_path / "real", "n1/1.jpg", "n1/2.jpg")
    (tmp_path / "subset" / "train").mkdir(parents=True)
    (tmp_path / "subset" / "train" / "n1").symlink_to(tmp_path / "real" / "n1")
    (tmp_path / "real" / "n1" / "round").symlink_to(tmp_path / "real")  # would never end
    (tmp_path / "real" / "n1" / "self.txt").symlink_to(tmp_path / "real" / "n1" / "self.txt")
    assert listed(ImageFolder(tmp_path / "subset"), "val") == [("train/n1/2.jpg", 0)]


def test_links_to_folders_inside_a_class_are_followed_as_torchvision_does(tmp_path: Path) -> None:
    folder(
        tmp_path, "more/x/3.jpg", "more/4.jpg", "data/train/a/1.jpg", "data/train/b/2.jpg", "data/val/a/5.jpg"
    )
    folder(tmp_path, "data/val/b/6.jpg")
    (tmp_path / "data" / "train" / "a" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "data" / "train" / "b" / "linked.jpg").symlink_to(tmp_path / "more" / "4.jpg")
    data = ImageFolder(tmp_path / "data")
    theirs = [(str(Path(path).relative_to(tmp_path / "data")), label)
              for path, label in TorchvisionFolder(tmp_path / "data" / "train").samples]  # fmt: skip
    assert listed(data, "train") == sorted(theirs)
    assert len(theirs) == 5
    assert data.notes == ()


@pytest.mark.parametrize("to", ["train", ".", ".."])
def test_links_to_what_a_class_lies_in_bring_no_pictures_of_others(tmp_path: Path, to: str) -> None:
    names = [f"train/{name}/{n}.jpg" for name in "ab" for n in range(3)]
    root = folder(tmp_path / "data", *names, "val/a/1.jpg", "val/b/1.jpg")
    (root / "train" / "a" / "loop").symlink_to(root / to)
    folder(tmp_path / "elsewhere", "c/1.jpg", "c/2.jpg")
    (tmp_path / "elsewhere" / "c" / "loop").symlink_to(
        root / to
    )  # this one lies in data/train by a link alone
    for split in ("train", "val"):
        (root / split / "c").symlink_to(tmp_path / "elsewhere" / "c")
    more = [("train/c/1.jpg", 2), ("train/c/2.jpg", 2)]
    assert listed(ImageFolder(root), "train") == [(name, "ab".index(name[6])) for name in names] + more


def test_broken_links_are_not_lost(tmp_path: Path) -> None:
    folder(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg")
    (tmp_path / "train" / "a" / "gone.jpg").symlink_to(tmp_path / "unmounted" / "gone.jpg")
    assert ("train/a/gone.jpg", 0) in listed(ImageFolder(tmp_path), "train")  # reading it is what fails
    (tmp_path / "train" / "c").symlink_to(tmp_path / "unmounted" / "c")
    with pytest.raises(UserError, match=r"train holds links to what is not there: c; mend or remove"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize("above", ["train/", ""])
def test_a_class_of_one_picture_has_none_to_hold_out(tmp_path: Path, above: str) -> None:
    folder(tmp_path, *(f"{above}{name}" for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg")))
    (tmp_path / above / "c" / "2.txt").write_text("no picture")
    with pytest.raises(
        UserError, match=r"2 of 3 classes have one picture alone: b, c\. Add .* or give val/<class>/"
    ):
        ImageFolder(tmp_path)
    if above:
        folder(tmp_path, *(f"val/{name}/1.jpg" for name in "abc"))
        assert len(ImageFolder(tmp_path).samples("train")) == 4


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_folder_is_named(tmp_path: Path, split: str) -> None:
    folder(tmp_path, *(f"{s}/{c}/1.jpg" for s in ("train", "val") for c in ("a", "b")))
    (tmp_path / split / "b" / "1.jpg").rename(tmp_path / split / "b" / "1.txt")
    for asked in ("train", "val"):  # training on one must not end before the other is found to be of no use
        assert f"a class folder holds no pictures: {tmp_path / split / 'b'}." in refused(tmp_path, asked)


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    names = ("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg")
    message = refused(folder(tmp_path, *names), "train")
    assert "train and val have different class folders" in message
    assert f"only in {tmp_path / 'train'}: b; only in {tmp_path / 'val'}: c" in message


def test_what_is_no_folder_of_pictures(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in refused(tmp_path / "empty")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    assert "but it holds a.txt" in refused(tmp_path / "text")
    layouts.coco(tmp_path / "coco")
    assert "it looks like coco (--dataset coco)" in refused(tmp_path / "coco")
    folder(tmp_path / "mixed", "train/a/1.jpg", "train/2.jpg")
    assert "class folders (a) and pictures beside them (2.jpg)" in refused(tmp_path / "mixed")
    folder(tmp_path / "twice", "val/a/1.jpg", "valid/a/1.jpg")
    assert "both for the split val" in refused(tmp_path / "twice")
    folder(tmp_path / "unsorted", "train/a/1.jpg", "val/1.jpg")
    assert "--dataset imagenet" in refused(tmp_path / "unsorted")
    with pytest.raises(UserError, match="'image-folder' needs --data-root DIR"):
        open_dataset("image-folder")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    folder(tmp_path, "train/a/1.jpg", "train/a/2.jpg")
    shutil.copy(tmp_path / "train/a/1.jpg", str(tmp_path / "train/a") + "/caf\udce9.jpg")
    assert r"caf\udce9.jpg' in" in refused(tmp_path)


def test_a_damaged_picture_is_named_by_verify_and_by_the_decoder(tmp_path: Path) -> None:
    folder(tmp_path, *(f"train/a/{n}.jpg" for n in range(4)))
    layouts.picture(tmp_path / "train/a/2.jpg", side=64)
    whole = (tmp_path / "train/a/2.jpg").read_bytes()
    (tmp_path / "train/a/2.jpg").write_bytes(whole[: len(whole) // 2])
    report = verify("image-folder", tmp_path, progress=False)
    assert [(s.split, s.published, s.listed, s.readable) for s in report.splits] == [
        ("train", None, 3, 2),
        ("val", None, 1, 1),
    ]
    with pytest.raises(UserError, match=r"cannot decode the picture .*train/a/2\.jpg"):
        report.check()
    with pytest.raises(UserError, match=r"cannot decode the picture .*train/a/2\.jpg"):
        decode_image(tmp_path / "train/a/2.jpg")


def test_pictures_are_a_sequence_that_travels_and_stays_small(tmp_path: Path) -> None:
    names = [f"train/n{n % 10:08d}/n{n % 10:08d}_{n}.JPEG" for n in range(20_000)]
    pictures = Pictures(tmp_path, names, [n % 10 for n in range(20_000)])
    assert len(pictures) == 20_000
    for place in (0, 9, 10_000, 19_999, -1):
        sample = pictures[place]
        assert (sample.id, sample.label, sample.image) == (names[place], place % 10, tmp_path / names[place])
    assert [sample.id for sample in pictures[5:8]] == names[5:8]
    assert [sample.id for sample in pictures] == names
    with pytest.raises(IndexError):
        pictures[20_000]
    content = pickle.dumps(pictures)
    assert len(content) < 60 * 20_000, "bytes a picture"
    assert pickle.loads(content)[123].id == names[123]
    assert Pictures(tmp_path, ["ü/日本.jpg"], None)[0].id == "ü/日本.jpg"


def test_listing_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, "b.jpg", "a/c.png")
    (tmp_path / "a" / "d.txt").write_text("no picture")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened or asked for")

    monkeypatch.setattr(Image, "open", never)
    monkeypatch.setattr(Path, "stat", never)
    monkeypatch.setattr("os.stat", never)
    assert list_pictures(tmp_path) == (["a/c.png", "b.jpg"], 1)
