"""Our ranks against VSE++'s published procedure (Faghri et al. 2018, section 4), written anew in float64.

For every image one product with all captions and one argsort, and the best place of its five; for every caption
one product with all images, one argsort, and the place of its image.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny import tiny_recipe, untrained_run

from mmvicreg.datasets import open_dataset
from mmvicreg.encode import encode
from mmvicreg.metrics import rank_counts, retrieval_ranks

Array = npt.NDArray[np.float64]
FIVE = 5


def published(images: Array, captions: Array) -> tuple[Array, Array]:
    """Zero-based ranks of ``n`` unit images and ``5 n`` unit captions in their order."""
    n = len(images)
    image_to_text, text_to_image = np.zeros(n), np.zeros(FIVE * n)
    for i in range(n):
        order = np.argsort(images[i] @ captions.T)[::-1]
        image_to_text[i] = min(np.flatnonzero(order == FIVE * i + j)[0] for j in range(FIVE))
    for i in range(n):
        scores = captions[FIVE * i : FIVE * (i + 1)] @ images.T
        for j in range(FIVE):
            order = np.argsort(scores[j])[::-1]
            text_to_image[FIVE * i + j] = np.flatnonzero(order == i)[0]
    return image_to_text, text_to_image


def embeddings(n: int, d: int, *, spread: float) -> tuple[Array, Array]:
    """Float32 numbers in float64, on one point of the sphere but for noise of this size."""
    rng = np.random.default_rng(n)
    centre = rng.standard_normal(d)
    images = rng.standard_normal((n, d))
    captions = 0.25 * np.repeat(images, FIVE, axis=0) + rng.standard_normal((FIVE * n, d))
    centred = spread < 1
    return (
        unit((centred * centre + spread * images).astype(np.float32)),
        unit((centred * centre + spread * captions).astype(np.float32)),
    )


def unit(x: npt.NDArray[np.float32]) -> Array:
    return x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)


def owners(n: int) -> npt.NDArray[np.int64]:
    return np.arange(FIVE * n) // FIVE


@pytest.mark.parametrize("spread", [1, 1e-1, 1e-3], ids=["random", "narrow", "nearly collapsed"])
def test_all_ranks_equal_the_published_procedure(spread: float) -> None:
    images, captions = embeddings(150, 64, spread=spread)
    expected = published(images, captions)
    assert 0 < np.median(expected[0]) < 400  # neither perfect nor chance: something to disagree about
    found = retrieval_ranks(images, captions, owners(150), block=64)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.real
def test_all_ranks_of_real_photographs_and_captions_equal_it(
    tmp_path: Path, unpacked: Callable[[str], Path]
) -> None:
    root = unpacked("coco-mini")
    run = untrained_run(tmp_path / "run", tiny_recipe("image-text", root, "dataset.name=coco"))
    model, samples = run.model(device="cpu"), open_dataset("coco", root=root).samples("val")
    x, y = (
        encode(model, branch, samples, space="embedding", captions=FIVE, workers=0).vectors
        for branch in ("image", "text")
    )
    assert (len(x), len(y)) == (79, 395)
    expected = published(unit(x), unit(y))
    found = retrieval_ranks(x, y, owners(len(x)))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_float32_scores_would_not_do() -> None:
    """What the ranking in float64 is for: a narrow embedding keeps its order there, and loses it in float32."""
    images, captions = embeddings(150, 64, spread=1e-3)
    expected = published(images, captions)
    rough = published(images.astype(np.float32), captions.astype(np.float32))
    assert (rough[0] != expected[0]).any()
    assert (rough[1] != expected[1]).any()


def test_a_collapsed_model_is_at_chance_where_the_published_procedure_is_at_the_whim_of_its_sort() -> None:
    n = 40
    images, captions = np.full((n, 16), 0.25), np.full((FIVE * n, 16), 0.25)
    sorted_anyhow = published(images, captions)
    assert len(set(sorted_anyhow[0])) == len(set(sorted_anyhow[1])) == n  # places in the file, from the best
    counts = rank_counts(images, captions, owners(n))
    assert set(counts[0].ranks) == {(FIVE * n - FIVE) / 2}
    assert set(counts[1].ranks) == {(n - 1) / 2}
    assert sorted_anyhow[1].mean() == counts[1].ranks.mean()


@pytest.mark.slow
def test_the_whole_of_coco_in_a_tenth_of_the_time_and_300_mb() -> None:
    n, d = 5000, 1024
    images, captions = embeddings(n, d, spread=1)
    begun = time.process_time()
    expected = published(images, captions)
    theirs = time.process_time() - begun
    x, y = images.astype(np.float32), captions.astype(np.float32)
    held = x.nbytes + y.nbytes
    tracemalloc.start()  # numpy reports its arrays to it
    try:
        begun = time.process_time()
        retrieval_ranks(x, y, owners(n))
        ours = time.process_time() - begun
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{theirs:.1f} s and {ours:.1f} s, {theirs / ours:.1f} times; {(held + peak) / 1e6:.0f} MB")
    assert ours <= theirs / 10
    assert held + peak < 300e6
    found = retrieval_ranks(images, captions, owners(n))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
