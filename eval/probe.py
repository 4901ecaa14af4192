"""A linear classifier on frozen representations: the arithmetic of the linear protocol, without any run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mmvicreg.errors import UserError
from mmvicreg.metrics import top_k_accuracy

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths C of the l2 penalty that are tried, strongest penalty first."""
TOP5_CLASSES = 10
"""With more classes than this top-5 accuracy is reported too."""
_INNER_FOLDS = 5
_ITERATIONS = 5000

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ProbeResult:
    """What a probe reached on the test samples.

    Attributes:
        top1: percent.
        top5: percent; None with :data:`TOP5_CLASSES` classes or fewer.
        c: the chosen inverse penalty.
        width: dimensions of the representation.
    """

    top1: float
    top5: float | None
    c: float
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
    """Fit multinomial logistic regression (lbfgs, l2) on standardised representations and test it.

    C comes from :data:`GRID` by cross-validation inside the training samples, whole groups left out at a
    time; of equal ones the strongest penalty. Means and deviations are those of the samples fitted on.

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
    if len(np.unique(train_labels)) < 2:
        raise UserError("a linear probe needs training samples of at least two classes")
    x, fold = train.astype(np.float64), len(set(groups))
    if fold < 2:
        raise UserError(
            "a linear probe chooses its penalty by leaving out groups, and all training samples are of "
            "one group"
        )
    splits = list(GroupKFold(min(fold, _INNER_FOLDS)).split(x, train_labels, groups))
    best, model, most = None, None, -1
    for c in GRID:
        whole = _fit(x, train_labels, c)
        parts = [(_fit(x[a], train_labels[a], c), b) for a, b in splits if _usable(train_labels[a])]
        if whole is None or any(part is None for part, _ in parts):
            continue  # no optimum was reached, so this penalty has no score
        right = sum(_hits(part, x[b], train_labels[b]) for part, b in parts if part is not None)
        if right > most:
            best, model, most = c, whole, right
    if best is None or model is None:
        raise UserError(
            f"the linear probe reached no optimum within {_ITERATIONS} iterations for any penalty; the features of "
            "this branch are degenerate (has it collapsed?)"
        )
    scores = np.full((len(test), classes), -np.inf)
    scores[:, model[-1].classes_] = model.predict_log_proba(test.astype(np.float64))
    return ProbeResult(
        top1=top_k_accuracy(scores, test_labels, k=1),
        top5=top_k_accuracy(scores, test_labels, k=5) if classes > TOP5_CLASSES else None,
        c=best,
        width=train.shape[1],
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


def _fit(x: Floats, labels: Integers, c: float) -> Pipeline | None:
    """The probe with inverse penalty ``c``; None where the optimiser stopped short of the optimum."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=_ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return model.fit(x, labels)
        except ConvergenceWarning:
            return None


def _hits(model: Pipeline, x: Floats, labels: Integers) -> int:
    return int((model.predict(x) == labels).sum())
