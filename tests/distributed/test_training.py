"""Several processes follow one: the same losses step by step, whole runs, through the real command.

In float64, because Adam's first steps are all but the signs of the gradient: in float32 two orders of summation
(two processes, or one process with another number of threads) part visibly within 20 steps.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import as_flags

from mmvicreg.training.log import read_lines


def train(
    pair: str, root: Path, out: Path, *more: str, launcher: tuple[str, ...] = ("-m", "mmvicreg")
) -> list[float]:
    """The loss of every step of a run of 20 steps or more."""
    flags = as_flags(
        pair,
        root,
        "training.epochs=5",
        "training.batch_size=16",
        "monitor.grace_steps=1000",
        "training.precision=fp64",
    )
    done = subprocess.run(
        [
            sys.executable,
            *launcher,
            "train",
            *flags,
            "--device",
            "cpu",
            "--workers",
            "1",
            "--out",
            str(out),
            *more,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [line["loss"] for line in read_lines(out / "metrics.jsonl")]


@pytest.mark.parametrize("pair", ["image-text", "wave-mel", "image-image"])
def test_two_processes_follow_one(pair: str, tiny_shapes: Path, tiny_tones: Path, tmp_path: Path) -> None:
    root = tiny_tones if pair == "wave-mel" else tiny_shapes
    one = train(pair, root, tmp_path / "one")
    two = train(pair, root, tmp_path / "two", "--devices", "2")
    assert len(one) == len(two) >= 20
    assert one[0] != pytest.approx(one[-1], rel=1e-2)  # something was learned on the way
    for step, (a, b) in enumerate(zip(one[:20], two[:20], strict=True)):
        assert a == pytest.approx(b, rel=1e-7), f"step {step + 1}"


def test_torchrun_starts_the_same_run(tiny_tones: Path, tmp_path: Path) -> None:
    one = train("wave-mel", tiny_tones, tmp_path / "one")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mmvicreg")
    two = train("wave-mel", tiny_tones, tmp_path / "two", launcher=launcher)
    assert one[:20] == pytest.approx(two[:20], rel=1e-7)


def test_a_mistake_found_by_the_processes_is_one_message(tiny_shapes: Path, tmp_path: Path) -> None:
    flags = as_flags("image-text", tiny_shapes, "training.batch_size=500")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mmvicreg",
            "train",
            *flags,
            "--devices",
            "2",
            "--device",
            "cpu",
            "--out",
            str(tmp_path / "r"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},
    )
    assert done.returncode == 2
    assert "error: a batch of 500 is larger than the training data (80 samples of shapes)" in done.stderr
    assert "Traceback" not in done.stderr
