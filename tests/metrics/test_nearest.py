"""The best candidates against sorting the whole matrix of exact integer scores."""

from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest

from mmvicreg.errors import UserError
from mmvicreg.metrics import Similarity, nearest_candidates, retrieval_ranks

Array = npt.NDArray[np.int64]


def exact_order(queries: Array, candidates: Array, similarity: str) -> Array:
    """Every candidate, best first, equal ones in their order; all in integers."""
    if similarity == "euclidean":
        scores = -np.square(queries[:, None] - candidates[None]).sum(-1)
    else:
        scores = queries @ candidates.T
    return np.argsort(-scores, axis=1, kind="stable")


@pytest.mark.parametrize("k", [1, 4, 29, 40])
@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_the_best_equal_a_stable_sort(similarity: Similarity, block: int, k: int) -> None:
    rng = np.random.default_rng(0)
    queries, candidates = rng.integers(-2, 3, (11, 3)), rng.integers(-2, 3, (29, 3))
    found = nearest_candidates(queries, candidates, k, similarity=similarity, block=block)
    np.testing.assert_array_equal(found, exact_order(queries, candidates, similarity)[:, :k])


def test_cosine_forgets_lengths_and_copies_stay_in_order() -> None:
    candidates = np.array([[0.0, 2.0], [5.0, 0.1], [0.1, 0.002], [3.0, 3.0], [0.0, 0.0]])
    found = nearest_candidates(np.array([[0.3, 0.0]]), candidates, 5)
    assert found.tolist() == [[1, 2, 3, 0, 4]]


def test_more_candidates_than_one_tile_and_ties_across_its_edge() -> None:
    rng = np.random.default_rng(1)
    queries, candidates = rng.integers(-2, 3, (5, 2)), rng.integers(-2, 3, (9000, 2))
    found = nearest_candidates(queries, candidates, 700, similarity="dot", block=2)
    np.testing.assert_array_equal(found, exact_order(queries, candidates, "dot")[:, :700])


def test_the_place_of_the_right_answer_is_its_rank() -> None:
    rng = np.random.default_rng(2)
    images, captions = rng.standard_normal((31, 8)), rng.standard_normal((31, 8))
    ranks = retrieval_ranks(images, captions, np.arange(31))
    for found, rank in (
        (nearest_candidates(images, captions, 31), ranks[0]),
        (nearest_candidates(captions, images, 31, rows=(0, 31)), ranks[1]),
    ):
        np.testing.assert_array_equal((found == np.arange(31)[:, None]).argmax(1), rank)


def test_some_rows_are_those_of_all() -> None:
    rng = np.random.default_rng(4)
    queries, candidates = rng.standard_normal((20, 5)), rng.standard_normal((30, 5))
    whole = nearest_candidates(queries, candidates, 6)
    np.testing.assert_array_equal(nearest_candidates(queries, candidates, 6, rows=(7, 18)), whole[7:18])
    assert nearest_candidates(queries, candidates, 6, rows=(9, 9)).shape == (0, 6)


def test_a_collapsed_gallery_comes_in_its_own_order() -> None:
    found = nearest_candidates(np.ones((3, 300)), np.full((50, 300), 0.7), 10)
    assert found.tolist() == [list(range(10))] * 3


def test_memory_is_a_few_tiles() -> None:
    rng = np.random.default_rng(5)
    queries = rng.standard_normal((600, 16), dtype=np.float32)
    candidates = rng.standard_normal((40_000, 16), dtype=np.float32)  # the matrix would be 192 MB
    tracemalloc.start()
    try:
        nearest_candidates(queries, candidates, 10, block=64)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 25e6


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(UserError, match="must be at least 1, got 0"):
        nearest_candidates(np.eye(3), np.eye(3), 0)
    with pytest.raises(UserError, match="row 1 of captions holds NaN"):
        nearest_candidates(np.eye(2), np.array([[1.0, 0], [np.nan, 0]]), 1)
