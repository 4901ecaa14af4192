"""The other methods against references written by loops in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import references
import torch
from torch import Tensor

from mmvicreg.errors import UserError
from mmvicreg.objectives import VSE, BarlowTwins, Edge, Graph, Node, Objective, SimCLR

Reference = Callable[[Tensor, Tensor], Tensor]
CASES: dict[str, tuple[Callable[[], Objective], Reference]] = {
    "barlow twins": (BarlowTwins, references.barlow_twins),
    "barlow twins, options": (
        lambda: BarlowTwins(redundancy=0.5, scale=0.1, epsilon=1e-2),
        lambda a, b: 0.1 * references.barlow_twins(a, b, redundancy=0.5, epsilon=1e-2),
    ),
    "vse++": (VSE, references.vse),
    "vse0": (
        lambda: VSE(negatives="all", margin=0.5),
        lambda a, b: references.vse(a, b, hardest=False, margin=0.5),
    ),
    "vse++, mean": (lambda: VSE(reduction="mean"), lambda a, b: references.vse(a, b) / len(a)),
    "simclr": (SimCLR, references.nt_xent),
    "simclr, warmer": (
        lambda: SimCLR(temperature=0.5),
        lambda a, b: references.nt_xent(a, b, temperature=0.5),
    ),
    "infonce": (lambda: SimCLR(candidates="infonce"), references.infonce),
    "infonce, learned": (
        lambda: SimCLR(candidates="infonce", temperature=0.07, learn_temperature=True).double(),
        lambda a, b: references.infonce(a, b, temperature=0.07),
    ),
}
every_case = pytest.mark.parametrize("case", CASES)


def pair(n: int, d: int, *, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Two related batches, float64."""
    common = torch.randn(n, d, dtype=torch.float64)
    a, b = (common + 0.7 * torch.randn(n, d, dtype=torch.float64) + offset for _ in range(2))
    return a, b


def compare(case: str, a: Tensor, b: Tensor, *, dtype: torch.dtype, loss: float, gradient: float) -> None:
    build, reference = CASES[case]
    ours = [x.to(dtype).requires_grad_() for x in (a.clone(), b.clone())]
    exact = [x.detach().double().requires_grad_() for x in ours]
    output, expected = build()(*ours), reference(*exact)
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=loss, abs=loss)
    found, right = torch.autograd.grad(output.loss, ours), torch.autograd.grad(expected, exact)
    for mine, theirs in zip(found, right, strict=True):
        assert mine.dtype == dtype
        assert float((mine.double() - theirs).norm()) <= gradient * float(theirs.norm()) + 1e-12
    assert not any(term.requires_grad for term in output.terms.values())


@every_case
@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 9), (9, 5), (24, 16)])
def test_float64_is_the_reference(case: str, n: int, d: int) -> None:
    compare(case, *pair(n, d), dtype=torch.float64, loss=1e-7 if "learned" in case else 1e-12, gradient=1e-6)


@every_case
@pytest.mark.parametrize(("n", "d"), [(24, 64), (64, 24)])
def test_float32_is_close_to_the_reference(case: str, n: int, d: int) -> None:
    compare(case, *pair(n, d), dtype=torch.float32, loss=2e-6, gradient=1e-5)


def test_barlow_twins_stands_a_large_offset() -> None:
    compare("barlow twins", *pair(32, 16, offset=1e3), dtype=torch.float32, loss=2e-6, gradient=1e-4)


@every_case
def test_half_precision_input_is_computed_in_float32(case: str) -> None:
    a, b = (x.bfloat16() for x in pair(12, 16))
    output = CASES[case][0]()(a, b)
    expected = float(CASES[case][1](a.double(), b.double()))
    assert output.loss.dtype == torch.float32
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)


@every_case
def test_one_branch_in_float64_takes_the_other_along(case: str) -> None:
    a, b = pair(12, 16)
    single = a.float().requires_grad_()
    output = CASES[case][0]()(single, b)
    expected = float(CASES[case][1](single.detach().double(), b))
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.grad(output.loss, single)[0].dtype == torch.float32


@every_case
def test_gradcheck_and_symmetry(case: str) -> None:
    objective = CASES[case][0]()
    a, b = (x.requires_grad_() for x in pair(6, 4))
    assert torch.autograd.gradcheck(lambda x, y: objective(x, y).loss, (a, b))
    torch.testing.assert_close(objective(a, b).loss, objective(b, a).loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("candidates", ["nt-xent", "infonce"])
def test_the_temperature_is_learned(candidates: str) -> None:
    objective = SimCLR(candidates=candidates, temperature=0.5, learn_temperature=True).double()  # type: ignore[arg-type]
    reference = references.nt_xent if candidates == "nt-xent" else references.infonce
    a, b = pair(6, 4)
    objective(a, b).loss.backward()
    (log_scale,) = objective.parameters()
    step = 1e-6
    scale = float(log_scale.detach().exp())
    slope = (
        reference(a, b, temperature=1 / (scale * (1 + step)))
        - reference(a, b, temperature=1 / (scale * (1 - step)))
    ) / (2 * step)
    assert log_scale.grad is not None
    assert float(log_scale.grad) == pytest.approx(float(slope), rel=1e-5)
    with torch.no_grad():
        log_scale.fill_(50.0)
    assert float(objective(a, b).terms["temperature/a-b"]) == pytest.approx(0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_temperature_at_its_bound_comes_back(dtype: torch.dtype) -> None:
    """Where partners have nothing in common the loss falls as the temperature rises."""
    objective = SimCLR(candidates="infonce", learn_temperature=True).to(dtype)
    (log_scale,) = objective.parameters()
    with torch.no_grad():
        log_scale.fill_(50.0)
    optimizer = torch.optim.SGD([log_scale], lr=0.01)
    a, b = pair(6, 4)
    objective(a, b.flip(0)).loss.backward()
    assert log_scale.grad is not None
    assert float(log_scale.grad) > 0
    optimizer.step()
    temperature = float(objective.eval()(a, b).terms["temperature/a-b"])
    assert temperature > 0.01001


def test_terms_say_what_happened() -> None:
    a = torch.eye(4, dtype=torch.float64)
    assert float(SimCLR()(a, a).terms["accuracy/a-b"]) == 1.0
    assert float(SimCLR(candidates="infonce")(a, a.roll(1, 0)).terms["accuracy/a-b"]) == 0.0
    assert float(VSE()(a, a).terms["violations/a-b"]) == 0.0
    terms = VSE()(a, a.roll(1, 0)).terms
    assert float(terms["violations/a-b"]) == 1.0
    assert float(terms["hinge/a-b"]) == pytest.approx(4 * 1.2)
    assert float(terms["hinge/b-a"]) == pytest.approx(4 * 1.2)
    z = pair(9, 3)[0]
    terms = BarlowTwins()(z, z).terms
    assert float(terms["on_diagonal/a-b"]) < 1e-8
    assert float(terms["off_diagonal/a-b"]) > 0


@every_case
def test_a_graph_sums_over_its_edges(case: str) -> None:
    build, reference = CASES[case]
    names = ("image", "text", "audio")
    graph = Graph(
        tuple(Node(name, name, 5) for name in names), (Edge("image", "text"), Edge("text", "audio"))
    )
    a, b = pair(7, 5)
    batch = dict(zip(names, (a, b, a.flip(0)), strict=True))
    objective = build()
    objective.graph = graph
    expected = reference(a, b) + reference(b, a.flip(0))
    torch.testing.assert_close(objective(batch).loss, expected, rtol=1e-6, atol=0)


def test_options_come_from_a_recipe_and_wrong_ones_are_named() -> None:
    graph = Graph((Node("a", "a", 5), Node("b", "b", 5)), (Edge("a", "b"),))
    assert BarlowTwins.from_config({"name": "barlow-twins", "redundancy": 0.1}, graph).redundancy == 0.1
    assert VSE.from_config({"negatives": "all"}, graph).negatives == "all"
    assert len(list(SimCLR.from_config({"learn_temperature": True}, graph).parameters())) == 1
    with pytest.raises(UserError, match="margin"):
        VSE(margin=-1)
    with pytest.raises(UserError, match="temperature"):
        SimCLR.from_config({"temperature": 0}, graph)
    with pytest.raises(UserError, match="redundency"):
        BarlowTwins.from_config({"redundency": 1}, graph)
    for objective in (BarlowTwins(), VSE(), SimCLR()):
        with pytest.raises(UserError, match="at least 2 samples"):
            objective(torch.zeros(1, 3), torch.zeros(1, 3))
        with pytest.raises(UserError, match="same width"):
            objective(torch.zeros(4, 3), torch.zeros(4, 2))


def test_vse_counts_all_negatives_through_the_warm_up_and_the_hardest_after_it() -> None:
    warm = VSE(warmup_steps=2)
    batches = [pair(6, 4) for _ in range(4)]
    warm.eval()
    warm(*batches[0])  # looking is no step
    warm.train()
    with pytest.raises(UserError):
        warm(batches[0][0] * float("nan"), batches[0][1])  # nor is what is refused
    found = [float(warm(a, b).loss) for a, b in batches]
    everyone = [float(VSE(negatives="all")(a, b).loss) for a, b in batches]
    hardest = [float(VSE()(a, b).loss) for a, b in batches]
    assert found == everyone[:2] + hardest[2:]
    resumed = VSE(warmup_steps=2)
    resumed.load_state_dict(warm.state_dict())
    assert float(resumed(*batches[0]).loss) == hardest[0]
    assert not VSE().state_dict()
