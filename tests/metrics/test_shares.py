"""The work of ranking, divided: no row twice, none left out, and the whole as if nothing had been divided."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvicreg.errors import UserError
from mmvicreg.metrics import Similarity, join_counts, nearest_candidates, rank_counts
from mmvicreg.training.distributed import shares


@given(st.integers(0, 300), st.integers(1, 12), st.integers(1, 40))
def test_shares_cover_every_row_once_in_whole_units(n: int, processes: int, unit: int) -> None:
    bounds = shares(n, processes, unit=unit)
    assert len(bounds) == processes + 1
    rows = [row for first, last in pairwise(bounds) for row in range(first, last)]
    assert rows == list(range(n))
    assert all(bound % unit == 0 or bound == n for bound in bounds)
    sizes = [-(-(last - first) // unit) for first, last in pairwise(bounds)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_counts_of_shares_add_up_to_the_whole(processes: int, similarity: Similarity) -> None:
    rng = np.random.default_rng(3)
    owner = rng.permutation(np.concatenate([np.arange(17), rng.integers(0, 17, 41)]))
    images, captions = rng.integers(-1, 2, (17, 3)), rng.integers(-1, 2, (58, 3))  # ties are the rule
    whole = rank_counts(images, captions, owner, similarity=similarity)
    assert (whole[0].tied > 0).any()
    assert (whole[1].tied > 0).any()
    parts = [
        rank_counts(images, captions, owner, similarity=similarity, block=5, rows=rows)
        for rows in pairwise(shares(58, processes))
    ]
    for found, expected in zip(join_counts(parts), whole, strict=True):
        np.testing.assert_array_equal(found.better, expected.better)
        np.testing.assert_array_equal(found.tied, expected.tied)
        np.testing.assert_array_equal(found.own, expected.own)


def test_rows_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="rows 2 to 4 are not a part of 3 rows"):
        rank_counts(np.eye(3), np.eye(3), np.arange(3), rows=(2, 4))
    with pytest.raises(UserError, match="rows 2 to 1 are not a part of 3 rows"):
        nearest_candidates(np.eye(3), np.eye(3), 1, rows=(2, 1))
