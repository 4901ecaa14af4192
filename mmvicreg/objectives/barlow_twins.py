"""Barlow Twins: redundancy reduction (Zbontar, Jing, Misra, LeCun, Deny 2021).

Per edge, with both global batches standardised per column (biased deviation, as the BatchNorm without
parameters of the authors' code) and C = Z_a^T Z_b / n:

    sum_i (1 - C_ii)^2 + redundancy sum_{i != j} C_ij^2       Eq. 1-2

Edges count alike; the branches' mu and nu and the edges' lambda are VICReg's and unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmvicreg.objectives.base import Graph, Objective, ObjectiveOutput, validate_options
from mmvicreg.objectives.gather import gather
from mmvicreg.objectives.precision import exact
from mmvicreg.strict import Strict


class BarlowTwinsConfig(Strict):
    """Barlow Twins' options."""

    redundancy: Annotated[float, Field(ge=0)] = 5e-3
    """lambda of Eq. 1: weight of the off-diagonal entries."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """The loss times this; the authors' code trains with 0.024 on ImageNet."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-5
    """Added to the variance under the root, as BatchNorm does."""


class BarlowTwins(Objective):
    """Barlow Twins over two tensors, or over the edges of a recipe's graph.

    >>> BarlowTwins()(z_a, z_b).loss.backward()     # (n, d) each; local rows under a process group

    Args:
        redundancy: weight of the off-diagonal entries.
        scale: factor of the whole loss.
        epsilon: added to the variance under the root.

    Terms: ``on_diagonal/<a>-<b>`` and ``off_diagonal/<a>-<b>``, the two sums, unweighted.
    """

    Config: ClassVar[type[Strict]] = BarlowTwinsConfig

    def __init__(self, *, redundancy: float = 5e-3, scale: float = 1.0, epsilon: float = 1e-5) -> None:
        super().__init__()
        validate_options(BarlowTwins, {"redundancy": redundancy, "scale": scale, "epsilon": epsilon})
        self.redundancy, self.scale, self.epsilon = redundancy, scale, epsilon

    def compute(
        self, embeddings: Mapping[str, Tensor], graph: Graph, sizes: tuple[int, ...]
    ) -> ObjectiveOutput:
        """The sum over the edges; float32, or float64 for float64 embeddings."""
        batch = {
            name: standardise(exact(gather(z, sizes=sizes)), epsilon=self.epsilon)
            for name, z in embeddings.items()
        }
        terms: dict[str, Tensor] = {}
        losses = []
        for edge in graph.edges:
            on, off = cross_correlation_terms(batch[edge.a], batch[edge.b])
            terms[f"on_diagonal/{edge.a}-{edge.b}"] = on.detach()
            terms[f"off_diagonal/{edge.a}-{edge.b}"] = off.detach()
            losses.append(self.scale * (on + self.redundancy * off))
        return ObjectiveOutput(torch.stack(losses).sum(), terms)


def standardise(z: Tensor, *, epsilon: float) -> Tensor:
    """``(n, d)`` with mean 0 and variance 1 per column (biased; ``epsilon`` added under the root)."""
    centred = z - z.mean(dim=0)
    # A common offset far above the deviation leaves a rounding error in the mean; once more removes it.
    centred = centred - centred.mean(dim=0)
    return centred * torch.rsqrt(centred.square().mean(dim=0) + epsilon)


def cross_correlation_terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_i (1 - C_ii)^2`` and ``sum_{i != j} C_ij^2`` of ``C = a^T b / n`` for standardised ``(n, d)``."""
    correlation = a.T @ b / a.shape[0]
    diagonal = correlation.diagonal()
    # The diagonal goes to zero exactly: near one each, it would drown the rest if it were subtracted.
    rest = correlation - torch.diag(diagonal)
    return (1 - diagonal).square().sum(), rest.square().sum(dim=1).sum()
