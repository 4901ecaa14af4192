"""The linear probe: which penalty, which groups, which chance."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmvicreg.errors import UserError
from mmvicreg.eval.probe import GRID, chance_level, probe


def _clusters(n: int, classes: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, 6))
    labels = np.arange(n) % classes
    return (centres[labels] + noise * rng.standard_normal((n, 6))).astype(np.float32), labels


def test_equals_scikit_learns_own_grid_search_over_groups() -> None:
    x, y = _clusters(120, 4, 1.5)
    test_x, test_y = _clusters(200, 4, 1.5, seed=1)
    groups = [f"fold {i // 30}" for i in range(120)]
    found = probe(x, y, test_x, test_y, groups=groups, classes=4)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), RidgeClassifier()),
        {"ridgeclassifier__alpha": list(GRID)},
        cv=GroupKFold(4),
    ).fit(x.astype(float), y, groups=groups)
    assert found.alpha == search.best_params_["ridgeclassifier__alpha"]
    assert found.top1 == pytest.approx(100 * search.score(test_x.astype(float), test_y))
    assert (found.top5, found.width) == (None, 6)


def test_groups_are_never_on_both_sides_of_the_inner_split() -> None:
    """Copies of one source in one group: leaving out samples rewards remembering sources, groups do not."""
    rng = np.random.default_rng(1)
    sign = np.where(np.arange(40) % 2, 1, -1)
    source = np.outer(sign, np.arange(40) < 5) + rng.standard_normal((40, 40))
    label = np.where(rng.random(40) < 0.2, -sign, sign) > 0  # a fifth of the sources is labelled wrongly
    x = np.repeat(source, 4, axis=0) + 0.05 * rng.standard_normal((160, 40))
    y = np.repeat(label.astype(int), 4)
    chosen = []
    for groups in ([str(i) for i in range(160)], [str(i // 4) for i in range(160)]):
        search = GridSearchCV(
            make_pipeline(StandardScaler(), RidgeClassifier()),
            {"ridgeclassifier__alpha": list(GRID)},
            cv=GroupKFold(5),
        ).fit(x, y, groups=groups)
        chosen.append(search.best_params_["ridgeclassifier__alpha"])
        assert probe(x, y, x, y, groups=groups, classes=2).alpha == chosen[-1]
    assert chosen[0] < chosen[1]  # the honest search asks for the stronger penalty


def test_the_scale_of_a_dimension_does_not_matter() -> None:
    x, y = _clusters(120, 4, 1.5)
    test_x, test_y = _clusters(200, 4, 1.5, seed=1)
    groups = [str(i // 30) for i in range(120)]
    scale = 10.0 ** np.arange(-3, 3)
    plain = probe(x.astype(float), y, test_x.astype(float), test_y, groups=groups, classes=4)
    scaled = probe(x * scale + 5, y, test_x * scale + 5, test_y, groups=groups, classes=4)
    assert scaled.top1 == pytest.approx(plain.top1)


def test_a_constant_representation_scores_chance() -> None:
    y = np.arange(200) % 10
    found = probe(
        np.ones((200, 5)),
        y,
        np.ones((100, 5)),
        y[:100],
        groups=[str(i // 50) for i in range(200)],
        classes=10,
    )
    assert found.top1 == pytest.approx(10)


def test_top5_with_more_than_ten_classes_and_classes_that_training_lacks() -> None:
    x, y = _clusters(240, 12, 0.05)
    test_x, test_y = _clusters(120, 12, 0.05, seed=1)
    known = y != 7
    groups = [str(i % 4) for i in range(int(known.sum()))]
    found = probe(x[known], y[known], test_x, test_y, groups=groups, classes=12)
    assert found.top1 == pytest.approx(100 * 11 / 12)
    assert found.top5 == pytest.approx(100 * 11 / 12)


def test_two_classes() -> None:
    x, y = _clusters(60, 2, 0.1)
    test_x, test_y = _clusters(40, 2, 0.1, seed=1)
    assert probe(x, y, test_x, test_y, groups=[str(i // 15) for i in range(60)], classes=2).top1 == 100


def test_what_cannot_be_probed_is_refused() -> None:
    x = np.zeros((4, 2))
    with pytest.raises(UserError, match="at least two classes"):
        probe(x, np.zeros(4, int), x, np.zeros(4, int), groups=list("abcd"), classes=2)
    with pytest.raises(UserError, match="all training samples are of one group"):
        probe(x, np.array([0, 1, 0, 1]), x, np.zeros(4, int), groups=list("aaaa"), classes=2)


def test_chance_is_the_larger_of_drawing_and_the_most_frequent_class() -> None:
    balanced = np.arange(100) % 50
    assert chance_level(balanced, balanced, classes=50) == pytest.approx(2)
    train, test = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 2])
    assert chance_level(train, test, classes=3) == pytest.approx(50)
    assert chance_level(train, np.array([1, 2, 2]), classes=3) == pytest.approx(100 / 3)
