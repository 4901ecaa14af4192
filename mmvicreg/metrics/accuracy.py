"""Top-k accuracy of class scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmvicreg.errors import UserError


def top_k_accuracy(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], *, k: int = 1) -> float:
    """Percentage of samples whose class is among the ``k`` highest scores.

    Among tied scores the order is random, so the expected share is counted: a classifier that gives every
    class the same score is right ``k / C`` of the time, not always.

    Args:
        scores: ``(n, C)``, higher is likelier.
        labels: ``(n,)`` class indices in ``[0, C)``.
        k: places looked at, ``1 <= k``.

    Raises:
        UserError: shapes that do not fit, no samples, a NaN score, a label out of range, ``k < 1``.
    """
    return 100.0 * float(class_credit(scores, labels, k=k).mean())


def class_credit(
    scores: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], *, k: int = 1
) -> npt.NDArray[np.float64]:
    """Each sample's part in :func:`top_k_accuracy` ``(n,)``: 1 for a hit, 0 for none, between them for a tie.

    Arguments and errors are those of :func:`top_k_accuracy`.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != (len(scores),) or not scores.size:
        raise UserError(f"expected scores (n, C) and labels (n,), got {scores.shape} and {labels.shape}")
    if k < 1:
        raise UserError(f"top-k accuracy needs k of at least 1, got {k}")
    if np.isnan(scores).any():
        raise UserError(f"row {int(np.flatnonzero(np.isnan(scores).any(1))[0])} of the scores holds NaN")
    outside = np.flatnonzero((labels < 0) | (labels >= scores.shape[1]))
    if len(outside):
        row = int(outside[0])
        raise UserError(f"label {int(labels[row])} of row {row} is outside the {scores.shape[1]} classes")
    true = np.take_along_axis(scores, labels[:, None].astype(np.int64), axis=1)
    better = (scores > true).sum(1)
    tied = (scores == true).sum(1)  # the true class among them
    return np.asarray(np.clip((k - better) / tied, 0.0, 1.0))
