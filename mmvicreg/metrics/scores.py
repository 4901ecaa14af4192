"""Scores between the vectors of two galleries, in float64, a block at a time.

A score is a sum of ``d`` products, and which of two equal sums comes out larger depends on the order of
summation, which a BLAS chooses by block shape, machine and thread. Scores closer than the worst case of that
rounding, ``(2 d + 8) eps`` times the largest possible score, are therefore tied. For unit vectors of 1 024
dimensions that is 5e-13, far below what float32 embeddings can tell apart. It makes ranks the same for any
block size and any number of processes, and makes copies of one vector tie exactly.
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
Rows: TypeAlias = npt.NDArray[np.generic]
Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]

TILE = 4096
"""Columns per product: with 256 rows a tile of scores is 8 MB."""


@dataclass(frozen=True)
class Geometry:
    """Turns vectors of one similarity into float64 vectors whose dot product is the score."""

    similarity: Similarity
    shift: Floats
    image_exponent: int
    caption_exponent: int

    @classmethod
    def fit(cls, similarity: Similarity, images: Rows, captions: Rows, block: int) -> Geometry:
        """What is common to all vectors ``(n, d)`` and ``(m, d)``: a centre, and powers of two."""
        # Distances do not change when everything moves; around the images' mean their squares cancel less.
        shift = np.zeros(images.shape[1])
        if similarity == "euclidean":
            shift = sum((np.add.reduce(x / len(images), axis=0) for _, x in blocks(images, block)), shift)
        peaks = [
            max(float(np.abs(x - shift).max(initial=0.0)) for _, x in blocks(raw, block))
            for raw in (images, captions)
        ]
        if similarity == "euclidean":
            peaks = [max(peaks)] * 2
        # Powers of two change no digit, and keep squares of very large or small numbers in range.
        return cls(similarity, shift, int(np.frexp(peaks[0])[1]), int(np.frexp(peaks[1])[1]))

    @property
    def width(self) -> int:
        """Numbers in a score factor: ``d``, for euclidean ``d + 2``."""
        return len(self.shift) + (2 if self.similarity == "euclidean" else 0)

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
        return np.asarray(unit * self.largest(lengths, longest))

    def largest(self, lengths: Floats, longest: float) -> Floats:
        """The largest possible size of a score for queries of these lengths ``(q,)``."""
        if self.similarity == "euclidean":
            return np.asarray(np.square(lengths + longest))
        return np.asarray(lengths * longest)

    def _vectors(self, x: Floats, exponent: int) -> tuple[Floats, Floats]:
        if self.similarity == "cosine":
            peak = np.frexp(np.abs(x).max(1, keepdims=True))[1]
            x = np.ldexp(x, -peak)
            length = np.sqrt(np.square(x).sum(1, keepdims=True))
            unit = x / np.where(length > 0, length, 1.0)
            return unit, (length[:, 0] > 0).astype(np.float64)
        x = np.ldexp(x - self.shift, -exponent)
        return x, np.sqrt(np.square(x).sum(1))


def blocks(rows: Rows, block: int) -> Iterator[tuple[slice, Floats]]:
    """Consecutive rows in float64, ``block`` at a time."""
    for start in range(0, len(rows), block):
        part = slice(start, min(start + block, len(rows)))
        yield part, rows[part].astype(np.float64)


def checked_vectors(
    images: Vectors, captions: Vectors, *, similarity: Similarity, block: int
) -> tuple[Rows, Rows]:
    """Both galleries as numpy arrays.

    Raises:
        UserError: not vectors of one width, NaN or infinity (the row is named), an unknown similarity, a
            block below 1.
    """
    if similarity not in get_args(Similarity):
        names = get_args(Similarity)
        raise UserError(
            f"unknown similarity '{similarity}'{nearest(similarity, names)} Known: {', '.join(names)}."
        )
    if block < 1:
        raise UserError(f"the block size of ranking must be at least 1, got {block}")
    x, y = _as_numpy(images, "images"), _as_numpy(captions, "captions")
    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"images have {x.shape[1]} dimensions and captions {y.shape[1]}; both must come from "
            "one embedding space"
        )
    _check_finite(x, "images", block)
    _check_finite(y, "captions", block)
    return x, y


def checked_rows(rows: tuple[int, int] | None, n: int) -> tuple[int, int]:
    """A range of rows, all of them for None; :class:`UserError` when it reaches outside."""
    first, last = (0, n) if rows is None else rows
    if not 0 <= first <= last <= n:
        raise UserError(f"rows {first} to {last} are not a part of {n} rows")
    return first, last


def _as_numpy(values: Vectors, name: str) -> Rows:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16; float32 holds every half-precision number
        values = (values.float() if values.is_floating_point() and values.itemsize < 4 else values).numpy()
    array: Rows = np.asarray(values)
    if array.ndim != 2 or 0 in array.shape:
        raise UserError(
            f"{name} must be vectors (rows, dimensions), at least one of each; got shape {array.shape}"
        )
    if array.dtype.kind not in "fiu":
        raise UserError(f"{name} must hold real numbers; got dtype {array.dtype}")
    return array


def _check_finite(rows: Rows, name: str, block: int) -> None:
    for part, values in blocks(rows, block):
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if len(bad):
            raise UserError(
                f"row {part.start + int(bad[0])} of {name} holds NaN or infinity; ranks of such vectors mean "
                "nothing"
            )
