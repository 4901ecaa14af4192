"""A long run holds no more memory than a short one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import as_flags

from mmvicreg.training.log import read_lines


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pair", ["image-text", "wave-mel"])
def test_memory_does_not_grow_over_a_thousand_steps(
    pair: str, precision: str, tiny_shapes: Path, tiny_tones: Path, tmp_path: Path
) -> None:
    root, out = tiny_shapes if pair == "image-text" else tiny_tones, tmp_path / "run"
    settings = (
        "training.epochs=280",  # of four steps or more
        "training.log_every=10",
        f"training.precision={precision}",
        "monitor.grace_steps=10000",
    )
    flags = as_flags(pair, root, *settings)
    done = subprocess.run(
        [sys.executable, "-m", "mmvicreg", "train", *flags, "--device", "cpu", "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    memory = {line["step"]: line["memory_mb"] for line in read_lines(out / "metrics.jsonl")}
    assert max(memory) >= 1100
    early = max(mb for step, mb in memory.items() if 50 <= step <= 100)
    late = max(mb for step, mb in memory.items() if step > 1000)
    # a leak of a twentieth of a megabyte a step would show
    assert late < early + 50
