"""``mmvicreg eval`` end to end: run folders on disk, the real readers and encoders, files and statuses."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from eval_stubs import recipe
from picture_runs import write_pictures
from PIL import Image
from tiny import tiny_recipe, untrained_run

from mmvicreg.cli import main
from mmvicreg.config import Recipe
from mmvicreg.data.manifest import Manifest
from mmvicreg.errors import UserError
from mmvicreg.eval import output
from mmvicreg.eval import probe as arithmetic

FOLDS, CLASSES, CLIPS, RATE = 5, 3, 4, 4000


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty short clips of three noisy pitches in ESC-50's layout."""
    root = tmp_path_factory.mktemp("esc50")
    (root / "meta").mkdir()
    (root / "audio").mkdir()
    rng = np.random.default_rng(0)
    time = np.arange(RATE // 4) / RATE
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        for fold in range(1, FOLDS + 1):
            for target, category in enumerate(("dog", "rain", "wind")):
                for clip in range(CLIPS):
                    name = f"{fold}-{target}{clip}-A-{target}.wav"
                    wave = 0.3 * np.sin(2 * np.pi * 200 * 3**target * time + rng.uniform(0, 6))
                    wave += 0.02 * rng.standard_normal(len(time))
                    soundfile.write(root / "audio" / name, wave, RATE)
                    table.writerow([name, fold, target, category, "True", f"{fold}{target}{clip}", "A"])
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty plain pictures with three or seven captions each, as a manifest with train and test."""
    root = tmp_path_factory.mktemp("pictures")
    colours = ("red", "green", "blue", "grey", "white")
    with (root / "manifest.jsonl").open("w") as file:
        for i in range(20):
            colour = colours[i % 5]
            Image.new("RGB", (24, 20), (12 * i, 255 - 12 * i, 50 * (i % 5))).save(root / f"{i}.png")
            captions = [f"a {colour} field, number {i}, seen {j} times" for j in range(7 if i % 2 else 3)]
            split = "test" if i >= 10 else "train"
            file.write(
                json.dumps({"image": f"{i}.png", "captions": captions, "split": split, "id": str(i)}) + "\n"
            )
    return root


def _sound_recipe(root: Path, fold: int | str) -> Recipe:
    small: dict[str, Any] = {
        "inputs__audio": {"sample_rate": RATE, "seconds": 0.25},
        "dataset__root": str(root),
        "training__epochs": 2,
    }
    small["branches__wave__encoder"] = {"name": "resnet18_1d", "widths": [4, 4, 8, 12], "stem_stride": 2}
    small["branches__mel__frontend"] = {
        **{"name": "log_mel", "sample_rate": RATE, "n_fft": 128, "win_length": 128, "hop_length": 32},
        "n_mels": 24,
    }
    for branch in ("wave", "mel"):
        small[f"branches__{branch}__expander"] = {"widths": [16, 16]}
    return recipe("wave-mel", "tones", dataset__name="esc50", dataset__fold=fold, **small)


def _picture_recipe(root: Path) -> Recipe:
    return recipe(
        "image-text",
        "shapes",
        dataset__name="manifest",
        dataset__root=str(root),
        inputs__image={"size": 32},
        inputs__text={"tokenizer": "words", "min_count": 1},
        branches__image__expander={"widths": [16, 16]},
        branches__text__expander={"widths": [16, 16]},
    )


def _mmvicreg(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mmvicreg", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_retrieval_judges_the_newest_run_of_two_branches(
    tmp_path: Path,
    pictures: Path,
    sounds: Path,
    tiny_shapes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = untrained_run(tmp_path / "runs" / "old", _picture_recipe(pictures))
    new = untrained_run(tmp_path / "runs" / "new", _picture_recipe(pictures))
    sound = untrained_run(tmp_path / "runs" / "sound", _sound_recipe(sounds, 1))
    views = untrained_run(tmp_path / "runs" / "views", tiny_recipe("image-image", tiny_shapes))
    for time, run in enumerate((old, sound, new, views)):
        for file in run.checkpoints.iterdir():
            os.utime(file, (1 + time, 1 + time))
    monkeypatch.chdir(tmp_path)
    assert _mmvicreg(monkeypatch, "eval", "retrieval") == 0
    printed = capsys.readouterr().out
    assert "newest run: runs/new" in printed
    report = json.loads((new.path / "eval" / "retrieval-test.json").read_text())
    assert report["image_to_text"]["queries"] == report["text_to_image"]["gallery"] == 10
    assert report["image_to_text"]["gallery"] == report["text_to_image"]["queries"] == 5 * 3 + 5 * 5
    assert report["epoch"] == 2
    assert report["captions_per_image"] == "3 to 5 of each, the first 5 at most"

    assert _mmvicreg(monkeypatch, *report["command"].split()[1:]) == 0
    assert json.loads((new.path / "eval" / "retrieval-test.json").read_text()) == report

    for file in sound.checkpoints.iterdir():
        os.utime(file, (9, 9))
    assert _mmvicreg(monkeypatch, "eval", "retrieval") == 0
    assert "newest run: runs/sound" in capsys.readouterr().out
    assert (sound.path / "eval" / "retrieval-fold1.json").is_file()


def test_linear_judges_the_fold_that_the_newest_run_held_out(
    tmp_path: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = untrained_run(tmp_path / "runs" / "sound", _sound_recipe(sounds, 2))
    assert _mmvicreg(monkeypatch, "eval", "linear", "--runs", tmp_path / "runs") == 0
    assert f"newest run: {run.path}" in capsys.readouterr().out
    report = json.loads((run.path / "eval" / "linear.json").read_text())
    assert (list(report["folds"]), report["train"], report["test"]) == (["2"], 48, 12)
    assert {name: branch["width"] for name, branch in report["branches"].items()} == {
        "wave": 12,
        "mel": 512,
        "wave+mel": 524,
    }
    # the "trained" weights of this run are its initial ones: both probes must agree to the bit
    for branch in report["branches"].values():
        assert branch["top1"] == branch["untrained_top1"]
    assert report["top1"] > report["chance"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, and so is what is asked for")
def test_linear_on_sounds_works_on_the_device_that_is_asked_for(
    tmp_path: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = untrained_run(tmp_path / "sound", _sound_recipe(sounds, 2))
    assert _mmvicreg(monkeypatch, "eval", "linear", run.path, "--device", "cuda") == 2
    assert "no usable GPU" in capsys.readouterr().err
    assert not (run.path / "eval").exists()


def test_linear_takes_the_runs_by_fold_together(
    tmp_path: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arithmetic, "GRID", (1e-2,))
    folder = tmp_path / "runs" / "all"
    for fold in range(1, FOLDS + 1):
        untrained_run(folder / f"fold{fold}", _sound_recipe(sounds, fold))
    assert _mmvicreg(monkeypatch, "eval", "linear", "--runs", tmp_path / "runs") == 0
    assert f"one of the runs by fold in {folder}" in re.sub(r"\s+", " ", capsys.readouterr().out)
    report = json.loads((folder / "eval" / "linear.json").read_text())
    assert list(report["folds"]) == ["1", "2", "3", "4", "5"]
    assert report["epoch"] == [2] * 5
    assert all((folder / f"fold{fold}" / "eval" / "linear.json").is_file() for fold in range(1, FOLDS + 1))


def test_retrieval_works_on_sounds_too(tmp_path: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = untrained_run(tmp_path / "sound", _sound_recipe(sounds, 3))
    assert _mmvicreg(monkeypatch, "eval", "retrieval", run.path) == 0
    report = json.loads((run.path / "eval" / "retrieval-fold3.json").read_text())
    assert report["wave_to_mel"]["queries"] == report["mel_to_wave"]["gallery"] == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("retrieval", "--protocol", "5K"), "unknown protocol '5K'; did you mean '5k'"),
        (("retrieval", "--protocol", "5k"), "has 10; use --protocol all"),
        (("retrieval", "--split", "tets"), "no split 'tets'; did you mean 'test'"),
        (("retrieval", "--dataset", "flicker8k"), "unknown data set 'flicker8k'; did you mean 'flickr8k'"),
        (("linear",), "has no labels"),
        (("retrieval", "--data-root", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_one_message_and_status_2(
    tmp_path: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    run = untrained_run(tmp_path / "run", _picture_recipe(pictures))
    verb, *rest = words
    assert _mmvicreg(monkeypatch, "eval", verb, run.path, *rest) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert "Traceback" not in told
    assert not (run.path / "eval").exists()


def test_pictures_without_captions_are_named_and_may_be_left_out(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = untrained_run(tmp_path / "run", _picture_recipe(pictures))
    flat = write_pictures(tmp_path / "flat", train=3, val=2)
    words = ("--dataset", "image-folder", "--data-root", flat, "--split", "val")
    assert _mmvicreg(monkeypatch, "eval", "retrieval", run.path, *words) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert (
        f"samples of the split 'val' of image-folder at {flat} have no caption to be found by, first 'val/"
        in told
    )
    assert "choose another data set" in told

    samples = list(Manifest(pictures).samples("test"))
    samples[3] = replace(samples[3], captions=())
    read = Manifest.samples
    monkeypatch.setattr(
        Manifest, "samples", lambda self, split: samples if split == "test" else read(self, split)
    )
    assert _mmvicreg(monkeypatch, "eval", "retrieval", run.path) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"1 of 10 samples of the split 'test' of manifest at {pictures} have no caption" in told
    assert f"first '{samples[3].id}'; give them captions, or leave them out with --on-bad-sample skip" in told
    assert not (run.path / "eval").exists()
    assert _mmvicreg(monkeypatch, "eval", "retrieval", run.path, "--on-bad-sample", "skip") == 0
    report = json.loads((run.path / "eval" / "retrieval-test.json").read_text())
    assert (report["samples"], report["skipped"]) == (9, 1)
    (line,) = (run.path / "eval" / "skipped-manifest-test.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == samples[3].id
    assert json.loads(line)["reason"] == "it has no caption"


@pytest.mark.parametrize("verb", ["retrieval", "linear"])
def test_figures_are_shown_before_they_are_written_and_a_place_is_asked_for_before_that(
    tmp_path: Path,
    sounds: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    run = untrained_run(tmp_path / "run", _sound_recipe(sounds, 1))

    def full(path: Path, _: object) -> None:
        raise UserError(f"cannot write {path}: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(output, "write_report", full)
        assert _mmvicreg(patch, "eval", verb, run.path) == 2
    told = capsys.readouterr()
    assert "no space left" in told.err
    assert "chance" in told.out
    assert "Written" not in told.out
    (run.path / "eval").write_text("a file where the folder should be")
    assert _mmvicreg(monkeypatch, "eval", verb, run.path) == 2
    told = capsys.readouterr()
    assert f"cannot write {run.path / 'eval'}" in told.err
    assert "chance" not in told.out


@pytest.mark.parametrize(("verb", "what"), [("retrieval", "two branches"), ("linear", "the pair wave-mel")])
def test_no_fitting_run_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    what: str,
) -> None:
    assert _mmvicreg(monkeypatch, "eval", verb, "--runs", tmp_path) == 2
    said = capsys.readouterr().err
    assert f"no run of {what}" in said
    assert f" under {tmp_path}" in said
