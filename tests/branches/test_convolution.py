"""Convolutions of small maps on a CPU: torch's values and gradients, and right where oneDNN's are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from mmvicreg.branches.convolution import CHANNELS, SmallMapConv2d, train_small_maps
from mmvicreg.branches.resnet import ResNet18
from mmvicreg.inputs.base import InputSpec


def both(*sizes: int, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Conv2d, SmallMapConv2d]:
    torch.manual_seed(0)
    plain = nn.Conv2d(*sizes, dtype=dtype, **options)
    return plain, SmallMapConv2d.of(copy.deepcopy(plain))


def step(conv: nn.Module, x: Tensor, *, bf16: bool = False) -> dict[str, Tensor]:
    """The output, and the gradients of a sum of it with random weights."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = conv(x)
    weights = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y.backward(weights.to(y.dtype))
    assert x.grad is not None
    found = {"output": y.detach(), "input": x.grad}
    return found | {name: value.grad for name, value in conv.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (2, 2), (3, 3), (2, 5), (9, 7)])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (3, 1), "padding": (1, 0), "stride": (1, 2), "bias": False},
        {"kernel_size": 5, "padding": "same"},
    ],
)
def test_values_and_gradients_are_torchs(
    options: dict[str, Any], shape: tuple[int, int], channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, ours = both(6, 10, dtype=torch.float64, **options)
    x = torch.randn(3, 6, *shape, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
        ours.to(memory_format=torch.channels_last)
    expected = step(plain, x)
    monkeypatch.setitem(CHANNELS, torch.float32, 0)
    monkeypatch.setattr(nn.Conv2d, "forward", None)  # not torch's again
    torch.testing.assert_close(step(ours, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bf16", [False, True])
def test_large_maps_evaluation_and_compilation_are_torchs_own(
    bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours = both(48, 8, kernel_size=3, padding=1)
    asked: list[tuple[int, ...]] = []
    forward = nn.Conv2d.forward

    def noted(self: nn.Conv2d, x: Tensor) -> Tensor:
        asked.append(tuple(x.shape))
        return forward(self, x)

    def ask(*shape: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            ours(torch.zeros(2, 48, *shape))

    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    small, large = ((3, 3), (2, 5)) if bf16 else ((2, 1), (2, 2))
    ask(*small)
    ask(20, 1)  # one place wide, where oneDNN's gradient is not to be trusted
    assert asked == []
    ask(*large)
    assert len(asked) == 1
    ours.eval()
    ask(*small)
    assert len(asked) == 2
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    ours.train()
    ask(*small)
    assert len(asked) == 3


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("samples", [16, 1000])
@pytest.mark.parametrize("shape", [(1, 1), (4, 1)])
def test_a_strided_input_one_place_wide_has_a_gradient(
    shape: tuple[int, int], samples: int, bf16: bool
) -> None:
    """oneDNN's, in bfloat16, is whatever lay in that memory; so some is left there."""
    plain, ours = both(128, 256, kernel_size=3, stride=2, padding=1, bias=False)
    x = torch.randn(samples, 128, *shape)
    expected = step(plain.double(), x.double())
    for _ in range(3):
        left = [torch.full((256 * 128 * 9,), 7e30) for _ in range(9)]
        del left
        found = step(ours, x, bf16=bf16)["weight"]
        ours.zero_grad()
        error = (found.double() - expected["weight"]).abs().max() / expected["weight"].abs().max()
        assert error < (2e-2 if bf16 else 1e-5)


def test_a_resnet_keeps_its_names_and_weights_and_its_step() -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    ours = copy.deepcopy(network)
    train_small_maps(ours)
    small = [name for name, part in ours.named_modules() if isinstance(part, SmallMapConv2d)]
    assert len(small) == 17  # the stem and two in each of eight blocks; shortcuts see one place
    assert list(ours.state_dict()) == list(network.state_dict())
    x = torch.randn(4, 3, 48, 48)
    expected, found = (step(part.double(), x.double()) for part in (network, ours))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert sum(isinstance(p, SmallMapConv2d) for p in ResNet18(ResNet18.Config(), _spec()).modules()) == 17


def test_grouped_and_dilated_convolutions_stay() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)
    )
    train_small_maps(network)
    assert [type(part) for part in network] == [nn.Conv2d] * 3 + [SmallMapConv2d]


def _spec() -> InputSpec:
    return InputSpec(kind="image", channels=3)
