"""VICReg: variance, invariance, covariance (Bardes, Ponce, LeCun 2022), over a graph of branches.

Per node, with Z the global batch (n, d), centred per column, and C = Z^T Z / (n - 1):

    v = 1/d sum_j max(0, gamma - sqrt(C_jj + epsilon))       Eq. 1-2; unbiased variance
    c = 1/d sum_{i != j} C_ij^2                              Eq. 3-4

per edge, s = mean of (z_a - z_b)^2 over all n x d entries: Algorithm 1 and the authors' code, not the
sum over d that Eq. 5 prints. The loss is the plain sum over nodes of mu v + nu c and over edges of
lambda s (Eq. 6), each with its own coefficients.

Table 8's rows are ``objective.normalise`` together with every branch's ``expander.norm`` (``batchnorm`` is
its "Std" under "Representation"). All three terms are then of the normalised embeddings. Its fourth row is
printed like its first and can only be the expander without BN and no normalisation; its last says "None"
for the expander, where the text takes its 3.5 points from the first row, which has BN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from mmvicreg.errors import UserError
from mmvicreg.objectives.base import Edge, Graph, Node, Objective, ObjectiveOutput, validate_options
from mmvicreg.objectives.normalise import Normalisation, normalise
from mmvicreg.objectives.precision import exact_dtype
from mmvicreg.objectives.terms import vicreg_terms
from mmvicreg.strict import Strict

Convention = Literal["paper", "official"]


class VICRegConfig(Strict):
    """VICReg's options; mu, nu and lambda are the branches' and the edges' (Eq. 6)."""

    convention: Convention = "paper"
    """``paper`` sums mu v over the branches (Eq. 6, Algorithm 1); ``official`` averages it, as the authors'
    code does: its 25/25/1 for two branches are 25/12.5/1 summed. The covariance is summed in both."""
    normalise: Normalisation = "none"
    """Table 8: ``standardise`` centres every column of the global batch and divides it by its deviation
    (which leaves the variance term nothing to do), ``l2`` divides every embedding by its length."""
    gamma: Annotated[float, Field(gt=0)] | None = None
    """The standard deviation that every dimension is pushed up to (Eq. 1); null: 1, or 1/sqrt(d) where
    embeddings are l2-normalised (D.5)."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-4
    """Added to the variance under the root (Eq. 2)."""


class VICReg(Objective):
    """VICReg over two tensors, or over a recipe's graph of branches.

    >>> objective = VICReg(convention="paper")
    >>> output = objective(z_a, z_b)            # (n, d) each; local rows under a process group
    >>> output.loss.backward()

    Args:
        invariance: lambda, for two tensors (a graph's edges carry their own).
        variance: mu, one for both or one each.
        covariance: nu, one for both or one each.
        convention: ``paper`` sums mu v over the branches, ``official`` averages it (see the Config).
        normalise: what is done to the embeddings first: ``none``, ``standardise`` or ``l2`` (Table 8).
        gamma: target standard deviation; by default 1, or 1/sqrt(d) for ``l2``.
        epsilon: added to the variance under the root.

    Terms: ``variance/<node>``, ``covariance/<node>``, ``invariance/<a>-<b>``, all unweighted, and
    ``cancellation/<node>``: how much the covariance term's rounding is amplified (:mod:`.terms`).
    """

    Config: ClassVar[type[Strict]] = VICRegConfig
    advice: ClassVar[str] = (
        "Raise the variance coefficient, keep invariance close to it and covariance well below both (Table 7)"
    )

    def __init__(
        self,
        *,
        invariance: float = 25.0,
        variance: float | tuple[float, float] = 25.0,
        covariance: float | tuple[float, float] = 1.0,
        convention: Convention = "paper",
        normalise: Normalisation = "none",
        gamma: float | None = None,
        epsilon: float = 1e-4,
    ) -> None:
        super().__init__()
        options = {"convention": convention, "normalise": normalise, "gamma": gamma, "epsilon": epsilon}
        validate_options(VICReg, options)
        self.convention, self.normalise = convention, normalise
        self.directional = normalise == "l2"
        self.gamma, self.epsilon = gamma, epsilon
        self.invariance = invariance
        self.variance = _each(variance)
        self.covariance = _each(covariance)
        if not all(0 <= weight < math.inf for weight in (invariance, *self.variance, *self.covariance)):
            raise UserError("VICReg's coefficients must be numbers, and not negative")

    def pair_graph(self, width_a: int, width_b: int) -> Graph:
        """The nodes ``a`` and ``b`` with the coefficients given at construction."""
        nodes = (
            Node("a", "a", width_a, self.variance[0], self.covariance[0]),
            Node("b", "b", width_b, self.variance[1], self.covariance[1]),
        )
        return Graph(nodes, (Edge("a", "b", self.invariance),))

    def check(self, graph: Graph) -> None:
        """Refuse, besides, a loss or a variance term that is zero whatever the embeddings."""
        super().check(graph)
        weights = [weight for node in graph.nodes for weight in (node.variance, node.covariance)]
        if not any(weights) and not any(edge.invariance for edge in graph.edges):
            raise UserError(
                "every coefficient of VICReg is 0, so that there is nothing to train: set variance and covariance of a "
                "branch, or the invariance of an edge"
            )
        for node in graph.nodes:
            gamma = self._gamma(node.width)
            if node.variance and gamma**2 <= self.epsilon:
                raise UserError(
                    f"the variance term of '{node.name}' is always zero: its target gamma {gamma:.3g} is not "
                    f"above the root of epsilon {self.epsilon:g} (Eq. 2); set objective.epsilon to "
                    f"{1e-4 * gamma**2:.1g}, which is to gamma^2 what 1e-4 is to 1"
                )

    def target_std(self, node: Node) -> float | None:
        """gamma, where the variance term counts; of directions see the method that is overridden."""
        if self.directional:
            return super().target_std(node)
        return self._gamma(node.width) if node.variance and self.normalise == "none" else None

    def _gamma(self, width: int) -> float:
        if self.gamma is not None:
            return self.gamma
        return 1 / math.sqrt(width) if self.normalise == "l2" else 1.0

    def warnings(self, graph: Graph) -> list[str]:
        """Coefficients that the paper's Table 7 or arithmetic says collapse."""
        found = []
        for node in graph.nodes:
            gamma = self._gamma(node.width)
            if node.variance and 4 * self.epsilon > gamma**2:
                found.append(
                    f"the root of epsilon is {math.sqrt(self.epsilon) / gamma:.0%} of the target gamma "
                    f"{gamma:.3g} of '{node.name}', so the variance term stops far short of it; consider "
                    f"objective.epsilon={1e-4 * gamma**2:.1g}"
                )
            if node.variance == 0 and self.normalise == "standardise":
                continue  # a standardised dimension cannot shrink
            if node.variance == 0:
                found.append(f"'{node.name}' has variance (mu) 0: nothing keeps it from collapsing (Table 7)")
            elif node.covariance >= node.variance:
                found.append(
                    f"'{node.name}' has covariance (nu) {node.covariance:g} at or above variance (mu) "
                    f"{node.variance:g}: such settings collapse (Table 7)"
                )
        for edge in graph.edges:
            for node in graph.nodes:
                apart = max(edge.invariance, node.variance) > 2 * min(edge.invariance, node.variance)
                if node.name in (edge.a, edge.b) and node.variance > 0 and apart:
                    found.append(
                        f"the edge {edge.a}-{edge.b} has invariance (lambda) {edge.invariance:g} and "
                        f"'{node.name}' variance (mu) {node.variance:g}: more than twofold apart, which "
                        "the paper found to collapse or to train badly (Table 7)"
                    )
        return found

    def compute(
        self, embeddings: Mapping[str, Tensor], graph: Graph, sizes: tuple[int, ...]
    ) -> ObjectiveOutput:
        """Eq. 6 over the graph; float32, or float64 for float64 embeddings."""
        position = {node.name: i for i, node in enumerate(graph.nodes)}
        values = vicreg_terms(
            [normalise(embeddings[node.name], self.normalise, sizes=sizes) for node in graph.nodes],
            [(position[edge.a], position[edge.b]) for edge in graph.edges],
            gamma=[self._gamma(node.width) for node in graph.nodes],
            epsilon=self.epsilon,
            sizes=sizes,
        )
        share = 1.0 / len(graph.nodes) if self.convention == "official" else 1.0
        loss = values.variance[0].new_zeros(())
        terms: dict[str, Tensor] = {}
        for edge, invariance in zip(graph.edges, values.invariance, strict=True):
            terms[f"invariance/{edge.a}-{edge.b}"] = invariance
            if edge.invariance:  # a term without weight costs no gradient
                loss = loss + edge.invariance * invariance
        for i, node in enumerate(graph.nodes):
            terms[f"variance/{node.name}"] = values.variance[i]
            terms[f"covariance/{node.name}"] = values.covariance[i]
            terms[f"cancellation/{node.name}"] = values.cancellation[i]
            if node.variance:
                loss = loss + share * node.variance * values.variance[i]
            if node.covariance:
                loss = loss + node.covariance * values.covariance[i]
        dtype = max((exact_dtype(z.dtype) for z in embeddings.values()), key=lambda dtype: dtype.itemsize)
        return ObjectiveOutput(
            loss.to(dtype), {name: term.detach().to(dtype) for name, term in terms.items()}
        )


def _each(weight: float | tuple[float, float]) -> tuple[float, float]:
    if isinstance(weight, (int, float)):
        return weight, weight
    if len(weight) != 2:
        raise UserError(f"a coefficient is one number, or one for each of the two branches; got {weight}")
    return weight[0], weight[1]
