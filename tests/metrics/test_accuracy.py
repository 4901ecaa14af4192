"""Top-k accuracy by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from mmvicreg.errors import UserError
from mmvicreg.metrics import top_k_accuracy


def test_equals_scikit_learn_without_ties() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((200, 12)), rng.integers(0, 12, 200)
    for k in (1, 5, 11):
        expected = 100 * top_k_accuracy_score(labels, scores, k=k, labels=np.arange(12))
        assert top_k_accuracy(scores, labels, k=k) == pytest.approx(expected)


def test_equal_scores_give_chance_not_certainty() -> None:
    assert top_k_accuracy(np.zeros((7, 10)), np.arange(7), k=1) == pytest.approx(10)
    assert top_k_accuracy(np.zeros((7, 10)), np.arange(7), k=5) == pytest.approx(50)
    assert top_k_accuracy(np.zeros((7, 10)), np.arange(7), k=20) == pytest.approx(100)


@pytest.mark.parametrize(
    ("scores", "labels", "k", "message"),
    [
        (np.zeros((2, 3)), np.array([0]), 1, "expected scores"),
        (np.zeros((0, 3)), np.zeros(0, int), 1, "expected scores"),
        (np.zeros((2, 3)), np.array([0, 3]), 1, "label 3 of row 1"),
        (np.array([[0.0, np.nan]]), np.array([0]), 1, "row 0 of the scores holds NaN"),
        (np.zeros((1, 3)), np.array([0]), 0, "k of at least 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    scores: np.ndarray, labels: np.ndarray, k: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        top_k_accuracy(scores, labels, k=k)
