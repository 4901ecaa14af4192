"""Ranks over one gallery in both directions: exact or by FAISS, the work shared among processes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import numpy as np

from mmvicreg.encode import Encoded
from mmvicreg.errors import UserError
from mmvicreg.metrics import RankCounts, Similarity, join_counts, nearest_candidates, rank_counts
from mmvicreg.metrics.approximate import Search, faiss_installed, search_counts
from mmvicreg.metrics.scores import Integers
from mmvicreg.registry import nearest
from mmvicreg.training.distributed import World, gather_objects, shares
from mmvicreg.training.log import say

SearchName: TypeAlias = Literal["auto", "exact", "faiss"]
SCANNED = 1_000_000
"""Candidates up to which a gallery is scanned whole when nothing else is asked for."""

Found: TypeAlias = tuple[RankCounts, Search | None]


def check_search(search: str) -> None:
    """Raise :class:`UserError` unless ``search`` is known and what it needs is installed."""
    known = get_args(SearchName)
    if search not in known:
        raise UserError(f"unknown search '{search}'{nearest(search, known)} Known: {', '.join(known)}.")
    if search == "faiss" and not faiss_installed():
        raise UserError("--search faiss needs FAISS: pip install 'mmvicreg[faiss]', or use --search exact")


def choose_search(asked: SearchName, candidates: int, *, visible: bool) -> Literal["exact", "faiss"]:
    """``auto`` is exact up to a million candidates, and FAISS above where it is installed; it says so."""
    if asked != "auto":
        return asked
    if candidates <= SCANNED:
        return "exact"
    installed = faiss_installed()
    if visible and installed:
        say(f"{candidates:,} candidates: FAISS finds the nearest (--search exact scans them all)")
    elif visible:
        say(f"{candidates:,} candidates are all scanned, which takes long; mmvicreg[faiss] would search them")
    return "faiss" if installed else "exact"


def count_ranks(
    world: World,
    images: Encoded,
    captions: Encoded,
    *,
    similarity: Similarity,
    search: Literal["exact", "faiss"],
) -> tuple[Found, Found]:
    """How the candidates of every query compare, in both directions, on every process the same.

    Exactly: each process scores its share of the captions with all images, and the counts are put together.
    By FAISS: each process searches for its share of the queries of either direction.
    """
    x, y, owner = images.vectors, captions.vectors, captions.owner
    rows = _share(world, len(y))
    if search == "exact":
        own = rank_counts(x, y, owner, similarity=similarity, rows=rows)
        forth, back = join_counts(gather_objects(own))
        return (forth, None), (back, None)
    found = search_counts(
        x, y, owner, similarity=similarity, image_rows=_share(world, len(x)), caption_rows=rows
    )
    parts = gather_objects(found)
    return _join([part[0] for part in parts]), _join([part[1] for part in parts])


def best_candidates(
    world: World, images: Encoded, captions: Encoded, depth: int, *, similarity: Similarity
) -> tuple[Integers, Integers]:
    """The best captions of every image ``(n, depth)`` and the best images of every caption, best first."""
    x, y = images.vectors, captions.vectors
    found = (
        nearest_candidates(x, y, depth, similarity=similarity, rows=_share(world, len(x))),
        nearest_candidates(y, x, depth, similarity=similarity, rows=_share(world, len(y))),
    )
    parts = gather_objects(found)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _share(world: World, n: int) -> tuple[int, int]:
    return list(pairwise(shares(n, world.size)))[world.rank]


def _join(parts: Sequence[tuple[RankCounts, Search]]) -> Found:
    """One direction's counts from those of consecutive shares of its queries."""
    counts = [part[0] for part in parts]
    known = [np.ones(len(c.better), np.bool_) if c.known is None else c.known for c in counts]
    whole = RankCounts(
        np.concatenate([c.better for c in counts]),
        np.concatenate([c.tied for c in counts]),
        np.concatenate([c.own for c in counts]),
        np.concatenate(known),
    )
    return whole, parts[0][1]
