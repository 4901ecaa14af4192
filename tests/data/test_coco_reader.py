"""COCO in each of its layouts, and what is said when one is not whole."""

from __future__ import annotations

import codecs
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import data_layouts as layouts
import pytest

from mmvicreg.data.coco import Coco, read_captions
from mmvicreg.errors import UserError


@pytest.mark.parametrize("year", [2014, 2017])
def test_own_layout_gives_every_caption_in_the_files_order(tmp_path: Path, year: int) -> None:
    data = Coco(layouts.coco(tmp_path, year=year, captions=7))
    assert data.splits() == ("train", "val")
    assert data.layout == str(year)
    train = data.samples("train")
    assert [sample.id for sample in train] == ["3", "2", "1"]  # the file's order, not the ids'
    assert train[0].captions == tuple(f"caption {k} of 3\n" for k in range(7))
    assert train[0].image == tmp_path / f"train{year}" / "000000000003.jpg"
    assert len(data.samples("train+val")) == len(data.samples("all")) == 6


def test_caption_ids_are_cocos_in_every_layout(tmp_path: Path) -> None:
    own = Coco(layouts.coco(tmp_path / "own", captions=3)).samples("train")[0]
    assert own.caption_ids == ("30", "31", "32")  # the annotations' ids
    folder = layouts.karpathy(tmp_path / "karpathy", "coco")
    assert Coco(folder).samples("train")[0].caption_ids == ()  # where the file gives none
    path = folder / "dataset_coco.json"
    tree = json.loads(path.read_text())
    for image in tree["images"]:
        for k, sentence in enumerate(image["sentences"]):
            sentence["sentid"] = 770_000 + 10 * image["imgid"] + k
    path.write_text(json.dumps(tree))
    (first, _) = Coco(folder).samples("train")
    assert first.caption_ids == tuple(str(770_010 + k) for k in range(6))
    assert [first.caption_id(k) for k in (0, 5)] == ["770010", "770015"]


def test_cocos_pictures_have_its_ids_without_a_cocoid(tmp_path: Path) -> None:
    """The same as in COCO's other layouts; the name has it."""
    file = layouts.write_json(
        tmp_path / "dataset_coco.json",
        {
            "images": [
                {"filename": name, "split": "test", "sentences": [{"raw": "a dog"}]}
                for name in ("COCO_val2014_000000391895.jpg", "dog_000000391895.jpg")
            ]
        },
    )
    for name in ("COCO_val2014_000000391895.jpg", "dog_000000391895.jpg"):
        layouts.picture(tmp_path / "images" / name)
    assert [sample.id for sample in Coco(file.parent).samples("test")] == ["391895", "dog_000000391895.jpg"]


def test_newest_year_is_read_and_said(tmp_path: Path) -> None:
    layouts.coco(tmp_path, year=2014)
    data = Coco(layouts.coco(tmp_path, year=2017, first=100))
    assert data.layout == "2017"
    assert any("2014 and 2017" in note and "2017 is read" in note for note in data.notes)
    assert {sample.id for sample in data.samples("all")} == {str(i) for i in range(100, 106)}


@pytest.mark.parametrize("lacking", [("train", "val"), ("train",)])
def test_a_newer_year_in_part_does_not_hide_an_older_one_that_is_whole(
    tmp_path: Path, lacking: tuple[str, ...]
) -> None:
    """2017's captions (annotations_trainval2017.zip) alone, or with the small val2017, beside a 2014 layout."""
    layouts.coco(tmp_path, year=2014)
    layouts.coco(tmp_path, year=2017, first=100)
    for split in lacking:
        shutil.rmtree(tmp_path / f"{split}2017")
    data = Coco(tmp_path)
    assert data.layout == "2014"
    assert data.splits() == ("train", "val")
    assert any("2014 and 2017; 2014 is read" in note for note in data.notes)
    assert {sample.id for sample in data.samples("all")} == {str(i) for i in range(1, 7)}


def test_without_any_training_pictures_the_newest_year_with_pictures_is_read(tmp_path: Path) -> None:
    layouts.coco(tmp_path, year=2014, splits=("val",))
    layouts.coco(tmp_path, year=2017, first=100)
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / f"{split}2017")
    assert (Coco(tmp_path).layout, Coco(tmp_path).splits()) == ("2014", ("val",))


def test_a_part_is_said_with_both_numbers(tmp_path: Path) -> None:
    notes = Coco(layouts.coco(tmp_path)).notes
    assert any("3 of COCO's 118,287 pictures of train2017" in note for note in notes)


def test_reading_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Coco(layouts.coco(tmp_path)).samples("all")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("pictures", ["", "images"])
def test_karpathy_splits(tmp_path: Path, pictures: str) -> None:
    data = Coco(
        layouts.karpathy(tmp_path, "coco", pictures=pictures, splits=("val", "restval", "test", "train"))
    )
    assert data.splits() == ("train", "restval", "val", "test")
    assert data.layout == "karpathy"
    (first, second) = data.samples("train")
    assert (first.id, second.id) == ("903", "907")
    assert first.captions == tuple(f"sentence {k} of 3" for k in range(6))
    assert first.image is not None
    assert first.image.is_file()
    union = data.samples("train+restval")
    assert [sample.id for sample in union] == ["903", "907", "901", "905"]


def test_karpathy_is_preferred_where_its_pictures_are(tmp_path: Path) -> None:
    layouts.coco(tmp_path, year=2014)
    data = Coco(layouts.karpathy(tmp_path, "coco", pictures="", splits=("train", "test")))
    assert data.splits() == ("train", "test")


def test_karpathy_without_pictures_does_not_hide_a_2017_copy(tmp_path: Path) -> None:
    layouts.coco(tmp_path, year=2017)
    layouts.karpathy(tmp_path / "other", "coco")
    shutil.copy(tmp_path / "other" / "dataset_coco.json", tmp_path)
    assert Coco(tmp_path).layout == "2017"


def test_one_absent_picture_folder_leaves_the_other_split(tmp_path: Path) -> None:
    layouts.coco(tmp_path)
    shutil.rmtree(tmp_path / "train2017")
    data = Coco(tmp_path)
    assert data.splits() == ("val",)
    assert len(data.samples("val")) == 3
    assert any("train" in note and "left out" in note for note in data.notes)
    with pytest.raises(UserError, match="no split 'train'"):
        data.samples("train")


def test_no_pictures_at_all(tmp_path: Path) -> None:
    layouts.coco(tmp_path)
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / f"{split}2017")
    with pytest.raises(UserError, match=r"no pictures.*train2017.*mmvicreg data download coco --data-root"):
        Coco(tmp_path)


def test_annotations_that_cannot_be_listed_are_named(
    tmp_path: Path, unlisted: Callable[[Path], None]
) -> None:
    """As if they were not there, the message said to download them; Karpathy's split does not need them."""
    layouts.coco(tmp_path / "own")
    layouts.karpathy(tmp_path / "karpathy", "coco")
    (tmp_path / "karpathy" / "annotations").mkdir()
    unlisted(tmp_path / "own" / "annotations")
    unlisted(tmp_path / "karpathy" / "annotations")
    with pytest.raises(UserError, match=r"cannot list .*own/annotations: Permission denied"):
        Coco(tmp_path / "own")
    assert Coco(tmp_path / "karpathy").layout == "karpathy"


def test_unknown_split_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'vall'; did you mean 'val'"):
        Coco(layouts.coco(tmp_path)).samples("vall")


@pytest.mark.parametrize("year", [2014, 2017])
def test_restval_is_said_to_be_karpathys(tmp_path: Path, year: int) -> None:
    """The recipe asks for it."""
    data = Coco(layouts.coco(tmp_path, year=year))
    with pytest.raises(UserError, match=rf"'restval'.*own of {year}.*--set dataset\.train_split=train$"):
        data.samples("train+restval")


def test_a_split_twice_in_a_union_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="twice"):
        Coco(layouts.coco(tmp_path)).samples("val+val")


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_no_folder(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "here"
    if kind == "empty":
        root.mkdir()
    elif kind == "file":
        root.touch()
    with pytest.raises(UserError, match=str(root)) as caught:
        Coco(root)
    if kind != "file":
        assert f"mmvicreg data download coco --data-root {root}" in str(caught.value)


def test_another_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="looks like esc50"):
        Coco(layouts.esc(tmp_path / "esc"))
    with pytest.raises(UserError, match="looks like flickr8k"):
        Coco(layouts.karpathy(tmp_path / "flickr", "flickr8k"))
    layouts.picture(tmp_path / "classes" / "train" / "dog" / "1.jpg")
    with pytest.raises(UserError, match="folder of pictures by class"):
        Coco(tmp_path / "classes")


def test_missing_pictures_are_counted_and_named(tmp_path: Path) -> None:
    layouts.coco(tmp_path, images=9)
    for number in (2, 4, 5, 6, 7):
        (tmp_path / "train2017" / f"{number:012d}.jpg").unlink()
    with pytest.raises(UserError) as caught:
        Coco(tmp_path).samples("train")
    message = str(caught.value)
    assert "5 of 9 pictures" in message
    assert "000000000007.jpg" in message
    assert "and 2 more" in message
    assert "mmvicreg data download coco" in message


def edit(root: Path, change: Callable[[dict[str, list[dict[str, object]]]], None]) -> Path:
    path = root / "annotations" / "captions_train2017.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # annotation 4 of the interleaved list is caption 2 of image 2
        (
            lambda t: t["annotations"][4].update(caption="  "),
            r"caption 2 of 5 of the picture '0+2\.jpg' is empty",
        ),
        (
            lambda t: t["annotations"][4].update(caption="a \ud83d"),
            r"caption 2 of the picture '0+2\.jpg' holds half a character",
        ),
        (lambda t: t["annotations"][4].update(caption=7), r"caption 2 of the picture '0+2\.jpg' is not text"),
        (lambda t: t["images"].append(dict(t["images"][0])), "lists images twice.*3"),
        (
            lambda t: t["images"][0].update(file_name=t["images"][2]["file_name"]),
            r"lists the same file under several ids: 0+1\.jpg$",
        ),
        (
            lambda t: t["images"][0].update(file_name=f"./{t['images'][2]['file_name']}"),
            r"lists the same file under several ids: 0+1\.jpg$",
        ),
        (lambda t: t["annotations"][4].update(id=t["annotations"][5]["id"]), "lists captions twice, by id"),
        (lambda t: t["images"].pop(), "captions of images that it does not list.*1"),
        (lambda t: t["annotations"].clear(), "not a file of COCO captions"),
        (lambda t: t.pop("images"), "not a file of COCO captions"),
        (lambda t: [a.pop("caption") for a in t["annotations"]], "not a file of COCO captions"),
        (lambda t: t["images"][0].update(file_name="../../etc/passwd"), "leads outside"),
        (lambda t: t["images"][0].pop("file_name"), "no id or no file_name"),
        (
            lambda t: t.update(annotations=[a for a in t["annotations"] if a["image_id"] != 2]),
            r"the picture '0+2\.jpg' has no caption",
        ),
    ],
)
def test_malformed_captions(
    tmp_path: Path, change: Callable[[dict[str, list[dict[str, object]]]], None], message: str
) -> None:
    root = edit(layouts.coco(tmp_path), change)
    with pytest.raises(UserError, match=message):
        Coco(root).samples("train")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    """Editors on Windows write one; the tables of one's own may have it too."""
    layouts.coco(tmp_path / "own")
    layouts.karpathy(tmp_path / "karpathy", "coco", pictures="")
    for path in (
        tmp_path / "own" / "annotations" / "captions_train2017.json",
        tmp_path / "karpathy" / "dataset_coco.json",
    ):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
        assert Coco(tmp_path / path.relative_to(tmp_path).parts[0]).samples("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"id"', "truncated"),
        ("", "empty"),
        ("[1, 2]", "not a file of COCO"),
        (f'{{"images": {"9" * 5000}}}', "not valid JSON: .*limit"),
        ("[" * 100_000, "not valid JSON: .*recursion"),
    ],
)
def test_broken_json(tmp_path: Path, text: str, message: str) -> None:
    root = layouts.coco(tmp_path)
    path = root / "annotations" / "captions_train2017.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Coco(root).samples("train")
    assert str(path) in str(caught.value)
    assert len(Coco(root).samples("val")) == 3

    layouts.karpathy(root / "karpathy", "coco", pictures="")
    (root / "karpathy" / "dataset_coco.json").write_text(text)
    with pytest.raises(UserError, match=message.replace("a file of COCO", "in Karpathy's form")):
        Coco(root / "karpathy")


def test_one_picture_under_two_ids_is_refused(tmp_path: Path) -> None:
    """It may be trained on under one and judged under the other."""
    root = layouts.karpathy(tmp_path, "coco", pictures="")
    path = root / "dataset_coco.json"
    tree = json.loads(path.read_text())
    tree["images"][2] |= {key: tree["images"][0][key] for key in ("filename", "filepath")}
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"the same file under several ids, perhaps in two splits: .*p0\.jpg"):
        Coco(root)


def test_coco_does_not_pass_shapes_off_as_itself(tmp_path: Path) -> None:
    layouts.coco(tmp_path)
    (tmp_path / "shapes.json").write_text("{}")
    with pytest.raises(UserError, match=r"looks like shapes \(--dataset shapes\)"):
        Coco(tmp_path)


def test_real_photographs(unpacked: Callable[[str], Path]) -> None:
    root = unpacked("coco-mini")
    data = Coco(root)
    for split, count in (("train", 80), ("val", 79)):
        tree = json.loads((root / "annotations" / f"captions_{split}2017.json").read_text())
        samples = data.samples(split)
        assert len(samples) == count
        expected: dict[str, list[str]] = {}
        for annotation in tree["annotations"]:
            expected.setdefault(str(annotation["image_id"]), []).append(annotation["caption"])
        assert {sample.id: list(sample.captions) for sample in samples} == expected


def test_real_val2017_has_25_014_captions(real_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "captions_val2017.json"
    with gzip.open(real_data / "captions_val2017.json.gz") as source, path.open("wb") as copy:
        shutil.copyfileobj(source, copy)
    tree = json.loads(path.read_text())
    pictures = tmp_path / "val2017"
    pictures.mkdir()
    for image in tree["images"]:
        (pictures / image["file_name"]).touch()
    samples = read_captions(path, pictures, Coco.card, root=tmp_path)
    assert len(samples) == 5_000
    assert sum(len(sample.captions) for sample in samples) == 25_014
    assert max(len(sample.captions) for sample in samples) == 7
