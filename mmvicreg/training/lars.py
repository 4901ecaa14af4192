"""LARS (You et al. 2017, https://arxiv.org/abs/1708.03888), as VICReg's published runs use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

import torch
from torch import Tensor


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
        if weights[0].ndim > 1:
            if group["weight_decay"]:
                torch._foreach_add_(gradients, weights, alpha=group["weight_decay"])
            _adapt_(gradients, weights, eta=group["eta"])
        momenta = [self._momentum(w) for w in weights]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        torch._foreach_add_(weights, momenta, alpha=-group["lr"])

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"]
        return momentum


def _adapt_(gradients: list[Tensor], weights: list[Tensor], *, eta: float) -> None:
    """Multiply each gradient by eta * |w| / |g|, or by 1 where a norm is zero."""
    of_weights, of_gradients = torch._foreach_norm(weights), torch._foreach_norm(gradients)
    w, g = torch.stack(of_weights), torch.stack(of_gradients)
    factors = torch.where((w > 0) & (g > 0), eta * w / g, 1.0).to(w.dtype)
    torch._foreach_mul_(gradients, list(factors.unbind()))


def _together(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parts of a group that are stepped in one call of each operation: of one kind, dtype and device.

    A GPU gets all of them at once. A CPU gets them one by one, where each is still in its cache from one operation
    to the next.
    """
    kinds: dict[tuple[bool, torch.dtype, torch.device], list[Tensor]] = {}
    for p in parameters:
        kinds.setdefault((p.ndim > 1, p.dtype, p.device), []).append(p)
    for (_, _, device), some in kinds.items():
        if device.type == "cpu":
            yield from ([p] for p in some)
        else:
            yield some
