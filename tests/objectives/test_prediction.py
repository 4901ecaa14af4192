"""BYOL, SimSiam and the switches between them and VICReg, against Eq. 8 written by loops in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import references
import torch
from torch import Tensor, nn

from mmvicreg.errors import UserError
from mmvicreg.objectives import BYOL, Edge, Graph, Node, NonFiniteError, Objective, SimSiam, VICReg
from mmvicreg.objectives.prediction import PredictionMethod

WIDTH = 6
CASES: dict[str, tuple[type[PredictionMethod], dict[str, Any]]] = {
    "byol": (BYOL, {"predictor": [9]}),
    "byol, variance": (BYOL, {"predictor": [9], "regularise": "variance"}),
    "byol, variance and covariance": (
        BYOL,
        {"predictor": [9], "regularise": "variance+covariance", "variance": 2.0, "covariance": 0.3},
    ),
    "byol without predictor": (BYOL, {"predictor": None, "invariance": 2.0}),
    "simsiam": (SimSiam, {"predictor": [4]}),
    "simsiam, variance and covariance": (SimSiam, {"predictor": [4], "regularise": "variance+covariance"}),
    "simsiam without BN": (SimSiam, {"predictor": [4], "predictor_norm": "none"}),
    "simsiam without BN, variance": (
        SimSiam,
        {"predictor": [4], "predictor_norm": "none", "regularise": "variance", "gamma": 2.0, "epsilon": 0.1},
    ),
    "simsiam without predictor": (SimSiam, {"predictor": None}),
    "simsiam with gradients": (SimSiam, {"predictor": [4], "stop_gradient": False}),
    "simsiam with momentum": (SimSiam, {"predictor": [4], "momentum": 0.9}),
    "vicreg with predictor": (
        SimSiam,
        {
            "predictor": [9],
            "stop_gradient": False,
            "distance": "mse",
            "regularise": "variance+covariance",
            "invariance": 25.0,
            "variance": 25.0,
            "covariance": 1.0,
        },
    ),
    "vicreg with predictor, stopped": (SimSiam, {"predictor": [9], "distance": "mse"}),
}
every_case = pytest.mark.parametrize("case", CASES)


def build(case: str) -> PredictionMethod:
    method, options = CASES[case]
    torch.manual_seed(3)
    objective = method(width=WIDTH, **options).double()
    for parameter in objective.parameters():
        nn.init.normal_(parameter, std=0.5)
    return objective


def batch(n: int) -> list[Tensor]:
    """Two related views and what the averages make of them, float64."""
    common = torch.randn(n, WIDTH, dtype=torch.float64)
    return [common + 0.7 * torch.randn(n, WIDTH, dtype=torch.float64) for _ in range(4)]


def call(objective: Objective, views: list[Tensor]) -> Any:
    a, b, *targets = views
    return (
        objective(a, b, targets=tuple(targets)) if objective.target_momentum is not None else objective(a, b)
    )


def reference(objective: PredictionMethod, views: list[Tensor]) -> Tensor:
    options = objective.options
    a, b, *averages = views
    predictions = [a, b]
    if options.predictor is not None:
        weights = {name.removeprefix("views."): p for name, p in objective.predictors.named_parameters()}
        norm = options.predictor_norm == "batchnorm"
        predictions = [references.predictor(z, weights, norm=norm) for z in (a, b)]
    targets = averages if options.momentum is not None else [a, b]
    if options.stop_gradient:
        targets = [target.detach() for target in targets]
    loss = options.invariance * references.eq_8(*predictions, *targets, distance=options.distance)
    for z in (a, b):
        v, c = references.vicreg_parts(z, gamma=options.gamma, epsilon=options.epsilon)
        loss = loss + (options.variance * v if options.regularise != "none" else 0)
        loss = loss + (options.covariance * c if options.regularise == "variance+covariance" else 0)
    return loss


@every_case
@pytest.mark.parametrize("n", [4, 17])
@pytest.mark.parametrize(
    ("dtype", "loss", "gradient"), [(torch.float64, 1e-12, 1e-9), (torch.float32, 5e-6, 2e-5)]
)
def test_value_and_gradients_are_the_references(
    case: str, n: int, dtype: torch.dtype, loss: float, gradient: float
) -> None:
    objective = build(case).to(dtype)
    views = [x.to(dtype).requires_grad_() for x in batch(n)]
    output = call(objective, views)
    exact = build(case)
    exact.load_state_dict(objective.state_dict())
    copies = [x.detach().double().requires_grad_() for x in views]
    expected = reference(exact, copies)
    assert output.loss.dtype == dtype
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=loss, abs=loss)
    assert not any(term.requires_grad for term in output.terms.values())
    ours = torch.autograd.grad(output.loss, [*views, *objective.parameters()], allow_unused=True)
    right = torch.autograd.grad(expected, [*copies, *exact.parameters()], allow_unused=True)
    whole = torch.stack([g.norm() for g in right if g is not None]).norm()
    for mine, theirs in zip(ours, right, strict=True):
        if theirs is None:
            assert mine is None or float(mine.norm()) == 0
        else:  # a bias before BatchNorm has no gradient at all, so the whole is the measure
            assert mine is not None
            assert float((mine.double() - theirs).norm()) <= gradient * float(whole)


@pytest.mark.parametrize("case", ["byol, variance", "simsiam with gradients", "vicreg with predictor"])
def test_gradcheck(case: str) -> None:
    objective = build(case)
    a, b, *targets = batch(5)
    a.requires_grad_()
    b.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: call(objective, [x, y, *targets]).loss, (a, b))


@pytest.mark.parametrize("distance", ["normalised-mse", "cosine", "mse"])
def test_gradcheck_of_predictions_against_held_targets(distance: Any) -> None:
    a, b, p_a, p_b = batch(5)
    p_a.requires_grad_()
    p_b.requires_grad_()
    objective = SimSiam(distance=distance)
    assert torch.autograd.gradcheck(lambda x, y: objective(a, b, predictions=(x, y)).loss, (p_a, p_b))


@every_case
def test_the_views_may_be_exchanged(case: str) -> None:
    a, b, t_a, t_b = batch(7)
    objective = build(case)
    one, other = call(objective, [a, b, t_a, t_b]), call(objective, [b, a, t_b, t_a])
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.terms["distance/a-b"], other.terms["distance/b-a"], rtol=1e-12, atol=0)


def test_without_predictor_and_stop_gradient_it_is_vicreg() -> None:
    objective = SimSiam(
        predictor=None, stop_gradient=False, distance="mse", regularise="variance+covariance",
        invariance=25, variance=25, covariance=1,
    )  # fmt: skip
    a, b = (x.requires_grad_() for x in batch(9)[:2])
    ours, vicreg = objective(a, b), VICReg()(a, b)
    torch.testing.assert_close(ours.loss, vicreg.loss, rtol=1e-12, atol=0)
    for mine, theirs in zip(
        torch.autograd.grad(ours.loss, (a, b)), torch.autograd.grad(vicreg.loss, (a, b)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_predictions_of_ones_own_count_like_the_predictors() -> None:
    a, b, t_a, t_b = batch(6)
    own = build("byol, variance")
    p_a, p_b = (own.predictors["views"](z) for z in (a, b))
    other = BYOL(regularise="variance")
    torch.testing.assert_close(
        other(a, b, predictions=(p_a, p_b), targets=(t_a, t_b)).loss, own(a, b, targets=(t_a, t_b)).loss
    )


def test_half_precision_embeddings_are_compared_in_float32() -> None:
    a, b = (x.bfloat16() for x in batch(8)[:2])
    objective = build("simsiam, variance and covariance").float()
    torch.testing.assert_close(objective(a, b).loss, objective(a.float(), b.float()).loss, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = objective(a, b).loss
    torch.testing.assert_close(inside, objective(a, b).loss, rtol=0, atol=0)


def views_of(*branches: str) -> Graph:
    nodes = tuple(Node(f"{branch}/{i}", branch, WIDTH) for i, branch in enumerate(branches))
    return Graph(nodes, (Edge(nodes[0].name, nodes[1].name),))


@pytest.mark.parametrize("method", [BYOL, SimSiam])
def test_views_of_one_branch_share_a_predictor(method: type[PredictionMethod]) -> None:
    objective = method.from_config({"predictor": [4]}, views_of("image", "image"))
    assert list(objective.predictors) == ["image"]
    targets = objective.target_momentum is not None
    a, b, t_a, t_b = (x.float() for x in batch(5))
    names = ("image/0", "image/1")
    given = {"targets": dict(zip(names, (t_a, t_b), strict=True))} if targets else {}
    output = objective(dict(zip(names, (a, b), strict=True)), **given)
    alone = method(width=WIDTH, predictor=[4])
    alone.predictors["views"].load_state_dict(objective.predictors["image"].state_dict())
    torch.testing.assert_close(output.loss, call(alone, [a, b, t_a, t_b]).loss)
    assert set(output.terms) == {"distance/image/0-image/1", "distance/image/1-image/0"}


@pytest.mark.parametrize("method", [BYOL, SimSiam])
def test_different_branches_are_refused_with_a_way_out(method: type[PredictionMethod]) -> None:
    pair = views_of("image", "text")
    with pytest.raises(UserError, match=r"two views of one branch.*image/0-text/1.*vicreg.*across_branches"):
        method.from_config({}, pair)
    objective = method.from_config({"across_branches": True}, pair)
    assert list(objective.predictors) == ["image", "text"]


def test_without_stopped_gradients_any_branches_are_joined() -> None:
    options = {"stop_gradient": False, "distance": "mse", "regularise": "variance"}
    objective = SimSiam.from_config(options, views_of("image", "text"))
    assert list(objective.predictors) == ["image", "text"]


def test_a_branch_without_an_edge_has_no_predictor() -> None:
    graph = views_of("image", "image")
    graph = Graph((*graph.nodes, Node("text", "text", WIDTH)), graph.edges)
    assert list(SimSiam.from_config({}, graph).predictors) == ["image"]


def test_a_linear_predictor_and_none() -> None:
    assert [type(layer) for layer in SimSiam(width=5, predictor=[]).predictors["views"]] == [nn.Linear]
    assert not list(SimSiam(width=5, predictor=None).parameters())


MISUSES: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "no predictor": ("width=d, pass predictions", lambda z: SimSiam()(z, z)),
    "two predictors": ("as well", lambda z: SimSiam(width=WIDTH)(z, z, predictions=(z, z))),
    "no targets": (r"targets=\(t_a, t_b\)", lambda z: BYOL(width=WIDTH)(z, z)),
    "targets unasked": ("no momentum", lambda z: SimSiam(width=WIDTH)(z, z, targets=(z, z))),
    "one target": ("every embedding", lambda z: BYOL(width=WIDTH)(z, z, targets=(z,))),
    "another shape": ("in its shape", lambda z: BYOL(width=WIDTH)(z, z, targets=(z, z[:2]))),
    "a name missing": ("every embedding", lambda z: BYOL(width=WIDTH)(z, z, targets={"a": z})),
    "another width": ("width is that of the embeddings", lambda z: SimSiam(width=4)(z, z)),
    "momentum with gradients": ("momentum: null", lambda _: BYOL(stop_gradient=False)),
    "momentum above one": ("momentum", lambda _: BYOL(momentum=1.5)),
    "an unknown distance": ("distance", lambda _: SimSiam(distance="manhattan")),
    "an unknown option": ("regularize", lambda _: SimSiam(regularize="none")),
    "one sample": ("at least 2 samples", lambda z: SimSiam(width=WIDTH)(z[:1], z[:1])),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_a_misuse_is_one_message(misuse: str) -> None:
    message, act = MISUSES[misuse]
    with pytest.raises(UserError, match=message):
        act(torch.randn(4, WIDTH))


def test_the_target_that_is_not_finite_is_named() -> None:
    a, b, t_a, t_b = batch(5)
    t_b[3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match=r"'b \(target\)', rows 3 ") as caught:
        build("byol")(a, b, targets=(t_a, t_b))
    assert caught.value.rows == (3,)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, ""),
        ({"predictor": None}, "without a predictor nothing"),
        ({"stop_gradient": False}, "without stopped gradients nothing"),
        ({"predictor": None, "stop_gradient": False}, "without a predictor and stopped gradients"),
        ({"predictor": None, "regularise": "variance"}, ""),
        ({"predictor": None, "regularise": "variance", "variance": 0}, "without a predictor"),
        ({"predictor_norm": "none"}, "without BatchNorm trains badly"),
        ({"predictor_norm": "none", "regularise": "variance"}, ""),
    ],
)
def test_what_table_4_says_collapses_is_warned_of(options: dict[str, Any], warned: str) -> None:
    graph = views_of("image", "image")
    found = SimSiam.from_config(options, graph).warnings(graph)
    assert len(found) == bool(warned)
    assert warned in "".join(found)


def trained(objective: PredictionMethod, steps: int = 150) -> tuple[float, float]:
    """Train a small encoder on noisy views; what its embeddings look like then.

    Returns:
        The mean standard deviation of a dimension, and that of the unit embeddings times sqrt(d): 1 is spread
        evenly over the sphere, 0 is collapsed to a direction.
    """
    torch.manual_seed(5)
    encoder = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, WIDTH, bias=False))
    optimizer = torch.optim.SGD([*encoder.parameters(), *objective.parameters()], lr=0.1, momentum=0.9)
    data = torch.randn(64, 8)
    for _ in range(steps):
        z_a, z_b = (encoder(data + 0.5 * torch.randn_like(data)) for _ in range(2))
        optimizer.zero_grad()
        objective(z_a, z_b).loss.backward()
        optimizer.step()
    with torch.no_grad():
        z = encoder(data)
    unit = torch.nn.functional.normalize(z, dim=1)
    return float(z.std(dim=0).mean()), float(unit.std(dim=0).square().sum().sqrt())


COLLAPSING: dict[str, dict[str, Any]] = {
    "no predictor": {"predictor": None},
    "no stop-gradient": {"predictor": [16], "stop_gradient": False},
    "neither": {"predictor": None, "stop_gradient": False},
}


@pytest.mark.parametrize("switches", COLLAPSING)
def test_what_table_4_says_collapses_does_unless_regularised(switches: str) -> None:
    def method(**more: Any) -> PredictionMethod:
        torch.manual_seed(4)
        return SimSiam(width=WIDTH, **COLLAPSING[switches], **more)

    _, spread = trained(method())
    assert spread < 0.05
    deviation, kept = trained(method(regularise="variance"))
    assert deviation > 0.8
    assert kept > 3 * spread
    deviation, decorrelated = trained(method(regularise="variance+covariance"))
    assert deviation > 0.8
    assert decorrelated > kept


@pytest.mark.parametrize("predictor", [None, [16]])
def test_vicregs_rows_collapse_unless_regularised(predictor: list[int] | None) -> None:
    def method(regularise: Any) -> PredictionMethod:
        torch.manual_seed(4)
        return SimSiam(
            width=WIDTH, predictor=predictor, stop_gradient=False, distance="mse", regularise=regularise,
            fixed_predictor_rate=False,
        )  # fmt: skip

    assert trained(method("none"))[0] < 0.1
    deviation, spread = trained(method("variance+covariance"))
    assert deviation > 0.8
    assert spread > 0.8


def test_simsiam_itself_does_not_collapse() -> None:
    torch.manual_seed(4)
    assert trained(SimSiam(width=WIDTH, predictor=[16]))[1] > 0.8
