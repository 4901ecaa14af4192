"""Ranks over galleries too large to scan: FAISS finds the candidates, float64 orders them.

FAISS (Johnson, Douze, Jégou 2019) is an optional package: ``pip install 'mmvicreg[faiss]'``. Its inverted file
looks only at the candidates in the cells nearest to a query, so some better ones may be missed: a rank found
this way is never worse than the true one. :func:`search_counts` says how much is missed, by comparing with an
exact search for a sample of queries.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mmvicreg.errors import UserError
from mmvicreg.metrics.nearest import nearest_candidates
from mmvicreg.metrics.retrieval import RankCounts, checked_owner
from mmvicreg.metrics.scores import (
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

Factors: TypeAlias = Callable[[Floats], tuple[Floats, Floats]]
Mask: TypeAlias = npt.NDArray[np.bool_]

DEPTH = 100
"""Candidates found per query: ranks up to here are known."""
PROBES = 32
"""Cells looked at per query."""
_BLOCK, _RESCORED, _SAMPLE, _TOP = 1024, 32, 100, 10


@dataclass(frozen=True)
class Search:
    """How a gallery was searched, and how well.

    Attributes:
        index: FAISS's name of the index ("IVF4000,Flat").
        probes: cells looked at per query, of those the index has.
        depth: candidates found per query.
        found: of the 10 best candidates of up to 100 of the queries by exact search, how many FAISS found
            among its ``depth``, in percent.
    """

    index: str
    probes: int
    depth: int
    found: float


def faiss_installed() -> bool:
    """Whether FAISS can be imported; nothing is."""
    return importlib.util.find_spec("faiss") is not None


def search_counts(
    images: Vectors,
    captions: Vectors,
    owner: npt.NDArray[np.integer] | Tensor,
    *,
    similarity: Similarity = "cosine",
    depth: int = DEPTH,
    probes: int = PROBES,
    image_rows: tuple[int, int] | None = None,
    caption_rows: tuple[int, int] | None = None,
) -> tuple[tuple[RankCounts, Search], tuple[RankCounts, Search]]:
    """What :func:`~mmvicreg.metrics.rank_counts` counts, among the candidates that FAISS finds.

    The best own candidate's score is computed exactly, whether FAISS finds it or not; the candidates found
    are scored again in float64. Where all of them are better, the rank is marked unknown.

    Args:
        images: ``(n, d)``.
        captions: ``(m, d)``.
        owner: ``(m,)`` integers in ``[0, n)``.
        similarity: as there.
        depth: candidates found per query.
        probes: cells looked at per query.
        image_rows: only these queries of image-to-text, as a share of the work.
        caption_rows: only these queries of text-to-image.

    Raises:
        UserError: FAISS is not installed; or as :func:`~mmvicreg.metrics.retrieval_ranks`.
    """
    x, y = checked_vectors(images, captions, similarity=similarity, block=_BLOCK)
    owners = checked_owner(owner, n=len(x), m=len(y))
    geometry = Geometry.fit(similarity, x, y, _BLOCK)
    own_score, x_slack, y_slack = _own_scores(geometry, x, y, owners)
    best = np.full(len(x), -np.inf)
    np.maximum.at(best, owners, own_score)
    own = np.bincount(owners[own_score >= (best - x_slack)[owners]], minlength=len(x)).astype(np.int64)

    forth = _Direction(x, y, geometry.images, geometry.captions, np.arange(len(x)), owners, best, x_slack)
    back = _Direction(y, x, geometry.captions, geometry.images, owners, np.arange(len(x)), own_score, y_slack)
    ones = np.ones(len(y), np.int64)
    return (
        forth.search(own, checked_rows(image_rows, len(x)), similarity, depth, probes),
        back.search(ones, checked_rows(caption_rows, len(y)), similarity, depth, probes),
    )


@dataclass(frozen=True)
class _Direction:
    """Queries and gallery, what turns each into score factors, and what every query has to beat."""

    queries: Rows
    gallery: Rows
    query_factors: Factors
    gallery_factors: Factors
    query_owner: Integers
    gallery_owner: Integers
    best: Floats
    slack: Floats

    def search(
        self, own: Integers, rows: tuple[int, int], similarity: Similarity, depth: int, probes: int
    ) -> tuple[RankCounts, Search]:
        """Counts of the queries in ``rows``, ``own`` being those tied for best, per query."""
        first, last = rows
        depth = min(depth, len(self.gallery))
        index, name, probes = self._index(probes)
        better, tied = np.zeros(last - first, np.int64), np.zeros(last - first, np.int64)
        known = np.zeros(last - first, np.bool_)
        for part, raw in blocks(self.queries[first:last], _BLOCK):
            query = self.query_factors(raw)[0]
            places = index.search(query.astype(np.float32), depth)[1]
            for start in range(0, len(raw), _RESCORED):
                some = slice(start, min(start + _RESCORED, len(raw)))
                at = slice(part.start + some.start, part.start + some.stop)
                asked = slice(first + at.start, first + at.stop)
                above, same, below = self._compare(query[some], places[some], asked)
                better[at], tied[at] = above.sum(1), same.sum(1)
                known[at] = (same | below).any(1)  # the search went at least as far as the best own one
        counts = RankCounts(better, tied, own[first:last], known)
        return counts, Search(name, probes, depth, self._found(index, similarity, depth))

    def _index(self, probes: int) -> tuple[Any, str, int]:
        """An inverted file over the gallery, as many cells as FAISS's guidelines say: 4 sqrt(n)."""
        if not faiss_installed():
            raise UserError("searching by FAISS needs it installed: pip install 'mmvicreg[faiss]'")
        import faiss

        n = len(self.gallery)
        cells = max(1, min(int(4 * np.sqrt(n)), n // 39))  # its k-means asks for 39 points a cell
        name = f"IVF{cells},Flat"
        step = max(1, n // (64 * cells))
        sample = self.gallery_factors(self.gallery[::step].astype(np.float64))[0].astype(np.float32)
        index: Any = faiss.index_factory(sample.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        index.train(sample)
        for _, raw in blocks(self.gallery, _BLOCK):
            index.add(self.gallery_factors(raw)[0].astype(np.float32))
        index.nprobe = min(probes, cells)
        return index, name, int(index.nprobe)

    def _compare(self, query: Floats, places: Integers, asked: slice) -> tuple[Mask, Mask, Mask]:
        """Which others of the candidates found ``(b, depth)`` beat or tie the best own one; what is left."""
        there = places >= 0  # FAISS gives -1 where its cells held fewer
        candidates = self.gallery_factors(self.gallery[places.ravel()].astype(np.float64))[0]
        scores = np.einsum("bd,bkd->bk", query, candidates.reshape(*places.shape, -1))
        best, slack = self.best[asked, None], self.slack[asked, None]
        others = there & (self.gallery_owner[places] != self.query_owner[asked, None])
        above = others & (scores > best + slack)
        same = others & ~above & (scores >= best - slack)
        return above, same, there & ~above & ~same

    def _found(self, index: Any, similarity: Similarity, depth: int) -> float:
        chosen = np.unique(np.linspace(0, len(self.queries) - 1, _SAMPLE).astype(np.int64))
        sample = self.queries[chosen]
        exact = nearest_candidates(
            cast(Vectors, sample), cast(Vectors, self.gallery), _TOP, similarity=similarity
        )
        query = self.query_factors(sample.astype(np.float64))[0].astype(np.float32)
        places = index.search(query, depth)[1]
        hits = [np.isin(wanted, got).mean() for wanted, got in zip(exact, places, strict=True)]
        return 100.0 * float(np.mean(hits))


def _own_scores(
    geometry: Geometry, images: Rows, captions: Rows, owner: Integers
) -> tuple[Floats, Floats, Floats]:
    """Each caption's score with its image ``(m,)``, and the rounding of images' and captions' queries."""
    x_length, y_length = np.empty(len(images)), np.empty(len(captions))
    for rows, raw in blocks(images, _BLOCK):
        x_length[rows] = geometry.images(raw)[1]
    score = np.empty(len(captions))
    for rows, raw in blocks(captions, _BLOCK):
        y, y_length[rows] = geometry.captions(raw)
        x = geometry.images(images[owner[rows]].astype(np.float64))[0]
        score[rows] = np.einsum("bd,bd->b", y, x)
    return (
        score,
        geometry.rounding(x_length, float(y_length.max())),
        geometry.rounding(y_length, float(x_length.max())),
    )
