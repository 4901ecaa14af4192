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

from mmvicreg.encode import Encoded
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
    """A run on 30 test pictures in batches of 8, and what one process made of it."""
    folder = tmp_path_factory.mktemp("alone")
    settings = ("evaluation.batch_size=8", "branches.text.encoder.bidirectional=true")
    untrained_run(folder / "run", tiny_recipe("image-text", tiny_shapes, *settings))
    judge(folder, "one", ("-m", "mmvicreg"))
    return folder


def judge(folder: Path, name: str, launcher: tuple[str, ...], *more: str) -> dict[str, bytes]:
    """The report, the ranking and the vectors, as one way of starting writes them."""
    cpu = ("--device", "cpu", *more)
    ranking, vectors = folder / f"{name}.json", folder / f"{name}.npz"
    mmvicreg(*launcher, "eval", "retrieval", str(folder / "run"), "--export", str(ranking), *cpu)
    mmvicreg(*launcher, "embed", str(folder / "run"), "--out", str(vectors), *cpu)
    report = folder / "run" / "eval" / "retrieval-test.json"
    written = {file.name.replace(name, ""): file.read_bytes() for file in (report, ranking, vectors)}
    report.rename(folder / f"report-{name}.json")
    return written


def mmvicreg(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Recall in percent" not in done.stdout or done.stdout.count("Recall in percent") == 1


@pytest.mark.parametrize(
    ("name", "launcher", "more"),
    [("two", ("-m", "mmvicreg"), ("--devices", "2")), ("three", TORCHRUN, ())],
    ids=["--devices 2", "torchrun, 3 processes"],
)
def test_every_number_of_processes_writes_the_same_bytes(
    alone: Path, name: str, launcher: tuple[str, ...], more: tuple[str, ...]
) -> None:
    written = judge(alone, name, launcher, *more)
    assert written["retrieval-test.json"] == (alone / "report-one.json").read_bytes()
    assert written[".json"] == (alone / "one.json").read_bytes()
    one, several = np.load(alone / "one.npz"), np.load(alone / f"{name}.npz")
    assert set(one) == set(several)
    for key in one:
        np.testing.assert_array_equal(one[key], several[key])
    assert len(one["text/ids"]) == 150


def test_a_mistake_is_one_message_from_several_processes(alone: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmvicreg", "eval", "retrieval", str(alone / "run")]
    mistake = ["--devices", "2", "--device", "cpu", "--space", "representation"]
    done = subprocess.run([*command, *mistake], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "representations of 512 and 24 dimensions" in done.stderr
    assert "Traceback" not in done.stderr
