"""``bench input`` compares like with like: our views have the statistics of the authors' pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from typer.testing import CliRunner

from mmvicreg.bench.input import (
    AUTHORS,
    MEAN,
    STD,
    Settings,
    authors_views,
    bench_input,
    our_pipeline,
    rows,
    table,
    write_photographs,
)
from mmvicreg.cli import app
from mmvicreg.errors import UserError

SMALL = Settings(pictures=4, width=120, height=90, size=40, repeats=2, device="cpu")
ROUNDS = 100


def measures(x: Tensor) -> np.ndarray:
    """Brightness, contrast, colourfulness, sharpness and slant of ``(n, 3, h, w)`` in 0..1, ``(n, 5)``."""
    chroma = x.amax(1) - x.amin(1)
    slope = (x[..., 1:] - x[..., :-1]).abs()
    found = [x.mean((1, 2, 3)), x.std((1, 2, 3)), chroma.mean((1, 2)), slope.mean((1, 2, 3))]
    halves = x[..., : x.shape[-1] // 2].mean((1, 2, 3)) - x[..., x.shape[-1] // 2 :].mean((1, 2, 3))
    return torch.stack([*found, halves], 1).numpy()


@pytest.mark.parametrize("view", [0, 1])
def test_views_have_the_statistics_of_the_authors_pipeline(tmp_path: Path, view: int) -> None:
    """Two-sample Kolmogorov-Smirnov tests of five measures, 400 views each, at the level 0.001."""
    files = write_photographs(tmp_path, SMALL)
    transform = authors_views(SMALL.size)[view]
    pictures = [Image.open(file).convert("RGB") for file in files]
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    theirs = torch.stack([transform(picture, rng) for _ in range(ROUNDS) for picture in pictures])
    theirs = theirs * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    theirs = (255 * theirs).round() / 255  # PIL's whole values again, so that grey is grey
    run = our_pipeline(files, SMALL.size, worker_augmentation="official")
    ours = torch.cat([run(seed)[view]["pixels"] for seed in range(ROUNDS)]).float() / 255
    assert ours.shape == theirs.shape
    for one, other in zip(measures(ours).T, measures(theirs).T, strict=True):
        assert ks_2samp(one, other).pvalue > 1e-3


def test_a_small_run_has_a_row_for_every_pipeline() -> None:
    found = bench_input(SMALL)
    assert found[0].pipeline == AUTHORS
    assert found[0].ratio == 1
    assert all(one.per_second > 0 for one in found)
    assert [one.device_ms is None for one in found] == [True, False, True]
    assert [row["ratio"] for row in rows(found, SMALL)] == [one.ratio for one in found]
    assert table(found, SMALL).row_count == 3


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(UserError, match="one picture"):
        Settings(pictures=0)


@pytest.mark.parametrize("pair", ["image-image", "wave-mel"])
def test_the_command_measures_and_writes_json(pair: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(
        app,
        [
            "bench",
            "input",
            "--pair",
            pair,
            "--files",
            "2",
            "--repeats",
            "1",
            "--json",
            str(tmp_path / "rows.json"),
        ],
    )
    assert found.exit_code == 0, found.output
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert rows
    assert all(row["ratio"] > 0 for row in rows)


def test_a_pair_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="image-imag"):
        CliRunner().invoke(app, ["bench", "input", "--pair", "image-imag"], catch_exceptions=False)
