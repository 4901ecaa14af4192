"""VICReg against literal float64 references: values, gradients, forms, conventions, bad input."""

from __future__ import annotations

import pytest
import torch
from references import vicreg, vicreg_authors, vicreg_parts
from torch import Tensor

from mmvicreg.bench.objective import reference
from mmvicreg.errors import UserError
from mmvicreg.objectives import Edge, Graph, Node, NonFiniteError, VICReg
from mmvicreg.objectives.precision import exact_arithmetic
from mmvicreg.objectives.terms import LARGEST_CANCELLATION, _squared_distance, _sum_of_squares
from mmvicreg.registry import OBJECTIVES

SHAPES = [(2, 3), (2, 1), (3, 9), (5, 5), (9, 4), (40, 300), (300, 40), (129, 130)]


def pair(n: int, d: int, *, offset: float = 0.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two related batches whose columns have deviations on both sides of gamma."""
    scales = torch.linspace(0.2, 1.8, d, dtype=torch.float64)
    common = torch.randn(n, d, dtype=torch.float64)
    a = (common + 0.3 * torch.randn(n, d, dtype=torch.float64)) * scales + offset
    b = (common + 0.3 * torch.randn(n, d, dtype=torch.float64)) * scales.flip(0) + offset
    return a.to(dtype), b.to(dtype)


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [gradient.double() for gradient in torch.autograd.grad(loss, inputs)]


def relative(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).norm() / y.double().norm())


def compare(a: Tensor, b: Tensor, *, loss: float, gradient: float, **options: object) -> None:
    """Our loss and both gradients within relative bounds of the reference on the same numbers."""
    ours = [x.clone().requires_grad_() for x in (a, b)]
    exact = [x.double().requires_grad_() for x in (a, b)]
    output = VICReg(**options)(*ours)  # type: ignore[arg-type]
    expected = vicreg(*exact, **options)  # type: ignore[arg-type]
    assert output.loss.dtype == (torch.float64 if a.dtype == torch.float64 else torch.float32)
    assert relative(output.loss.detach(), expected.detach()) < loss
    found = torch.autograd.grad(output.loss, ours)
    for x, mine, right in zip(ours, found, gradients(expected, *exact), strict=True):
        assert mine.dtype == x.dtype
        assert relative(mine, right) < gradient


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_float64_is_the_reference(n: int, d: int, offset: float) -> None:
    compare(*pair(n, d, offset=offset, dtype=torch.float64), loss=1e-12, gradient=1e-10)


@pytest.mark.parametrize(("n", "d"), [*SHAPES, (512, 2048), (1024, 512)])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_float32_is_close_to_the_reference(n: int, d: int, offset: float) -> None:
    compare(*pair(n, d, offset=offset), loss=1e-6, gradient=1e-5)


def test_coefficients_and_options_reach_their_terms() -> None:
    compare(
        *pair(6, 9, dtype=torch.float64),
        loss=1e-12,
        gradient=1e-10,
        invariance=3.0,
        variance=(5.0, 0.0),
        covariance=(0.0, 7.0),
        gamma=2.0,
        epsilon=1e-2,
    )


@pytest.mark.parametrize(("n", "d"), [(6, 11), (11, 6)])
def test_gradcheck(n: int, d: int) -> None:
    a, b = (x.requires_grad_() for x in pair(n, d, dtype=torch.float64))
    for objective in (VICReg(), VICReg(variance=0.0), VICReg(covariance=0.0), VICReg(invariance=0.0)):
        assert torch.autograd.gradcheck(lambda x, y, f=objective: f(x, y).loss, (a, b))


@pytest.mark.parametrize(("n", "d"), [(16, 32), (32, 16)])
def test_conventions_are_what_they_are_called(n: int, d: int) -> None:
    a, b = pair(n, d, dtype=torch.float64)
    official = VICReg(convention="official")(a, b).loss
    torch.testing.assert_close(official, vicreg_authors(a, b), rtol=1e-12, atol=0)
    torch.testing.assert_close(official, VICReg(variance=12.5)(a, b).loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(VICReg(convention="paper")(a, b).loss, vicreg(a, b), rtol=1e-12, atol=0)
    torch.testing.assert_close(VICReg()(a, b).loss, vicreg(a, b), rtol=1e-12, atol=0)
    assert not torch.isclose(official, vicreg(a, b))


def test_symmetric_in_its_branches() -> None:
    a, b = pair(8, 20, dtype=torch.float64)
    torch.testing.assert_close(VICReg()(a, b).loss, VICReg()(b, a).loss, rtol=1e-14, atol=0)


def test_terms_are_unweighted_and_detached() -> None:
    a, b = pair(7, 12, dtype=torch.float64)
    a.requires_grad_()
    terms = VICReg(invariance=2.0, variance=3.0, covariance=4.0)(a, b).terms
    for name, z in (("a", a.detach()), ("b", b)):
        v, c = vicreg_parts(z)
        torch.testing.assert_close(terms[f"variance/{name}"], v)
        torch.testing.assert_close(terms[f"covariance/{name}"], c)
    torch.testing.assert_close(terms["invariance/a-b"], (a.detach() - b).square().mean())
    assert not any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize(("n", "d"), [(6, 10), (10, 6)])
def test_constant_columns_count_as_collapsed(n: int, d: int) -> None:
    a, b = pair(n, d)
    a[:, 1], a[:, 4] = 1e3, -0.1
    compare(a, b, loss=1e-6, gradient=1e-5)
    flat = torch.full((n, d), 0.1)
    output = VICReg()(flat, flat)
    assert float(output.terms["variance/a"]) == pytest.approx(1 - 0.01, rel=1e-6)
    assert float(output.terms["covariance/a"]) == 0.0
    assert float(output.terms["cancellation/a"]) == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "d"), [(12, 40), (40, 12)])
def test_half_precision_input_is_computed_in_float32(dtype: torch.dtype, n: int, d: int) -> None:
    a, b = pair(n, d, dtype=dtype)
    ours = [x.clone().requires_grad_() for x in (a, b)]
    exact = [x.double().requires_grad_() for x in (a, b)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = VICReg()(*ours)
        output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert relative(output.loss.detach(), vicreg(*exact).detach()) < 1e-6
    for x, right in zip(ours, gradients(vicreg(*exact), *exact), strict=True):
        assert x.grad is not None
        assert x.grad.dtype == dtype
        assert relative(x.grad, right) < 4 * torch.finfo(dtype).eps


def test_arithmetic_stays_exact_and_settings_stay_put() -> None:
    """TF32 and bfloat16 products that the process has switched on neither reach in nor are switched off."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = cuda.fp32_precision, cpu.fp32_precision
    try:
        cuda.fp32_precision, cpu.fp32_precision = "tf32", "bf16"
        with exact_arithmetic("cpu"):
            assert (cuda.fp32_precision, cpu.fp32_precision) == ("ieee", "ieee")
        with pytest.raises(UserError):  # from inside
            VICReg()(torch.full((2, 2), torch.nan), torch.zeros(2, 2))
        compare(*pair(64, 256), loss=1e-6, gradient=1e-5)
        assert (cuda.fp32_precision, cpu.fp32_precision) == ("tf32", "bf16")
        with torch.autocast("cpu", dtype=torch.bfloat16), exact_arithmetic("cpu"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    finally:
        cuda.fp32_precision, cpu.fp32_precision = before


@pytest.mark.parametrize(("n", "d"), [(40, 64), (16, 256)])
def test_cancellation_is_measured_and_escaped(n: int, d: int) -> None:
    """One column dwarfs the rest: a float32 Gram form would lose digits (16 x 256: it runs in float64)."""
    a, b = pair(n, d)
    a[:, 0] *= 3e3
    centred = a.double() - a.double().mean(0)
    squares = (centred.T @ centred) ** 2
    amplification = squares.sum() / (squares.sum() - squares.diagonal().sum())
    assert amplification > 10 * LARGEST_CANCELLATION
    terms = VICReg()(a, b).terms
    assert float(terms["cancellation/a"]) == pytest.approx(float(amplification), rel=1e-3)
    assert float(terms["cancellation/b"]) < 10
    assert relative(terms["covariance/a"], vicreg_parts(a)[1]) < 1e-6
    compare(a, b, loss=1e-6, gradient=1e-5)


def test_nearly_whitened_batches_keep_their_digits() -> None:
    """n just under d and nothing correlated: almost all of |K|^2 is its diagonal, and is subtracted."""
    rows = torch.linalg.qr(torch.randn(130, 128, dtype=torch.float64))[0].T
    a = (30 * (rows + 0.003 * torch.randn(128, 130))).float()
    terms = VICReg()(a, a).terms
    assert 20 < float(terms["cancellation/a"]) < LARGEST_CANCELLATION
    assert relative(terms["covariance/a"], vicreg_parts(a)[1]) < 2e-6


@pytest.mark.parametrize("dwarfing", [1.0, 3e3])
def test_no_matrix_of_d_by_d_where_the_gram_form_applies(
    dwarfing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    zeros = torch.zeros

    def watched(*args: object, **kwargs: object) -> Tensor:
        made = zeros(*args, **kwargs)  # type: ignore[call-overload]
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(torch, "zeros", watched)
    a, b = pair(4, 600)
    a[:, 0] *= dwarfing
    VICReg()(a.requires_grad_(), b.requires_grad_()).loss.backward()
    assert sizes
    assert max(sizes) < 600 * 600


def test_unweighted_terms_and_frozen_branches_get_no_gradient() -> None:
    a, b = pair(5, 8)
    a.requires_grad_()
    VICReg()(a, b).loss.backward()
    assert b.grad is None
    assert a.grad is not None
    with torch.no_grad():
        assert not VICReg()(a, b).loss.requires_grad


def test_same_tensor_twice_and_backward_twice() -> None:
    z = pair(6, 9, dtype=torch.float64)[0].requires_grad_()
    output = VICReg()(z, z)
    output.loss.backward(retain_graph=True)
    first = z.grad.clone() if z.grad is not None else None
    output.loss.backward()
    assert first is not None
    torch.testing.assert_close(z.grad, 2 * first)
    torch.testing.assert_close(first, gradients(vicreg(z, z), z)[0])


def graph(*widths: int) -> Graph:
    names = ("image", "text", "audio")
    nodes = tuple(
        Node(name, name, width, variance=10.0 + i, covariance=1.0 + i)
        for i, (name, width) in enumerate(zip(names, widths, strict=False))
    )
    edges = (Edge("image", "text", 7.0), Edge("text", "audio", 9.0))
    return Graph(nodes, edges[: len(widths) - 1])


def test_three_branches_from_a_recipe() -> None:
    objective = OBJECTIVES.load("vicreg").from_config({"name": "vicreg", "gamma": 1.5}, graph(6, 6, 6))
    batch = {name: pair(5, 6, dtype=torch.float64)[0] for name in ("audio", "image", "text")}
    image, text, audio = batch["image"], batch["text"], batch["audio"]
    expected = 7 * (image - text).square().mean() + 9 * (text - audio).square().mean()
    for i, z in enumerate((image, text, audio)):
        v, c = vicreg_parts(z, gamma=1.5)
        expected = expected + (10 + i) * v + (1 + i) * c
    output = objective(batch)
    torch.testing.assert_close(output.loss, expected)
    assert "invariance/text-audio" in output.terms


@pytest.mark.parametrize(
    ("coefficients", "words"),
    [
        ({"variance": 0.0, "covariance": 0.0}, ["variance (mu) 0", "collaps"]),
        ({"invariance": 1.0, "variance": 1.0, "covariance": 1.0}, ["covariance (nu) 1 at or above"]),
        (
            {"invariance": 10.0, "variance": 1.0, "covariance": 0.1},
            ["invariance (lambda) 10", "more than two"],
        ),
        ({"invariance": 1.0, "variance": 10.0}, ["variance (mu) 10: more than two"]),
        ({}, []),
        ({"variance": 12.5}, []),
    ],
)
def test_coefficients_that_collapse_are_warned_of(coefficients: dict[str, float], words: list[str]) -> None:
    objective = VICReg(**coefficients)  # type: ignore[arg-type]
    said = " ".join(objective.warnings(objective.pair_graph(4, 4)))
    assert all(word in said for word in words), said
    assert bool(said) == bool(words)


def test_bad_input_is_named() -> None:
    a, b = pair(4, 6)
    objective = VICReg()
    with pytest.raises(UserError, match="at least 2 samples in a batch, got 1"):
        objective(a[:1], b[:1])
    with pytest.raises(UserError, match="a-b joins embeddings of 6 and 5"):
        objective(a, b[:, :5])
    with pytest.raises(UserError, match="joins embeddings of 6 and 5"):
        VICReg.from_config({}, graph(6, 5))
    with pytest.raises(UserError, match="'b' has 3 rows"):
        objective(a, b[:3])
    with pytest.raises(UserError, match="pass two"):
        objective(a)
    with pytest.raises(UserError, match="float tensor"):
        objective(a.long(), b)
    with pytest.raises(UserError, match="float tensor"):
        objective(a[0], b[0])
    with pytest.raises(UserError, match=r"'a' must be a float tensor \(n, d\), got ndarray"):
        objective(a.numpy(), b.numpy())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"'b' must be a float tensor \(n, d\), got list"):
        objective(a, b.tolist())
    with pytest.raises(UserError, match="takes the embeddings 'a' and 'b', got image"):
        objective({"image": a, "text": b})
    with pytest.raises(UserError, match="no embedding for 'text'"):
        VICReg.from_config({}, graph(6, 6))({"image": a})
    with pytest.raises(UserError, match="declared with 8"):
        VICReg.from_config({}, graph(8, 8))({"image": a, "text": b})
    with pytest.raises(UserError, match="convention"):
        VICReg(convention="sum")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="negative"):
        VICReg(variance=-1.0)
    with pytest.raises(UserError, match="gama"):
        VICReg.from_config({"gama": 1.0}, graph(6, 6))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(5, 3), (5, 9)])
def test_non_finite_embeddings_name_branch_and_rows(value: float, shape: tuple[int, int]) -> None:
    a, b = pair(*shape)
    b[1, 0] = b[3, 2] = value
    with pytest.raises(NonFiniteError, match=r"branch 'b', rows 1, 3 of the batch of 5") as caught:
        VICReg()(a, b)
    assert (caught.value.node, caught.value.rows, caught.value.local_rows) == ("b", (1, 3), (1, 3))


def test_a_branch_without_weight_is_looked_at_too() -> None:
    a, b = pair(5, 3)
    objective = VICReg(invariance=0.0, variance=(25.0, 0.0), covariance=(1.0, 0.0))
    assert bool(torch.isfinite(objective(a, b).loss))
    b[1, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"branch 'b', rows 1 of the batch of 5"):
        objective(a, b)


def test_overflow_is_not_blamed_on_a_sample() -> None:
    a, b = pair(5, 3)
    with pytest.raises(UserError, match="overflows"):
        VICReg()(a * 1e30, b)


LARGE = [
    (256, 8192),
    pytest.param(2048, 2048, marks=pytest.mark.slow),
    pytest.param(4096, 1024, marks=pytest.mark.slow),
    pytest.param(512, 8192, marks=pytest.mark.slow),
    pytest.param(2048, 8192, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("n", "d"), LARGE)
def test_float32_keeps_to_float64_at_the_shapes_of_pretraining(n: int, d: int) -> None:
    """Loss within 1e-6 and gradient within 1e-5 (relative, l2) of every entry of C in float64, block by block."""
    common = torch.randn(n, d)
    batches = [(common + 0.7 * torch.randn(n, d)).requires_grad_() for _ in range(2)]
    output = VICReg()(*batches)
    output.loss.backward()
    loss, gradients = reference(*(z.detach() for z in batches))
    assert float(output.loss.detach()) == pytest.approx(float(loss), rel=1e-6)
    for z, right in zip(batches, gradients, strict=True):
        assert z.grad is not None
        assert float((z.grad.double() - right).norm()) <= 1e-5 * float(right.norm())


def test_reductions_stay_accurate_over_8192_x_8192_entries() -> None:
    """Sums of 67 million float32 entries, whose partial sums in float32 would lose them."""
    x = torch.rand(8192, 8192) + 1
    exact = sum(float(rows.double().square().sum()) for rows in x.split(512))
    assert float(_sum_of_squares(x)) == pytest.approx(exact, rel=1e-9)
    assert float(_squared_distance(x, torch.zeros(()).expand(8192, 8192))) == pytest.approx(exact, rel=1e-7)
