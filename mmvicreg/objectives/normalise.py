"""What Table 8 does to embeddings before VICReg's terms: nothing, per column over the batch, or per sample."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mmvicreg.objectives.precision import exact

Normalisation = Literal["none", "standardise", "l2"]
EPSILON = 1e-5
"""Added to the variance under the root where embeddings are standardised, as BatchNorm does."""


def normalise(z: Tensor, how: Normalisation, *, sizes: tuple[int, ...]) -> Tensor:
    """This process's embeddings as Table 8 normalises them.

    Args:
        z: this process's ``(n_local, d)``, any floating dtype.
        how: ``none``; ``standardise``: every column of the global batch centred and divided by its (biased)
            deviation, which D.5 calls BatchNorm without the adaptive parameters; ``l2``: every row divided
            by its length.
        sizes: n_local of every process.

    Returns:
        ``(n_local, d)``: ``z`` itself for ``none``, else float32, or float64 for float64. Given gradients
        with respect to this process's rows times the number of processes, it passes on such gradients;
        standardising adds up 2 d numbers over the processes for that.
    """
    if how == "standardise":
        return _Standardise.apply(exact(z), sizes)  # type: ignore[no-any-return]
    return functional.normalize(exact(z), dim=1) if how == "l2" else z


class _Standardise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        mean = _total(z.sum(0, dtype=torch.float64), sizes) / sum(sizes)
        rounded = mean.to(z.dtype)
        # What rounding left of the mean goes as well: of a large common offset it is not small.
        centred = (z - rounded).sub_((mean - rounded.double()).to(z.dtype))
        variance = _total(centred.square().sum(0).double(), sizes) / sum(sizes)
        inverse = torch.rsqrt(variance + EPSILON).to(z.dtype)
        standard = centred.mul_(inverse)
        ctx.save_for_backward(standard, inverse)
        return standard

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        standard, inverse = ctx.saved_tensors
        # Every row moves the mean and the deviation that all rows of all processes are divided by.
        sums = torch.stack([gradient.sum(0), (gradient * standard).sum(0)]).double()
        by_mean, by_deviation = (_total(sums, ctx.sizes) / sum(ctx.sizes)).to(gradient.dtype).unbind()
        return (gradient - by_mean).addcmul_(standard, by_deviation, value=-1).mul_(inverse), None


def _total(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The sum over the processes, in place."""
    if len(sizes) > 1:
        dist.all_reduce(x)
    return x
