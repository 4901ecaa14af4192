"""Ranks and recall at K for retrieval between two galleries, one of which may have several items per owner.

Legend: ``n`` images (or whatever owns), ``m`` captions (or whatever is owned), ``m >= n``, ``d`` dimensions.

What a rank is. For a query, its candidates are the items of the other gallery. *Own* candidates are the
right answers: the one image of a caption, the (five, or any number of) captions of an image. Only the best
own candidate counts, the others never count for or against. The rank is zero-based::

    rank = #(other candidates scoring better than the best own) + #(others tied with it) / 2

so a tie is counted in the middle. Counting only the better ones gives a collapsed model, for which all
candidates tie, a perfect score; counting all gives the worst.

What a tie is, :mod:`mmvicreg.metrics.scores` says: scores that rounding in float64 cannot tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mmvicreg.errors import UserError
from mmvicreg.metrics.scores import (
    TILE,
    Floats,
    Geometry,
    Integers,
    Rows,
    Similarity,
    Vectors,
    blocks,
    checked_rows,
    checked_vectors,
)


@dataclass(frozen=True)
class RankCounts:
    """How the candidates of each query compare with its best own candidate.

    Attributes:
        better: ``(q,)`` int64, other candidates that score better.
        tied: ``(q,)`` int64, other candidates that score the same.
        own: ``(q,)`` int64, own candidates tied for best, at least 1.
        known: ``(q,)`` bool, false where a search ended before it met the best own candidate, so that only
            the least that ``better`` can be is known; None: all are known.
    """

    better: Integers
    tied: Integers
    own: Integers
    known: npt.NDArray[np.bool_] | None = None

    @property
    def ranks(self) -> Floats:
        """``(q,)`` float64 zero-based ranks, ties in the middle; infinite where not known."""
        ranks = self.better + self.tied / 2
        return ranks if self.known is None else np.where(self.known, ranks, np.inf)

    def recall(self, k: int) -> float:
        """Recall at ``k`` in percent, in expectation over the order of tied candidates.

        Equal to :func:`recall_at_k` of :attr:`ranks` where nothing ties across the k-th place. A collapsed
        model scores :func:`chance_recall` exactly.
        """
        places = np.clip(k - self.better, 0, self.tied + self.own)
        return 100.0 * float(_any_own_within(places, self.tied, self.own).mean())


def retrieval_ranks(
    images: Vectors,
    captions: Vectors,
    owner: npt.NDArray[np.integer] | Tensor,
    *,
    similarity: Similarity = "cosine",
    block: int = 256,
) -> tuple[Floats, Floats]:
    """Zero-based ranks of the best right answer in both directions, ties in the middle, ranked in float64.

    One pass over blocked products serves both directions; the ``n x m`` matrix is never whole in memory
    (5 000 x 25 000 at d 1 024 takes 57 MB beyond its arguments: a float64 copy of the images, 41 MB, and a
    few tiles; 2 000 x 10 000 at d 256 takes 14 MB). Threads are those of numpy's BLAS.

    Args:
        images: ``(n, d)`` floats, numpy or torch, any device.
        captions: ``(m, d)``.
        owner: ``(m,)`` integers in ``[0, n)``: the image each caption belongs to, in any order and any
            number per image, but at least one.
        similarity: ``cosine`` (a zero vector is at 0 from everything), ``dot``, or ``euclidean`` (nearer
            is better).
        block: captions per product; changes speed and memory, not ranks.

    Returns:
        ``(image_to_text (n,), text_to_image (m,))`` float64. The first is the rank, among all captions of
        other images, of the image's best own caption; the second of the caption's image among all images.

    Raises:
        UserError: NaN or infinity (the row is named), shapes that do not fit, an owner out of range, an
            image without a caption, an unknown similarity.
    """
    image_to_text, text_to_image = rank_counts(images, captions, owner, similarity=similarity, block=block)
    return image_to_text.ranks, text_to_image.ranks


def recall_at_k(ranks: npt.ArrayLike, k: int) -> float:
    """Percentage of queries whose right answer is among the first ``k``.

    A rank below ``k`` is a hit, except that ``k - 1/2`` (the answer shares the k-th and the next place with
    one other) is half a hit. Ranks do not tell how wide a wider tie was; :meth:`RankCounts.recall` does.

    Args:
        ranks: ``(q,)`` zero-based, as :func:`retrieval_ranks` gives them.
        k: at least 1.

    Raises:
        UserError: no ranks, not one row of them, one that is negative or NaN, or a ``k`` that is not a whole
            number of at least 1.
    """
    values = _checked_ranks(ranks)
    if k < 1 or not float(k).is_integer():
        raise UserError(f"recall at k needs a whole number k of at least 1, got {k}")
    return 100.0 * float(np.clip(k - values, 0.0, 1.0).mean())


def median_rank(ranks: npt.ArrayLike) -> float:
    """Median of zero-based ranks as papers report it: 1-based, so 1 is the best possible."""
    return float(np.median(_checked_ranks(ranks))) + 1.0


def mean_rank(ranks: npt.ArrayLike) -> float:
    """Mean of zero-based ranks as papers report it: 1-based, so 1 is the best possible."""
    return float(_checked_ranks(ranks).mean()) + 1.0


def chance_recall(gallery: int, own: npt.ArrayLike, k: int) -> float:
    """Expected recall at ``k``, in percent, of a random order.

    Args:
        gallery: number of candidates.
        own: right answers among them, one number or one per query ``(q,)``.
        k: places looked at.
    """
    own_counts = np.atleast_1d(np.asarray(own, dtype=np.int64))
    places = np.full(own_counts.shape, min(k, gallery), dtype=np.int64)
    return 100.0 * float(_any_own_within(places, gallery - own_counts, own_counts).mean())


def rank_counts(
    images: Vectors,
    captions: Vectors,
    owner: npt.NDArray[np.integer] | Tensor,
    *,
    similarity: Similarity = "cosine",
    block: int = 256,
    rows: tuple[int, int] | None = None,
) -> tuple[RankCounts, RankCounts]:
    """What :func:`retrieval_ranks` counts, before better and tied are added up; same arguments and errors.

    Args:
        images: ``(n, d)``.
        captions: ``(m, d)``.
        owner: ``(m,)``.
        similarity: as there.
        block: as there.
        rows: score only the captions from the first to before the second of these rows, as one share of the
            work: of image-to-text it counts those candidates only, of text-to-image it has those queries
            only. :func:`join_counts` makes the whole of the shares, the same for any division.
    """
    x, y = checked_vectors(images, captions, similarity=similarity, block=block)
    owners = checked_owner(owner, n=len(x), m=len(y))
    geometry = Geometry.fit(similarity, x, y, block)
    return _count(geometry, x, y, owners, block, *checked_rows(rows, len(y)))


def join_counts(shares: Sequence[tuple[RankCounts, RankCounts]]) -> tuple[RankCounts, RankCounts]:
    """The counts of all captions from those of consecutive shares of them (see :func:`rank_counts`)."""
    forth = [share[0] for share in shares]
    back = [share[1] for share in shares]
    return (
        RankCounts(
            np.sum([counts.better for counts in forth], axis=0),
            np.sum([counts.tied for counts in forth], axis=0),
            forth[0].own,
        ),
        RankCounts(
            np.concatenate([counts.better for counts in back]),
            np.concatenate([counts.tied for counts in back]),
            np.concatenate([counts.own for counts in back]),
        ),
    )


def _count(
    geometry: Geometry, images: Rows, captions: Rows, owner: Integers, block: int, first: int, last: int
) -> tuple[RankCounts, RankCounts]:
    n, m = len(images), len(captions)
    x, x_length = np.empty((n, geometry.width)), np.empty(n)
    for rows, raw in blocks(images, block):
        x[rows], x_length[rows] = geometry.images(raw)

    own_score, y_length = np.empty(m), np.empty(m)
    for rows, raw in blocks(captions, block):
        y, y_length[rows] = geometry.captions(raw)
        own_score[rows] = np.einsum("bd,bd->b", y, x[owner[rows]])
    best = np.full(n, -np.inf)
    np.maximum.at(best, owner, own_score)

    slack_x = geometry.rounding(x_length, float(y_length.max()))
    slack_y = geometry.rounding(y_length, float(x_length.max()))
    own = np.bincount(owner[own_score >= (best - slack_x)[owner]], minlength=n)

    x_better, x_reach = np.zeros(n, np.int64), np.zeros(n, np.int64)
    y_better, y_reach = np.zeros(m, np.int64), np.zeros(m, np.int64)
    for part, raw in blocks(captions[first:last], block):
        rows = slice(first + part.start, first + part.stop)
        y, _ = geometry.captions(raw)
        above, below = (own_score + slack_y)[rows, None], (own_score - slack_y)[rows, None]
        for start in range(0, n, TILE):
            tile = slice(start, start + TILE)
            scores = y @ x[tile].T
            mine = np.flatnonzero((owner[rows] >= start) & (owner[rows] < start + TILE))
            scores[mine, owner[rows][mine] - start] = -np.inf  # own candidates are not counted
            y_better[rows] += np.count_nonzero(scores > above, axis=1)
            y_reach[rows] += np.count_nonzero(scores >= below, axis=1)
            x_better[tile] += np.count_nonzero(scores > (best + slack_x)[tile], axis=0)
            x_reach[tile] += np.count_nonzero(scores >= (best - slack_x)[tile], axis=0)
    y_better, y_reach = y_better[first:last], y_reach[first:last]
    return (
        RankCounts(x_better, x_reach - x_better, own.astype(np.int64)),
        RankCounts(y_better, y_reach - y_better, np.ones(last - first, np.int64)),
    )


def _any_own_within(places: Integers, others: Integers, own: Integers) -> Floats:
    """Probability that a random order of others and own ``(q,)`` has an own one in the first ``places``."""
    none = np.ones(len(places))
    for drawn in range(int(own.max(initial=0))):
        left = np.maximum(others + own - places - drawn, 0) / np.maximum(others + own - drawn, 1)
        none = np.where(drawn < own, none * left, none)
    return 1.0 - none


def checked_owner(owner: npt.NDArray[np.integer] | Tensor, *, n: int, m: int) -> Integers:
    """The owner of each of ``m`` captions among ``n`` images; :class:`UserError` unless every image has one."""
    array = np.asarray(owner.detach().cpu().numpy() if isinstance(owner, Tensor) else owner)
    if array.shape != (m,):
        raise UserError(f"owner must hold one image per caption, shape ({m},); got {array.shape}")
    if array.dtype.kind not in "iu":
        raise UserError(f"owner must hold integers; got dtype {array.dtype}")
    outside = np.flatnonzero((array < 0) | (array >= n))
    if len(outside):
        row = int(outside[0])
        raise UserError(f"owner of caption {row} is {int(array[row])}, outside the {n} images")
    owners = array.astype(np.int64)
    missing = np.flatnonzero(np.bincount(owners, minlength=n) == 0)
    if len(missing):
        raise UserError(
            f"image {int(missing[0])} has no caption ({len(missing)} of {n} have none); leave such "
            "images out before ranking"
        )
    return owners


def _checked_ranks(ranks: npt.ArrayLike) -> Floats:
    values = np.asarray(ranks, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not (values >= 0).all():
        raise UserError("ranks must be one row of at least one number, none negative or NaN")
    return values
