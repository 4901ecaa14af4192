"""SwAV against loops in float64: Sinkhorn, swapped predictions, prototypes, queue, multi-crop."""

from __future__ import annotations

from typing import Any

import pytest
import references
import torch
from agreement import agree, pair
from torch import Tensor, nn

from mmvicreg.errors import UserError
from mmvicreg.objectives import Edge, Graph, Node, NonFiniteError, SwAV
from mmvicreg.objectives.swav import sinkhorn

OPTIONS: dict[str, dict[str, float]] = {
    "plain": {},
    "options": {"temperature": 0.5, "epsilon": 0.2, "iterations": 5},
}
SHAPES = [(2, 3), (5, 9), (9, 5), (24, 16)]


def build(width: int, **options: Any) -> SwAV:
    return SwAV(width=width, prototypes=7, **options)


def prototypes(objective: SwAV) -> Tensor:
    assert objective.prototypes is not None
    return objective.prototypes


def reference(objective: SwAV, a: Tensor, b: Tensor, **options: Any) -> Tensor:
    return references.swav(a, b, prototypes=prototypes(objective), **options)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_float64_is_the_reference(name: str, n: int, d: int) -> None:
    objective, options = build(d, **OPTIONS[name]).double(), OPTIONS[name]
    agree(
        objective, lambda a, b: reference(objective, a, b, **options), *pair(n, d), loss=1e-12, gradient=1e-9
    )


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("n", "d"), [(24, 64), (64, 24)])
def test_float32_is_close_to_the_reference(name: str, n: int, d: int) -> None:
    objective, options = build(d, **OPTIONS[name]), OPTIONS[name]
    a, b = (x.float() for x in pair(n, d))
    agree(objective, lambda a, b: reference(objective, a, b, **options), a, b, loss=2e-6, gradient=1e-5)


def test_prototypes_learn_and_only_their_direction_counts() -> None:
    objective = build(4).double()
    a, b = pair(6, 4)
    objective(a, b).loss.backward()
    vectors = prototypes(objective)
    exact = vectors.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(references.swav(a, b, prototypes=exact), exact)
    torch.testing.assert_close(vectors.grad, expected, rtol=1e-9, atol=1e-12)
    assert float(expected.norm()) > 0
    before = objective(a, b).loss
    with torch.no_grad():
        vectors.mul_(torch.linspace(0.5, 3, 7, dtype=torch.float64)[:, None])
    torch.testing.assert_close(objective(a, b).loss, before)


def test_symmetry_and_gradcheck_with_the_codes_held() -> None:
    """Codes have no gradient, so finite differences must not see them move."""
    objective = build(4).double()
    a, b = (x.requires_grad_() for x in pair(6, 4))
    torch.testing.assert_close(objective(a, b).loss, objective(b, a).loss, rtol=1e-12, atol=0)
    codes = {"a": references.assignments(torch.randn(6, 7)), "b": references.assignments(torch.randn(6, 7))}
    objective._codes = lambda *_: codes  # type: ignore[method-assign]
    assert torch.autograd.gradcheck(lambda x, y: objective(x, y).loss, (a, b))


def test_half_precision_input_is_computed_in_float32() -> None:
    objective = build(16)
    a, b = (x.bfloat16() for x in pair(12, 16))
    output = objective(a, b)
    assert output.loss.dtype == torch.float32
    assert float(output.loss.detach()) == pytest.approx(float(reference(objective, a, b).detach()), rel=1e-5)


@pytest.mark.parametrize(("n", "k"), [(12, 5), (5, 12)])
def test_sinkhorn_is_the_reference_and_divides_evenly(n: int, k: int) -> None:
    scores = 2 * torch.rand(n, k, dtype=torch.float64) - 1
    torch.testing.assert_close(sinkhorn(scores, epsilon=0.05, iterations=3), references.assignments(scores))
    codes = sinkhorn(scores, epsilon=0.3, iterations=200)
    torch.testing.assert_close(codes.sum(1), torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(0), torch.full((k,), n / k, dtype=torch.float64))


def test_sinkhorn_stands_an_epsilon_whose_exponential_overflows() -> None:
    scores = 2 * torch.rand(16, 6) - 1
    codes = sinkhorn(scores, epsilon=1e-3, iterations=3)
    exact = sinkhorn(scores.double(), epsilon=1e-3, iterations=3)
    assert torch.isfinite(codes).all()
    torch.testing.assert_close(codes, exact.float(), rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(codes.sum(1), torch.ones(16))


def test_the_queue_fills_then_helps_with_the_newest_rows() -> None:
    objective = build(4, queue=8, queue_start=1).double()
    batches = [pair(5, 4) for _ in range(5)]
    history: list[tuple[Tensor, Tensor]] = []
    for step, (a, b) in enumerate(batches):
        full = 5 * len(history) >= 8
        queues = None
        if full:
            queues = tuple(torch.cat([z[i] for z in reversed(history)])[:8] for i in (0, 1))
        expected = reference(objective, a, b, queues=queues)
        torch.testing.assert_close(objective(a, b).loss, expected, rtol=1e-10, atol=0)
        if full:
            assert abs(float(expected - reference(objective, a, b))) > 1e-6  # it does change the codes
        if step >= 1:
            history.append((references._unit(a), references._unit(b)))
    assert int(objective.step) == 5
    assert full
    objective.eval()
    kept = {name: value.clone() for name, value in objective.state_dict().items()}
    objective(*batches[0])
    assert all(torch.equal(value, kept[name]) for name, value in objective.state_dict().items())


def test_what_it_keeps_is_saved_and_resumed() -> None:
    batches = [pair(5, 4) for _ in range(5)]
    options: dict[str, Any] = {"queue": 6, "freeze_steps": 3}
    whole = build(4, **options).double()
    first, resumed = build(4, **options).double(), build(4, **options).double()
    first.load_state_dict(whole.state_dict())
    losses = [float(whole(a, b).loss) for a, b in batches]
    for a, b in batches[:2]:
        first(a, b)
    resumed.load_state_dict(first.state_dict())
    assert [float(resumed(a, b).loss) for a, b in batches[2:]] == losses[2:]
    assert set(whole.state_dict()) == {"prototypes", "step", "queue", "queued"}
    assert set(build(4).state_dict()) == {"prototypes", "step"}


def test_prototypes_stay_for_the_first_steps() -> None:
    objective = build(4, freeze_steps=2)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.1, weight_decay=0.0)
    start = prototypes(objective).detach().clone()
    a, b = (x.float().requires_grad_() for x in pair(6, 4))
    for step in range(3):
        optimizer.zero_grad()
        objective(a, b).loss.backward()
        grad = prototypes(objective).grad
        assert grad is not None  # DistributedDataParallel waits for it
        assert bool(grad.any()) == (step == 2)
        optimizer.step()
        assert torch.equal(prototypes(objective), start) == (step < 2)
    assert a.grad is not None
    assert a.grad.any()


def crops() -> Graph:
    """Two full views and a small one, every pair joined but for the codes that the small one has not."""
    nodes = (Node("image/0", "image", 4), Node("image/1", "image", 4), Node("small", "small", 4))
    return Graph(nodes, (Edge("image/0", "image/1"), Edge("image/0", "small"), Edge("small", "image/1")))


@pytest.mark.parametrize("given", [["image"], ["image/0", "image/1"]])
def test_multi_crop_takes_codes_from_the_full_views(given: list[str]) -> None:
    objective = SwAV.from_config({"prototypes": 7, "codes_from": given, "queue": 3}, crops()).double()
    assert objective.queue is not None
    assert objective.queue.shape == (2, 3, 4)
    x, y = pair(6, 4)
    batch = {"image/0": x, "image/1": y, "small": x.flip(0)}
    output = objective(batch)
    expected = (
        reference(objective, x, y)
        + reference(objective, x, x.flip(0), directions="a")
        + reference(objective, x.flip(0), y, directions="b")
    )
    torch.testing.assert_close(output.loss, expected, rtol=1e-10, atol=0)
    swaps = {name for name in output.terms if name.startswith("swap")}
    assert swaps == {
        "swap/image/0-image/1",
        "swap/image/1-image/0",
        "swap/image/0-small",
        "swap/image/1-small",
    }


def test_a_graph_sums_over_its_edges_with_one_set_of_prototypes() -> None:
    names = ("image", "text", "audio")
    graph = Graph(
        tuple(Node(name, name, 5) for name in names), (Edge("image", "text"), Edge("text", "audio"))
    )
    objective = SwAV.from_config({"prototypes": 7}, graph).double()
    a, b = pair(7, 5)
    expected = reference(objective, a, b) + reference(objective, b, a.flip(0))
    output = objective(dict(zip(names, (a, b, a.flip(0)), strict=True)))
    torch.testing.assert_close(output.loss, expected, rtol=1e-10, atol=0)
    assert [tuple(p.shape) for p in objective.parameters()] == [(7, 5)]


def test_terms_say_how_many_prototypes_are_used() -> None:
    objective = build(7).double()
    objective.prototypes = nn.Parameter(torch.eye(7, dtype=torch.float64))
    terms = objective(torch.eye(7, dtype=torch.float64)[:2], torch.eye(7, dtype=torch.float64)[[0, 0]]).terms
    assert float(terms["used/a"]) == pytest.approx(2 / 7)
    assert float(terms["used/b"]) == pytest.approx(1 / 7)


def test_what_cannot_run_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"SwAV\(width=d\)"):
        SwAV()(*pair(4, 3))
    with pytest.raises(UserError, match=r"made for embeddings of 4 dimensions, and these have 3.*width=3"):
        build(4)(*pair(4, 3))
    with pytest.raises(UserError, match=r"names 'big', which is not one of image, image/0, image/1, small"):
        SwAV.from_config({"codes_from": ["big"]}, crops())
    with pytest.raises(UserError, match="edge image/0-image/1 has no code to predict"):
        SwAV.from_config({"codes_from": ["small"]}, crops())
    with pytest.raises(UserError, match="branch 'b' would not be trained"):
        build(3, codes_from=["b"])
    two = Graph(tuple(Node(str(i), str(i), 3 + i // 2) for i in range(4)), (Edge("0", "1"), Edge("2", "3")))
    with pytest.raises(UserError, match="have 3 and 4 dimensions"):
        SwAV.from_config({}, two)
    with pytest.raises(UserError, match="temperature"):
        SwAV(temperature=0.0)
    with pytest.raises(UserError, match="at least 2 samples"):
        build(3)(*pair(1, 3))


def test_what_is_not_finite_is_located_and_not_kept() -> None:
    objective = build(3, queue=4).double()
    a, b = pair(12, 3)
    b[4, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="branch 'b', rows 4"):
        objective(a, b)
    assert objective.queue is not None
    assert not objective.queue.any()
    assert int(objective.step) == 0
