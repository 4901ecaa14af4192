"""The best candidates of every query, exactly, without the whole matrix of scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmvicreg.errors import UserError
from mmvicreg.metrics.scores import (
    TILE,
    Floats,
    Geometry,
    Integers,
    Similarity,
    Vectors,
    blocks,
    checked_rows,
    checked_vectors,
)

_FINEST = 2.0**-44
"""Scores are told apart to this part of the largest one, or to their rounding where that is coarser."""


def nearest_candidates(
    queries: Vectors,
    candidates: Vectors,
    k: int,
    *,
    similarity: Similarity = "cosine",
    block: int = 256,
    rows: tuple[int, int] | None = None,
) -> Integers:
    """The ``k`` best candidates of every query, best first; equal scores in the candidates' order.

    Scores are computed in float64, a tile at a time; a few tiles and ``(block, k)`` are held at once.

    Args:
        queries: ``(q, d)`` floats, numpy or torch, any device.
        candidates: ``(c, d)``.
        k: how many, at least 1; all ``c`` of them where there are fewer.
        similarity: ``cosine``, ``dot`` or ``euclidean`` (nearer is better).
        block: queries at a time; changes speed and memory only.
        rows: only the queries from the first to before the second of these rows.

    Returns:
        ``(q or fewer, min(k, c))`` int64 rows of ``candidates``.

    Raises:
        UserError: as :func:`~mmvicreg.metrics.retrieval_ranks`; ``k`` below 1.
    """
    found = nearest_blocks(queries, candidates, k, similarity=similarity, block=block, rows=rows)
    parts = [places for _, places, _ in found]
    return np.concatenate(parts) if parts else np.empty((0, min(k, len(candidates))), np.int64)


def nearest_blocks(
    queries: Vectors,
    candidates: Vectors,
    k: int,
    *,
    similarity: Similarity = "cosine",
    block: int = 256,
    rows: tuple[int, int] | None = None,
) -> Iterator[tuple[slice, Integers, Floats]]:
    """What :func:`nearest_candidates` finds, a block of queries at a time, with the scores.

    Yields:
        Where the block lies among the queries asked for; rows of ``candidates`` ``(b, min(k, c))`` int64, best
        first; their scores ``(b, min(k, c))`` float64, to ``2^-44`` of the largest or to their rounding. Cosines
        are of the vectors; other similarities' scores are scaled by a power of two.

    Raises:
        UserError: as :func:`nearest_candidates`.
    """
    if k < 1:
        raise UserError(f"the number of candidates to keep must be at least 1, got {k}")
    x, y = checked_vectors(queries, candidates, similarity=similarity, block=block)
    first, last = checked_rows(rows, len(x))
    geometry = Geometry.fit(similarity, x, y, block)
    longest = max(float(geometry.captions(part)[1].max()) for _, part in blocks(y, TILE))
    k = min(k, len(y))
    for part, raw in blocks(x[first:last], block):
        query, lengths = geometry.images(raw)
        step = np.maximum(geometry.rounding(lengths, longest), _FINEST * geometry.largest(lengths, longest))
        step = np.where(step > 0, step, 1.0)[:, None]
        scores, places = np.empty((len(raw), 0), np.int64), np.empty((len(raw), 0), np.int64)
        for tile, others in blocks(y, TILE):
            new = np.rint(query @ geometry.captions(others)[0].T / step).astype(np.int64)
            place = np.broadcast_to(np.arange(tile.start, tile.stop), new.shape)
            scores, places = _best(np.hstack([scores, new]), np.hstack([places, place]), k)
        yield part, places, np.multiply(scores, step, dtype=np.float64)


def _best(scores: Integers, places: Integers, k: int) -> tuple[Integers, Integers]:
    """The ``k`` largest scores of every row, in order, and their places; among equals the leftmost."""
    width = scores.shape[1]
    keys = np.arange(width) - scores * width  # all different, smallest is best
    if width > k:
        chosen = np.argpartition(keys, k - 1, axis=1)[:, :k]
        keys = np.take_along_axis(keys, chosen, axis=1)
    else:
        chosen = np.broadcast_to(np.arange(width), keys.shape)
    chosen = np.take_along_axis(chosen, np.argsort(keys, axis=1), axis=1)
    return np.take_along_axis(scores, chosen, axis=1), np.take_along_axis(places, chosen, axis=1)
