"""Classification by the nearest neighbours: exact, a block of queries at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from mmvicreg.errors import UserError
from mmvicreg.metrics.accuracy import class_credit
from mmvicreg.metrics.nearest import nearest_blocks
from mmvicreg.metrics.scores import Floats, Integers, Vectors, checked_rows
from mmvicreg.registry import nearest

Weighting: TypeAlias = Literal["exp", "uniform"]


def neighbour_credit(
    queries: Vectors,
    query_labels: npt.NDArray[np.integer],
    train: Vectors,
    train_labels: npt.NDArray[np.integer],
    *,
    k: Sequence[int],
    classes: int,
    temperature: float = 0.07,
    weighting: Weighting = "exp",
    tops: Sequence[int] = (1,),
    block: int = 256,
    rows: tuple[int, int] | None = None,
) -> Floats:
    """Whether the classes that the nearest training samples vote for are right.

    A query's K neighbours are the K training vectors of the largest cosine; of equal ones the first in order
    (see :mod:`mmvicreg.metrics.scores` for what is equal). Each votes for its class with the weight
    exp(cosine / temperature) (Wu et al. 2018, Eq. 7) or, unweighted, 1. Between classes of equal votes the
    order is random and the expected share is counted.

    Scores are in float64. Beyond the vectors it holds a few tiles of ``(block, 4096)`` and the votes
    ``(block, classes)``: under 150 MB with the defaults and 1 000 classes.

    Args:
        queries: ``(q, d)`` floats.
        query_labels: ``(q,)`` class indices in ``[0, classes)``.
        train: ``(n, d)``.
        train_labels: ``(n,)``.
        k: numbers of neighbours, each at least 1 and at most ``n``.
        classes: number of classes.
        temperature: above 0; without effect where unweighted.
        weighting: ``exp`` or ``uniform``.
        tops: a query is right when its class is among the first so many.
        block: queries at a time; changes speed and memory only.
        rows: only the queries from the first to before the second of these rows.

    Returns:
        ``(q or fewer, len(k), len(tops))``: 1 for a hit, 0 for none, between them for a tie.

    Raises:
        UserError: a number of neighbours, temperature or weighting out of range, labels that do not fit; as
            :func:`~mmvicreg.metrics.nearest_candidates`.
    """
    numbers = np.asarray(train_labels)
    check_votes(k, temperature=temperature, weighting=weighting)
    if numbers.shape != (len(train),) or len(query_labels) != len(queries):
        raise UserError(
            f"expected a label for each of {len(train)} training vectors and {len(queries)} queries, got "
            f"{len(numbers)} and {len(query_labels)}"
        )
    if max(k) > len(train):
        raise UserError(
            f"{max(k)} neighbours were asked for, and there are only {len(train)} training samples; give smaller "
            "numbers with --k"
        )
    first, last = checked_rows(rows, len(queries))
    asked = np.asarray(query_labels)[first:last]
    credit = np.empty((last - first, len(k), len(tops)))
    found = nearest_blocks(queries, train, max(k), similarity="cosine", block=block, rows=(first, last))
    for part, places, cosine in found:
        weights = np.ones_like(cosine)
        if weighting == "exp":  # relative to the nearest: a small temperature does not overflow
            weights = np.exp((cosine - cosine[:, :1]) / temperature)
        for i, number in enumerate(k):
            votes = _votes(numbers[places[:, :number]], weights[:, :number], classes)
            for j, top in enumerate(tops):
                credit[part, i, j] = class_credit(votes, asked[part], k=top)
    return credit


def _votes(labels: Integers, weights: Floats, classes: int) -> Floats:
    """``(b, classes)``: the weight behind every class. Added from the nearest on, so that equal sums are equal."""
    votes = np.zeros((len(labels), classes))
    rows = np.arange(len(labels))
    for neighbour in range(labels.shape[1]):
        votes[rows, labels[:, neighbour]] += weights[:, neighbour]
    return votes


def check_votes(k: Sequence[int], *, temperature: float, weighting: str) -> None:
    """Raise :class:`UserError` naming what is out of range of how neighbours vote."""
    if not k or min(k) < 1:
        raise UserError(f"numbers of neighbours are at least 1, got {', '.join(map(str, k)) or 'none'}")
    if not (np.isfinite(temperature) and temperature > 0):
        raise UserError(f"the temperature of the neighbours' votes must be above 0, got {temperature:g}")
    known = get_args(Weighting)
    if weighting not in known:
        raise UserError(
            f"unknown weighting '{weighting}'{nearest(weighting, known)} Known: {', '.join(known)}."
        )
