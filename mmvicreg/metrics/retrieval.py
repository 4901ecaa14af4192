"""Ranks and recall at K for retrieval between two galleries, one of which may have several items per owner.

Legend: ``n`` images (or whatever owns), ``m`` captions (or whatever is owned), ``m >= n``, ``d`` dimensions.

What a rank is. For a query, its candidates are the items of the other gallery. *Own* candidates are the
right answers: the one image of a caption, the (five, or any number of) captions of an image. Only the best
own candidate counts, the others never count for or against. The rank is zero-based::

    rank = #(other candidates scoring better than the best own) + #(others tied with it) / 2

so a tie is counted in the middle. Counting only the better ones gives a collapsed model, for which all
candidates tie, a perfect score; counting all gives the worst.

What a tie is. A score is a sum of ``d`` products, and which of two equal sums comes out larger depends on
the order of summation, which a BLAS chooses by block shape, machine and thread. Scores closer than the
worst case of that rounding in float64, ``(2 d + 8) eps`` times the largest possible score, are therefore
tied. For unit vectors of 1 024 dimensions that is 5e-13, far below what float32 embeddings can tell apart.
It makes ranks the same for any block size and makes copies of one vector tie exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mmvicreg.errors import UserError
from mmvicreg.registry import nearest

Similarity: TypeAlias = Literal["cosine", "dot", "euclidean"]
Vectors: TypeAlias = npt.NDArray[np.floating] | Tensor
Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]

_TILE = 4096
"""Images per product: with the default block a tile of scores is 8 MB."""


@dataclass(frozen=True)
class RankCounts:
    """How the candidates of each query compare with its best own candidate.

    Attributes:
        better: ``(q,)`` int64, other candidates that score better.
        tied: ``(q,)`` int64, other candidates that score the same.
        own: ``(q,)`` int64, own candidates tied for best, at least 1.
    """

    better: Integers
    tied: Integers
    own: Integers

    @property
    def ranks(self) -> Floats:
        """``(q,)`` float64 zero-based ranks, ties in the middle."""
        return self.better + self.tied / 2

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
    (5 000 x 25 000 at d 1 024 takes about 60 MB beyond its arguments: a float64 copy of the images and a
    few tiles). Threads are those of numpy's BLAS.

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
        UserError: no ranks, not one row of them, one that is negative or NaN, or ``k < 1``.
    """
    values = _checked_ranks(ranks)
    if k < 1:
        raise UserError(f"recall at k needs k of at least 1, got {k}")
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
) -> tuple[RankCounts, RankCounts]:
    """What :func:`retrieval_ranks` counts, before better and tied are added up; same arguments and errors."""
    if similarity not in get_args(Similarity):
        names = get_args(Similarity)
        raise UserError(
            f"unknown similarity '{similarity}'{nearest(similarity, names)} Known: {', '.join(names)}."
        )
    if block < 1:
        raise UserError(f"the block size of ranking must be at least 1, got {block}")
    x_raw, y_raw = _as_numpy(images, "images"), _as_numpy(captions, "captions")
    owners = _checked_owner(owner, x_raw, y_raw)
    _check_finite(x_raw, "images", block)
    _check_finite(y_raw, "captions", block)
    geometry = _Geometry.fit(similarity, x_raw, y_raw, block)
    return _count(geometry, x_raw, y_raw, owners, block)


@dataclass(frozen=True)
class _Geometry:
    """Turns vectors of one similarity into float64 vectors whose dot product is the score."""

    similarity: Similarity
    shift: Floats
    image_exponent: int
    caption_exponent: int

    @classmethod
    def fit(
        cls,
        similarity: Similarity,
        images: npt.NDArray[np.generic],
        captions: npt.NDArray[np.generic],
        block: int,
    ) -> _Geometry:
        # Distances do not change when everything moves; around the images' mean their squares cancel less.
        shift = np.zeros(images.shape[1])
        if similarity == "euclidean":
            shift = sum((np.add.reduce(x / len(images), axis=0) for _, x in _blocks(images, block)), shift)
        peaks = [
            max(float(np.abs(x - shift).max(initial=0.0)) for _, x in _blocks(raw, block))
            for raw in (images, captions)
        ]
        if similarity == "euclidean":
            peaks = [max(peaks)] * 2
        # Powers of two change no digit, and keep squares of very large or small numbers in range.
        return cls(similarity, shift, int(np.frexp(peaks[0])[1]), int(np.frexp(peaks[1])[1]))

    def images(self, x: Floats) -> tuple[Floats, Floats]:
        """Score factors ``(b, d or d + 2)`` and lengths ``(b,)`` of image vectors ``(b, d)``."""
        vectors, lengths = self._vectors(x, self.image_exponent)
        if self.similarity != "euclidean":
            return vectors, lengths
        square = np.square(vectors).sum(1, keepdims=True)
        return np.hstack([2 * vectors, -square, -np.ones_like(square)]), lengths

    def captions(self, y: Floats) -> tuple[Floats, Floats]:
        """The same for captions; ``images(x) @ captions(y).T`` is the matrix of scores."""
        vectors, lengths = self._vectors(y, self.caption_exponent)
        if self.similarity != "euclidean":
            return vectors, lengths
        square = np.square(vectors).sum(1, keepdims=True)
        return np.hstack([vectors, np.ones_like(square), square]), lengths

    def rounding(self, lengths: Floats, longest: float) -> Floats:
        """How far apart two equal scores may come out for queries of these lengths ``(q,)``."""
        unit = (2 * len(self.shift) + 8) * np.finfo(np.float64).eps
        if self.similarity == "euclidean":
            return np.asarray(unit * np.square(lengths + longest))
        return np.asarray(unit * lengths * longest)

    def _vectors(self, x: Floats, exponent: int) -> tuple[Floats, Floats]:
        if self.similarity == "cosine":
            peak = np.frexp(np.abs(x).max(1, keepdims=True))[1]
            x = np.ldexp(x, -peak)
            length = np.sqrt(np.square(x).sum(1, keepdims=True))
            unit = x / np.where(length > 0, length, 1.0)
            return unit, (length[:, 0] > 0).astype(np.float64)
        x = np.ldexp(x - self.shift, -exponent)
        return x, np.sqrt(np.square(x).sum(1))


def _count(
    geometry: _Geometry,
    images: npt.NDArray[np.generic],
    captions: npt.NDArray[np.generic],
    owner: Integers,
    block: int,
) -> tuple[RankCounts, RankCounts]:
    n, m = len(images), len(captions)
    parts = [geometry.images(x) for _, x in _blocks(images, block)]
    x, x_length = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    del parts

    own_score, y_length = np.empty(m), np.empty(m)
    for rows, raw in _blocks(captions, block):
        y, y_length[rows] = geometry.captions(raw)
        own_score[rows] = np.einsum("bd,bd->b", y, x[owner[rows]])
    best = np.full(n, -np.inf)
    np.maximum.at(best, owner, own_score)

    slack_x = geometry.rounding(x_length, float(y_length.max()))
    slack_y = geometry.rounding(y_length, float(x_length.max()))
    own = np.bincount(owner[own_score >= (best - slack_x)[owner]], minlength=n)

    x_better, x_reach = np.zeros(n, np.int64), np.zeros(n, np.int64)
    y_better, y_reach = np.zeros(m, np.int64), np.zeros(m, np.int64)
    for rows, raw in _blocks(captions, block):
        y, _ = geometry.captions(raw)
        above, below = (own_score + slack_y)[rows, None], (own_score - slack_y)[rows, None]
        for start in range(0, n, _TILE):
            tile = slice(start, start + _TILE)
            scores = y @ x[tile].T
            mine = np.flatnonzero((owner[rows] >= start) & (owner[rows] < start + _TILE))
            scores[mine, owner[rows][mine] - start] = -np.inf  # own candidates are not counted
            y_better[rows] += np.count_nonzero(scores > above, axis=1)
            y_reach[rows] += np.count_nonzero(scores >= below, axis=1)
            x_better[tile] += np.count_nonzero(scores > (best + slack_x)[tile], axis=0)
            x_reach[tile] += np.count_nonzero(scores >= (best - slack_x)[tile], axis=0)
    return (
        RankCounts(x_better, x_reach - x_better, own.astype(np.int64)),
        RankCounts(y_better, y_reach - y_better, np.ones(m, np.int64)),
    )


def _any_own_within(places: Integers, others: Integers, own: Integers) -> Floats:
    """Probability that a random order of others and own ``(q,)`` has an own one in the first ``places``."""
    none = np.ones(len(places))
    for drawn in range(int(own.max(initial=0))):
        left = np.maximum(others + own - places - drawn, 0) / np.maximum(others + own - drawn, 1)
        none = np.where(drawn < own, none * left, none)
    return 1.0 - none


def _blocks(rows: npt.NDArray[np.generic], block: int) -> Iterator[tuple[slice, Floats]]:
    """Consecutive rows in float64, ``block`` at a time."""
    for start in range(0, len(rows), block):
        part = slice(start, min(start + block, len(rows)))
        yield part, rows[part].astype(np.float64)


def _as_numpy(values: Vectors, name: str) -> npt.NDArray[np.generic]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16; float32 holds every half-precision number
        values = (values.float() if values.is_floating_point() and values.itemsize < 4 else values).numpy()
    array: npt.NDArray[np.generic] = np.asarray(values)
    if array.ndim != 2 or 0 in array.shape:
        raise UserError(
            f"{name} must be vectors (rows, dimensions), at least one of each; got shape {array.shape}"
        )
    if array.dtype.kind not in "fiu":
        raise UserError(f"{name} must hold real numbers; got dtype {array.dtype}")
    return array


def _checked_owner(
    owner: npt.NDArray[np.integer] | Tensor,
    images: npt.NDArray[np.generic],
    captions: npt.NDArray[np.generic],
) -> Integers:
    if images.shape[1] != captions.shape[1]:
        raise UserError(
            f"images have {images.shape[1]} dimensions and captions {captions.shape[1]}; both must come from "
            "one embedding space"
        )
    array = np.asarray(owner.detach().cpu().numpy() if isinstance(owner, Tensor) else owner)
    if array.shape != (len(captions),):
        raise UserError(f"owner must hold one image per caption, shape ({len(captions)},); got {array.shape}")
    if array.dtype.kind not in "iu":
        raise UserError(f"owner must hold integers; got dtype {array.dtype}")
    outside = np.flatnonzero((array < 0) | (array >= len(images)))
    if len(outside):
        row = int(outside[0])
        raise UserError(f"owner of caption {row} is {int(array[row])}, outside the {len(images)} images")
    owners = array.astype(np.int64)
    missing = np.flatnonzero(np.bincount(owners, minlength=len(images)) == 0)
    if len(missing):
        raise UserError(
            f"image {int(missing[0])} has no caption ({len(missing)} of {len(images)} have none); leave such "
            "images out before ranking"
        )
    return owners


def _check_finite(rows: npt.NDArray[np.generic], name: str, block: int) -> None:
    for part, values in _blocks(rows, block):
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if len(bad):
            raise UserError(
                f"row {part.start + int(bad[0])} of {name} holds NaN or infinity; ranks of such vectors mean "
                "nothing"
            )


def _checked_ranks(ranks: npt.ArrayLike) -> Floats:
    values = np.asarray(ranks, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not (values >= 0).all():
        raise UserError("ranks must be one row of at least one number, none negative or NaN")
    return values
