"""Recordings in splits: which one is judged on, another asked for, and the baseline beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import tiny_recipe, untrained_run

from mmvicreg.cli import main
from mmvicreg.runs import Run

Judge = Callable[..., tuple[int, str]]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Judge:
    """``mmvicreg eval``: its status, and what it says."""

    def call(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["mmvicreg", "eval", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    return call


def run_on(tmp_path: Path, *splits: str, classes: tuple[str, ...] = ("dog", "rain")) -> Run:
    """A run on a folder of recordings with these splits, as training leaves it."""
    rng = np.random.default_rng(0)
    for split in splits:
        for label in classes:
            folder = tmp_path / "clips" / split / label
            folder.mkdir(parents=True)
            for clip in range(8):
                soundfile.write(folder / f"{clip}.wav", 0.1 * rng.standard_normal(2000), 4000)
    changes = ("dataset.name=audio-folder", "training.epochs=1", "training.batch_size=8")
    return untrained_run(tmp_path / "run", tiny_recipe("wave-mel", tmp_path / "clips", *changes))


def test_another_split_has_files_of_its_own_and_its_own_baseline(tmp_path: Path, judge: Judge) -> None:
    run = run_on(tmp_path, "train", "validation", "test")
    assert judge("supervised", run.path, "--split", "validation")[0] == 0
    assert judge("linear", run.path, "--split", "validation")[0] == 0
    assert judge("linear", run.path, "--split", "test")[0] == 0  # the usual one
    assert judge("linear", run.path, "--split", "train")[0] == 2  # what it is trained on
    assert {file.name for file in (run.path / "eval").glob("*.json")} == {
        "supervised-validation.json", "linear-validation.json", "linear.json"
    }  # fmt: skip
    other, usual = (
        json.loads((run.path / "eval" / f"{name}.json").read_text())
        for name in ("linear-validation", "linear")
    )
    assert (list(other["folds"]), list(usual["folds"])) == (["validation"], ["test"])
    assert other["command"].endswith("--split validation")
    assert [[m["method"] for m in report["methods"]] for report in (other, usual)] == [
        ["vicreg", "untrained", "supervised"],
        ["vicreg", "untrained"],
    ]
    status, said = judge("linear", run.path, "--split", "tets")
    assert (status, "no split 'tets'; did you mean 'test'?" in said) == (2, True)


def test_one_class_alone_is_refused_before_training(tmp_path: Path, judge: Judge) -> None:
    run = run_on(tmp_path, "train", "test", classes=("dog",))
    for protocol in ("supervised", "linear"):
        status, said = judge(protocol, run.path)
        assert (status, "of at least two classes" in said) == (2, True), said
    assert not (run.path / "eval").exists()


def test_validation_is_judged_on_where_there_is_no_test(tmp_path: Path, judge: Judge) -> None:
    run = run_on(tmp_path, "train", "validation")
    status, said = judge("linear", run.path)
    assert status == 0, said
    assert list(json.loads((run.path / "eval" / "linear.json").read_text())["folds"]) == ["validation"]
