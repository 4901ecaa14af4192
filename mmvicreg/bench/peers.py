"""VICReg as others compute it, to measure against.

Each takes this process's ``(n_local, d)`` embeddings of two branches and returns the loss to differentiate,
with lambda, mu, nu = 25, 25, 1. All build the d x d covariance matrices and leave the backward to autograd;
under several processes every one of them gathers the whole batch and computes all of it, and the mean
squared error of its own rows.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import mse_loss, relu

from mmvicreg.errors import UserError
from mmvicreg.objectives.gather import gather, gather_equal, rank, world_size

Peer = Callable[[Tensor, Tensor], Tensor]
NAMES = ("authors", "lightly", "solo-learn")
HOW_TO_GET_LIGHTLY = "lightly is not installed; pip install 'mmvicreg[bench]' brings it"


def peer(name: str) -> Peer:
    """The loss called ``authors``, ``lightly`` or ``solo-learn``.

    Raises:
        UserError: there is none of that name, or lightly is not installed.
    """
    if name == "authors":
        return authors
    if name == "solo-learn":
        return solo_learn
    if name != "lightly":
        raise UserError(f"unknown peer '{name}'. Known: {', '.join(NAMES)}.")
    if not installed(name):
        raise UserError(HOW_TO_GET_LIGHTLY)
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")  # its import would ask its server
    from lightly.loss import VICRegLoss

    loss: Peer = VICRegLoss(gather_distributed=True)
    return loss


def installed(name: str) -> bool:
    """Whether a peer can be had: lightly's loss comes from its own package."""
    return name != "lightly" or importlib.util.find_spec("lightly") is not None


def authors(a: Tensor, b: Tensor) -> Tensor:
    """Algorithm 1 of the paper (Bardes, Ponce, LeCun 2022), line by line.

    Its released code adds the gather, whose gradient is summed over the processes.
    """
    invariance = mse_loss(a, b)
    a, b = _gather_summing(a), _gather_summing(b)
    n, d = a.shape
    deviation_a, deviation_b = torch.sqrt(a.var(dim=0) + 1e-4), torch.sqrt(b.var(dim=0) + 1e-4)
    variance = relu(1 - deviation_a).mean() + relu(1 - deviation_b).mean()
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    covariance_a, covariance_b = a.T @ a / (n - 1), b.T @ b / (n - 1)
    covariance = _off_diagonal(covariance_a).pow_(2).sum() / d + _off_diagonal(covariance_b).pow_(2).sum() / d
    return 25.0 * invariance + 25.0 * variance + covariance


def solo_learn(a: Tensor, b: Tensor) -> Tensor:
    """solo-learn's definition: the same sums, off the diagonal by a mask; own rows of the gradient kept."""
    invariance = mse_loss(a, b)
    a, b = gather(a), gather(b)
    n, d = a.shape
    deviation_a, deviation_b = torch.sqrt(a.var(dim=0) + 1e-4), torch.sqrt(b.var(dim=0) + 1e-4)
    variance = relu(1 - deviation_a).mean() + relu(1 - deviation_b).mean()
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    covariance_a, covariance_b = a.T @ a / (n - 1), b.T @ b / (n - 1)
    off = ~torch.eye(d, dtype=torch.bool, device=a.device)
    covariance = (covariance_a[off].pow_(2).sum() + covariance_b[off].pow_(2).sum()) / d
    return 25.0 * invariance + 25.0 * variance + covariance


def _off_diagonal(matrix: Tensor) -> Tensor:
    """The d (d - 1) entries off the diagonal, copied: without its first entry, every (d+1)th is diagonal."""
    d = len(matrix)
    return matrix.flatten()[1:].view(d - 1, d + 1)[:, :-1].flatten()


def _gather_summing(x: Tensor) -> Tensor:
    return x if world_size() == 1 else _GatherSumming.apply(x)


class _GatherSumming(torch.autograd.Function):
    """All rows of all processes; backward, the sum over the processes of the gradient of the own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return gather_equal(x.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total[rank() * ctx.rows :][: ctx.rows]
