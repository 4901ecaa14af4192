"""FAISS against the exact search: equal where it looks everywhere, and honest where it does not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mmvicreg.metrics import Similarity, rank_counts
from mmvicreg.metrics.approximate import search_counts

pytest.importorskip("faiss", reason="needs FAISS: pip install 'mmvicreg[faiss]'")


def scene(n: int, d: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    owner = np.concatenate([np.arange(n), rng.integers(0, n, n)])
    images = rng.standard_normal((n, d), dtype=np.float32)
    captions = images[owner] + 2 * rng.standard_normal((2 * n, d), dtype=np.float32)
    captions[::9] = captions[0]  # ties
    return images, captions, owner


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_a_search_of_everything_counts_what_scanning_counts(similarity: Similarity) -> None:
    images, captions, owner = scene(200, 12)
    exact = rank_counts(images, captions, owner, similarity=similarity)
    found = search_counts(images, captions, owner, similarity=similarity, depth=400, probes=1000)
    for (counts, search), expected in zip(found, exact, strict=True):
        np.testing.assert_array_equal(counts.ranks, expected.ranks)
        np.testing.assert_array_equal(counts.own, expected.own)
        assert search.found == 100


def test_ranks_beyond_the_depth_are_not_known_and_the_others_right() -> None:
    images, captions, owner = scene(300, 6)
    exact = rank_counts(images, captions, owner)
    found = search_counts(images, captions, owner, depth=20, probes=1000)
    for (counts, _), expected in zip(found, exact, strict=True):
        assert counts.known is not None
        assert 0 < counts.known.mean() < 1
        np.testing.assert_array_equal(
            counts.ranks[counts.known & (counts.tied == 0)], expected.ranks[counts.known & (counts.tied == 0)]
        )
        assert np.isinf(counts.ranks[~counts.known]).all()
        assert (expected.better + expected.tied + expected.own >= 20)[~counts.known].all()
        for k in (1, 5, 10):
            assert counts.recall(k) >= expected.recall(k) - 1e-9


def test_few_cells_miss_some_and_say_so() -> None:
    images, captions, owner = scene(4000, 24)
    exact = rank_counts(images, captions, owner)
    found = search_counts(images, captions, owner, probes=1)
    for (counts, search), expected in zip(found, exact, strict=True):
        assert search.found < 95
        assert (counts.better <= expected.better).all()  # never worse than the truth


def test_shares_of_the_queries_are_those_of_all() -> None:
    images, captions, owner = scene(100, 8)
    whole = search_counts(images, captions, owner)
    part = search_counts(images, captions, owner, image_rows=(30, 70), caption_rows=(150, 200))
    np.testing.assert_array_equal(part[0][0].better, whole[0][0].better[30:70])
    np.testing.assert_array_equal(part[1][0].better, whole[1][0].better[150:200])
