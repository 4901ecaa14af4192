"""A run that was killed, or asked to stop, ends in the same bits as one that was not."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import as_flags

from mmvicreg.training.checkpoint import list_checkpoints, load_checkpoint
from mmvicreg.training.log import read_lines

SETTINGS = ("training.epochs=12", "training.batch_size=16", "branches.text.encoder.dropout=0.2")


def command(root: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "mmvicreg", "train", *as_flags("image-text", root, *SETTINGS),
        "--device", "cpu", "--out", str(out), *more,
    ]  # fmt: skip


def run_until(step: int, out: Path, arguments: list[str], how: signal.Signals) -> int:
    """Start a run, signal it once it has passed ``step``, and return its exit status."""
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 120
        while not any(line["step"] >= step for line in read_lines(out / "metrics.jsonl")):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(how)
        status = process.wait(60)
        last = max(line["step"] for line in read_lines(out / "metrics.jsonl"))
        assert last < 12 * 5, "the run ended before the signal"
        return status


def last_state(out: Path) -> dict[str, object]:
    return load_checkpoint(list_checkpoints(out / "checkpoints")[-1])


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def uninterrupted(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(command(tiny_shapes, out), check=True, capture_output=True)
    return out


@pytest.mark.parametrize(
    ("how", "workers"), [(signal.SIGKILL, "2"), (signal.SIGTERM, "0"), (signal.SIGINT, "1")]
)
def test_resumed_equals_uninterrupted(
    tiny_shapes: Path, uninterrupted: Path, tmp_path: Path, how: signal.Signals, workers: str
) -> None:
    out = tmp_path / "run"
    status = run_until(23, out, command(tiny_shapes, out), how)  # epochs are 5 steps: in the middle of one
    assert status == (-signal.SIGKILL if how == signal.SIGKILL else 128 + how)
    position = last_state(out)["position"]
    assert isinstance(position, dict)
    assert position["step"] < 12 * 5
    if how != signal.SIGKILL:
        assert position["step"] >= 23
    subprocess.run(
        [
            sys.executable,
            "-m",
            "mmvicreg",
            "train",
            "--resume",
            "--out",
            str(out),
            "--device",
            "cpu",
            "--workers",
            workers,
        ],
        check=True,
        capture_output=True,
    )
    whole, resumed = last_state(uninterrupted), last_state(out)
    for part in ("model", "optimizer", "inputs", "monitor"):
        assert same(whole[part], resumed[part]), part
    steps = [line["step"] for line in read_lines(out / "metrics.jsonl")]
    assert steps == list(range(1, 12 * 5 + 1))
    drop = ("seconds", "samples_per_second", "memory_mb")
    for a, b in zip(
        read_lines(uninterrupted / "metrics.jsonl"), read_lines(out / "metrics.jsonl"), strict=True
    ):
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}


def test_two_processes_stop_together_and_resume(tiny_shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert (
        run_until(8, out, command(tiny_shapes, out, "--devices", "2"), signal.SIGTERM) == 128 + signal.SIGTERM
    )
    before = last_state(out)["position"]["step"]  # type: ignore[index]
    assert before >= 8
    done = subprocess.run(
        command(tiny_shapes, out, "--devices", "2", "--resume"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert last_state(out)["position"]["step"] == 12 * 5  # type: ignore[index]


def test_a_run_of_another_recipe_is_not_resumed(tiny_shapes: Path, uninterrupted: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*")}
    done = subprocess.run(
        command(tiny_shapes, uninterrupted, "--resume", "--set", "optimizer.lr=0.5"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.search(r"optimizer\.lr: \S+ -> 0\.5", done.stderr)
    assert "Traceback" not in done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*")}


def test_a_finished_run_is_left_as_it_is(tiny_shapes: Path, uninterrupted: Path) -> None:
    before = last_state(uninterrupted)
    done = subprocess.run(
        command(tiny_shapes, uninterrupted, "--resume"), check=True, capture_output=True, text=True
    )
    assert "has finished its 12 epochs; nothing is left to train" in done.stderr
    assert same(before, last_state(uninterrupted))


def test_a_half_written_line_of_metrics_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + "\n" + '{"step": 3, "lo')
    assert [line["step"] for line in read_lines(path)] == [1, 2]
