"""Places205 and iNaturalist 2018 by their publishers' lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import data_layouts as layouts
import pytest

from mmvicreg.data.listed_pictures import INat18, Places205
from mmvicreg.data.verify import verify
from mmvicreg.errors import UserError

PLACES = {
    "train": ["a/abbey/1.jpg 0", "b/bar/2.jpg 1", "a/abbey/3.jpg 0"],
    "val": ["b/bar/4.jpg 1", "a/abbey/5.jpg 0"],
}


def places(root: Path, lines: dict[str, list[str]] = PLACES, base: str = Places205.folders[0]) -> Path:
    for split, every in lines.items():
        path = root / "trainvalsplit_places205" / f"{split}_places205.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(every) + "\n")
        for line in every:
            layouts.picture(root / base / line.split(" ")[0])
    return root


def inat(root: Path, **changes: Any) -> Path:
    for split, (first, count) in {"train": (0, 4), "val": (10, 2)}.items():
        images = [
            {"id": n, "file_name": f"train_val2018/Aves/{n % 2}/{n}.jpg"} for n in range(first, first + count)
        ]
        annotations = [
            {"id": n, "image_id": image["id"], "category_id": (7, 3)[image["id"] % 2]}  # type: ignore[operator]
            for n, image in enumerate(images)
        ]
        categories = [{"id": 7, "name": "seven", "supercategory": "Aves"}, {"id": 3, "name": "three"}]
        tree = {"images": images, "annotations": annotations[::-1], "categories": categories, **changes}
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{split}2018.json").write_text(json.dumps(tree))
        for image in images:
            layouts.picture(root / str(image["file_name"]))
    return root


@pytest.mark.parametrize("base", Places205.folders)
def test_places205(tmp_path: Path, base: str) -> None:
    data = Places205(places(tmp_path, base=base))
    assert data.splits() == ("train", "val")
    start = f"{base}/" if base else ""
    assert [(s.id, s.label) for s in data.samples("train")] == [
        (f"{start}a/abbey/1.jpg", 0), (f"{start}b/bar/2.jpg", 1), (f"{start}a/abbey/3.jpg", 0),
    ]  # fmt: skip
    assert [s.label for s in data.samples("val")] == [1, 0]
    assert data.classes == ("a/abbey", "b/bar")
    assert all(s.image is not None and s.image.is_file() for s in data.samples("all"))
    assert "3 of Places205's 2,448,873 pictures in the split train" in data.notes


def test_inat18_labels_follow_the_order_of_the_category_numbers(tmp_path: Path) -> None:
    data = INat18(inat(tmp_path))
    assert [(s.id, s.label) for s in data.samples("train")] == [
        (f"train_val2018/Aves/{n % 2}/{n}.jpg", (1, 0)[n % 2]) for n in range(4)
    ]
    assert [s.label for s in data.samples("val")] == [1, 0]
    assert data.classes == ("three", "seven")
    assert "2 of 8,142 classes" in verify("inat18", tmp_path, progress=False).problems


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a/abbey/1.jpg", "line 3: expected a path, a space and a class"),
        ("a/abbey/1.jpg x", "line 3: expected a path, a space and a class"),
        ("c/cafe/1.jpg 1", "line 3: the class 1 is c/cafe here and b/bar before"),
        ("c/cafe/1.jpg 5", "no picture of the classes 2"),
        ("../../1.jpg 0", "leads outside"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    root = places(tmp_path)
    path = root / "trainvalsplit_places205" / "train_places205.csv"
    path.write_text("\n".join([*PLACES["train"][:2], line]))
    with pytest.raises(UserError, match=message):
        Places205(root).samples("train")


def test_what_is_listed_twice_is_refused(tmp_path: Path) -> None:
    """It would be trained on, or tested, twice; and of two classes the last would count."""
    root = places(tmp_path / "places", {**PLACES, "val": [*PLACES["val"], "./b//bar/4.jpg 1"]})
    assert len(Places205(root).samples("train")) == 3
    with pytest.raises(UserError, match=r"val_places205\.csv lists b/bar/4\.jpg more than once"):
        Places205(root).samples("val")
    path = inat(tmp_path / "inat") / "train2018.json"
    tree = json.loads(path.read_text())
    tree["annotations"].append({"id": 9, "image_id": 2, "category_id": 3})
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"several annotations of the pictures with the ids 2, and each is"):
        INat18(path.parent).samples("train")


def test_what_is_missing_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fill in the form"):
        Places205(tmp_path / "absent")
    layouts.picture(tmp_path / "other" / "x.jpg")
    with pytest.raises(UserError, match=r"it should hold the lists train2018\.json and val2018\.json"):
        INat18(tmp_path / "other")
    root = inat(tmp_path / "inat")
    (root / "train_val2018").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"are not there, first .*train_val2018/Aves/0/0\.jpg"):
        INat18(root).samples("train")
    broken = inat(tmp_path / "broken", annotations=[])
    with pytest.raises(UserError, match=r"train2018\.json is not a list of iNaturalist 2018"):
        INat18(broken).samples("train")
