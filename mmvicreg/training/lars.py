"""LARS (You et al. 2017, https://arxiv.org/abs/1708.03888), as VICReg's published runs use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

import torch
from torch import Tensor

BLOCK = 1 << 16
"""Numbers of a large tensor that a thread of a CPU works on at a time: with momentum and gradient, under 1 MB."""


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is brought, tensor by tensor, to the scale of the weights.

    For each tensor w of two or more dimensions, with gradient g:

    * g <- g + weight_decay * w
    * g <- g * eta * |w| / |g|, where neither norm is zero
    * m <- momentum * m + g
    * w <- w - lr * m

    Tensors of fewer dimensions (biases, normalisation) are neither decayed nor adapted: for them it is SGD with
    momentum. The values are those of the authors' loop, bit for bit, in less than half the time: every operation is
    in place, the gradients included, so nothing of the size of the model is allocated after the first step. Hence
    gradients are not what ``backward`` left once a step is taken.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        weight_decay: of tensors of two or more dimensions.
        momentum: part of the last step that is repeated.
        eta: norm of a step, before ``lr``, as a part of the norm of the weights (the trust coefficient).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        eta: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in _together([p for p in group["params"] if p.grad is not None]):
                self._update(weights, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Step a list of weights that are all adapted, or none of them."""
        gradients = [w.grad for w in weights if w.grad is not None]
        factors: list[Tensor] | None = None
        if weights[0].ndim > 1:
            if group["weight_decay"]:
                torch._foreach_add_(gradients, weights, alpha=group["weight_decay"])
            factors = _factors(gradients, weights, eta=group["eta"])
        momenta = [self._momentum(w) for w in weights]
        for block in _blocks(weights, gradients, momenta):
            _move_(*block, factors=factors, momentum=group["momentum"], lr=group["lr"])

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"]
        return momentum


def _factors(gradients: list[Tensor], weights: list[Tensor], *, eta: float) -> list[Tensor]:
    """For each gradient eta * |w| / |g|, or 1 where a norm is zero."""
    w, g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients))
    return list(torch.where((w > 0) & (g > 0), eta * w / g, 1.0).to(w.dtype).unbind())


def _move_(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    *,
    factors: list[Tensor] | None,
    momentum: float,
    lr: float,
) -> None:
    if factors is not None:
        torch._foreach_mul_(gradients, factors)
    torch._foreach_mul_(momenta, momentum)
    torch._foreach_add_(momenta, gradients)
    torch._foreach_add_(weights, momenta, alpha=-lr)


Block = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""Weights, gradients and momenta."""


def _blocks(*lists: *Block) -> Iterator[Block]:
    """Parts of them that :func:`_move_` takes at a time.

    On a CPU a large tensor goes through it in blocks that stay in the cache from one operation to the next.
    """
    tensors = [some[0] for some in lists]
    size = BLOCK * torch.get_num_threads()
    if len(lists[0]) > 1 or tensors[0].device.type != "cpu" or tensors[0].numel() <= size:
        yield lists
        return
    strides = tensors[0].stride()
    order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
    laid_out = [tensor.permute(order) for tensor in tensors]  # as they lie in memory: channels last, say
    if not all(tensor.is_contiguous() for tensor in laid_out):
        yield lists
        return
    for w, g, m in zip(*(torch.split(tensor.view(-1), size) for tensor in laid_out), strict=True):
        yield [w], [g], [m]


def _together(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parts of a group that are stepped in one call of each operation: of one kind, dtype and device.

    A GPU gets all of them at once. A CPU gets them one by one, where a small one is still in its cache from one
    operation to the next.
    """
    kinds: dict[tuple[bool, torch.dtype, torch.device], list[Tensor]] = {}
    for p in parameters:
        kinds.setdefault((p.ndim > 1, p.dtype, p.device), []).append(p)
    for (_, _, device), some in kinds.items():
        if device.type == "cpu":
            yield from ([p] for p in some)
        else:
            yield some
