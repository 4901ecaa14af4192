"""Karpathy's form of Flickr8k and Flickr30k."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_layouts as layouts
import pytest

from mmvicreg.data.flickr import Flickr8k, Flickr30k
from mmvicreg.data.reader import Reader
from mmvicreg.errors import UserError


@pytest.mark.parametrize(
    ("cls", "pictures"),
    [
        (Flickr8k, "images"),
        (Flickr8k, "Flicker8k_Dataset"),
        (Flickr30k, "images"),
        (Flickr30k, "flickr30k-images"),
    ],
)
def test_splits_and_captions(tmp_path: Path, cls: type[Reader], pictures: str) -> None:
    data = cls(layouts.karpathy(tmp_path, cls.name, pictures=pictures))
    assert data.splits() == ("train", "val", "test")
    (first, second) = data.samples("train")
    assert (first.id, second.id) == ("p1.jpg", "p4.jpg")
    assert first.image == tmp_path / pictures / "p1.jpg"
    assert first.captions == tuple(f"sentence {k} of 1" for k in range(6))


def test_tokens_serve_where_there_is_no_raw_text(tmp_path: Path) -> None:
    layouts.karpathy(tmp_path, "flickr8k")
    edit(tmp_path, lambda images: images[0]["sentences"][0].pop("raw"))
    assert Flickr8k(tmp_path).samples("test")[0].captions[0] == "sentence"


def test_the_other_flickr_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="looks like flickr30k"):
        Flickr8k(layouts.karpathy(tmp_path / "a", "flickr30k"))
    layouts.karpathy(tmp_path / "b", "flickr30k")
    (tmp_path / "b" / "dataset_flickr30k.json").rename(tmp_path / "b" / "dataset_flickr8k.json")
    with pytest.raises(UserError, match="says it is the data set 'flickr30k', not 'flickr8k'"):
        Flickr8k(tmp_path / "b")


def test_pictures_to_be_asked_for(tmp_path: Path) -> None:
    layouts.karpathy(tmp_path, "flickr30k")
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match=r"flickr30k-images.*form is filled in"):
        Flickr30k(tmp_path)


def test_missing_pictures(tmp_path: Path) -> None:
    layouts.karpathy(tmp_path, "flickr8k")
    (tmp_path / "images" / "p1.jpg").unlink()
    data = Flickr8k(tmp_path)
    assert len(data.samples("val")) == 2  # the other splits are whole
    with pytest.raises(UserError, match=r"1 of 2 pictures of the split 'train'.*p1\.jpg"):
        data.samples("train")


def edit(root: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    path = root / "dataset_flickr8k.json"
    tree = json.loads(path.read_text())
    change(tree["images"])
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i: i[1]["sentences"][3].update(raw=" \n"),
            r"caption 4 of 6 of the picture 'p1\.jpg' is empty",
        ),
        (lambda i: i[1]["sentences"].clear(), r"'p1\.jpg' has no caption"),
        (lambda i: i[1].pop("split"), r"'p1\.jpg' has no split"),
        (lambda i: i[1].update(split="te/st"), r"'p1\.jpg': a split cannot be called 'te/st'"),
        (lambda i: i[1].update(split="train+val"), r"'p1\.jpg': a split cannot be called 'train\+val'"),
        (lambda i: i[1].pop("sentences"), r"'p1\.jpg' has no list of sentences"),
        (lambda i: i[1].pop("filename"), "file name is missing"),
        (
            lambda i: i[1].update(filename="/etc/passwd"),
            "is an absolute path; give it relative to the data set",
        ),
        (lambda i: i.append(i[1]), r"lists pictures twice: p1\.jpg"),
        (lambda i: i[2].update(imgid=i[1]["imgid"]), "gives the same imgid twice: 1"),
        (
            lambda i: [sentence.update(sentid=7) for image in i for sentence in image["sentences"]],
            "gives the same sentid twice: 7",
        ),
        (
            lambda i: i[1]["sentences"][3].update(imgid=2),
            r"dataset_flickr8k\.json: caption 4 of 6 of the picture 'p1\.jpg' \(imgid 1\) says that it belongs to "
            "the picture with imgid 2: 'sentence 3 of 1'",
        ),
        (lambda i: i.append("p9.jpg"), "entry 6 of 'images' is not an object"),
        (lambda i: i.clear(), "not in Karpathy's form"),
    ],
)
def test_malformed_entries(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], object], message: str
) -> None:
    edit(layouts.karpathy(tmp_path, "flickr8k"), change)
    with pytest.raises(UserError, match=message):
        Flickr8k(tmp_path).samples("train")


def test_a_sentence_may_name_its_own_picture_or_stand_under_one_without_a_number(tmp_path: Path) -> None:
    def name_owners(images: list[dict[str, Any]]) -> None:
        for image in images:
            for sentence in image["sentences"]:
                sentence["imgid"] = image["imgid"]
        del images[1]["imgid"]

    edit(layouts.karpathy(tmp_path, "flickr8k"), name_owners)
    assert len(Flickr8k(tmp_path).samples("all")) == 6


def test_a_cocoid_of_null_is_none(tmp_path: Path) -> None:
    layouts.karpathy(tmp_path, "flickr8k")
    edit(tmp_path, lambda images: [image.update(cocoid=None) for image in images])
    assert [sample.id for sample in Flickr8k(tmp_path).samples("train")] == ["p1.jpg", "p4.jpg"]


def test_truncated_file(tmp_path: Path) -> None:
    path = layouts.karpathy(tmp_path, "flickr8k") / "dataset_flickr8k.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*not valid JSON"):
        Flickr8k(tmp_path)


def test_real_flickr8k(unpacked: Callable[[str], Path]) -> None:
    root = unpacked("flickr8k")
    data = Flickr8k(root)
    assert data.splits() == ("train", "val")
    assert [len(data.samples(split)) for split in data.splits()] == [6_000, 1_000]
    assert any("0 of Flickr8k's 1,000 pictures in the split test" in note for note in data.notes)
    tree = json.loads((root / "dataset_flickr8k.json").read_text())
    expected = {image["filename"]: [s["raw"] for s in image["sentences"]] for image in tree["images"]}
    assert {sample.id: list(sample.captions) for sample in data.samples("all")} == expected
