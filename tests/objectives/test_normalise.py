"""Table 8: VICReg of standardised and of l2-normalised embeddings, against BatchNorm and unit rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from agreement import agree, pair
from references import standardised, vicreg
from torch import Tensor

from mmvicreg.errors import UserError
from mmvicreg.objectives import Edge, Graph, Node, VICReg
from mmvicreg.objectives.terms import vicreg_terms

How = Literal["standardise", "l2"]
SHAPES = [(3, 5), (6, 40), (40, 6), (24, 64)]
both = pytest.mark.parametrize("how", ["standardise", "l2"])


def unit(z: Tensor) -> Tensor:
    return z.double() / z.double().norm(dim=1, keepdim=True)


def reference(how: How, d: int, **options: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Eq. 6 of what Table 8 makes of the embeddings, with D.5's target for unit rows."""
    if how == "standardise":
        return lambda a, b: vicreg(standardised(a), standardised(b), **options)  # type: ignore[arg-type]
    return lambda a, b: vicreg(unit(a), unit(b), **{"gamma": d**-0.5, **options})  # type: ignore[arg-type]


@both
@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e2])
def test_float64_is_the_reference(how: How, n: int, d: int, offset: float) -> None:
    a, b = pair(n, d, offset=offset)
    agree(VICReg(normalise=how), reference(how, d), a, b, loss=1e-12, gradient=1e-9)


@both
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_float32_is_close_to_the_reference(how: How, n: int, d: int) -> None:
    a, b = (x.float() for x in pair(n, d))
    agree(VICReg(normalise=how), reference(how, d), a, b, loss=2e-6, gradient=1e-5)


def test_standardising_stands_a_large_offset() -> None:
    a, b = (x.float() for x in pair(24, 16, offset=1e3))
    agree(VICReg(normalise="standardise"), reference("standardise", 16), a, b, loss=2e-6, gradient=1e-4)


@both
def test_gradcheck_and_symmetry(how: How) -> None:
    objective = VICReg(normalise=how)
    a, b = (x.requires_grad_() for x in pair(6, 4))
    assert torch.autograd.gradcheck(lambda x, y: objective(x, y).loss, (a, b))
    torch.testing.assert_close(objective(a, b).loss, objective(b, a).loss, rtol=1e-12, atol=0)


@both
def test_half_precision_input_is_computed_in_float32(how: How) -> None:
    a, b = (x.bfloat16() for x in pair(12, 16))
    output = VICReg(normalise=how)(a, b)
    assert output.loss.dtype == torch.float32
    assert float(output.loss) == pytest.approx(float(reference(how, 16)(a, b)), rel=1e-5)


def test_a_given_gamma_is_kept_and_the_default_follows_the_width() -> None:
    a, b = pair(9, 16)
    given = VICReg(normalise="l2", gamma=0.5)
    agree(given, reference("l2", 16, gamma=0.5), a, b, loss=1e-12, gradient=1e-9)
    default = VICReg(normalise="l2")(a, b).loss
    torch.testing.assert_close(default, VICReg(normalise="l2", gamma=0.25)(a, b).loss)
    torch.testing.assert_close(VICReg()(a, b).loss, VICReg(gamma=1.0)(a, b).loss)


def test_branches_of_two_widths_have_each_its_gamma() -> None:
    widths = {"image": 4, "text": 4, "wave": 25, "mel": 25}
    nodes = tuple(Node(name, name, width) for name, width in widths.items())
    graph = Graph(nodes, (Edge("image", "text"), Edge("wave", "mel")))
    image, text = pair(7, 4)
    wave, mel = pair(7, 25)
    objective = VICReg.from_config({"normalise": "l2"}, graph)
    loss = objective({"image": image, "text": text, "wave": wave, "mel": mel}).loss
    torch.testing.assert_close(loss, reference("l2", 4)(image, text) + reference("l2", 25)(wave, mel))


def test_one_gamma_for_all_nodes_or_one_each() -> None:
    a, b = pair(7, 5)
    one = vicreg_terms([a, b], [], gamma=2.0, epsilon=1e-4, sizes=(7,)).variance
    each = vicreg_terms([a, b], [], gamma=[2.0, 3.0], epsilon=1e-4, sizes=(7,)).variance
    torch.testing.assert_close(each[0], one[0])
    torch.testing.assert_close(each[1], one[1] + 1)  # every deviation is below 2


def test_standardised_embeddings_leave_the_variance_term_nothing_to_do() -> None:
    terms = VICReg(normalise="standardise")(*(0.1 * x for x in pair(12, 5))).terms
    assert float(terms["variance/a"]) == float(terms["variance/b"]) == 0.0


def test_a_variance_term_that_epsilon_swallows_is_refused_or_warned_of() -> None:
    """Eq. 2's 1e-4 is to 1/d as 1 is to a target of 1/sqrt(d) when d is 10 000."""
    wide = Graph((Node("a", "a", 10_000), Node("b", "b", 10_000)), (Edge("a", "b"),))
    with pytest.raises(UserError, match=r"'a' is always zero.*objective\.epsilon to 1e-08"):
        VICReg.from_config({"normalise": "l2"}, wide)
    assert VICReg.from_config({"normalise": "l2", "epsilon": 1e-8}, wide).warnings(wide) == []
    paper = Graph((Node("a", "a", 8192), Node("b", "b", 8192)), (Edge("a", "b"),))
    assert "91% of the target gamma" in VICReg.from_config({"normalise": "l2"}, paper).warnings(paper)[0]
    with pytest.raises(UserError, match="normalise"):
        VICReg(normalise="l1")  # type: ignore[arg-type]
