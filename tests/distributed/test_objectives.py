"""Objectives on 2 and 4 gloo processes against one process on the whole batch: losses and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmvicreg.errors import UserError
from mmvicreg.objectives import VSE, BarlowTwins, NonFiniteError, Objective, SimCLR, VICReg, gather

METHODS: dict[str, Callable[[], Objective]] = {
    "vicreg": VICReg,
    "vicreg official": lambda: VICReg(convention="official", variance=(25.0, 10.0), covariance=(1.0, 2.0)),
    "barlow twins": BarlowTwins,
    "vse++": VSE,
    "vse0": lambda: VSE(negatives="all", reduction="mean"),
    "simclr": SimCLR,
    "infonce": lambda: SimCLR(candidates="infonce", learn_temperature=True),
}
WIDTHS = {"few samples": 24, "many samples": 5}
"""12 samples: the Gram form at 24 dimensions, the covariance form at 5."""
SIZES: dict[str, dict[int, tuple[int, ...]]] = {
    "equal": {2: (6, 6), 4: (3, 3, 3, 3)},
    "unequal": {2: (11, 1), 4: (4, 1, 0, 7)},
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


class Towers(nn.Module):
    """Two branches of different input and the objective, in one DDP forward as in training."""

    def __init__(self, objective: Objective, width: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, width))
        self.b = nn.Linear(4, width)
        self.objective = objective

    def forward(self, x: Tensor, y: Tensor, stretch: float) -> tuple[Tensor, dict[str, Tensor]]:
        a = self.a(x)
        scale = torch.ones(a.shape[1], dtype=a.dtype)
        scale[0] = stretch
        output = self.objective(a * scale, self.b(y))
        return output.loss, dict(output.terms)


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(12, 7, dtype=torch.float64).to(dtype), torch.randn(12, 4, dtype=torch.float64).to(
        dtype
    )


def step(
    method: str, width: int, dtype: torch.dtype, sizes: tuple[int, ...], stretch: float = 1.0
) -> dict[str, Any]:
    """One forward and backward on this process's rows, under DDP where there are several."""
    model: nn.Module = Towers(METHODS[method](), width).to(dtype)
    own = slice(0, None)
    if len(sizes) > 1:
        start = sum(sizes[: dist.get_rank()])
        own = slice(start, start + sizes[dist.get_rank()])
        model = DistributedDataParallel(model)
    x, y = batch(dtype)
    loss, terms = model(x[own], y[own], stretch)
    loss.backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {"loss": loss.detach(), "terms": terms, "gradients": gradients}


def steps(processes: int) -> dict[str, Any]:
    """Every case in one start of the processes, which is what takes the time."""
    results: dict[str, Any] = {}
    for method in METHODS:
        for kind, sizes in SIZES.items():
            for samples, width in WIDTHS.items():
                for dtype in TOLERANCE:
                    key = f"{method}, {kind}, {samples}, {dtype}"
                    results[key] = step(method, width, dtype, sizes[processes])
    for kind, sizes in SIZES.items():
        for width in (24, 40):  # both ways out of a cancelling Gram form
            key = f"stretched, {kind}, {width}"
            results[key] = step("vicreg", width, torch.float32, sizes[processes], 1e4)
    results["gather"] = {kind: _gather(sizes[processes]) for kind, sizes in SIZES.items()}
    results["one sample"] = _refused(torch.zeros(1 if dist.get_rank() == 0 else 0, 3))
    poisoned = torch.randn(3, 8)
    if dist.get_rank() == 1:
        poisoned[2, 4] = float("nan")
    results["not finite"] = _refused(poisoned)
    return results


def _gather(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Weighted sum of the gathered batch: its gradient is known, and the dtypes and shapes are kept."""
    rank = dist.get_rank()
    found: dict[str, Any] = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        whole = torch.arange(12 * 3 * 2).reshape(12, 3, 2).to(dtype)
        start = sum(sizes[:rank])
        x = whole[start : start + sizes[rank]].clone().requires_grad_()
        z = gather(x)
        (z * whole).sum().backward()
        assert x.grad is not None
        found[str(dtype)] = {
            "forward": z.dtype == dtype and torch.equal(z, whole),
            "backward": torch.equal(x.grad, whole[start : start + sizes[rank]] * len(sizes)),
        }
    return found


def _refused(z: Tensor) -> dict[str, Any]:
    try:
        VICReg()(z, torch.zeros_like(z))
    except NonFiniteError as error:
        return {"message": str(error), "rows": list(error.rows), "local_rows": list(error.local_rows)}
    except UserError as error:
        return {"message": str(error)}
    return {"message": "nothing raised"}


@pytest.fixture(scope="module", params=[2, 4])
def results(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_processes(request.param, steps, request.param)


def check(parts: list[dict[str, Any]], whole: dict[str, Any], tolerance: float) -> None:
    whole_norm = torch.stack([gradient.norm() for gradient in whole["gradients"].values()]).norm()
    for part in parts:
        assert part["terms"].keys() == whole["terms"].keys()
        for name, value in {"loss": whole["loss"], **whole["terms"]}.items():
            found = part["loss"] if name == "loss" else part["terms"][name]
            # The figure of cancellation is a ratio of what cancels, hence its own tolerance.
            bound = max(tolerance, 1e-3) if name.startswith("cancellation") else tolerance
            torch.testing.assert_close(
                found, value, rtol=bound, atol=bound, msg=lambda m, n=name: f"{n}: {m}"
            )
        assert torch.equal(part["loss"], parts[0]["loss"])
        assert part["gradients"].keys() == whole["gradients"].keys()
        for name, gradient in whole["gradients"].items():
            # One that is zero by definition (of a bias that is subtracted) is round-off, and measured as such.
            zero = gradient.norm() < 1e-5 * whole_norm
            floor = whole_norm / (10 if zero else 100)
            error = (part["gradients"][name] - gradient).norm() / torch.maximum(gradient.norm(), floor)
            assert error < tolerance, f"{name}: {float(error)}"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("samples", WIDTHS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_processes_agree_with_one(
    method: str, kind: str, samples: str, dtype: torch.dtype, results: list[dict[str, Any]]
) -> None:
    whole = step(method, WIDTHS[samples], dtype, (12,))
    check([result[f"{method}, {kind}, {samples}, {dtype}"] for result in results], whole, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("width", [24, 40])
def test_processes_agree_with_one_where_the_form_switches(
    kind: str, width: int, results: list[dict[str, Any]]
) -> None:
    whole = step("vicreg", width, torch.float32, (12,), 1e4)
    assert whole["terms"]["cancellation/a"] > 200
    check([result[f"stretched, {kind}, {width}"] for result in results], whole, 1e-5)


def test_gather_is_right_forward_and_backward(results: list[dict[str, Any]]) -> None:
    for result in results:
        for kind, by_dtype in result["gather"].items():
            for dtype, outcome in by_dtype.items():
                assert all(outcome.values()), f"{kind}, {dtype}: {outcome}"


def test_one_sample_over_all_processes_is_refused(results: list[dict[str, Any]]) -> None:
    assert all("at least 2 samples" in result["one sample"]["message"] for result in results)


def test_every_process_names_the_row_that_is_not_finite(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        found = result["not finite"]
        assert found["rows"] == [5]
        assert found["local_rows"] == ([2] if rank == 1 else [])
        assert "branch 'a'" in found["message"]
