"""A linear classifier on frozen representations: the arithmetic of the linear protocol, without any run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mmvicreg.errors import UserError
from mmvicreg.metrics import top_k_accuracy

GRID = tuple(float(10**power) for power in range(5, -2, -1))
"""Strengths alpha of the l2 penalty that are tried, strongest first."""
TOP5_CLASSES = 10
"""With more classes than this top-5 accuracy is reported too."""
_INNER_FOLDS = 5

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ProbeResult:
    """What a probe reached on the test samples.

    Attributes:
        top1: percent.
        top5: percent; None with :data:`TOP5_CLASSES` classes or fewer.
        alpha: strength of the l2 penalty that the inner search chose.
        width: dimensions of the representation.
    """

    top1: float
    top5: float | None
    alpha: float
    width: int


@dataclass(frozen=True)
class Task:
    """One probe to train and test.

    Attributes:
        name: the held-out fold (``"1"``), or the split it is tested on.
        train: positions of the training samples.
        test: positions of the test samples.
        transductive: pretraining saw test samples.
    """

    name: str
    train: Integers
    test: Integers
    transductive: bool


@dataclass(frozen=True)
class Outcome:
    """A task's results.

    Attributes:
        task: what was probed.
        trained: branch -> result on the run's representations.
        untrained: branch -> result on those of its initial weights.
        chance: percent.
    """

    task: Task
    trained: Mapping[str, ProbeResult]
    untrained: Mapping[str, ProbeResult]
    chance: float


def probe(
    train: Floats,
    train_labels: Integers,
    test: Floats,
    test_labels: Integers,
    *,
    groups: Sequence[str],
    classes: int,
) -> ProbeResult:
    """Fit a ridge classifier (least squares on +1 / -1 targets) on standardised representations and test it.

    It is exact, in closed form: no optimiser's rate or stopping rule has a say in the figure. alpha comes
    from :data:`GRID` by cross-validation inside the training samples, whole groups left out at a time; of
    equal ones the strongest. Means and deviations are those of the samples fitted on.

    Args:
        train: ``(n, d)`` representations.
        train_labels: ``(n,)`` class indices.
        test: ``(k, d)``.
        test_labels: ``(k,)``.
        groups: ``n`` names; samples of one group are never on both sides of the inner split.
        classes: number of classes.

    Raises:
        UserError: fewer than two classes or groups among the training samples.
    """
    check_training(train_labels, groups)
    x, fold = train.astype(np.float64), len(set(groups))
    splits = list(GroupKFold(min(fold, _INNER_FOLDS)).split(x, train_labels, groups))
    right = [
        sum(
            _hits(_fit(x[a], train_labels[a], alpha), x[b], train_labels[b])
            for a, b in splits
            if _usable(train_labels[a])
        )
        for alpha in GRID
    ]
    best = GRID[int(np.argmax(right))]
    model = _fit(x, train_labels, best)
    scores = np.full((len(test), classes), -np.inf)
    decided = model.decision_function(test.astype(np.float64))
    if decided.ndim == 1:  # two classes: one number, positive for the second
        decided = np.stack([-decided, decided], axis=1)
    scores[:, model[-1].classes_] = decided
    return ProbeResult(
        top1=top_k_accuracy(scores, test_labels, k=1),
        top5=top_k_accuracy(scores, test_labels, k=5) if classes > TOP5_CLASSES else None,
        alpha=best,
        width=train.shape[1],
    )


def check_training(labels: Integers, groups: Sequence[str]) -> None:
    """Refuse training samples that :func:`probe` cannot learn from: ``(n,)`` labels, and their groups.

    Raises:
        UserError: fewer than two classes or groups.
    """
    if len(np.unique(labels)) < 2:
        raise UserError("a linear probe needs training samples of at least two classes")
    if len(set(groups)) < 2:
        raise UserError(
            "a linear probe chooses its penalty by leaving out groups, and all training samples are of one group"
        )


def chance_level(train_labels: Integers, test_labels: Integers, *, classes: int) -> float:
    """Top-1 accuracy in percent without looking at the input.

    The larger of drawing a class at random, ``100 / C``, and always answering the training samples' most
    frequent class.
    """
    counts = np.bincount(train_labels, minlength=classes)
    constant = float((test_labels == int(counts.argmax())).mean())
    return 100.0 * max(1.0 / classes, constant)


def _usable(labels: Integers) -> bool:
    return len(np.unique(labels)) > 1


def _fit(x: Floats, labels: Integers, alpha: float) -> Pipeline:
    return make_pipeline(StandardScaler(), RidgeClassifier(alpha=alpha)).fit(x, labels)


def _hits(model: Pipeline, x: Floats, labels: Integers) -> int:
    return int((model.predict(x) == labels).sum())
