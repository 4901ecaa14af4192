"""``bench lars`` steps the published tensors, and both implementations to the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mmvicreg.bench.lars import (
    AUTHORS,
    OPTIONS,
    OURS,
    RATE,
    AuthorsLARS,
    Settings,
    bench_lars,
    published_tensors,
)
from mmvicreg.cli import app
from mmvicreg.errors import UserError


def test_the_tensors_are_those_of_the_published_model() -> None:
    """ResNet-50 without its classifier has 23 508 032 parameters."""
    sizes = [w.numel() for w in published_tensors(8, "cpu")]
    backbone = 23_508_032
    assert sum(sizes) == backbone + (2048 * 8 + 8) + 2 * 8 + (8 * 8 + 8) + 2 * 8 + 8 * 8
    full = backbone + (2048 * 8192 + 8192) + 2 * 8192 + (8192 * 8192 + 8192) + 2 * 8192 + 8192 * 8192
    assert round(full / 1e6) == 175


def test_the_authors_loop_is_the_definition() -> None:
    """w - lr m, m = 0.9 m + eta |w| / |g'| g', g' = g + 1e-6 w; biases plainly; in float64, by hand."""
    weights = [torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)]
    loop = AuthorsLARS(weights)
    decayed = 2.0 + 1e-6 * 4.0
    length = ((1e-6 * 3.0) ** 2 + decayed**2) ** 0.5
    loop.step([torch.tensor([[0.0, 2.0]], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)])
    expected = 4.0 - RATE * OPTIONS["eta"] * 5.0 / length * decayed
    assert weights[0][0, 1].item() == pytest.approx(expected, rel=1e-14)
    assert weights[1].item() == pytest.approx(2.0 - RATE * 0.5)
    loop.step([torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    assert weights[1].item() == pytest.approx(2.0 - RATE * 0.5 * 1.9)


def test_both_give_the_same_bits_and_ours_takes_no_memory() -> None:
    theirs, ours = bench_lars(Settings(width=64, repeats=2, device="cpu"))
    assert (theirs.name, ours.name) == (AUTHORS, OURS)
    assert ours.difference == 0.0
    assert ours.parameters == theirs.parameters > 23_508_032
    largest = 4 * 512 * 512 * 3 * 3
    assert theirs.memory >= 2 * largest, "bytes: the decayed gradient, and the adapted one"
    assert ours.memory < 0.1 * largest
    assert theirs.ratio == 1.0
    assert min(ours.seconds, ours.ratio) > 0


def test_the_command_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    asked = ["bench", "lars", "--width", "8", "--repeats", "1", "--device", "cpu", "--json", str(file)]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    assert "largest difference" in found.output
    assert [row["implementation"] for row in json.loads(file.read_text())] == [AUTHORS, OURS]
    with pytest.raises(UserError, match="one repeat"):
        Settings(repeats=0)
