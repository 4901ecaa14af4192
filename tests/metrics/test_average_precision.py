"""Average precision against scikit-learn, the definitions written out, and ranks counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from mmvicreg.errors import UserError
from mmvicreg.metrics import (
    average_precision,
    average_precision_11_point,
    interpolated_average_precision,
)


def _cases() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    cases = []
    for n, levels in ((1, 1), (7, 3), (50, 5), (200, 1000), (200, 20)):
        scores = rng.integers(0, levels, n) / 7
        positive = rng.random(n) < 0.3
        positive[rng.integers(n)] = True
        cases.append((scores, positive))
    return cases


@pytest.mark.parametrize("case", range(5))
def test_equals_scikit_learn_and_the_definitions_ties_included(case: int) -> None:
    scores, positive = _cases()[case]
    assert average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores))
    precision, recall, _ = precision_recall_curve(positive, scores)
    eleven = np.mean([precision[:-1][recall[:-1] >= t / 10 - 1e-12].max() for t in range(11)])
    assert average_precision_11_point(scores, positive) == pytest.approx(eleven)
    steps = sorted(set(recall[:-1]))
    area, before = 0.0, 0.0
    for step in steps:
        area += (step - before) * precision[:-1][recall[:-1] >= step - 1e-12].max()
        before = step
    assert interpolated_average_precision(scores, positive) == pytest.approx(area)


def test_by_hand() -> None:
    """Right, wrong, right, wrong, wrong, right: precisions 1, 2/3, 1/2 at the recalls 1/3, 2/3, 1."""
    scores, positive = np.arange(6, 0, -1.0), np.array([1, 0, 1, 0, 0, 1], dtype=bool)
    assert average_precision(scores, positive) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    # recalls 0 to 0.3: 1; 0.4 to 0.6: 2/3; 0.7 to 1: 1/2
    assert average_precision_11_point(scores, positive) == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 / 2) / 11)
    late = np.array([0, 1, 1, 1, 0, 1], dtype=bool)  # 1/2, 2/3, 3/4 are raised to 3/4
    assert interpolated_average_precision(scores, late) == pytest.approx((3 * 3 / 4 + 4 / 6) / 4)


def test_recall_of_a_tenth_of_ten_positives_is_reached_by_one() -> None:
    scores = np.arange(100, 0, -1.0)
    positive = np.zeros(100, dtype=bool)
    positive[[0, *range(91, 100)]] = True
    rest = [(i + 2) / (91 + i + 1) for i in range(9)]
    expected = (1 + 1 + 9 * rest[-1]) / 11
    assert average_precision_11_point(scores, positive) == pytest.approx(expected)


def test_a_constant_score_is_worth_the_share_of_positives() -> None:
    positive = np.arange(20) < 5
    for measure in (average_precision, average_precision_11_point, interpolated_average_precision):
        assert measure(np.ones(20), positive) == pytest.approx(0.25)
        assert measure(-np.arange(20.0), positive) == pytest.approx(1)


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="without a positive"):
        average_precision(np.ones(3), np.zeros(3, bool))
    with pytest.raises(UserError, match="row 1"):
        average_precision(np.array([0, np.nan, 1]), np.ones(3, bool))
    with pytest.raises(UserError, match=r"\(3,\) and \(2,\)"):
        average_precision(np.ones(3), np.ones(2, bool))
