"""Table 8's variants, and methods that keep something between steps, on 2 and 4 processes against one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from test_objectives import SIZES, TOLERANCE, Towers, batch, check
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmvicreg.objectives import WMSE, Objective, SwAV, VICReg
from mmvicreg.training.loop import NO_BUFFER_SYNC

METHODS: dict[str, tuple[int, Callable[[int], Objective]]] = {
    "vicreg, standardise, few samples": (24, lambda width: VICReg(normalise="standardise")),
    "vicreg, standardise, many samples": (5, lambda width: VICReg(normalise="standardise")),
    "vicreg, l2, few samples": (24, lambda width: VICReg(normalise="l2")),
    "vicreg, l2, many samples": (5, lambda width: VICReg(normalise="l2")),
    "w-mse": (4, lambda width: WMSE(distance="euclidean")),
    "w-mse, sub-batches": (2, lambda width: WMSE(sub_batch=6, partitions=2)),
    "swav": (8, lambda width: SwAV(width=width, prototypes=7)),
    "swav, queue": (8, lambda width: SwAV(width=width, prototypes=7, queue=20)),
    "swav, frozen": (8, lambda width: SwAV(width=width, prototypes=7, freeze_steps=5)),
}
STEPS = 3


def train(method: str, dtype: torch.dtype, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Three steps of the objective on batches in another order each, and the last one's gradients."""
    width, build = METHODS[method]
    torch.manual_seed(3)
    model: nn.Module = Towers(build(width), width).to(dtype)
    own = slice(0, None)
    if len(sizes) > 1:
        start = sum(sizes[: dist.get_rank()])
        own = slice(start, start + sizes[dist.get_rank()])
        model = DistributedDataParallel(model, **NO_BUFFER_SYNC)
    for step in range(STEPS):
        x, y = (rows.roll(step, 0) for rows in batch(dtype))
        model.zero_grad()
        loss, terms = model(x[own], y[own], 1.0)
        loss.backward()
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    return {
        "loss": loss.detach(),
        "terms": terms,
        "gradients": {name: p.grad for name, p in plain.named_parameters()},
        "buffers": {name: value.clone() for name, value in plain.named_buffers()},
    }


def every_case(processes: int) -> dict[str, Any]:
    """Every case in one start of the processes, which is what takes the time."""
    return {
        f"{method}, {kind}, {dtype}": train(method, dtype, sizes[processes])
        for method in METHODS
        for kind, sizes in SIZES.items()
        for dtype in TOLERANCE
    }


@pytest.fixture(scope="module", params=[2, 4])
def results(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_processes(request.param, every_case, request.param)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_processes_agree_with_one(
    method: str, kind: str, dtype: torch.dtype, results: list[dict[str, Any]]
) -> None:
    whole = train(method, dtype, (12,))
    parts = [result[f"{method}, {kind}, {dtype}"] for result in results]
    check(parts, whole, TOLERANCE[dtype])
    for part in parts:
        assert part["buffers"].keys() == whole["buffers"].keys()
        for name, value in whole["buffers"].items():
            assert torch.equal(part["buffers"][name], parts[0]["buffers"][name])  # bit for bit the same
            torch.testing.assert_close(part["buffers"][name], value)
