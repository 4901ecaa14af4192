"""The one gather: local batches in, the global batch out, with a gradient that survives DDP's averaging.

Every objective over batch statistics goes through here. What makes the gradient right:

* every process computes the *same* global loss L from the gathered tensor, so dL/d(own rows) is already
  known locally and backward needs no communication (and must not sum over processes: that would count
  the one loss once per process);
* DistributedDataParallel then *averages* parameter gradients over the P processes, where the gradient
  of L is their *sum* (each process only back-propagates through its own rows). Hence the factor P.

A loss that is not the same on every process, or that mixes gathered with merely local tensors, breaks
the first assumption: compute it from gathered tensors only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Processes in the default group; 1 without an initialised group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the default group; 0 without an initialised group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(x: Tensor, *, sizes: tuple[int, ...] | None = None) -> Tensor:
    """The global batch: every process's rows, in the order of ranks.

    Args:
        x: ``(n_local, ...)``, on the device of the default group's backend (any for gloo, CUDA for nccl);
            n_local may differ between processes and may be 0, the other dimensions and the dtype may not.
        sizes: every process's n_local where the caller knows them (:func:`local_sizes`), which saves a
            small collective.

    Returns:
        ``(n, ...)`` with n the sum of all n_local; ``x`` itself without a process group or with one
        process. The gradient that reaches ``x`` is that of the global loss with respect to these rows,
        times the number of processes, for DistributedDataParallel to average.
    """
    if world_size() == 1:
        return x
    return _Gather.apply(x, sizes or local_sizes(x.shape[0], x.device))  # type: ignore[no-any-return]


def local_sizes(n: int, device: torch.device) -> tuple[int, ...]:
    """Every process's ``n``, in the order of ranks (one small collective; ``(n,)`` for one process)."""
    if world_size() == 1:
        return (n,)
    return tuple(gather_equal(torch.tensor([n], dtype=torch.int64, device=device)).tolist())


def all_rows(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """:func:`gather` without a gradient, the sizes known: ``(sizes[rank], ...) -> (sum(sizes), ...)``."""
    if len(sizes) == 1:
        return x.detach()
    largest = max(sizes)
    rows = x.detach()
    if rows.shape[0] < largest:  # all_gather wants equal shapes
        rows = torch.cat([rows, rows.new_zeros((largest - rows.shape[0], *rows.shape[1:]))])
    gathered = gather_equal(rows)
    if min(sizes) == largest:
        return gathered
    return torch.cat([gathered[p * largest : p * largest + size] for p, size in enumerate(sizes)])


def gather_equal(x: Tensor) -> Tensor:
    """``(k, ...)`` of one shape on every process to ``(processes * k, ...)``, in the order of ranks."""
    gathered = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
    # Its name since torch 2.14, which deprecates the older one.
    collect = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    collect(gathered, x.contiguous())
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        start = sum(sizes[: rank()])
        ctx.own = slice(start, start + x.shape[0])
        ctx.processes = len(sizes)
        return all_rows(x, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.own] * ctx.processes, None
