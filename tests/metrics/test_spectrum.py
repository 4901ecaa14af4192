"""Collapse measures against numpy's SVD and correlation coefficients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvicreg.metrics.spectrum import (
    agreement,
    dead_fraction,
    effective_rank,
    mean_correlation,
    standard_deviations,
)

SHAPES = st.tuples(st.integers(2, 40), st.integers(1, 40), st.integers(0, 10_000))


def _vectors(shape: tuple[int, int, int]) -> np.ndarray:
    n, d, seed = shape
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * 10.0 ** rng.uniform(-2, 2, size=d)
    return rng.normal(size=(n, d)) @ mixing + rng.normal(size=d) * 5


def _rank_by_svd(z: np.ndarray) -> float:
    singular = np.linalg.svd(z - z.mean(0), compute_uv=False)
    p = singular / singular.sum()
    p = p[p > 1e-13]
    return float(np.exp(-(p * np.log(p)).sum()))


@settings(deadline=None, max_examples=60)
@given(SHAPES)
def test_effective_rank_is_the_entropy_of_numpy_singular_values(shape: tuple[int, int, int]) -> None:
    z = _vectors(shape)
    assert effective_rank(torch.from_numpy(z)).item() == pytest.approx(_rank_by_svd(z), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(SHAPES)
def test_mean_correlation_is_the_mean_of_numpy_squared_coefficients(shape: tuple[int, int, int]) -> None:
    y = _vectors(shape)
    d = y.shape[1]
    if d == 1:
        assert mean_correlation(torch.from_numpy(y)).item() == 0
        return
    squared = np.corrcoef(y.T) ** 2
    expected = squared[~np.eye(d, dtype=bool)].mean()
    assert mean_correlation(torch.from_numpy(y)).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_standard_deviations_are_unbiased() -> None:
    z = _vectors((17, 9, 3))
    np.testing.assert_allclose(standard_deviations(torch.from_numpy(z)).numpy(), z.std(0, ddof=1), rtol=1e-12)


def test_orthogonal_directions_of_equal_length_count_fully() -> None:
    z = torch.cat([torch.eye(8), -torch.eye(8)])
    assert effective_rank(z).item() == pytest.approx(8, rel=1e-9)
    assert mean_correlation(z).item() == pytest.approx(0, abs=1e-12)
    assert mean_correlation(z.repeat(1, 2)).item() == pytest.approx(8 * 2 / (16 * 15), rel=1e-9)


def test_a_line_has_rank_one_in_float32_even_with_thousands_of_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    line = torch.randint(-8, 8, (64, 1), generator=generator) * torch.randint(
        1, 8, (1, 3000), generator=generator
    )
    assert effective_rank(line.float()).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(line.float().T.contiguous()).item() == pytest.approx(1, abs=1e-3)
    assert mean_correlation(line.float()).item() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
def test_a_point_has_no_rank_no_deviation_and_no_correlation(value: float, dtype: torch.dtype) -> None:
    z = torch.full((33, 7), value, dtype=dtype)
    assert effective_rank(z).item() == 0
    assert mean_correlation(z).item() == 0
    assert standard_deviations(z).tolist() == [0] * 7
    assert dead_fraction(z, 1e-6).item() == 1


def test_constant_columns_are_left_out_of_the_correlation() -> None:
    y = torch.from_numpy(_vectors((20, 5, 1))).float()
    padded = torch.cat([y, torch.full((20, 3), 0.1)], dim=1)
    assert mean_correlation(padded).item() == pytest.approx(mean_correlation(y).item(), rel=1e-9)


def test_dead_fraction_counts_columns_below_the_threshold() -> None:
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e-4, 1.0, 1e-3])
    assert dead_fraction(z, 0.01).item() == 0.5


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rank_and_correlation_do_not_depend_on_the_scale(scale: float) -> None:
    z = torch.from_numpy(_vectors((12, 6, 2)))
    assert effective_rank(z * scale).item() == pytest.approx(effective_rank(z).item(), rel=1e-9)
    assert mean_correlation(z * scale).item() == pytest.approx(mean_correlation(z).item(), rel=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_show(bad: float) -> None:
    z = torch.randn(10, 4)
    z[3, 2] = bad
    assert effective_rank(z).isnan()
    assert mean_correlation(z).isnan()
    assert dead_fraction(z, 0.1).isnan()
    assert not standard_deviations(z).isfinite().all()


@pytest.mark.parametrize("shape", [(1, 5), (5,), (2, 0)])
def test_what_is_not_a_batch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="n >= 2"):
        effective_rank(torch.zeros(shape))


def test_no_gradient_is_kept() -> None:
    z = torch.randn(6, 3, requires_grad=True)
    assert not effective_rank(z).requires_grad
    assert not mean_correlation(z).requires_grad


@settings(deadline=None, max_examples=60)
@given(SHAPES)
def test_agreement_is_numpy_s_correlation_of_centred_entries(shape: tuple[int, int, int]) -> None:
    n, d, seed = shape
    a, b = _vectors(shape), _vectors((n, d, seed + 1))
    x, y = (a - a.mean(0)).ravel(), (b - b.mean(0)).ravel()
    expected = (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)
    found = agreement(torch.from_numpy(a), torch.from_numpy(b)).item()
    assert found == pytest.approx(expected, abs=1e-9)
    moved = agreement(torch.from_numpy(1e-3 * a + 7), torch.from_numpy(1e3 * b - 5)).item()
    assert moved == pytest.approx(expected, abs=1e-6)


def test_agreement_is_one_of_the_same_none_of_strangers_and_nothing_of_a_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 400, 64, generator=generator)
    assert agreement(a, 3 * a + 1).item() == pytest.approx(1, abs=1e-6)
    assert agreement(a, -a).item() == pytest.approx(-1, abs=1e-6)
    assert abs(agreement(a, b).item()) < 5 / (400 * 64) ** 0.5
    assert agreement(a, (a + b) / 2**0.5).item() == pytest.approx(0.5**0.5, abs=0.02)
    assert agreement(a, torch.ones_like(a)).item() == 0
    assert agreement(1e-30 * a.double(), 1e-30 * a.double()).item() == pytest.approx(1)
    assert agreement(a, a.index_fill(0, torch.tensor([3]), float("nan"))).isnan()
    with pytest.raises(ValueError, match="of one shape"):
        agreement(a, b[:, :3])
