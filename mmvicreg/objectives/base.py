"""What every method shares: the graph it is computed over, what it returns, and how it is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mmvicreg.errors import UserError
from mmvicreg.objectives.gather import all_rows, local_sizes, rank
from mmvicreg.objectives.precision import exact_arithmetic
from mmvicreg.strict import Strict


@dataclass(frozen=True)
class Node:
    """One embedding of the graph: a branch, or one view of a branch whose weights are shared.

    Attributes:
        name: key of the embedding (``"image"``; ``"image/0"`` and ``"image/1"`` for a shared branch).
        branch: the branch it comes from.
        width: dimensions of the embedding.
        variance: mu of Eq. 6 for this branch.
        covariance: nu of Eq. 6 for this branch.
        crop: a small crop of multi-crop. It learns from whole views; methods with one-sided targets (codes, a
            stopped gradient) take none from it.
    """

    name: str
    branch: str
    width: int
    variance: float = 25.0
    covariance: float = 1.0
    crop: bool = False


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
        terms: detached unweighted scalars, the same on every process, named ``"<term>/<node>"`` (``variance/image``,
            ``covariance/text``) or ``"<term>/<a>-<b>"`` (``invariance/image-text``).
    """

    loss: Tensor
    terms: Mapping[str, Tensor]


class NonFiniteError(UserError):
    """NaN or infinity in an embedding.

    Attributes:
        node: the embedding it is in.
        rows: its rows in the global batch (processes in the order of ranks).
        local_rows: those of them that are this process's, counted in its own batch.
        source: the recipe's source that the batch is of; empty for its ``dataset``.
    """

    source: str = ""

    def __init__(self, message: str, *, node: str, rows: Sequence[int], local_rows: Sequence[int]) -> None:
        super().__init__(message)
        self.node = node
        self.rows = tuple(rows)
        self.local_rows = tuple(local_rows)


class Objective(nn.Module, ABC):
    """A method: from the embeddings of one batch to a loss.

    Two ways in. In a recipe: ``Method.from_config(options, graph)``, called with the embedding of every
    node by name. Alone, in anybody's loop: ``Method(option=...)``, called with two tensors, which become
    the nodes ``a`` and ``b``. Either way every process passes its local rows, in the same order for every
    node, and gets the loss of the global batch; without a process group the batch is what was passed.

    A method writes :meth:`compute` (the loss), a ``Config`` whose fields are keyword arguments of its
    constructor, and, where there is something to refuse or to warn of, :meth:`check` and
    :meth:`warnings`. Parameters and buffers of its own (predictors, prototypes) are
    those of any module, and are saved and distributed like the rest of the model.
    """

    Config: ClassVar[type[Strict]]
    """What a recipe's ``objective:`` may say besides the name."""
    minimum_batch: ClassVar[int] = 2
    advice: ClassVar[str] = "Try a longer warm-up"
    """What to try when a run of the method collapses or teaches nothing, as the beginning of a sentence."""
    target_momentum: float | None = None
    """A method that is to be called with ``targets`` says where their momentum starts: the model then keeps a
    moving average of every branch (:mod:`mmvicreg.branches.target`)."""
    fixed_rate: bool = False
    """Whether the schedule leaves the learning rate of the method's own parameters alone."""
    decayed: bool = True
    """Whether weight decay is for the method's own parameters."""
    directional: bool = False
    """Whether the length of an embedding means nothing to the method; the monitor then leaves it out too."""
    graph: Graph | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], graph: Graph) -> Self:
        """The method with a recipe's options over a graph; what the options leave out has its default.

        Raises:
            UserError: an option that the Config does not know or allow, or a graph that the method cannot
                be computed over (see :meth:`check`).
        """
        objective = cls(**validate_options(cls, config).model_dump())
        objective.check(graph)
        objective.graph = graph
        return objective

    def pair_graph(self, width_a: int, width_b: int) -> Graph:
        """The graph of two tensors passed without one: the nodes ``a`` and ``b`` and the edge between."""
        return Graph((Node("a", "a", width_a), Node("b", "b", width_b)), (Edge("a", "b"),))

    @abstractmethod
    def compute(
        self, embeddings: Mapping[str, Tensor], graph: Graph, sizes: tuple[int, ...]
    ) -> ObjectiveOutput:
        """The loss and its terms. Autocast and TF32 are off; shapes, batch size and widths have been checked.

        Args:
            embeddings: node -> ``(n_local, d)``, any floating dtype.
            graph: what to compute.
            sizes: the local batch of every process; their sum is n.
        """

    def check(self, graph: Graph) -> None:
        """Raise :class:`UserError` unless this method can be computed over ``graph``."""
        check_graph(graph)

    def check_batch(self, graph: Graph, n: int) -> None:
        """Raise :class:`UserError` unless this method can be computed over global batches of ``n`` samples."""
        del graph
        if n < self.minimum_batch:
            raise UserError(
                f"{type(self).__name__} needs at least {self.minimum_batch} samples in a batch, got {n}"
            )

    def warnings(self, graph: Graph) -> list[str]:
        """What is known to go wrong with these options on this graph, in plain sentences; often empty."""
        del graph
        return []

    def target_std(self, node: Node) -> float | None:
        """The spread that an embedding of ``node`` should have, as the monitor measures it; None: any.

        The standard deviation that the method pushes every dimension up to; 1 (the whole sphere) where it compares
        directions.
        """
        del node
        return 1.0 if self.directional else None

    if TYPE_CHECKING:

        def __call__(  # noqa: D102
            self, embeddings: Mapping[str, Tensor] | Tensor, other: Tensor | None = None
        ) -> ObjectiveOutput: ...

    def forward(
        self, embeddings: Mapping[str, Tensor] | Tensor, other: Tensor | None = None
    ) -> ObjectiveOutput:
        """The loss of the global batch.

        Args:
            embeddings: ``(n_local, d)`` of this process by node name, or the first of two tensors.
            other: the second tensor, when the first argument is a tensor.

        Raises:
            UserError: a node without an embedding, shapes that do not fit, fewer samples than the method
                needs.
            NonFiniteError: NaN or infinity in an embedding; the node and the rows are named.
        """
        batch, graph = self._batch(embeddings, other)
        return self._evaluate(batch, lambda sizes: self.compute(batch, graph, sizes))

    def _evaluate(
        self, batch: Mapping[str, Tensor], compute: Callable[[tuple[int, ...]], ObjectiveOutput]
    ) -> ObjectiveOutput:
        """``compute`` with every process's batch size, in exact arithmetic; what is not finite is named."""
        first = next(iter(batch.values()))
        sizes = local_sizes(first.shape[0], first.device)
        if sum(sizes) < self.minimum_batch:
            raise UserError(
                f"{type(self).__name__} needs at least {self.minimum_batch} samples in a batch,"
                f" got {sum(sizes)}"
            )
        with exact_arithmetic(first.device.type):
            output = compute(sizes)
        values = torch.stack([output.loss.detach(), *output.terms.values()])
        # a branch without weight in the loss is in the terms alone
        if bool(~torch.isfinite(values[0]) | values.isnan().any()):
            _locate(batch, sizes)
        return output

    def _batch(
        self, embeddings: Mapping[str, Tensor] | Tensor, other: Tensor | None
    ) -> tuple[dict[str, Tensor], Graph]:
        if not isinstance(embeddings, Mapping):
            if other is None:
                raise UserError("one tensor is not a pair: pass two, or a mapping from node names to tensors")
            embeddings = {"a": embeddings, "b": other}
            graph = None
        else:
            graph = self.graph
        check_embeddings(embeddings)
        if graph is None:
            if set(embeddings) != {"a", "b"}:
                raise UserError(
                    f"{type(self).__name__} without a graph takes the embeddings 'a' and 'b', "
                    f"got {', '.join(embeddings)}; make it with from_config for other graphs"
                )
            graph = self.pair_graph(embeddings["a"].shape[1], embeddings["b"].shape[1])
            self.check(graph)
        return select_embeddings(embeddings, graph), graph


def validate_options(method: type[Objective], options: Mapping[str, Any]) -> Strict:
    """A recipe's options, ``name`` aside, as the method's Config; :class:`UserError` if they do not fit."""
    given = {key: value for key, value in options.items() if key != "name"}
    try:
        return method.Config.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{method.__name__}: {problems}") from error


def check_graph(graph: Graph) -> None:
    """Raise :class:`UserError` unless there are edges, between known nodes of equal widths."""
    if not graph.edges:
        raise UserError("a method needs at least one edge between two embeddings")
    nodes = {node.name: node for node in graph.nodes}
    for edge in graph.edges:
        for end in (edge.a, edge.b):
            if end not in nodes:
                raise UserError(
                    f"the edge {edge.a}-{edge.b} names '{end}', which is not one of {', '.join(nodes)}"
                )
        if nodes[edge.a].width != nodes[edge.b].width:
            raise UserError(
                f"the edge {edge.a}-{edge.b} joins embeddings of {nodes[edge.a].width} and "
                f"{nodes[edge.b].width} dimensions; they must have the same width"
            )


def check_embeddings(embeddings: Mapping[str, Tensor]) -> None:
    """Raise :class:`UserError` unless every embedding is ``(n, d)``, floating, and of one n and device."""
    if not embeddings:
        raise UserError("no embeddings were passed")
    for name, z in embeddings.items():
        if not isinstance(z, Tensor):
            raise UserError(f"embedding '{name}' must be a float tensor (n, d), got {type(z).__name__}")
    first_name, first = next(iter(embeddings.items()))
    for name, z in embeddings.items():
        if z.ndim != 2 or not z.is_floating_point() or z.shape[1] == 0:
            raise UserError(
                f"embedding '{name}' must be a float tensor (n, d), got {z.dtype} {tuple(z.shape)}"
            )
        if z.shape[0] != first.shape[0] or z.device != first.device:
            raise UserError(
                f"embedding '{name}' has {z.shape[0]} rows on {z.device} and '{first_name}' {first.shape[0]} "
                f"on {first.device}; both need one row for each sample of the batch, on one device"
            )


def select_embeddings(embeddings: Mapping[str, Tensor], graph: Graph) -> dict[str, Tensor]:
    """The embeddings of the graph's nodes, in the graph's order; :class:`UserError` where one is missing.

    Where one is float64 all become so: products of two types are errors in torch.
    """
    for node in graph.nodes:
        if node.name not in embeddings:
            raise UserError(f"no embedding for '{node.name}' among {', '.join(embeddings)}")
        if embeddings[node.name].shape[1] != node.width:
            raise UserError(
                f"embedding '{node.name}' has {embeddings[node.name].shape[1]} dimensions, "
                f"its branch was declared with {node.width}"
            )
    found = {node.name: embeddings[node.name] for node in graph.nodes}
    if any(z.dtype == torch.float64 for z in found.values()):
        found = {name: z.double() for name, z in found.items()}
    return found


def _locate(batch: Mapping[str, Tensor], sizes: tuple[int, ...]) -> None:
    """Raise for the first node with a non-finite row; every process comes here, as loss and terms are the same."""
    for name, z in batch.items():
        finite = torch.isfinite(z.detach()).all(dim=1)
        rows = torch.nonzero(~all_rows(finite.to(torch.uint8), sizes).bool()).flatten().tolist()
        if rows:
            local_rows = torch.nonzero(~finite).flatten().tolist()
            shown = ", ".join(map(str, rows[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
            where = f" (here, on process {rank()}: {len(local_rows)} of them)" if len(sizes) > 1 else ""
            raise NonFiniteError(
                f"NaN or infinity in the embedding of branch '{name}', rows {shown}"
                f" of the batch of {sum(sizes)}{where}; lower the learning rate,"
                " clip the gradient (optimizer.clip_norm), use float32, or look at these samples",
                node=name,
                rows=rows,
                local_rows=local_rows,
            )
    raise UserError(
        "the loss or a term of it is not finite although every embedding is: the embeddings are so large that "
        "their covariance overflows; lower the learning rate or clip the gradient"
    )
