"""verify: the whole published set, every file of it readable, or a list of what is not."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import data_layouts as layouts
import numpy as np
import pytest
import soundfile
from file_server import Server, quiet
from PIL import Image
from typer.testing import CliRunner

from mmvicreg.cli.data import app
from mmvicreg.data.card import RemoteFile
from mmvicreg.data.coco import Coco
from mmvicreg.data.esc50 import Esc10, Esc50
from mmvicreg.data.verify import picture_fault, recording_fault, verify
from mmvicreg.errors import UserError
from mmvicreg.inputs.image import decode_image


@pytest.fixture
def small_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny layouts are whole data sets."""

    def counts(**layout: dict[str, int]) -> MappingProxyType[str, MappingProxyType[str, int]]:
        return MappingProxyType({name: MappingProxyType(split) for name, split in layout.items()})

    coco = replace(Coco.card, counts=counts(**{"2017": {"train": 3, "val": 3}}))
    monkeypatch.setattr(Coco, "card", coco)
    folds = {f"fold{fold}": 6 for fold in range(1, 6)}
    monkeypatch.setattr(Esc50, "card", replace(Esc50.card, counts=counts(esc50=folds)))
    monkeypatch.setattr(Esc50, "faults", lambda _: [])  # what else it is as published: test_esc_published.py


@pytest.mark.usefixtures("small_cards")
def test_whole_sets_pass(tmp_path: Path) -> None:
    for name, root in (("coco", layouts.coco(tmp_path / "c")), ("esc50", layouts.esc(tmp_path / "e"))):
        report = verify(name, root, progress=False)
        assert report.problems == ()
        report.check()
        assert all(split.published == split.listed == split.readable > 0 for split in report.splits)


def test_counts_are_held_against_the_published_set(tmp_path: Path) -> None:
    report = verify("coco", layouts.coco(tmp_path), progress=False)
    assert report.problems == (
        "3 of 118,287 pictures of the split train",
        "3 of 5,000 pictures of the split val",
    )
    with pytest.raises(UserError, match="not the whole of coco"):
        report.check()


def test_an_absent_split_counts_as_nothing(tmp_path: Path) -> None:
    report = verify(
        "flickr8k", layouts.karpathy(tmp_path, "flickr8k", splits=("train", "val")), progress=False
    )
    assert "0 of 1,000 pictures of the split test" in report.problems


@pytest.mark.usefixtures("small_cards")
def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    root = layouts.coco(tmp_path)
    cut = layouts.picture(root / "train2017" / "000000000002.jpg", side=64)
    cut.write_bytes(cut.read_bytes()[:-600])
    (root / "val2017" / "000000000004.jpg").write_text("not a picture")
    report = verify("coco", root, progress=False)
    assert len(report.problems) == 2
    assert re.search(r"cannot decode the picture .*000000000002\.jpg", report.problems[0])
    assert re.search(r"cannot decode the picture .*000000000004\.jpg", report.problems[1])
    assert [split.readable for split in report.splits] == [2, 2]


@pytest.mark.usefixtures("small_cards")
def test_a_whole_picture_that_training_refuses_is_a_problem(tmp_path: Path) -> None:
    """In training's own words."""
    root = layouts.coco(tmp_path)
    path = root / "train2017" / "000000000002.jpg"
    Image.fromarray(np.zeros((8, 8), dtype=np.int32)).save(path, format="TIFF")
    with pytest.raises(UserError, match="it has 32 bits a channel") as refused:
        decode_image(path)
    report = verify("coco", root, progress=False)
    assert report.problems == (str(refused.value),)
    assert [split.readable for split in report.splits] == [2, 3]


def test_warnings_are_heard_again_after_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two threads that decode at once, the last to end would put back the first one's filters."""
    both, opened, order = threading.Barrier(2, timeout=60), Image.open, itertools.count()

    def one_after_the_other(source: Path) -> Image.Image:
        late = next(order) % 2
        both.wait()
        time.sleep(0.3 * late)
        return opened(source)

    monkeypatch.setattr(Image, "open", one_after_the_other)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    root = layouts.coco(tmp_path, images=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        assert [split.readable for split in verify("coco", root, progress=False).splits] == [2, 2]
        assert warnings.filters == before


@pytest.mark.usefixtures("small_cards")
def test_a_missing_file_is_a_problem_among_others(tmp_path: Path) -> None:
    root = layouts.coco(tmp_path)
    (root / "train2017" / "000000000001.jpg").unlink()
    (root / "val2017" / "000000000005.jpg").write_bytes(b"")
    problems = "; ".join(verify("coco", root, progress=False).problems)
    assert problems.startswith("2 of 3 pictures of the split train; 1 of 3 pictures listed in")
    assert "000000000001.jpg" in problems
    assert "000000000005.jpg" in problems


def test_what_is_there_is_counted_and_read_where_a_picture_is_absent(tmp_path: Path) -> None:
    root = layouts.karpathy(tmp_path, "flickr8k", per_split=4)
    (root / "images" / "p1.jpg").unlink()  # p1, p4, p7 and p10 are train's
    (root / "images" / "p4.jpg").write_text("not a picture")
    report = verify("flickr8k", root, progress=False)
    assert "3 of 6,000 pictures of the split train" in report.problems
    assert any("1 of 4 pictures of the split 'train'" in problem for problem in report.problems)
    assert any("cannot decode the picture" in problem for problem in report.problems)
    train = next(row for row in report.splits if row.split == "train")
    assert (train.listed, train.readable, train.captions) == (3, 2, 18)


def test_a_split_whose_list_is_refused_is_not_counted(tmp_path: Path) -> None:
    """Its pictures may all be there."""
    root = layouts.karpathy(tmp_path, "flickr8k")
    path = root / "dataset_flickr8k.json"
    path.write_text(path.read_text().replace("sentence 3 of 1", " "))
    problems = verify("flickr8k", root, progress=False).problems
    assert any("caption 4 of 6 of the picture 'p1.jpg' is empty" in problem for problem in problems)
    assert not any("pictures of the split train" in problem for problem in problems)


@pytest.mark.usefixtures("small_cards")
def test_damaged_recordings_are_named(tmp_path: Path) -> None:
    root = layouts.esc(tmp_path)
    cut = root / "audio" / "3-3007-A-7.wav"
    cut.write_bytes(cut.read_bytes()[:-100])
    (root / "audio" / "4-4007-A-7.wav").write_text("RIFFnot a recording")
    report = verify("esc50", root, progress=False)
    assert len(report.problems) == 2
    assert "3-3007-A-7.wav is truncated: 344 of 444 bytes" in report.problems[0]
    assert "4-4007-A-7.wav is truncated" in report.problems[1]  # its words promise more than they hold


def test_many_damaged_files_are_counted(tmp_path: Path) -> None:
    root = layouts.coco(tmp_path, images=25)
    for path in (root / "train2017").iterdir():
        path.write_text("not a picture")
    problems = verify("coco", root, progress=False).problems
    assert sum("cannot decode the picture" in problem for problem in problems) == 20
    assert "and 5 more damaged files in the split train" in problems


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_every_cut_recording_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    clip = np.random.default_rng(0).integers(-9_000, 9_000, 40_000).astype(np.int16)
    soundfile.write(path, clip, 8_000)
    assert recording_fault(path) is None
    if suffix != "ogg":  # a cut Ogg stream is a shorter stream; nothing in it tells
        path.write_bytes(path.read_bytes()[:-20_000])
        assert recording_fault(path) is not None
    path.write_bytes(b"")
    assert recording_fault(path) is not None


def test_an_empty_recording_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, np.zeros(0, dtype=np.int16), 8_000)
    assert recording_fault(path) is not None


def test_a_missing_picture_is_a_fault(tmp_path: Path) -> None:
    assert picture_fault(tmp_path / "absent.jpg") is not None


@pytest.mark.usefixtures("small_cards")
def test_an_archive_that_still_lies_there_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RemoteFile(url="http://x.invalid/a.zip", path="a.zip", size=5, sha256="0" * 64)
    monkeypatch.setattr(Coco, "card", replace(Coco.card, files=(file,)))
    root = layouts.coco(tmp_path)
    assert verify("coco", root, progress=False).problems == ()
    (root / "a.zip").write_bytes(b"12345")
    (problem,) = verify("coco", root, progress=False).problems
    assert "wrong sha256: a.zip" in problem
    assert "0" * 64 in problem


@pytest.mark.usefixtures("small_cards")
def test_what_was_downloaded_is_held_against_the_checksums_of_its_archive(
    tmp_path: Path, server: Server
) -> None:
    """A recording that another one has taken the place of has its name, its form and its length."""
    layouts.esc(tmp_path / "build" / "ESC-50-master")
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "build")
    server.files["ESC-50-master.zip"] = Path(archive).read_bytes()
    root = tmp_path / "esc50"
    quiet(mirror=server.url).get(Esc50.card, root)
    report = verify("esc50", root, progress=False)
    assert (report.problems, report.compared) == ((), 31)
    shutil.copyfile(root / "audio" / "1-1000-A-0.wav", root / "audio" / "2-2000-B-0.wav")
    report = verify("esc50", root, progress=False)
    assert report.problems == ("not the bytes that the archive held (CRC-32): audio/2-2000-B-0.wav",)


@pytest.mark.usefixtures("small_cards")
def test_a_copy_from_elsewhere_has_no_checksums_and_that_is_said(tmp_path: Path) -> None:
    root = layouts.esc(tmp_path)
    assert verify("esc50", root, progress=False).compared == 0
    (root / ".downloaded").mkdir()  # as earlier versions wrote it down
    (root / ".downloaded" / "ESC-50-master.zip.json").write_text('{"unpacked": ["meta/esc50.csv"]}')
    said = CliRunner().invoke(app, ["verify", "esc50", "--data-root", str(root)]).output
    assert "esc50 is whole by names, counts and form" in said
    assert "no checksum stands behind it" in said


def test_a_manifest_has_no_counts(tmp_path: Path) -> None:
    picture = layouts.picture(tmp_path / "a.jpg")
    path = layouts.write_csv(tmp_path / "m.csv", [{"image": "a.jpg", "caption": "x"}])
    assert verify("manifest", path, progress=False).problems == ()
    picture.write_bytes(picture.read_bytes()[:-80])
    assert len(verify("manifest", path, progress=False).problems) == 1


def test_real_data(unpacked: Callable[[str], Path]) -> None:
    assert verify("esc10", unpacked("esc10"), progress=False).problems == ()
    assert Esc10.card.counts["esc10"]["fold1"] == 80
    (first, *rest) = verify("esc50", unpacked("esc10"), progress=False).problems
    assert first == "80 of 400 recordings of the split fold1"
    assert len(rest) == 4
    assert verify("coco", unpacked("coco-mini"), progress=False).problems == (
        "80 of 118,287 pictures of the split train",
        "79 of 5,000 pictures of the split val",
    )
