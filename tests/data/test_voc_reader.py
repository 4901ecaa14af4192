"""VOC 2007's classification lists: read as they come, and what is wrong with them named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from voc_layout import write_voc

from mmvicreg.data.voc import Voc07
from mmvicreg.errors import UserError


@pytest.mark.parametrize("below", ["", "VOC2007", "VOCdevkit/VOC2007"])
def test_lists_and_pictures_wherever_the_archive_was_unpacked(tmp_path: Path, below: str) -> None:
    targets = write_voc(tmp_path / below)
    data = Voc07(tmp_path)
    assert data.splits() == ("trainval", "test")
    for split, shown in targets.items():
        samples = data.samples(split)
        np.testing.assert_array_equal(data.targets(split), shown)
        assert all(sample.image is not None and sample.image.is_file() for sample in samples)
    assert samples[0].id == "005001"
    assert "30 of PASCAL VOC 2007's 5,011" in data.notes[0]
    assert data.classes == ()  # no picture has one class


def test_one_archive_is_one_split(tmp_path: Path) -> None:
    write_voc(tmp_path)
    for path in (tmp_path / "ImageSets" / "Main").glob("*_test.txt"):
        path.unlink()
    data = Voc07(tmp_path)
    assert data.splits() == ("trainval",)
    with pytest.raises(
        UserError, match=r"no split 'test'.* It is in VOCtest_06-Nov-2007\.tar, .*: unpack that"
    ):
        data.targets("test")
    with pytest.raises(UserError, match=r"a\+b is a union\.$"):
        data.samples("tset")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("cat_trainval.txt", "000001 -1\n", "cat_trainval.txt lists other pictures than"),
        ("cat_trainval.txt", "000001 2\n", "line 1: expected a picture and -1, 0 or 1, got '000001 2'"),
        ("cat_trainval.txt", "", "is empty"),
        ("cat_trainval.txt", None, "cat_trainval.txt: No such file or directory. Get VOCtrainval"),
        ("cat_trainval.txt", "000001 é\n", "get it again. Get VOCtrainval"),
        ("aeroplane_trainval.txt", "000001 1\n000001 1\n", "lists 000001 twice"),
        ("aeroplane_trainval.txt", "../../x 1\n", "leads outside"),
        ("../../JPEGImages/000003.jpg", None, "1 of 30 pictures"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    write_voc(tmp_path)
    path = tmp_path / "ImageSets" / "Main" / file
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        Voc07(tmp_path).samples("trainval")


def test_lists_of_one_length_that_differ_are_told_apart(tmp_path: Path) -> None:
    write_voc(tmp_path)
    path = tmp_path / "ImageSets" / "Main" / "cat_trainval.txt"
    path.write_text(path.read_text().replace("000007 ", "000107 "))
    with pytest.raises(UserError, match=r"\(30 and 30, first 000107 and 000007\)"):
        Voc07(tmp_path).samples("trainval")


def test_another_folder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write_voc(tmp_path / "here")
    shutil.rmtree(tmp_path / "here" / "ImageSets")
    with pytest.raises(
        UserError, match=r"ImageSets/Main/aeroplane_trainval\.txt.*VOCtrainval_06-Nov-2007\.tar"
    ):
        Voc07(tmp_path / "here")
