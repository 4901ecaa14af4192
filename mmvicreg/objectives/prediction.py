"""Methods in which one embedding predicts another: BYOL, SimSiam, and every step from them to VICReg.

Per edge, with z and z' the embeddings of a sample, p = g(z) and p' = g(z') their predictions:

    s = 1/2n sum_i D(p_i, t'_i) + 1/2n sum_i D(p'_i, t_i)             Eq. 8 of the VICReg paper

A target t is z itself, z held constant (``stop_gradient``), or the embedding that a moving average of the
branch gives (``momentum``; :mod:`mmvicreg.branches.target`). Without a predictor p is z. The distances, per
sample:

    normalised-mse:  |p/|p| - t/|t||^2 = 2 - 2 cos(p, t)              BYOL, Eq. 2
    cosine:          - cos(p, t)                                      SimSiam, Eq. 1
    mse:             mean over the d entries of (p - t)^2             VICReg, Algorithm 1

    loss = lambda sum over edges s + sum over nodes (mu v(z) + nu c(z))

with v and c of :mod:`.vicreg` on the embeddings, not on the predictions (section 6). lambda, mu and nu are
this objective's options; those of the recipe's branches and edges are VICReg's and unused. BYOL's own
loss is twice Eq. 8's: ``invariance: 2``.

The rows of the paper's Table 4 (expanders without BN: ``branches.*.expander.norm: none``):

    BYOL                   byol
    SimSiam                simsiam
    SimSiam without BN     simsiam, predictor_norm: none
      ... and predictor    simsiam, predictor: null
    VICReg with predictor  simsiam, distance: mse, stop_gradient: false, fixed_predictor_rate: false,
                           predictor: [8192], invariance: 25, variance: 25, covariance: 1
    VICReg                 the same with predictor: null, or vicreg

each with ``regularise: none``, ``variance`` or ``variance+covariance``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypedDict, Unpack

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmvicreg.branches.expander import expander
from mmvicreg.config import ExpanderConfig
from mmvicreg.errors import UserError
from mmvicreg.objectives.base import Edge, Graph, Node, Objective, ObjectiveOutput, validate_options
from mmvicreg.objectives.gather import gather
from mmvicreg.objectives.precision import exact
from mmvicreg.objectives.terms import vicreg_terms
from mmvicreg.strict import Strict

Distance = Literal["normalised-mse", "cosine", "mse"]
Regularise = Literal["none", "variance", "variance+covariance"]
Widths = tuple[Annotated[int, Field(ge=1)], ...]
Given = Mapping[str, Tensor] | tuple[Tensor, Tensor] | None
VIEWS = "views"
"""The one branch that two tensors without a graph are two views of."""


class PredictionConfig(Strict):
    """The switches; BYOL and SimSiam are their own settings of them."""

    momentum: Annotated[float, Field(ge=0, le=1)] | None = None
    """Start of the targets' momentum, which goes to 1 along a cosine; null: no moving average."""
    stop_gradient: bool = True
    """Hold the targets constant."""
    predictor: Widths | None = None
    """Hidden widths of g, whose last layer has the embedding's width; ``[]``: one linear layer; null: none."""
    predictor_norm: Literal["batchnorm", "none"] = "batchnorm"
    fixed_predictor_rate: bool = False
    """Keep the predictor's learning rate out of the schedule."""
    distance: Distance = "cosine"
    regularise: Regularise = "none"
    """What is added on the embeddings."""
    invariance: Annotated[float, Field(ge=0)] = 1.0
    """lambda: weight of Eq. 8."""
    variance: Annotated[float, Field(ge=0)] = 1.0
    """mu, the same for every node (C.4)."""
    covariance: Annotated[float, Field(ge=0)] = 0.01
    """nu, the same for every node (C.4)."""
    gamma: Annotated[float, Field(gt=0)] = 1.0
    """The standard deviation that every dimension is pushed up to."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-4
    """Added to the variance under the root."""
    across_branches: bool = False
    """Allow stopped gradients and moving averages between different branches too (see ``check``)."""

    @model_validator(mode="after")
    def _constant(self) -> PredictionConfig:
        if self.momentum is not None and not self.stop_gradient:
            raise ValueError(
                "a moving average has no gradient to keep: stop_gradient: false needs momentum: null"
            )
        return self


class PredictionOptions(TypedDict, total=False):
    """:class:`PredictionConfig` as keyword arguments."""

    momentum: float | None
    stop_gradient: bool
    predictor: Sequence[int] | None
    predictor_norm: Literal["batchnorm", "none"]
    fixed_predictor_rate: bool
    distance: Distance
    regularise: Regularise
    invariance: float
    variance: float
    covariance: float
    gamma: float
    epsilon: float
    across_branches: bool


class PredictionMethod(Objective):
    """One embedding predicts another; BYOL and SimSiam are this class with other defaults.

    In a recipe it has one predictor for each branch, which the views of the branch share, and the model
    keeps the moving averages. Alone it takes two tensors, views of one branch, and

    * makes its predictor if it is told their ``width``, or is given ``predictions``;
    * is given ``targets``, the embeddings of the moving average, if it has a momentum.

    >>> objective = SimSiam(width=2048, regularise="variance")
    >>> objective(z_a, z_b).loss.backward()                  # (n, d) each; local rows under a process group
    >>> target = moving_copy(online)                         # of mmvicreg.branches.target; any module
    >>> output = BYOL(width=256)(online(x_a), online(x_b), targets=(target(x_a), target(x_b)))
    >>> move(target, online, momentum=momentum_at(step, steps=steps, start=0.99))  # after the optimiser
    >>> output = SimSiam()(z_a, z_b, predictions=(mine(z_a), mine(z_b)))

    The predictor's parameters are the objective's own, to be given to the optimiser; under
    DistributedDataParallel the objective belongs inside the wrapped module, and a predictor with BatchNorm
    through :func:`mmvicreg.branches.norm.synchronise_batchnorm`.

    Args:
        width: dimensions of the embeddings, for a predictor of one's own.
        options: the fields of the method's Config.

    Terms: ``distance/<a>-<b>``, D between a's prediction and b's target, and ``distance/<b>-<a>``; with
    regularisation ``variance/<node>`` and ``covariance/<node>``. All unweighted.

    Raises:
        UserError: options that exclude each other.
    """

    Config: ClassVar[type[Strict]] = PredictionConfig
    options: PredictionConfig

    def __init__(self, *, width: int | None = None, **options: Unpack[PredictionOptions]) -> None:
        super().__init__()
        checked = validate_options(type(self), options)
        assert isinstance(checked, PredictionConfig)
        self.options, self.width = checked, width
        self.target_momentum = checked.momentum
        self.fixed_rate = checked.fixed_predictor_rate
        self.directional = checked.distance != "mse"
        self.predictors = nn.ModuleDict()
        if width is not None:
            self._add_predictors({VIEWS: width})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], graph: Graph) -> Self:
        """The method with a recipe's options and a predictor for every branch that an edge joins."""
        objective = super().from_config(config, graph)
        ends = {end for edge in graph.edges for end in (edge.a, edge.b)}
        objective._add_predictors({node.branch: node.width for node in graph.nodes if node.name in ends})
        return objective

    def _add_predictors(self, widths: Mapping[str, int]) -> None:
        if self.options.predictor is None:
            return
        for branch, width in widths.items():
            shape = ExpanderConfig(
                widths=[*self.options.predictor, width], norm=self.options.predictor_norm, last_bias=True
            )
            self.predictors[branch] = expander(width, shape)

    def pair_graph(self, width_a: int, width_b: int) -> Graph:
        """The nodes ``a`` and ``b``, two views of one branch."""
        if self.width is not None and {width_a, width_b} != {self.width}:
            raise UserError(
                f"{type(self).__name__}(width={self.width}) was given embeddings of {width_a} and {width_b} "
                "dimensions; width is that of the embeddings"
            )
        return Graph((Node("a", VIEWS, width_a), Node("b", VIEWS, width_b)), (Edge("a", "b"),))

    def check(self, graph: Graph) -> None:
        """Refuse to stop gradients or to average weights across different branches.

        Both methods are defined for two views of one network: what a prediction is compared with is the
        output of the network that predicts (SimSiam), or of its own average (BYOL). Between branches of
        different weights neither is, and the paper's Table 5 has no result for them there. Without stopped
        gradients the loss is VICReg's with a predictor, defined for any branches. ``across_branches``
        allows it all the same.
        """
        super().check(graph)
        if not self.options.stop_gradient or self.options.across_branches:
            return
        branches = {node.name: node.branch for node in graph.nodes}
        for edge in graph.edges:
            if branches[edge.a] != branches[edge.b]:
                raise UserError(
                    f"{type(self).__name__} is defined for two views of one branch: its target is the network "
                    f"that predicts{', averaged' if self.options.momentum is not None else ''}, with the same "
                    f"weights, and the edge {edge.a}-{edge.b} joins two branches. Choose vicreg, "
                    "barlow_twins, simclr or vse for this pair, join a branch with itself, or try it "
                    "nevertheless with objective.across_branches: true"
                )

    def warnings(self, graph: Graph) -> list[str]:
        """Switches that the paper's Table 4 says collapse."""
        del graph
        options = self.options
        unregularised = options.regularise == "none" or options.variance == 0
        missing = [
            name
            for name, present in (
                ("a predictor", options.predictor is not None),
                ("stopped gradients", options.stop_gradient),
            )
            if not present
        ]
        if unregularised and missing:
            return [
                f"without {' and '.join(missing)} nothing keeps the embeddings from collapsing (Table 4); "
                "set objective.regularise to variance or variance+covariance"
            ]
        if unregularised and options.predictor_norm == "none":
            return ["a predictor without BatchNorm trains badly unless objective.regularise is set (Table 4)"]
        return []

    if TYPE_CHECKING:

        def __call__(  # noqa: D102
            self,
            embeddings: Mapping[str, Tensor] | Tensor,
            other: Tensor | None = None,
            *,
            predictions: Given = None,
            targets: Given = None,
        ) -> ObjectiveOutput: ...

    def forward(
        self,
        embeddings: Mapping[str, Tensor] | Tensor,
        other: Tensor | None = None,
        *,
        predictions: Given = None,
        targets: Given = None,
    ) -> ObjectiveOutput:
        """The loss of the global batch.

        Args:
            embeddings: ``(n_local, d)`` of this process by node name, or the first of two tensors.
            other: the second tensor, when the first argument is a tensor.
            predictions: what is predicted from each embedding, in their shapes, by somebody else's
                predictor.
            targets: the moving averages' embeddings, in the same shapes; their gradient is stopped.

        Raises:
            UserError: as every objective; targets or predictions that are missing or not wanted.
            NonFiniteError: NaN or infinity in an embedding or a target.
        """
        batch, graph = self._batch(embeddings, other)
        guessed, aims = _named("predictions", predictions, batch), _named("targets", targets, batch)
        self._check_given(guessed, aims)
        watched = {**batch, **{f"{name} (target)": aim for name, aim in aims.items()}}
        return self._evaluate(watched, lambda sizes: self._compare(batch, guessed, aims, graph, sizes))

    def compute(
        self, embeddings: Mapping[str, Tensor], graph: Graph, sizes: tuple[int, ...]
    ) -> ObjectiveOutput:
        """The loss with predictors of its own and without targets; float32, or float64 for float64."""
        return self._compare(embeddings, {}, {}, graph, sizes)

    def predict(self, embeddings: Mapping[str, Tensor], graph: Graph) -> dict[str, Tensor]:
        """Every node's prediction by its branch's predictor; the embedding itself without one."""
        predictions = dict(embeddings)
        for node in graph.nodes:
            if node.branch in self.predictors:
                z = embeddings[node.name]
                predictor = self.predictors[node.branch]
                predictions[node.name] = predictor(z.to(next(predictor.parameters()).dtype))
        return predictions

    def _check_given(self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        name = type(self).__name__
        if self.options.predictor is not None and bool(self.predictors) == bool(predictions):
            raise UserError(
                f"{name} has a predictor of its own and was given predictions as well: leave out the one or the other"
                if predictions
                else f"{name} has no predictor yet: make it with width=d, pass predictions=(p_a, p_b), or do "
                "without one (predictor=None)"
            )
        if (self.options.momentum is not None) != bool(targets):
            raise UserError(
                f"{name} was given targets and has no momentum: leave them out, or set one"
                if targets
                else f"{name} predicts the embeddings of a moving average: pass them as targets=(t_a, t_b), or "
                "do without (momentum=None)"
            )

    def _compare(
        self,
        embeddings: Mapping[str, Tensor],
        predictions: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        graph: Graph,
        sizes: tuple[int, ...],
    ) -> ObjectiveOutput:
        options = self.options
        z = {name: exact(x) for name, x in embeddings.items()}
        p = {name: exact(x) for name, x in (predictions or self.predict(z, graph)).items()}
        t = {name: exact(x) for name, x in (targets or z).items()}
        if options.stop_gradient:
            t = {name: x.detach() for name, x in t.items()}
        crops = {node.name for node in graph.nodes if node.crop}
        directions = [
            (a, b) for edge in graph.edges for a, b in ((edge.a, edge.b), (edge.b, edge.a)) if b not in crops
        ]
        rows = torch.stack([distance(p[a], t[b], options.distance) for a, b in directions], dim=1)
        values = gather(rows, sizes=sizes).mean(dim=0)
        terms = {f"distance/{a}-{b}": value for (a, b), value in zip(directions, values, strict=True)}
        loss = options.invariance / 2 * values.sum()
        if options.regularise != "none":
            found = vicreg_terms(
                list(embeddings.values()), (), gamma=options.gamma, epsilon=options.epsilon, sizes=sizes
            )
            for name, v, c in zip(embeddings, found.variance, found.covariance, strict=True):
                terms[f"variance/{name}"], terms[f"covariance/{name}"] = v, c
                loss = loss + options.variance * v
                if options.regularise == "variance+covariance":
                    loss = loss + options.covariance * c
        return ObjectiveOutput(
            loss.to(rows.dtype), {name: term.detach().to(rows.dtype) for name, term in terms.items()}
        )


def distance(prediction: Tensor, target: Tensor, kind: Distance) -> Tensor:
    """D of every row: ``(n, d)`` and ``(n, d)`` to ``(n,)``."""
    if kind == "mse":
        return (prediction - target).square().mean(dim=1)
    prediction, target = functional.normalize(prediction, dim=1), functional.normalize(target, dim=1)
    if kind == "cosine":
        return -(prediction * target).sum(dim=1)
    return (prediction - target).square().sum(dim=1)


def _named(what: str, given: Given, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Predictions or targets by the batch's names; empty where none were given."""
    if given is None or not given:
        return {}
    if isinstance(given, tuple):
        given = dict(zip(batch, given, strict=False)) if len(given) == len(batch) else {}
    found = {name: given[name] for name in batch if name in given}
    if found.keys() != batch.keys() or any(x.shape != batch[name].shape for name, x in found.items()):
        raise UserError(
            f"{what} must be given for every embedding and in its shape: "
            + ", ".join(f"{name} {tuple(z.shape)}" for name, z in batch.items())
        )
    return found
