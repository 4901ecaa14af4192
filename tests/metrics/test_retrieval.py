"""Ranks against exact rational arithmetic, hand-computed cases, and VSE++'s procedure written anew."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvicreg.errors import UserError
from mmvicreg.metrics import (
    Similarity,
    chance_recall,
    mean_rank,
    median_rank,
    rank_counts,
    recall_at_k,
    retrieval_ranks,
)

Array = npt.NDArray[np.float64]
SIMILARITIES: tuple[Similarity, ...] = ("cosine", "dot", "euclidean")


def _exact_score(x: list[int], y: list[int], similarity: str) -> Fraction:
    """A number that orders as the similarity does, without any rounding."""
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    if similarity == "dot":
        return Fraction(dot)
    if similarity == "euclidean":
        return Fraction(-sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))
    squares = sum(a * a for a in x) * sum(b * b for b in y)
    return Fraction(dot * abs(dot), squares) if squares else Fraction(0)


def _exact_ranks(images: Array, captions: Array, owner: list[int], similarity: str) -> tuple[Array, Array]:
    score = [
        [_exact_score([int(v) for v in x], [int(v) for v in y], similarity) for y in captions] for x in images
    ]
    n, m = len(images), len(captions)

    def rank(own: Fraction, others: list[Fraction]) -> float:
        return sum(other > own for other in others) + sum(other == own for other in others) / 2

    image_to_text = [
        rank(
            max(score[i][j] for j in range(m) if owner[j] == i),
            [score[i][j] for j in range(m) if owner[j] != i],
        )
        for i in range(n)
    ]
    text_to_image = [
        rank(score[owner[j]][j], [score[i][j] for i in range(n) if i != owner[j]]) for j in range(m)
    ]
    return np.array(image_to_text), np.array(text_to_image)


@st.composite
def _galleries(draw: st.DrawFn) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    """Few small integers, so that ties and parallel vectors are the rule; captions in any order."""
    n = draw(st.integers(1, 7))
    d = draw(st.integers(1, 4))
    owner = draw(st.permutations([*range(n), *draw(st.lists(st.integers(0, n - 1), max_size=9))]))
    entry = st.integers(-3, 3)
    rows = st.lists(entry, min_size=d, max_size=d)
    images = draw(st.lists(rows, min_size=n, max_size=n))
    captions = draw(st.lists(rows, min_size=len(owner), max_size=len(owner)))
    return np.array(images, float), np.array(captions, float), np.array(owner)


@settings(deadline=None, max_examples=200)
@given(_galleries(), st.sampled_from(SIMILARITIES), st.integers(1, 20))
def test_ranks_equal_exact_arithmetic_for_any_block(
    galleries: tuple[Array, Array, npt.NDArray[np.int64]], similarity: Similarity, block: int
) -> None:
    images, captions, owner = galleries
    expected = _exact_ranks(images, captions, owner.tolist(), similarity)
    found = retrieval_ranks(images, captions, owner, similarity=similarity, block=block)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[0].dtype == found[1].dtype == np.float64


def _random(n: int, m: int, d: int, *, copies: bool) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(n + m + d)
    owner = rng.permutation(np.concatenate([np.arange(n), rng.integers(0, n, m - n)]))
    images = rng.standard_normal((n, d)) + 3
    captions = 0.3 * images[owner] + rng.standard_normal((m, d))
    if copies:  # the same caption for several images, the same picture twice
        captions[rng.integers(0, m, m // 3)] = captions[0]
        images[rng.integers(0, n, n // 4)] = images[0]
    return images.astype(np.float32).astype(float), captions.astype(np.float32).astype(float), owner


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_block_size_gives_the_same_ranks(similarity: Similarity, copies: bool) -> None:
    images, captions, owner = _random(83, 301, 67, copies=copies)
    reference = retrieval_ranks(images, captions, owner, similarity=similarity, block=301)
    for block in (1, 2, 3, 7, 8, 64, 100, 300, 302, 10_000):
        found = retrieval_ranks(images, captions, owner, similarity=similarity, block=block)
        np.testing.assert_array_equal(found[0], reference[0])
        np.testing.assert_array_equal(found[1], reference[1])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_ranks_equal_the_whole_matrix_in_float64(similarity: Similarity) -> None:
    images, captions, owner = _random(83, 301, 67, copies=False)
    if similarity == "euclidean":
        score = -np.square(images[:, None] - captions[None]).sum(-1)
    else:
        unit = similarity == "cosine"
        score = (images / (np.linalg.norm(images, axis=1, keepdims=True) if unit else 1)) @ (
            captions / (np.linalg.norm(captions, axis=1, keepdims=True) if unit else 1)
        ).T
    own = owner[None] == np.arange(len(images))[:, None]
    best = np.where(own, score, -np.inf).max(1)
    image_to_text, text_to_image = retrieval_ranks(images, captions, owner, similarity=similarity)
    np.testing.assert_array_equal(image_to_text, ((score > best[:, None]) & ~own).sum(1))
    np.testing.assert_array_equal(text_to_image, (score > score[owner, range(len(owner))]).sum(0))


def test_more_images_than_one_tile() -> None:
    images, captions, owner = _random(4099, 4200, 3, copies=False)
    image_to_text, text_to_image = retrieval_ranks(images, captions, owner, similarity="dot", block=999)
    score = images @ captions.T
    np.testing.assert_array_equal(text_to_image, (score > score[owner, range(len(owner))]).sum(0))
    own = owner[None] == np.arange(len(images))[:, None]
    best = np.where(own, score, -np.inf).max(1)
    np.testing.assert_array_equal(image_to_text, ((score > best[:, None]) & ~own).sum(1))


def test_same_ranks_as_the_procedure_of_vse_plus_plus() -> None:
    """Five captions per image in order, one argsort per query, the best of the five counts."""
    rng = np.random.default_rng(5)
    images = rng.standard_normal((40, 24))
    captions = 0.4 * np.repeat(images, 5, axis=0) + rng.standard_normal((200, 24))
    image_to_text, text_to_image = retrieval_ranks(images, captions, np.arange(200) // 5)

    x = images / np.linalg.norm(images, axis=1, keepdims=True)
    y = captions / np.linalg.norm(captions, axis=1, keepdims=True)
    for i in range(40):
        order = list(np.argsort(-(y @ x[i])))
        assert image_to_text[i] == min(order.index(j) for j in range(5 * i, 5 * i + 5))
        for j in range(5 * i, 5 * i + 5):
            assert text_to_image[j] == list(np.argsort(-(x @ y[j]))).index(i)


def test_hand_computed_ranks() -> None:
    images = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    captions = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [1.0, 0.0]])
    owner = np.array([0, 1, 2, 2])
    image_to_text, text_to_image = retrieval_ranks(images, captions, owner)
    # image 0 ties its own caption 0 with caption 3; image 2's best is caption 2, its other does not count
    assert image_to_text.tolist() == [0.5, 0.0, 0.0]
    # caption 3 (of image 2) is nearer to image 0
    assert text_to_image.tolist() == [0.0, 0.0, 0.0, 1.0]


def test_own_captions_tied_with_each_other_do_not_count_against_the_image() -> None:
    images = np.eye(3)
    captions = np.repeat(np.eye(3), 5, axis=0)
    image_to_text, text_to_image = retrieval_ranks(images, captions, np.arange(15) // 5)
    assert image_to_text.tolist() == [0] * 3
    assert text_to_image.tolist() == [0] * 15


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_collapsed_model_scores_chance(similarity: Similarity, value: float) -> None:
    images = np.full((40, 33), value, dtype=np.float32)
    captions = np.full((200, 33), value * 1.7, dtype=np.float32)
    image_to_text, text_to_image = rank_counts(images, captions, np.arange(200) % 40, similarity=similarity)
    assert image_to_text.ranks.tolist() == [195 / 2] * 40
    assert text_to_image.ranks.tolist() == [39 / 2] * 200
    for k in (1, 5, 10):
        assert text_to_image.recall(k) == pytest.approx(100 * k / 40, rel=1e-12)
        assert image_to_text.recall(k) == pytest.approx(chance_recall(200, 5, k), rel=1e-12)
        assert recall_at_k(image_to_text.ranks, k) == recall_at_k(text_to_image.ranks, k) == 0


def test_a_model_collapsed_up_to_rounding_scores_chance() -> None:
    rng = np.random.default_rng(0)
    images = 1 + 1e-9 * rng.standard_normal((30, 512))
    captions = 1 + 1e-9 * rng.standard_normal((60, 512))
    image_to_text, text_to_image = retrieval_ranks(images, captions, np.arange(60) % 30)
    assert set(image_to_text) == {58 / 2}
    assert set(text_to_image) == {29 / 2}


def test_expected_recall_is_what_random_tie_breaking_gives_on_average() -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(-1, 2, (12, 3)).astype(float)
    captions = rng.integers(-1, 2, (30, 3)).astype(float)
    owner = np.concatenate([np.arange(12), rng.integers(0, 12, 18)])
    counts = rank_counts(images, captions, owner, similarity="dot")[0]
    score = images @ captions.T
    hits = np.zeros(3)
    rounds = 4000
    for _ in range(rounds):
        order = np.lexsort((rng.random(score.shape), -score), axis=1)
        first = (owner[order] == np.arange(12)[:, None]).argmax(1)
        hits += [(first < k).mean() for k in (1, 5, 10)]
    np.testing.assert_allclose([counts.recall(k) / 100 for k in (1, 5, 10)], hits / rounds, atol=0.01)


@pytest.mark.parametrize(("scale_x", "scale_y"), [(1e-200, 1e200), (1e250, 1e250), (1e-160, 1e-160)])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_very_large_and_small_vectors_rank_the_same(
    similarity: Similarity, scale_x: float, scale_y: float
) -> None:
    images, captions, owner = _random(20, 50, 8, copies=False)
    expected = retrieval_ranks(images, captions, owner, similarity=similarity)
    found = retrieval_ranks(images * scale_x, captions * scale_y, owner, similarity=similarity)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_distances_far_from_the_origin_keep_their_order() -> None:
    images, captions, owner = _random(20, 50, 8, copies=False)
    expected = retrieval_ranks(images, captions, owner, similarity="euclidean")
    found = retrieval_ranks(images + 2.0**20, captions + 2.0**20, owner, similarity="euclidean")
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_torch_tensors_rank_as_the_arrays_they_hold(dtype: torch.dtype) -> None:
    images, captions, owner = (torch.from_numpy(part) for part in _random(20, 50, 8, copies=False))
    images, captions = images.to(dtype).requires_grad_(), captions.to(dtype)
    expected = retrieval_ranks(
        images.detach().double().numpy(), captions.double().numpy(), owner.numpy().astype(np.int32)
    )
    found = retrieval_ranks(images, captions, owner)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_inputs_are_left_as_they_were() -> None:
    images, captions, owner = _random(10, 20, 4, copies=False)
    before = images.copy(), captions.copy(), owner.copy()
    for similarity in SIMILARITIES:
        retrieval_ranks(images, captions, owner, similarity=similarity)
    for old, new in zip(before, (images, captions, owner), strict=True):
        np.testing.assert_array_equal(old, new)


EYE, OWNER = np.eye(3), np.arange(3)


def _with(value: float, row: int) -> Array:
    changed = np.eye(3)
    changed[row, 1] = value
    return changed


@pytest.mark.parametrize(
    ("images", "captions", "owner", "message"),
    [
        (_with(np.nan, 2), EYE, OWNER, "row 2 of images holds NaN"),
        (EYE, _with(np.inf, 1), OWNER, "row 1 of captions holds NaN or infinity"),
        (EYE[0], EYE, OWNER, r"images must be vectors .* got shape \(3,\)"),
        (np.zeros((0, 3)), EYE, OWNER, "at least one of each"),
        (EYE[:, :2], EYE, OWNER, "images have 2 dimensions and captions 3"),
        (EYE, EYE, OWNER[:2], r"owner must hold one image per caption, shape \(3,\); got \(2,\)"),
        (EYE, EYE, np.array([0, 1, 3]), "owner of caption 2 is 3, outside the 3 images"),
        (EYE, EYE, np.array([0, -1, 2]), "owner of caption 1 is -1"),
        (EYE, EYE, np.array([0, 0, 2]), "image 1 has no caption"),
        (EYE, EYE, np.array([0.0, 1.0, 2.0]), "owner must hold integers"),
        (EYE.astype(complex), EYE, OWNER, "images must hold real numbers"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    images: Array, captions: Array, owner: npt.NDArray[np.int64], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        retrieval_ranks(images, captions, owner, block=2)


def test_unknown_similarity_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        retrieval_ranks(EYE, EYE, OWNER, similarity="cosin")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="block size"):
        retrieval_ranks(EYE, EYE, OWNER, block=0)


def test_recall_counts_ranks_below_k_and_half_of_a_tie_across_the_border() -> None:
    ranks = [0, 0.5, 1, 4, 9.5, 10]
    assert recall_at_k(ranks, 1) == pytest.approx(100 * 1.5 / 6)
    assert recall_at_k(ranks, 5) == pytest.approx(100 * 4 / 6)
    assert recall_at_k(torch.tensor(ranks), 10) == pytest.approx(100 * 4.5 / 6)
    for k in (1.5, math.nan, math.inf):
        with pytest.raises(UserError, match=f"whole number k of at least 1, got {k}"):
            recall_at_k(ranks, k)  # type: ignore[arg-type]
    assert median_rank(ranks) == 3.5
    assert mean_rank(ranks) == pytest.approx(25 / 6 + 1)


@pytest.mark.parametrize("ranks", [[], [[1.0]], [-1.0], [float("nan")]])
def test_recall_of_no_ranks_is_refused(ranks: list[float]) -> None:
    with pytest.raises(UserError, match="ranks must be"):
        recall_at_k(ranks, 1)
    with pytest.raises(UserError, match="k of at least 1"):
        recall_at_k([0], 0)


def test_chance_is_that_of_drawing_without_replacement() -> None:
    assert chance_recall(5000, 1, 10) == pytest.approx(0.2)
    none = np.prod([(25_000 - 5 - i) / (25_000 - i) for i in range(10)])
    assert chance_recall(25_000, 5, 10) == pytest.approx(100 * (1 - none))
    assert chance_recall(6, [1, 6, 2], 1) == pytest.approx(100 * (1 / 6 + 1 + 2 / 6) / 3)
    assert chance_recall(3, 1, 10) == 100


def test_the_whole_matrix_is_never_in_memory() -> None:
    """The matrix would be 640 MB in float64, and 80 MB as one byte an entry."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4000, 64), dtype=np.float32)
    captions = rng.standard_normal((20_000, 64), dtype=np.float32)
    tracemalloc.start()  # numpy reports its arrays to it
    try:
        retrieval_ranks(images, captions, np.arange(20_000) // 5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6


def test_the_images_are_in_memory_once_in_float64() -> None:
    """Their copy is 33 MB: once and with the tiles it makes 54 MB, twice 66 MB."""
    rng = np.random.default_rng(0)
    images, captions = rng.standard_normal((2, 4000, 1024), dtype=np.float32)
    tracemalloc.start()
    try:
        retrieval_ranks(images, captions, np.arange(4000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60e6
