"""What every method shares: the graph it is computed over and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Node:
    """One embedding of the graph: a branch, or one view of a branch whose weights are shared.

    Attributes:
        name: key of the embedding (``"image"``; ``"image/0"`` and ``"image/1"`` for a shared branch).
        branch: the branch it comes from.
        width: dimensions of the embedding.
        variance: mu of Eq. 6 for this branch.
        covariance: nu of Eq. 6 for this branch.
    """

    name: str
    branch: str
    width: int
    variance: float = 25.0
    covariance: float = 1.0


@dataclass(frozen=True)
class Edge:
    """Two nodes, by name, whose embeddings of one sample are pulled together; lambda of Eq. 6."""

    a: str
    b: str
    invariance: float = 25.0


@dataclass(frozen=True)
class Graph:
    """The nodes and edges that an objective is computed over."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


@dataclass(frozen=True)
class ObjectiveOutput:
    """A loss to differentiate and its parts to look at.

    Attributes:
        loss: scalar, float32 or better, the same on every process; gradients are those of the loss over
            the global batch once DistributedDataParallel has averaged them.
        terms: detached unweighted scalars named ``"<term>/<node>"`` (``variance/image``,
            ``covariance/text``) or ``"<term>/<a>-<b>"`` (``invariance/image-text``).
    """

    loss: Tensor
    terms: Mapping[str, Tensor]
