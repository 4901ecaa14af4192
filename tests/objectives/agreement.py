"""Hold a method against its reference, values and gradients, on the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmvicreg.objectives import Objective


def pair(n: int, d: int, *, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Two related batches, float64."""
    common = torch.randn(n, d, dtype=torch.float64)
    a, b = (common + 0.7 * torch.randn(n, d, dtype=torch.float64) + offset for _ in range(2))
    return a, b


def agree(
    objective: Objective,
    reference: Callable[[Tensor, Tensor], Tensor],
    a: Tensor,
    b: Tensor,
    *,
    loss: float,
    gradient: float,
) -> None:
    """The loss and both gradients within relative bounds of the reference in float64."""
    ours = [x.clone().requires_grad_() for x in (a, b)]
    exact = [x.double().requires_grad_() for x in (a, b)]
    output, expected = objective(*ours), reference(*exact)
    assert output.loss.dtype == (torch.float64 if a.dtype == torch.float64 else torch.float32)
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=loss, abs=loss)
    found, right = torch.autograd.grad(output.loss, ours), torch.autograd.grad(expected, exact)
    for mine, theirs in zip(found, right, strict=True):
        assert mine.dtype == a.dtype
        assert float((mine.double() - theirs).norm()) <= gradient * float(theirs.norm()) + 1e-12
    assert not any(term.requires_grad for term in output.terms.values())
