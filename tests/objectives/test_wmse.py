"""W-MSE against loops in float64: whitening, sub-batches, their random partitions, and what is refused."""

from __future__ import annotations

import pytest
import references
import torch
from agreement import agree, pair
from torch import Tensor

from mmvicreg.errors import UserError
from mmvicreg.objectives import WMSE, Edge, Graph, Node, NonFiniteError

SHAPES = [(4, 3), (24, 16), (64, 24)]
OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "euclidean": {"distance": "euclidean"},
    "shrunk": {"shrinkage": 0.1},
}
every_option = pytest.mark.parametrize("name", OPTIONS)


def reference(name: str, a: Tensor, b: Tensor) -> Tensor:
    return references.wmse(a, b, cosine=name != "euclidean", shrinkage=0.1 if name == "shrunk" else 0.0)


@every_option
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_float64_is_the_reference(name: str, n: int, d: int) -> None:
    objective = WMSE(**OPTIONS[name])  # type: ignore[arg-type]
    agree(objective, lambda a, b: reference(name, a, b), *pair(n, d), loss=1e-10, gradient=1e-8)


@every_option
@pytest.mark.parametrize(("n", "d"), [(24, 16), (64, 24)])
def test_float32_is_close_to_the_reference(name: str, n: int, d: int) -> None:
    a, b = (x.float() for x in pair(n, d, offset=10.0))
    a[:, 0] *= 1e-3  # badly conditioned, as whitening meets it
    objective = WMSE(**OPTIONS[name])  # type: ignore[arg-type]
    agree(objective, lambda a, b: reference(name, a, b), a, b, loss=2e-6, gradient=1e-5)


@every_option
def test_gradcheck_and_symmetry(name: str) -> None:
    objective = WMSE(**OPTIONS[name], sub_batch=4, partitions=2).eval()  # type: ignore[arg-type]
    a, b = (x.requires_grad_() for x in pair(8, 3))
    assert torch.autograd.gradcheck(lambda x, y: objective(x, y).loss, (a, b))
    torch.testing.assert_close(objective(a, b).loss, objective(b, a).loss, rtol=1e-10, atol=0)


def test_half_precision_input_is_computed_in_float64_and_given_back_in_float32() -> None:
    a, b = (x.bfloat16().requires_grad_() for x in pair(12, 4))
    output = WMSE()(a, b)
    assert output.loss.dtype == torch.float32
    assert float(output.loss.detach()) == pytest.approx(float(references.wmse(a, b).detach()), rel=1e-6)
    output.loss.backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.bfloat16


def test_any_linear_map_of_a_branch_leaves_it_as_far_from_itself() -> None:
    """Whitened by its own statistics, a lower triangular map of the embeddings changes nothing."""
    a, b = pair(32, 5)
    skew = torch.tril(torch.randn(5, 5, dtype=torch.float64)) + 3 * torch.eye(5, dtype=torch.float64)
    loss = WMSE(distance="euclidean")(a, b).loss
    torch.testing.assert_close(WMSE(distance="euclidean")(a @ skew.T + 7, b).loss, loss)
    assert float(WMSE()(a, a @ skew.T).loss) == pytest.approx(0.0, abs=1e-12)


def partitions_of(objective: WMSE, n: int, d: int = 2) -> list[list[list[int]]]:
    graph = objective.pair_graph(d, d)
    return [rows.tolist() for rows in objective._partitions(n, graph)]


def test_sub_batches_partition_the_batch_anew_every_step() -> None:
    objective = WMSE(sub_batch=4, partitions=3, seed=5)
    seen = []
    for _ in range(3):
        drawn = partitions_of(objective, 12)
        assert [sorted(i for rows in partition for i in rows) for partition in drawn] == [list(range(12))] * 3
        a, b = pair(12, 2)
        expected = references.wmse(a, b, partitions=drawn)
        torch.testing.assert_close(objective(a, b).loss, expected, rtol=1e-10, atol=0)
        seen += drawn
    assert len({str(partition) for partition in seen}) == 9
    assert str(partitions_of(WMSE(sub_batch=4, seed=6), 12)[0]) not in map(str, seen)


def test_partitions_are_addressed_by_the_step_and_resumed() -> None:
    batches = [pair(12, 2) for _ in range(4)]
    whole = WMSE(sub_batch=4)
    losses = [float(whole(a, b).loss) for a, b in batches]
    first = WMSE(sub_batch=4)
    for a, b in batches[:2]:
        first(a, b)
    torch.manual_seed(99)  # nothing is drawn from the default generator
    resumed = WMSE(sub_batch=4)
    resumed.load_state_dict(first.state_dict())
    assert [float(resumed(a, b).loss) for a, b in batches[2:]] == losses[2:]
    resumed.eval()
    assert float(resumed(*batches[0]).loss) == float(resumed(*batches[0]).loss)
    assert int(resumed.step) == 4


def test_a_whole_batch_is_one_sub_batch() -> None:
    a, b = pair(12, 3)
    torch.testing.assert_close(WMSE(sub_batch=12, partitions=4)(a, b).loss, WMSE()(a, b).loss)


def test_a_graph_sums_over_its_edges() -> None:
    names = ("image", "text", "audio")
    graph = Graph(
        tuple(Node(name, name, 3) for name in names), (Edge("image", "text"), Edge("text", "audio"))
    )
    a, b = pair(7, 3)
    output = WMSE.from_config({}, graph)(dict(zip(names, (a, b, a.flip(0)), strict=True)))
    expected = references.wmse(a, b) + references.wmse(b, a.flip(0))
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.terms["distance/image-text"], references.wmse(a, b))


def test_what_cannot_be_whitened_is_refused_with_the_way_out() -> None:
    graph = Graph((Node("image", "image", 8), Node("text", "text", 8)), (Edge("image", "text"),))
    with pytest.raises(
        UserError, match=r"8 dimensions of 'image' within sub-batches of 8.*sub_batch to more"
    ):
        WMSE.from_config({"sub_batch": 8}, graph)
    WMSE.from_config({"sub_batch": 9}, graph)
    WMSE.from_config({"sub_batch": 8, "shrinkage": 0.1}, graph)
    with pytest.raises(UserError, match=r"within batches of 8 samples.*raise the batch size"):
        WMSE()(*pair(8, 8))
    with pytest.raises(
        UserError, match=r"batch of 24 into sub-batches of 10: .*sub_batch to 6 or 8 or 12 or 24"
    ):
        WMSE(sub_batch=10)(*pair(24, 4))
    with pytest.raises(UserError, match=r"to a divisor of the batch of at least 9"):
        WMSE(sub_batch=10)(*pair(7, 8))
    with pytest.raises(UserError, match="at least 2 samples"):
        WMSE()(*pair(1, 3))
    with pytest.raises(UserError, match="sub_batsh"):
        WMSE.from_config({"sub_batsh": 8}, graph)


def test_collapsed_embeddings_are_named_and_shrinkage_is_the_way_out() -> None:
    a, b = pair(12, 3)
    for spoilt in (torch.cat([b[:, :2], b[:, :1]], dim=1), torch.cat([b[:, :2], 0 * b[:, :1]], dim=1)):
        for dtype in (torch.float32, torch.float64):
            with pytest.raises(UserError, match=r"cannot whiten 'b': .*fewer than 3 directions"):
                WMSE()(a.to(dtype), spoilt.to(dtype))
        assert torch.isfinite(WMSE(shrinkage=0.001)(a, spoilt).loss)


def test_what_is_not_finite_is_located() -> None:
    a, b = pair(12, 3)
    b[4, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="branch 'b', rows 4"):
        WMSE()(a, b)
