"""W-MSE: mean squared error between whitened embeddings (Ermolov, Siarohin, Sangineto, Sebe 2021).

The global batch is cut by a random partition, the same for every branch, into sub-batches. In each of
them every branch's embeddings are whitened on their own, with the sub-batch's mean m, its covariance S
(1/(n-1)) and the Cholesky factor S = L L^T, and per edge they are compared:

    w(z) = L^-1 (z - m)
    cosine:     mean over samples of |w_a/|w_a| - w_b/|w_b||^2
    euclidean:  mean over samples and dimensions of (w_a - w_b)^2

averaged over several such partitions (batch slicing), as whitening by the statistics of few samples is
noisy. Constants are those of the authors' code. Edges count alike; mu, nu and lambda are VICReg's and unused.

Whitening divides by the smallest deviations there are, so it is computed in float64 throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mmvicreg.errors import UserError
from mmvicreg.objectives.base import Graph, Objective, ObjectiveOutput, validate_options
from mmvicreg.objectives.gather import gather
from mmvicreg.objectives.precision import exact_dtype
from mmvicreg.strict import Strict

Distance = Literal["cosine", "euclidean"]


class WMSEConfig(Strict):
    """W-MSE's options."""

    sub_batch: Annotated[int, Field(ge=2)] | None = None
    """Samples that are whitened together, over all processes: more than the embedding has dimensions, and
    a divisor of the batch. The authors take twice the dimensions (128 for 64). Null: the whole batch."""
    partitions: Annotated[int, Field(ge=1)] = 1
    """Random partitions of the batch that the loss is averaged over; the authors take 1 or 4."""
    distance: Distance = "cosine"
    shrinkage: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the identity mixed into the covariance before its factor is taken, (1 - s) S + s I."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the partitions, together with the number of the step."""


class WMSE(Objective):
    """W-MSE over two tensors, or over the edges of a recipe's graph.

    >>> WMSE(sub_batch=128)(z_a, z_b).loss.backward()     # (n, d) each; local rows under a process group

    The partition of a step is drawn from (seed, step, number of the partition), the same on every
    process; the step is counted in a buffer, in training mode only, and so is saved and resumed.

    Args:
        sub_batch: samples whitened together, more than d and a divisor of n; None for all n.
        partitions: how many random partitions to average over.
        distance: ``cosine`` (l2-normalised after whitening) or ``euclidean``.
        shrinkage: share of the identity in the covariance.
        seed: of the partitions.

    Terms: ``distance/<a>-<b>``.
    """

    Config: ClassVar[type[Strict]] = WMSEConfig
    advice: ClassVar[str] = (
        "Whiten by more samples (objective.sub_batch), or make the embeddings narrower: a quarter of the sub-batch, say"
    )
    step: Tensor

    def __init__(
        self,
        *,
        sub_batch: int | None = None,
        partitions: int = 1,
        distance: Distance = "cosine",
        shrinkage: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        options = {"sub_batch": sub_batch, "partitions": partitions, "distance": distance}
        validate_options(WMSE, {**options, "shrinkage": shrinkage, "seed": seed})
        self.sub_batch, self.partitions, self.distance = sub_batch, partitions, distance
        self.shrinkage, self.seed = shrinkage, seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def check(self, graph: Graph) -> None:
        """Refuse, besides, sub-batches whose covariance is singular."""
        super().check(graph)
        if self.sub_batch is not None:
            self._check_size(graph, self.sub_batch, "sub-batches", "set objective.sub_batch")

    def check_batch(self, graph: Graph, n: int) -> None:
        """Refuse, besides, a batch that the sub-batches do not divide, or that is too small to whiten whole."""
        super().check_batch(graph, n)
        if self.sub_batch is None:
            self._check_size(graph, n, "batches", "raise the batch size")
        elif n % self.sub_batch:
            least = self._least(graph)
            fits = [str(k) for k in range(least, n + 1) if n % k == 0]
            raise UserError(
                f"W-MSE cannot cut a batch of {n} into sub-batches of {self.sub_batch}: set objective.sub_batch to "
                f"{' or '.join(fits[:4]) or f'a divisor of the batch of at least {least}'}"
            )

    def compute(
        self, embeddings: Mapping[str, Tensor], graph: Graph, sizes: tuple[int, ...]
    ) -> ObjectiveOutput:
        """The sum over the edges; float32, or float64 for float64 embeddings."""
        partitions = self._partitions(sum(sizes), graph)
        batch = {name: gather(z, sizes=sizes).double() for name, z in embeddings.items()}
        white = {
            name: [self._whiten(z[rows.to(z.device)], name).flatten(0, 1) for rows in partitions]
            for name, z in batch.items()
        }
        dtype = max((exact_dtype(z.dtype) for z in embeddings.values()), key=lambda dtype: dtype.itemsize)
        losses = [
            torch.stack([self._distance(a, b) for a, b in zip(white[edge.a], white[edge.b], strict=True)])
            .mean()
            .to(dtype)
            for edge in graph.edges
        ]
        terms = {
            f"distance/{edge.a}-{edge.b}": loss.detach()
            for edge, loss in zip(graph.edges, losses, strict=True)
        }
        if self.training:
            self.step += 1
        return ObjectiveOutput(torch.stack(losses).sum(), terms)

    def _partitions(self, n: int, graph: Graph) -> list[Tensor]:
        """This step's partitions of the global batch: ``(sub-batches, samples in each)`` positions."""
        self.check_batch(graph, n)
        size = self.sub_batch or n
        if size == n:  # nothing to draw, and one is as good as many
            return [torch.arange(n)[None]]
        step = int(self.step)
        orders = [np.random.default_rng([self.seed, step, k]).permutation(n) for k in range(self.partitions)]
        return [torch.from_numpy(order).view(-1, size) for order in orders]

    def _check_size(self, graph: Graph, size: int, what: str, way_out: str) -> None:
        for node in graph.nodes:
            if size <= node.width and not self.shrinkage:
                raise UserError(
                    f"W-MSE cannot whiten the {node.width} dimensions of '{node.name}' within {what} of "
                    f"{size} samples, whose covariance is singular: {way_out} to more than {node.width} "
                    f"(the authors take {2 * node.width}), or let the expanders end in fewer dimensions"
                )

    def _least(self, graph: Graph) -> int:
        return 2 if self.shrinkage else max(node.width for node in graph.nodes) + 1

    def _whiten(self, z: Tensor, name: str) -> Tensor:
        """Whiten sub-batches ``(k, m, d)``, each by its own mean and covariance."""
        centred = z - z.mean(dim=1, keepdim=True)
        covariance = centred.mT @ centred / (z.shape[1] - 1)
        if self.shrinkage:
            identity = torch.eye(z.shape[2], dtype=z.dtype, device=z.device)
            covariance = (1 - self.shrinkage) * covariance + self.shrinkage * identity
        factor, failed = torch.linalg.cholesky_ex(covariance)
        variances = covariance.detach().diagonal(dim1=1, dim2=2)
        # A squared pivot is what a dimension's variance has left once the earlier ones explained theirs.
        left = factor.detach().diagonal(dim1=1, dim2=2).square()
        lost = (left <= 1e-12 * variances).any() | (failed != 0).any()
        if bool(lost & torch.isfinite(variances).all()):  # what is not finite the caller locates
            raise UserError(
                f"W-MSE cannot whiten '{name}': within a sub-batch its embeddings vary in fewer than "
                f"{z.shape[2]} directions (collapsed, or dimensions that repeat others); let the expander "
                "end in fewer dimensions, lower the learning rate, or set objective.shrinkage=0.001"
            )
        white: Tensor = torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
        return white

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        if self.distance == "euclidean":
            return (a - b).square().mean()
        return (functional.normalize(a, dim=1) - functional.normalize(b, dim=1)).square().sum(dim=1).mean()
