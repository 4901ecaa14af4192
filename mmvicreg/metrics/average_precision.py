"""Average precision of one class: how early in a ranking its samples stand.

Legend: the ranking's precision after each sample is P, its recall R. Samples of one score stand in no order:
they enter together, as one step of the curve, so that a constant score gets the share of positives.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmvicreg.errors import UserError

Floats = npt.NDArray[np.float64]


def average_precision(scores: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]) -> float:
    """Area under the curve as it is: the sum of (R_n - R_{n-1}) P_n; scikit-learn's definition. In [0, 1].

    Args:
        scores: ``(n,)``, higher is likelier.
        positive: ``(n,)`` whether a sample is of the class.

    Raises:
        UserError: shapes that do not fit, a score that is not finite, no positive sample.
    """
    precision, recall = _curve(scores, positive)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def interpolated_average_precision(
    scores: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]
) -> float:
    """Area under the curve after each precision is raised to the largest at any recall from there on. In [0, 1].

    VOC's own from 2010 on, and what VISSL and the benchmark of Goyal et al. 2019 report on VOC07. Arguments
    and errors are those of :func:`average_precision`.
    """
    precision, recall = _curve(scores, positive)
    return float((np.diff(recall, prepend=0.0) * _from_there_on(precision)).sum())


def average_precision_11_point(scores: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]) -> float:
    """VOC07's: the mean, over the recalls 0, 0.1, ..., 1, of the largest precision from there on. In [0, 1].

    Everingham et al. 2010, section 4.2. Arguments and errors are those of :func:`average_precision`.
    """
    precision, recall = _curve(scores, positive)
    best = _from_there_on(precision)
    positives = int(np.count_nonzero(positive))
    hits = np.rint(recall * positives)  # 10 hits >= t positives, in whole numbers: 0.1 has no exact float
    places = [int(np.argmax(10 * hits >= tenth * positives)) for tenth in range(11)]
    return float(np.mean(best[places]))


def _curve(scores: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Precision and recall after every group of samples with one score, best first."""
    scores, positive = np.asarray(scores), np.asarray(positive, dtype=np.bool_)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise UserError(
            f"average precision expects scores (n,) and labels (n,), got {scores.shape} and {positive.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise UserError(
            f"row {int(bad[0])} of the scores is not finite; its place in the ranking means nothing"
        )
    if not positive.any():
        raise UserError("average precision is not defined without a positive sample")
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # the last of every group
    hits = np.cumsum(positive[order])[ends]
    return hits / (ends + 1), hits / hits[-1]


def _from_there_on(precision: Floats) -> Floats:
    return np.maximum.accumulate(precision[::-1])[::-1]
