"""Judged by one process, by two, by three: the same report, ranking and vectors, whatever does not divide."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_processes
from tiny import tiny_recipe, untrained_run

from mmvicreg.embed import embed
from mmvicreg.encode import Encoded
from mmvicreg.eval import retrieval
from mmvicreg.eval.ranking import best_candidates, count_ranks
from mmvicreg.training.distributed import World, exchange_rows, shares

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "mmvicreg")


def ranks(n: int, m: int) -> list[torch.Tensor]:
    """Counts and best candidates of a gallery full of ties, by the processes that are there."""
    rng = np.random.default_rng(n)
    images = rng.integers(-1, 2, (n, 3)).astype(np.float32)
    captions = rng.integers(-1, 2, (m, 3)).astype(np.float32)
    x = Encoded(images, np.arange(n))
    y = Encoded(captions, np.sort(np.concatenate([np.arange(n), rng.integers(0, n, m - n)])))
    world = this_world()
    (forth, _), (back, _) = count_ranks(world, x, y, similarity="dot", search="exact")
    best = best_candidates(world, x, y, 4, similarity="dot")
    parts = [forth.better, forth.tied, forth.own, back.better, back.tied, back.own, *best]
    return [torch.from_numpy(part) for part in parts]


def filled(n: int) -> torch.Tensor:
    """Rows of which each process makes its own share."""
    world = this_world()
    bounds = shares(n, world.size, unit=3)
    x = torch.full((n, 2), -1.0)
    for row in range(bounds[world.rank], bounds[world.rank + 1]):
        x[row] = torch.tensor([row, world.rank])
    exchange_rows(x, bounds, world.device)
    return x


def this_world() -> World:
    """This process among those of a test, or alone."""
    there = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if there else 0
    size = torch.distributed.get_world_size() if there else 1
    return World(rank, size, rank, torch.device("cpu"))


@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_are_those_of_one_process(processes: int) -> None:
    alone = [ranks(7, 19), ranks(2, 2)]  # with three processes, some have none of the two
    for results in run_processes(processes, both):
        for found, expected in zip(results[0], alone, strict=True):
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a, b)
        assert torch.equal(results[1][:, 0], torch.arange(10.0))
        assert set(results[1][:, 1].tolist()) == set(range(processes))


def both() -> Any:
    """What the test above compares, in one start of processes."""
    return [ranks(7, 19), ranks(2, 2)], filled(10)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_shapes: Path) -> Path:
    """A run on 30 test pictures in batches of 8, and what this process alone makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    made = untrained_run(folder / "run", tiny_recipe("image-text", tiny_shapes, "evaluation.batch_size=8"))
    retrieval.run(made, export=folder / "one.json", device="cpu")
    embed(made, folder / "one.npz", device="cpu")
    (folder / "run" / "eval" / "retrieval-test.json").rename(folder / "report.json")
    return folder


@pytest.mark.parametrize(
    ("launcher", "more"),
    [(("-m", "mmvicreg"), ("--devices", "2")), (TORCHRUN, ())],
    ids=["--devices 2", "torchrun, 3 processes"],
)
def test_every_number_of_processes_writes_the_same_report_and_ranking(
    alone: Path, tmp_path: Path, launcher: tuple[str, ...], more: tuple[str, ...]
) -> None:
    ranking = tmp_path / "ranking.json"
    printed = start(
        *launcher, "eval", "retrieval", str(alone / "run"), "--export", str(ranking), "--device", "cpu", *more
    )
    assert printed.count("Recall in percent") == 1
    assert (alone / "run" / "eval" / "retrieval-test.json").read_bytes() == (
        alone / "report.json"
    ).read_bytes()
    assert ranking.read_bytes() == (alone / "one.json").read_bytes()


def test_two_processes_write_the_same_vectors(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.npz"
    start(
        "-m", "mmvicreg", "embed", str(alone / "run"), "--out", str(out), "--device", "cpu", "--devices", "2"
    )
    one, two = np.load(alone / "one.npz"), np.load(out)
    assert set(one) == set(two)
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])
    assert len(one["text/ids"]) == 150


def start(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
