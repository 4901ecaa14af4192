"""Target networks: moving averages of branches, for methods that predict them (BYOL, Grill et al. 2020).

After every optimiser step the parameters of the average move towards the branch's. Its buffers are its
own: BatchNorm normalises by the batch, as the branch does, and keeps the running statistics of what the
average itself has seen, as in BYOL's published code. (Nothing reads those: evaluation uses the branch.)
"""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Network = TypeVar("Network", bound=nn.Module)


def moving_copy(network: Network) -> Network:
    """The average at its start: a copy whose parameters take no gradient."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, inputs: Any) -> Any:
    """``average(inputs)`` without a gradient, every layer in the mode (training or not) of ``network``'s.

    So a branch whose encoder or BatchNorm is frozen is averaged as it is trained.
    """
    for copied, layer in zip(average.modules(), network.modules(), strict=True):
        copied.training = layer.training
    return average(inputs)


@torch.no_grad()
def move(average: nn.Module, network: nn.Module, *, momentum: float) -> None:
    """Parameters of the average <- momentum times themselves + (1 - momentum) times the network's."""
    parameters = [parameter.detach() for parameter in network.parameters()]
    average_by = get_ema_multi_avg_fn(momentum)  # type: ignore[no-untyped-call]
    average_by(list(average.parameters()), parameters, None)


def momentum_at(step: int, *, steps: int, start: float) -> float:
    """The momentum after the 0-based ``step`` of ``steps``: from ``start`` to 1 along half a cosine (BYOL, 3.3)."""
    return 1 - (1 - start) * (math.cos(math.pi * step / steps) + 1) / 2
