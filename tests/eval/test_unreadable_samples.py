"""Protocols of classes on data that cannot all be read: refused by name, or judged as if it had never been there."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from picture_runs import mmvicreg, picture_run, write_pictures
from tiny import tiny_recipe, untrained_run

from mmvicreg.errors import UserError
from mmvicreg.eval import finetune, knn, linear, linear_image, supervised
from mmvicreg.eval import probe as arithmetic
from mmvicreg.runs import Run
from mmvicreg.skipped import read_skipped

NO_CACHE = "inputs.audio.cache=false"


def truncate(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:60])
    return path.name


@pytest.fixture
def damaged(tiny_tones: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """The tiny tones with two truncated clips, one in the first fold and one in the third, and their names."""
    root = tmp_path / "tones"
    shutil.copytree(tiny_tones, root)
    clips = sorted((root / "audio").glob("*.wav"))
    return root, [
        truncate(next(clip for clip in clips if clip.name.startswith(fold))) for fold in ("1-", "3-")
    ]


def leave_out(root: Path, names: list[str], to: Path) -> Path:
    """The same data set without these clips, nor their rows."""
    shutil.copytree(root, to)
    table = to / "meta" / "esc50.csv"
    head, *lines = table.read_text().splitlines(keepends=True)
    rows = [line for line in lines if next(csv.reader([line]))[0] not in names]
    assert len(lines) - len(rows) == len(names)
    table.write_text("".join([head, *rows]))
    for name in names:
        (to / "audio" / name).unlink()
    return to


@pytest.mark.parametrize("cache", [NO_CACHE, "inputs.audio.cache=true"])
def test_a_probe_does_without_recordings_that_cannot_be_read(
    damaged: tuple[Path, list[str]],
    tiny_tones: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cache: str,
) -> None:
    root, names = damaged
    monkeypatch.setattr(arithmetic, "GRID", (1.0,))
    # the run is of the whole data, which was damaged since
    run = untrained_run(tmp_path / "run", tiny_recipe("wave-mel", tiny_tones, cache))
    way_out = ".*--on-bad-sample skip" if cache == NO_CACHE else ""
    with pytest.raises(UserError, match=f"({'|'.join(names)}){way_out}"):
        linear.run(run, data_root=root)
    assert not (run.path / "eval").exists()
    words = ("eval", "linear", run.path, "--data-root", root, "--on-bad-sample", "skip")
    assert mmvicreg(monkeypatch, *words) == 0
    assert "2 samples could not be read and are in neither training nor test" in capsys.readouterr().out
    report = json.loads((run.path / "eval" / "linear.json").read_text())
    assert (report["train"], report["test"], report["skipped"]) == (63, 15, 2)
    listed = run.path / "eval" / "skipped-tones-linear.jsonl"
    assert report["skipped_list"] == str(listed)
    assert sorted(Path(one.file).name for one in read_skipped(listed)) == sorted(names)
    assert report["command"].endswith("--on-bad-sample skip")
    rest = leave_out(root, names, tmp_path / "rest")
    never = untrained_run(tmp_path / "never", tiny_recipe("wave-mel", rest, cache))  # the same weights
    assert linear.run(never)["branches"] == report["branches"]
    whole = linear.run(run, data_root=tiny_tones)
    assert (whole["skipped"], listed.exists()) == (0, False)  # that result is without none


def test_the_supervised_baseline_does_without_them_too(
    damaged: tuple[Path, list[str]], tiny_tones: Path, tmp_path: Path
) -> None:
    root, names = damaged
    recipe = tiny_recipe("wave-mel", tiny_tones, NO_CACHE, "training.epochs=1", "training.batch_size=32")
    run = untrained_run(tmp_path / "run", recipe)
    with pytest.raises(UserError, match=names[1]):
        supervised.run(run, data_root=root)
    report = supervised.run(run, data_root=root, on_bad_sample="skip")
    assert (report["train"], report["test"], report["skipped"]) == (63, 15, 2)
    assert len(read_skipped(run.path / "eval" / "skipped-tones-supervised.jsonl")) == 2


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Run, Path]:
    """A run over 3 classes of 4 and 3 pictures, of which one for training and one to be tested on are truncated."""
    root = write_pictures(tmp_path / "data", train=4, val=3)
    made = picture_run(tmp_path / "run", root)
    truncate(root / "train" / "c01" / "train1-2.png")
    truncate(root / "val" / "c02" / "val2-0.png")
    return made, root


def test_protocols_of_pictures_do_without_them(
    pictures: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, root = pictures
    rest = tmp_path / "rest"
    shutil.copytree(root, rest)
    (rest / "train" / "c01" / "train1-2.png").unlink()
    (rest / "val" / "c02" / "val2-0.png").unlink()
    same = ("train", "test", "top1")
    with pytest.raises(UserError, match=r"train1-2\.png"):
        knn.run(run, k=(3,), device="cpu", baseline=False)
    near = [
        knn.run(run, k=(3,), device="cpu", baseline=False, **where)
        for where in ({"on_bad_sample": "skip"}, {"data_root": rest})
    ]
    assert near[0]["k"] == near[1]["k"]
    assert "--on-bad-sample skip" in near[0]["command"]
    assert [(one["train"], one["test"], one["skipped"]) for one in near] == [(11, 8, 2), (11, 8, 0)]
    for judge, protocol in ((linear_image.run, "linear"), (finetune.run, "finetune")):
        options = {"epochs": 1, "batch_size": 4, "workers": 0, "device": "cpu", "baseline": False}
        options |= {"labels": "100%"} if protocol == "finetune" else {}
        found = [judge(run, **options, **where) for where in ({"on_bad_sample": "skip"}, {"data_root": rest})]
        assert [found[0][key] for key in same] == [found[1][key] for key in same]
        listed = read_skipped(run.path / "eval" / f"skipped-image-folder-{protocol}.jsonl")
        assert [Path(one.file).name for one in listed] == ["train1-2.png", "val2-0.png"]


@pytest.mark.slow
def test_two_processes_leave_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them meets a picture that the other does not."""
    monkeypatch.setattr("mmvicreg.training.processes.check_devices", lambda *_: None)  # one core will do
    root = write_pictures(tmp_path / "data", train=4, val=3)
    run = picture_run(tmp_path / "run", root, "evaluation.batch_size=8")
    for name in ("train/c00/train0-1.png", "val/c02/val2-2.png"):
        truncate(root / name)
    alone, both = (
        knn.run(run, k=(3,), device="cpu", baseline=False, on_bad_sample="skip", devices=devices)
        for devices in (1, 2)
    )
    assert both == alone
    assert (alone["train"], alone["test"], alone["skipped"]) == (11, 8, 2)
    assert len(read_skipped(Path(alone["skipped_list"]))) == 2


def test_a_split_of_which_nothing_is_left_is_refused(pictures: tuple[Run, Path]) -> None:
    run, root = pictures
    for picture in (root / "val").rglob("*.png"):
        truncate(picture)
    with pytest.raises(UserError, match=r"no sample of the split 'val' of image-folder at .* can be read"):
        knn.run(run, k=(3,), device="cpu", baseline=False, on_bad_sample="skip")


def test_one_class_that_is_left_is_refused(pictures: tuple[Run, Path]) -> None:
    run, root = pictures
    for label in (0, 2):
        for picture in (root / "train" / f"c{label:02d}").iterdir():
            truncate(picture)
    options: dict[str, Any] = {"device": "cpu", "baseline": False, "on_bad_sample": "skip"}
    of_one = (
        r"all 3 samples of the training split 'train' of image-folder at .* are of one class, 'c01'.*mend the others, "
        r"the first: cannot decode the picture .*train0-0\.png"
    )
    for judge, more in (
        (knn.run, {"k": (3,)}),
        (linear_image.run, {"epochs": 1, "batch_size": 3, "workers": 0}),
        (linear_image.run, {"quick": True}),
        (finetune.run, {"labels": "100%", "epochs": 1, "batch_size": 3, "workers": 0}),
    ):
        with pytest.raises(UserError, match=of_one):
            judge(run, **more, **options)


def test_a_wrong_word_is_refused(
    pictures: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for protocol in ("linear", "knn", "finetune", "supervised"):
        words = ("eval", protocol, pictures[0].path, "--on-bad-sample", "skipp")
        assert mmvicreg(monkeypatch, *words) == 2
        assert "did you mean 'skip'" in " ".join(capsys.readouterr().err.split())
