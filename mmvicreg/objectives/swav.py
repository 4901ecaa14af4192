"""SwAV: swapped prediction of cluster assignments (Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020).

K prototypes c_k on the unit sphere are trained with the branches and shared by all of them. With
l2-normalised embeddings z of the global batch, scores z^T c_k, and the codes q that the Sinkhorn-Knopp
iteration makes of one node's scores such that every prototype gets the same share of the batch:

    l(q, z) = - mean over samples of sum_k q_k log softmax_k(z^T c / temperature)       Eq. 2
    loss of an edge = 1/2 l(q_a, z_b) + 1/2 l(q_b, z_a)                                 Eq. 1, Algorithm 1

where the codes have no gradient. Edges count alike; mu, nu and lambda are VICReg's and unused.

Multi-crop is a graph of more nodes and edges (``crops`` of an edge in a recipe), where codes are computed from
the whole views alone, or from what ``codes_from`` names. An edge between such a node and another has one
direction, and every direction counts half, so that all count alike, as in the authors' code.

The authors put the prototypes back on the sphere before every step; here their directions are what the
scores are computed from, which makes the same step to first order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mmvicreg.errors import UserError
from mmvicreg.objectives.base import Edge, Graph, Objective, ObjectiveOutput, validate_options
from mmvicreg.objectives.gather import gather
from mmvicreg.objectives.precision import exact
from mmvicreg.strict import Strict


class SwAVConfig(Strict):
    """SwAV's options."""

    prototypes: Annotated[int, Field(ge=2)] = 3000
    """K. The authors' 3000 for ImageNet are three for each class; a smaller data set needs fewer."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    epsilon: Annotated[float, Field(gt=0)] = 0.05
    """Smoothness of the codes: what Sinkhorn's scores are divided by."""
    iterations: Annotated[int, Field(ge=1)] = 3
    """Of Sinkhorn-Knopp."""
    codes_from: list[str] | None = None
    """Nodes or branches that codes are computed from; null: all but small crops."""
    queue: Annotated[int, Field(ge=0)] = 0
    """Earlier embeddings, per node with codes, that help to divide the batch among the prototypes, once
    there are so many; 0: none. The authors use 3840 with batches of 256."""
    queue_start: Annotated[int, Field(ge=0)] = 0
    """Step from which the queue is filled (the authors: after 15 epochs)."""
    freeze_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the start during which the prototypes have a gradient of zero (the authors: 313)."""


class SwAV(Objective):
    """SwAV over two tensors, or over the edges of a recipe's graph.

    >>> objective = SwAV(width=128, prototypes=300)     # give its parameters to the optimiser
    >>> objective(z_a, z_b).loss.backward()             # (n, 128) each; local rows under a process group

    Parameter: ``prototypes`` (K, d), whose gradient is the whole one on every process, so that it needs no
    averaging and survives DDP's. Buffers: ``step``, counted in training mode only; with a queue ``queue``
    (nodes with codes, length, d), newest first, and ``queued``, how many of its rows are filled, both the
    same on every process.

    Args:
        width: d of the embeddings, where there is no recipe's graph to say it.
        prototypes: K.
        temperature: of the predictions.
        epsilon: of the codes.
        iterations: of Sinkhorn-Knopp.
        codes_from: names of nodes or branches that codes are computed from; None for all but small crops.
        queue: length of the queue of every node with codes; 0 for none.
        queue_start: step from which it is filled.
        freeze_steps: how many steps the prototypes stay as they are.

    Terms: ``swap/<a>-<b>`` (a's code predicted from b) and ``swap/<b>-<a>``, and ``used/<node>``, the share
    of the prototypes that are the nearest of at least one sample.
    """

    Config: ClassVar[type[Strict]] = SwAVConfig
    advice: ClassVar[str] = (
        "Make the codes sharper (a lower objective.epsilon) and the embeddings narrower (its authors have 128)"
    )
    directional = True
    decayed = False
    """Only the directions of the prototypes count; a decay would do nothing, or, as a part of the gradient that Adam
    divides by its size, turn them, even while ``freeze_steps`` holds them."""
    step: Tensor
    queue: Tensor | None
    queued: Tensor | None

    def __init__(
        self,
        *,
        width: int | None = None,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        codes_from: Sequence[str] | None = None,
        queue: int = 0,
        queue_start: int = 0,
        freeze_steps: int = 0,
    ) -> None:
        super().__init__()
        names = None if codes_from is None else list(codes_from)
        numbers = {"prototypes": prototypes, "temperature": temperature, "epsilon": epsilon}
        more = {"iterations": iterations, "queue": queue, "queue_start": queue_start}
        validate_options(SwAV, {**numbers, **more, "codes_from": names, "freeze_steps": freeze_steps})
        self.count, self.codes_from, self.length = prototypes, names, queue
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_start, self.freeze_steps = queue_start, freeze_steps
        self.prototypes: nn.Parameter | None = None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("queue", None)
        self.register_buffer("queued", None)
        if width is not None:
            self._build(self.pair_graph(width, width))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], graph: Graph) -> Self:
        """As every method's; the prototypes and the queue are made for the graph's width."""
        objective = super().from_config(config, graph)
        objective._build(graph)
        return objective

    def _build(self, graph: Graph) -> None:
        self.check(graph)
        width = graph.nodes[0].width
        self.prototypes = nn.Parameter(functional.normalize(torch.randn(self.count, width), dim=1))
        if self.length:
            self.queue = torch.zeros(len(self._coded(graph)), self.length, width)
            self.queued = torch.zeros((), dtype=torch.int64)

    def check(self, graph: Graph) -> None:
        """Refuse, besides, several widths, and ``codes_from`` that leave an edge without codes or a branch
        without a gradient."""
        super().check(graph)
        widths = sorted({node.width for node in graph.nodes})
        if len(widths) > 1:
            raise UserError(
                f"SwAV's prototypes are shared by all embeddings, and these have {' and '.join(map(str, widths))}"
                " dimensions: let all expanders end in the same width"
            )
        if self.prototypes is not None and self.prototypes.shape[1] != widths[0]:
            raise UserError(
                f"SwAV was made for embeddings of {self.prototypes.shape[1]} dimensions, and these have "
                f"{widths[0]}: give it width={widths[0]}"
            )
        known = sorted({name for node in graph.nodes for name in (node.name, node.branch)})
        for name in self.codes_from or ():
            if name not in known:
                raise UserError(
                    f"objective.codes_from names '{name}', which is not one of {', '.join(known)}"
                )
        coded = self._coded(graph)
        branches = {node.name: node.branch for node in graph.nodes}
        trained = set()
        for edge in graph.edges:
            predictions = {branches[prediction] for code, prediction in _swaps(edge) if code in coded}
            if not predictions:
                raise UserError(
                    f"the edge {edge.a}-{edge.b} has no code to predict: name one of its ends in "
                    "objective.codes_from, or leave the edge out"
                )
            trained |= predictions
        for edge in graph.edges:
            for end in (edge.a, edge.b):
                if branches[end] not in trained:
                    raise UserError(
                        f"branch '{branches[end]}' would not be trained: codes have no gradient, and it predicts "
                        "none; name what it is joined to in objective.codes_from as well"
                    )

    def _coded(self, graph: Graph) -> list[str]:
        """The nodes that codes are computed from, in the order of the queue."""
        given = self.codes_from
        return [
            node.name
            for node in graph.nodes
            if (not node.crop if given is None else {node.name, node.branch} & set(given))
        ]

    def compute(
        self, embeddings: Mapping[str, Tensor], graph: Graph, sizes: tuple[int, ...]
    ) -> ObjectiveOutput:
        """The sum over the edges; float32, or float64 for float64 embeddings."""
        batch = {
            name: functional.normalize(exact(gather(z, sizes=sizes)), dim=1) for name, z in embeddings.items()
        }
        prototypes = self._on_sphere(batch[graph.nodes[0].name])
        scores = {name: z @ prototypes.T for name, z in batch.items()}
        codes = self._codes(scores, prototypes.detach(), self._coded(graph))
        terms = {f"used/{name}": _used(score.detach()) for name, score in scores.items()}
        losses = []
        for edge in graph.edges:
            for code, prediction in _swaps(edge):
                if code in codes:
                    guess = functional.log_softmax(scores[prediction] / self.temperature, dim=1)
                    value = -(codes[code] * guess).sum(dim=1).mean()
                    terms[f"swap/{code}-{prediction}"] = value.detach()
                    losses.append(value / 2)
        loss = torch.stack(losses).sum()
        if self.training and bool(torch.isfinite(loss.detach())):  # the queue must not keep what is refused
            self._advance({name: batch[name].detach() for name in codes})
        return ObjectiveOutput(loss, terms)

    def _on_sphere(self, like: Tensor) -> Tensor:
        """The prototypes on the unit sphere, (K, d)."""
        if self.prototypes is None:
            raise UserError(
                "SwAV without a recipe's graph needs SwAV(width=d): its prototypes are parameters, which the "
                "optimiser has to know before the first step"
            )
        prototypes: Tensor = self.prototypes
        if self.freeze_steps and int(self.step) < self.freeze_steps:
            # A gradient of zero, not none: DistributedDataParallel waits for that of every parameter.
            prototypes = prototypes.detach() + 0.0 * prototypes
        return functional.normalize(prototypes.to(like.dtype), dim=1)

    @torch.no_grad()
    def _codes(
        self, scores: Mapping[str, Tensor], prototypes: Tensor, coded: Sequence[str]
    ) -> dict[str, Tensor]:
        """Codes ``(n, K)`` of the batch, made together with the queue where that is full."""
        full = self.queued is not None and int(self.queued) == self.length
        codes = {}
        for i, name in enumerate(coded):
            divided = scores[name]
            if self.queue is not None and full:
                divided = torch.cat([divided, self.queue[i].to(divided.dtype) @ prototypes.T])
            code = sinkhorn(divided, epsilon=self.epsilon, iterations=self.iterations)
            codes[name] = code[: len(scores[name])]
        return codes

    @torch.no_grad()
    def _advance(self, coded: Mapping[str, Tensor]) -> None:
        """Count the step, and let the queue take the batch in and its oldest rows out."""
        if self.queue is not None and self.queued is not None and int(self.step) >= self.queue_start:
            for i, z in enumerate(coded.values()):
                self.queue[i] = torch.cat([z.to(self.queue.dtype), self.queue[i]])[: self.length]
            self.queued.add_(len(z)).clamp_(max=self.length)
        self.step += 1


def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Codes of one batch: its samples divided evenly among the prototypes (Eq. 3-5, Cuturi 2013).

    Args:
        scores: ``(n, K)``, of all processes.
        epsilon: what they are divided by.
        iterations: of scaling the prototypes' shares, then the samples'.

    Returns:
        ``(n, K)``, every row of sum 1; every column of sum n / K as closely as the iterations get. In
        logarithms, so that no epsilon overflows.
    """
    log = scores / epsilon
    for _ in range(iterations):
        log = log - torch.logsumexp(log, dim=0)
        log = log - torch.logsumexp(log, dim=1, keepdim=True)
    return log.exp()


def _swaps(edge: Edge) -> tuple[tuple[str, str], tuple[str, str]]:
    """Whose code is predicted from whom."""
    return (edge.a, edge.b), (edge.b, edge.a)


def _used(scores: Tensor) -> Tensor:
    nearest = scores.argmax(dim=1)
    return scores.new_zeros(scores.shape[1]).index_fill_(0, nearest, 1.0).mean()
