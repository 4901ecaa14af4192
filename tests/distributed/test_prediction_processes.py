"""BYOL and SimSiam on 2 and 4 gloo processes against one: losses, gradients, and the averages they leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmvicreg.branches.norm import synchronise_batchnorm
from mmvicreg.branches.target import follow, move, moving_copy
from mmvicreg.objectives import BYOL, SimSiam
from mmvicreg.objectives.prediction import PredictionMethod

WIDTH = 6
METHODS: dict[str, tuple[type[PredictionMethod], dict[str, Any]]] = {
    "byol": (BYOL, {"predictor": [8], "regularise": "variance+covariance", "covariance": 0.5}),
    "byol without predictor": (BYOL, {"predictor": None}),
    "simsiam": (SimSiam, {"predictor": [8]}),
    "simsiam, variance": (SimSiam, {"predictor": [8], "regularise": "variance"}),
    "simsiam without BN": (SimSiam, {"predictor": [8], "predictor_norm": "none"}),
    "vicreg with predictor": (
        SimSiam,
        {"predictor": [8], "stop_gradient": False, "distance": "mse", "regularise": "variance+covariance"},
    ),
}
SIZES: dict[str, dict[int, tuple[int, ...]]] = {
    "equal": {2: (6, 6), 4: (3, 3, 3, 3)},
    "unequal": {2: (11, 1), 4: (4, 1, 0, 7)},
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
STEPS = 3


class Siamese(nn.Module):
    """One branch for both views, its average, and the objective, in one DDP forward as in training."""

    def __init__(self, objective: PredictionMethod) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, WIDTH))
        self.objective = objective
        self.target = moving_copy(self.branch) if objective.target_momentum is not None else None

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        views = self.branch(x), self.branch(y)
        if self.target is None:
            output = self.objective(*views)
        else:
            targets = follow(self.target, self.branch, x), follow(self.target, self.branch, y)
            output = self.objective(*views, targets=targets)
        return output.loss, dict(output.terms)


def train(method: str, dtype: torch.dtype, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Three steps of SGD on this process's rows, under DDP where there are several."""
    torch.manual_seed(1)
    kind, options = METHODS[method]
    model = Siamese(kind(width=WIDTH, **options)).to(dtype)
    rank = dist.get_rank() if len(sizes) > 1 else 0
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    network: nn.Module = model
    if len(sizes) > 1:
        synchronise_batchnorm(model, device_type="cpu")
        network = DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    torch.manual_seed(2)
    steps = []
    for _ in range(STEPS):
        x, y = (torch.randn(12, 7, dtype=torch.float64).to(dtype) for _ in range(2))
        loss, terms = network(x[own], y[own])
        optimizer.zero_grad()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        steps.append({"loss": loss.detach(), "terms": terms, "gradients": gradients})
        optimizer.step()
        if model.target is not None:
            move(model.target, model.branch, momentum=0.9)
    return {"steps": steps, "state": {name: value.clone() for name, value in model.state_dict().items()}}


def every_case(processes: int) -> dict[str, Any]:
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
    tolerance = TOLERANCE[dtype]
    whole = train(method, dtype, (12,))
    parts = [result[f"{method}, {kind}, {dtype}"] for result in results]
    for part in parts:
        for ours, one in zip(part["steps"], whole["steps"], strict=True):
            torch.testing.assert_close(ours["loss"], one["loss"], rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(ours["terms"], one["terms"], rtol=tolerance, atol=tolerance)
            assert ours["gradients"].keys() == one["gradients"].keys()
            norm = torch.stack([gradient.norm() for gradient in one["gradients"].values()]).norm()
            for name, gradient in one["gradients"].items():
                # What is zero by definition (a bias before BatchNorm) is measured by the whole.
                error = (ours["gradients"][name] - gradient).norm() / torch.maximum(
                    gradient.norm(), norm / 10
                )
                assert error < tolerance, f"{name}: {float(error)}"
        assert part["state"].keys() == whole["state"].keys()
        for name, value in whole["state"].items():
            torch.testing.assert_close(part["state"][name], value, rtol=tolerance, atol=tolerance)
            assert torch.equal(part["state"][name], parts[0]["state"][name]), name


def test_the_average_is_no_part_of_what_is_trained(results: list[dict[str, Any]]) -> None:
    for result in results:
        case = result[f"byol, equal, {torch.float64}"]
        assert not any(name.startswith("target") for name in case["steps"][0]["gradients"])
        assert any(name.startswith("objective.predictors") for name in case["steps"][0]["gradients"])
        moved = case["state"]["target.0.weight"] - case["state"]["branch.0.weight"]
        assert float(moved.abs().max()) > 0
