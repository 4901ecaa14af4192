"""Micro-batches on several processes against one process with the whole batch in memory."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from tiny import as_flags
from torch import nn
from toy import assert_close, gradients, piecewise, toy_batch, toy_model, toy_recipe

from mmvicreg.branches.norm import synchronise_batchnorm
from mmvicreg.errors import UserError
from mmvicreg.registry import OBJECTIVES
from mmvicreg.training.distributed import average_gradients, share_state
from mmvicreg.training.log import read_lines
from mmvicreg.training.microbatch import cut, differentiate

METHODS = sorted(OBJECTIVES.builtin)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SIZES: dict[str, dict[int, tuple[int, ...]]] = {
    "equal": {2: (6, 6), 4: (3, 3, 3, 3)},
    "unequal": {2: (11, 1), 4: (4, 1, 2, 5)},
}
MICRO_BATCHES = (1, 4, 50)
"""One by one; in sizes that do not divide, and in numbers that differ between processes; all at once."""
BATCHNORM = {
    "wave": {"freeze": "none", "expander": {"widths": [12, 6]}},
    "last": {"expander": {"widths": [9, 6]}},
    "mean": {"expander": {"widths": [8, 6]}},
}
TEMPERATURE = {"name": "simclr", "candidates": "infonce", "learn_temperature": True}
PREDICTOR = {"method": "byol", "objective": {"name": "byol", "predictor": [16]}}
"""Its BatchNorm is the objective's: over the whole batch, whatever the micro-batches."""


def rows_of(sizes: tuple[int, ...]) -> slice:
    start = sum(sizes[: dist.get_rank()])
    return slice(start, start + sizes[dist.get_rank()])


def step(
    recipe: dict[str, Any], dtype: torch.dtype, sizes: tuple[int, ...], micro_batch: int
) -> dict[str, Any]:
    model = toy_model(toy_recipe(**recipe), dtype)
    synchronise_batchnorm(model, device_type="cpu")  # a predictor's; the branches' is frozen
    output = differentiate(model, toy_batch(12).rows(rows_of(sizes)), micro_batch)
    return {"loss": output.loss, "gradients": gradients(model)}


def steps(processes: int) -> dict[str, Any]:
    """Every case in one start of the processes, which is what takes the time."""
    results: dict[str, Any] = {}
    for kind, sizes in SIZES.items():
        for dtype in TOLERANCE:
            for method in METHODS:
                results[f"{method}, {kind}, {dtype}"] = step({"method": method}, dtype, sizes[processes], 4)
        for micro_batch in MICRO_BATCHES:
            results[f"learned, {kind}, {micro_batch}"] = step(
                {"objective": TEMPERATURE}, torch.float64, sizes[processes], micro_batch
            )
        results[f"predictor, {kind}"] = step(PREDICTOR, torch.float64, sizes[processes], 4)
    results["batchnorm"] = _batchnorm(processes)
    results["refused"] = _refused()
    results["several steps"] = _several_steps(SIZES["unequal"][processes])
    results["collectives"] = _collectives()
    return results


def _batchnorm(processes: int) -> dict[str, Any]:
    """Synchronised layers: a micro-step is that of all processes' micro-batches together."""
    model = toy_model(toy_recipe(branches=BATCHNORM))
    synchronise_batchnorm(model, device_type="cpu")
    sizes = SIZES["equal"][processes]
    differentiate(model, toy_batch(12).rows(rows_of(sizes)), 2)
    return {"gradients": gradients(model), "buffers": dict(model.named_buffers())}


def _refused() -> str:
    model = toy_model(toy_recipe(branches=BATCHNORM))
    synchronise_batchnorm(model, device_type="cpu")
    sizes = (9, *(1 for _ in range(dist.get_world_size() - 1)))
    try:
        differentiate(model, toy_batch(12).rows(rows_of(sizes)), 2)
    except UserError as error:
        return str(error)
    return "nothing raised"


def _several_steps(sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    model = toy_model(toy_recipe())
    if dist.get_rank():  # as if this machine had drawn other weights
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1
    share_state(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for seed in range(3):
        optimizer.zero_grad()
        differentiate(model, toy_batch(12, seed).rows(rows_of(sizes)), 4)
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}


def _collectives() -> dict[str, Any]:
    """Averaging where parameters differ in dtype, in layout, and in who has a gradient."""
    rank = dist.get_rank()
    model = nn.ParameterDict(
        {
            "wide": nn.Parameter(torch.zeros(3, 2, 4, 4).to(memory_format=torch.channels_last)),
            "single": nn.Parameter(torch.zeros((), dtype=torch.float64)),
            "first only": nn.Parameter(torch.zeros(5)),
            "nobody": nn.Parameter(torch.zeros(2)),
            "frozen": nn.Parameter(torch.zeros(2), requires_grad=False),
        }
    )
    pattern = torch.arange(96.0).view(3, 2, 4, 4)
    model["wide"].grad = (pattern * (rank + 1)).to(memory_format=torch.channels_last)
    model["single"].grad = torch.tensor(float(rank), dtype=torch.float64)
    if rank == 0:
        model["first only"].grad = torch.ones(5)
    average_gradients(model)
    return {name: p.grad for name, p in model.items()}


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def results(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_processes(request.param, steps, request.param)


def check(results: list[dict[str, Any]], key: str, recipe: dict[str, Any], dtype: torch.dtype) -> None:
    model = toy_model(toy_recipe(**recipe), dtype)
    whole = model(toy_batch(12))
    whole.loss.backward()
    for result in results:
        assert_close(result[key]["gradients"], gradients(model), TOLERANCE[dtype])
        torch.testing.assert_close(
            result[key]["loss"], whole.loss.detach(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )
        for name, gradient in result[key]["gradients"].items():  # to the bit, or the weights would part
            assert torch.equal(gradient, results[0][key]["gradients"][name]), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_processes_agree_with_the_whole_batch_on_one(
    method: str, kind: str, dtype: torch.dtype, results: list[dict[str, Any]]
) -> None:
    check(results, f"{method}, {kind}, {dtype}", {"method": method}, dtype)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("micro_batch", MICRO_BATCHES)
def test_any_size_and_the_objectives_own_parameters(
    kind: str, micro_batch: int, results: list[dict[str, Any]]
) -> None:
    check(results, f"learned, {kind}, {micro_batch}", {"objective": TEMPERATURE}, torch.float64)


@pytest.mark.parametrize("kind", SIZES)
def test_batchnorm_of_a_predictor_sees_the_whole_batch(kind: str, results: list[dict[str, Any]]) -> None:
    check(results, f"predictor, {kind}", PREDICTOR, torch.float64)


def test_synchronised_batchnorm_sees_the_micro_batches_of_all(results: list[dict[str, Any]]) -> None:
    sizes = SIZES["equal"][len(results)]
    reference = toy_model(toy_recipe(branches=BATCHNORM))
    pieces = cut(reference.branches, sizes, sizes[0], 2)
    # The samples in the order in which the micro-steps meet them, which the objective does not mind.
    order: list[int] = []
    together: list[slice] = []
    for piece in pieces:
        start = len(order)
        for process in range(len(sizes)):
            first = process * sizes[0]
            order += range(first + piece.start, first + piece.stop)
        together.append(slice(start, len(order)))
    piecewise(reference, toy_batch(12).rows(torch.tensor(order)), together)
    for result in results:
        assert_close(result["batchnorm"]["gradients"], gradients(reference), 1e-9)
        for name, value in reference.named_buffers():
            torch.testing.assert_close(result["batchnorm"]["buffers"][name], value, rtol=1e-9, atol=1e-9)


def test_a_process_that_cannot_take_part_is_refused_on_all(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert "9 samples needs 5 micro-batches of 2, and one with 1 cannot" in result["refused"]


def test_all_processes_start_and_stay_with_the_same_weights(results: list[dict[str, Any]]) -> None:
    model = toy_model(toy_recipe())
    start = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for seed in range(3):
        optimizer.zero_grad()
        model(toy_batch(12, seed)).loss.backward()
        optimizer.step()
    for result in results:
        for name, value in model.named_parameters():
            found = result["several steps"][name]
            assert torch.equal(found, results[0]["several steps"][name])
            torch.testing.assert_close(found - start[name], value.detach() - start[name], rtol=0, atol=1e-10)


def test_gradients_are_averaged_whatever_holds_them(results: list[dict[str, Any]]) -> None:
    n = len(results)
    for result in results:
        found = result["collectives"]
        torch.testing.assert_close(found["wide"], torch.arange(96.0).view(3, 2, 4, 4) * (n + 1) / 2)
        assert found["single"] == (n - 1) / 2
        torch.testing.assert_close(found["first only"], torch.full((5,), 1 / n))
        assert found["nobody"] is None
        assert found["frozen"] is None


def train(root: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    flags = as_flags(
        "image-text",
        root,
        "training.epochs=1",
        "training.precision=fp64",
        "branches.image.freeze=batchnorm",
        "branches.image.expander.norm=none",
        "branches.text.expander.norm=none",
    )
    command = [sys.executable, "-m", "mmvicreg", "train", *flags, "--device", "cpu", "--workers", "1"]
    done = subprocess.run([*command, "--out", str(out), *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "BatchNorm" not in done.stderr  # there is none that a micro-batch could change
    return read_lines(out / "metrics.jsonl")


def test_the_command_trains_the_whole_batch_in_micro_batches(tiny_shapes: Path, tmp_path: Path) -> None:
    whole = train(tiny_shapes, tmp_path / "whole")
    parts = train(tiny_shapes, tmp_path / "parts", "--micro-batch", "5")
    spread = train(tiny_shapes, tmp_path / "spread", "--micro-batch", "3", "--devices", "2")
    assert len(whole) == 5
    assert whole[0]["loss"] != pytest.approx(whole[-1]["loss"], rel=1e-2)
    for lines in (parts, spread):
        for expected, found in zip(whole, lines, strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-7)
            for node, figures in expected["branches"].items():
                assert found["branches"][node] == pytest.approx(figures, rel=1e-4, abs=1e-6)
