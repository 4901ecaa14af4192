"""The commands a user types, from data to figures, on tiny data; and on real files where there are any."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import IMAGE_TEXT, WAVE_MEL, as_flags

from mmvicreg.runs import open_run


def mmvicreg(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "mmvicreg", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sets(settings: tuple[str, ...]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def test_image_text_trains_and_is_judged(tiny_shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert mmvicreg("train", *as_flags("image-text", tiny_shapes), "--out", str(run)).strip() == str(run)
    table = mmvicreg("eval", "retrieval", str(run))
    assert "image to text" in table
    result = json.loads((run / "eval" / "retrieval-test.json").read_text())
    for direction, queries, gallery in (("image_to_text", 30, 150), ("text_to_image", 150, 30)):
        figures = result[direction]
        assert (figures["queries"], figures["gallery"]) == (queries, gallery)
        assert 0 <= figures["R@1"] <= figures["R@5"] <= figures["R@10"] <= 100
        assert figures["median_rank"] >= 1
    mmvicreg("eval", "retrieval", str(run), "--split", "val")
    assert (run / "eval" / "retrieval-val.json").is_file()
    for name in ("recipe.yaml", "metrics.jsonl", "checkpoints", "tensorboard"):
        assert (run / name).exists(), name


def test_wave_mel_trains_on_every_fold_and_is_judged(tiny_tones: Path, tmp_path: Path) -> None:
    runs = tmp_path / "folds"
    mmvicreg(
        "train", *as_flags("wave-mel", tiny_tones, "training.epochs=1"), "--fold", "all", "--out", str(runs)
    )
    assert sorted(p.name for p in runs.iterdir()) == [f"fold{k}" for k in range(1, 6)]
    mmvicreg("eval", "linear", str(runs))
    result = json.loads((runs / "eval" / "linear.json").read_text())
    assert result["transductive"] is False
    for branch in ("wave", "mel"):
        figures = result["branches"][branch]
        assert set(figures["folds"]) == {"1", "2", "3", "4", "5"}
        assert {"top1", "untrained_top1", "chance"} <= set(figures)
    assert {"top1", "untrained_top1", "chance"} <= set(result)


def test_the_monitor_stops_a_run_that_collapses(tiny_shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = as_flags(
        "image-text", tiny_shapes, "training.epochs=40", "monitor.patience=3",
        "optimizer.lr=0.003", "monitor.grace_steps=20",
        "branches.image.variance=0", "branches.text.variance=0",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "mmvicreg", "train", *flags, "--out", str(run)], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "variance (mu) 0: nothing keeps it from collapsing" in done.stderr  # before the first step
    assert "looks collapsed" in done.stderr
    assert "error: training stopped: branch " in done.stderr


def test_the_initial_weights_are_the_runs_own(tiny_tones: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    mmvicreg("train", *as_flags("wave-mel", tiny_tones), "--out", str(run))
    opened = open_run(run)
    trained, first, second = opened.model(), opened.model(untrained=True), opened.model(untrained=True)
    for (name, a), b, c in zip(
        trained.named_parameters(), first.parameters(), second.parameters(), strict=True
    ):
        assert torch.equal(b, c)
        assert not torch.equal(a, b), name


@pytest.mark.real
def test_coco_mini_trains_and_evaluates(unpacked: Callable[[str], Path], tmp_path: Path) -> None:
    root, run = unpacked("coco-mini"), tmp_path / "run"
    mmvicreg(
        "train", "--pair", "image-text", "--dataset", "coco", "--recipe", "coco-small", "--data-root", str(root),
        *sets(IMAGE_TEXT), "--set", "inputs.text.vocabulary=300", "--epochs", "1", "--batch-size", "40",
        "--out", str(run),
    )  # fmt: skip
    mmvicreg("eval", "retrieval", str(run))
    result = json.loads((run / "eval" / "retrieval-val.json").read_text())
    assert result["image_to_text"]["queries"] == 79
    assert result["text_to_image"]["queries"] == 395


@pytest.mark.real
def test_esc10_trains_as_esc50_and_is_judged(unpacked: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    mmvicreg(
        "train", "--pair", "wave-mel", "--dataset", "esc50", "--recipe", "esc10", "--data-root", str(unpacked("esc10")),
        *sets(WAVE_MEL), "--epochs", "1", "--batch-size", "80", "--out", str(run),
    )  # fmt: skip
    mmvicreg("eval", "linear", str(run))
    result = json.loads((run / "eval" / "linear.json").read_text())
    assert result["chance"] == pytest.approx(10)
    assert result["branches"]["mel"]["top1"] > 20


@pytest.mark.gpu
@pytest.mark.parametrize("pair", ["image-text", "wave-mel"])
def test_trains_on_a_gpu_in_bf16(pair: str, tiny_shapes: Path, tiny_tones: Path, tmp_path: Path) -> None:
    root = tiny_shapes if pair == "image-text" else tiny_tones
    run = tmp_path / "run"
    mmvicreg("train", *as_flags(pair, root, "training.precision=bf16"), "--device", "cuda", "--out", str(run))
    mmvicreg("eval", "retrieval" if pair == "image-text" else "linear", str(run))
