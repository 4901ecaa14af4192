"""GlobalBatchNorm on several processes against torch's BatchNorm on the whole batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor, nn

from mmvicreg.branches.norm import GlobalBatchNorm, synchronise_batchnorm
from mmvicreg.errors import UserError

CASES: dict[str, dict[str, Any]] = {
    "rows": {"shape": (12, 5), "sizes": {2: (6, 6), 4: (3, 3, 3, 3)}},
    "signals": {"shape": (8, 5, 7), "sizes": {2: (4, 4), 4: (2, 2, 2, 2)}},
    "pictures": {"shape": (8, 5, 4, 3), "sizes": {2: (4, 4), 4: (2, 2, 2, 2)}, "channels_last": True},
    "unequal": {"shape": (12, 5, 3), "sizes": {2: (11, 1), 4: (1, 5, 4, 2)}},
    "an empty process": {"shape": (12, 5), "sizes": {2: (12, 0), 4: (0, 5, 7, 0)}},
    "offset": {"shape": (12, 5), "sizes": {2: (5, 7), 4: (3, 3, 3, 3)}, "offset": 1e4},
    "cumulative": {"shape": (12, 5), "sizes": {2: (6, 6), 4: (3, 3, 3, 3)}, "momentum": None},
    "not affine": {"shape": (12, 5), "sizes": {2: (6, 6), 4: (3, 3, 3, 3)}, "affine": False},
    "untracked": {"shape": (12, 5), "sizes": {2: (6, 6), 4: (3, 3, 3, 3)}, "track_running_stats": False},
    "float32": {"shape": (16, 5, 4, 4), "sizes": {2: (8, 8), 4: (4, 4, 4, 4)}, "dtype": torch.float32},
}


def build(case: dict[str, Any]) -> nn.Module:
    torch.manual_seed(1)
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(case["shape"])]
    options = {key: case[key] for key in ("affine", "momentum", "track_running_stats") if key in case}
    layer = kind(case["shape"][1], **options).to(case.get("dtype", torch.float64))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def batches(case: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Two steps of (input, weights of the loss)."""
    torch.manual_seed(2)
    dtype = case.get("dtype", torch.float64)
    steps = []
    for _ in range(2):
        x = torch.randn(case["shape"], dtype=torch.float64) * 3 + case.get("offset", 0.5)
        steps.append((x.to(dtype), torch.randn(case["shape"], dtype=torch.float64).to(dtype)))
    return steps


def train(layer: nn.Module, case: dict[str, Any], sizes: tuple[int, ...], rank: int) -> dict[str, Any]:
    """Two training steps on this process's rows; then evaluation of the first batch."""
    start = sum(sizes[:rank])
    own = slice(start, start + sizes[rank])
    outputs, input_gradients = [], []
    for x, weights in batches(case):
        local = x[own]
        if case.get("channels_last"):
            local = local.to(memory_format=torch.channels_last)
        local = local.clone().requires_grad_()
        y = layer(local)
        # Every process holds its rows' part of one global loss, scaled as DDP's average wants it.
        (torch.tanh(y) * weights[own]).sum().mul(len(sizes)).backward()
        outputs.append(y.detach())
        input_gradients.append(local.grad / len(sizes))
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    if len(sizes) > 1:
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= len(sizes)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.eval()
    evaluated = layer(batches(case)[0][0][own]).detach() if case.get("track_running_stats", True) else None
    return {
        "outputs": outputs,
        "inputs": input_gradients,
        "parameters": gradients,
        "state": state,
        "evaluated": evaluated,
        "kind": type(layer).__name__,
    }


def all_cases(processes: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        layer = synchronise_batchnorm(build(case), device_type="cpu")
        results[name] = train(layer, case, case["sizes"][processes], dist.get_rank())
    results["bfloat16"] = torch.cat(_bfloat16()).tolist()
    results["structure"] = _structure()
    results["one value"] = _one_value()
    return results


def _bfloat16() -> list[Tensor]:
    layer = synchronise_batchnorm(nn.BatchNorm1d(3), device_type="cpu")
    torch.manual_seed(3)
    x = torch.randn(8, 3).bfloat16().chunk(dist.get_world_size())[dist.get_rank()].requires_grad_()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.float32
    return [y.detach().float().flatten(), layer.running_mean, layer.running_var]


def _structure() -> dict[str, Any]:
    shared = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.Sequential(nn.ReLU(), shared, nn.BatchNorm2d(2)))
    model[2][2].weight.requires_grad_(False)
    model[2][2].eval()
    before = copy.deepcopy(model.state_dict())
    parameters = list(model.parameters())
    changed = synchronise_batchnorm(model, device_type="cpu")
    twice = synchronise_batchnorm(changed, device_type="cpu")
    return {
        "kinds": [type(m).__name__ for m in changed.modules()],
        "in place": changed is model and twice is changed,
        "shared": changed[1] is changed[2][1],
        "parameters": all(a is b for a, b in zip(parameters, changed.parameters(), strict=True)),
        "frozen": not changed[2][2].weight.requires_grad,
        "evaluating": not changed[2][2].training and changed[1].training,
        "state": list(before) == list(changed.state_dict()),
    }


def _one_value() -> str:
    layer = synchronise_batchnorm(nn.BatchNorm1d(3), device_type="cpu")
    try:
        layer(torch.zeros(1 if dist.get_rank() == 0 else 0, 3))
    except UserError as error:
        return str(error)
    return "nothing raised"


@pytest.fixture(scope="module", params=[2, 4])
def results(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_processes(request.param, all_cases, request.param)


@pytest.mark.parametrize("name", CASES)
def test_follows_one_process_on_the_whole_batch(name: str, results: list[dict[str, Any]]) -> None:
    case = CASES[name]
    whole = train(build(case), case, (case["shape"][0],), 0)
    parts = [result[name] for result in results]
    tolerance = {"rtol": 1e-5, "atol": 2e-5} if "dtype" in case else {"rtol": 1e-10, "atol": 1e-9}
    assert all(part["kind"] == "GlobalBatchNorm" for part in parts)
    for key in ("outputs", "inputs"):
        for step in range(2):
            joined = torch.cat([part[key][step] for part in parts])
            torch.testing.assert_close(joined, whole[key][step], **tolerance)
    for part in parts:
        for key in ("parameters", "state"):
            assert part[key].keys() == whole[key].keys()
            for field, value in whole[key].items():
                torch.testing.assert_close(part[key][field], value, **tolerance)
    if whole["evaluated"] is not None:
        joined = torch.cat([part["evaluated"] for part in parts])
        torch.testing.assert_close(joined, whole["evaluated"], **tolerance)


def test_bfloat16_input_keeps_float32_statistics(results: list[dict[str, Any]]) -> None:
    torch.manual_seed(3)
    x = torch.randn(8, 3).bfloat16()
    layer = nn.BatchNorm1d(3)
    expected = layer(x.float())
    flat = [torch.tensor(result["bfloat16"]) for result in results]
    torch.testing.assert_close(torch.cat([f[:-6] for f in flat]), expected.flatten(), rtol=1e-2, atol=1e-2)
    for f in flat:
        torch.testing.assert_close(f[-6:], torch.cat([layer.running_mean, layer.running_var]))


def test_replaces_layers_and_nothing_else(results: list[dict[str, Any]]) -> None:
    for result in results:
        structure = result["structure"]
        assert structure.pop("kinds") == [
            "Sequential", "Linear", "GlobalBatchNorm", "Sequential", "ReLU", "GlobalBatchNorm",
        ]  # fmt: skip
        assert all(structure.values()), structure


def test_one_value_per_channel_is_refused(results: list[dict[str, Any]]) -> None:
    assert all("batch size" in result["one value"] for result in results)


def test_one_process_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    kinds = [type(m) for m in model]
    assert synchronise_batchnorm(model, device_type="cpu") is model
    assert [type(m) for m in model] == kinds


def test_alone_it_is_batchnorm() -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    ours, theirs = GlobalBatchNorm(4).double(), nn.BatchNorm1d(4).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"expected \(n, 4"):
        ours(torch.randn(6, 5))
