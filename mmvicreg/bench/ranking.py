"""``mmvicreg bench ranking``: the ranks of retrieval against VSE++'s loops, written from their definition.

Faghri et al. 2018, section 4: for every image one product with all captions, one sort, and the best place of its
own; for every caption one product with all images, one sort, and the place of its image. Here in float64, as ours.
Both rank the same random unit vectors, in turns, and every rank is compared.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table

from mmvicreg.bench.measure import interleaved_seconds
from mmvicreg.errors import UserError
from mmvicreg.metrics import retrieval_ranks
from mmvicreg.progress import progress_bar

PUBLISHED, OURS = "VSE++'s loops", "ours"

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
Ranks = tuple[Floats, Floats]


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        images: how many, COCO's 5 000 by default.
        captions_per_image: captions of each.
        width: of an embedding.
        repeats: timed runs of each, after one for ranks and memory.
    """

    images: int = 5000
    captions_per_image: int = 5
    width: int = 1024
    repeats: int = 1

    def __post_init__(self) -> None:
        if min(self.images, self.captions_per_image, self.width, self.repeats) < 1:
            raise UserError(
                "bench ranking needs one image, one caption of it, one dimension and one repeat at least"
            )


@dataclass(frozen=True)
class RankingCost:
    """One implementation.

    Attributes:
        name: whose.
        seconds: for the ranks of both directions, the median.
        ratio: the published loops' time over its own in the same round, the median.
        memory: bytes of arrays alive at most at once beyond the embeddings it was given.
        inputs: bytes of those embeddings: float64 for the loops, float32 for ours.
        different: ranks, of all images and captions, that are not the published loops'.
    """

    name: str
    seconds: float
    ratio: float
    memory: int
    inputs: int
    different: int


def bench_ranking(wanted: Settings) -> list[RankingCost]:
    """Measure both."""
    images, captions = embeddings(wanted)
    owner = np.repeat(np.arange(wanted.images), wanted.captions_per_image)
    wide_images, wide_captions = unit(images), unit(captions)
    functions: dict[str, Callable[[], Ranks]] = {
        PUBLISHED: lambda: published_ranks(wide_images, wide_captions),
        OURS: lambda: retrieval_ranks(images, captions, owner),
    }
    inputs = {PUBLISHED: wide_images.nbytes + wide_captions.nbytes, OURS: images.nbytes + captions.nbytes}
    with progress_bar(2 * (wanted.repeats + 1), "ranking", "run") as bar:
        found, memory = {}, {}
        for name, function in functions.items():
            found[name], memory[name] = _traced(function)
            bar.advance()

        def told(function: Callable[[], Ranks]) -> Callable[[], None]:
            def run() -> None:
                function()
                bar.advance()

            return run

        timed = {name: told(function) for name, function in functions.items()}
        seconds = interleaved_seconds(timed, repeats=wanted.repeats, device=torch.device("cpu"))
    return [
        RankingCost(
            name,
            median(spent),
            median(theirs / own for theirs, own in zip(seconds[PUBLISHED], spent, strict=True)),
            memory[name],
            inputs[name],
            sum(int((a != b).sum()) for a, b in zip(found[name], found[PUBLISHED], strict=True)),
        )
        for name, spent in seconds.items()
    ]


def published_ranks(images: Floats, captions: Floats) -> Ranks:
    """Zero-based ranks by the published procedure.

    Args:
        images: unit vectors ``(n, d)``.
        captions: unit vectors ``(k n, d)``, k of the first image, k of the second, ...

    Returns:
        ``(image_to_text (n,), text_to_image (k n,))``.
    """
    n, k = len(images), len(captions) // len(images)
    image_to_text, text_to_image = np.zeros(n), np.zeros(k * n)
    for i in range(n):
        order = np.argsort(images[i] @ captions.T)[::-1]
        image_to_text[i] = min(np.flatnonzero(order == k * i + j)[0] for j in range(k))
    for i in range(n):
        scores = captions[k * i : k * (i + 1)] @ images.T
        for j in range(k):
            order = np.argsort(scores[j])[::-1]
            text_to_image[k * i + j] = np.flatnonzero(order == i)[0]
    return image_to_text, text_to_image


def embeddings(wanted: Settings) -> tuple[Vectors, Vectors]:
    """Random images and captions that have something of their image: neither perfect retrieval nor chance."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((wanted.images, wanted.width), dtype=np.float32)
    count = wanted.images * wanted.captions_per_image
    captions = rng.standard_normal((count, wanted.width), dtype=np.float32)
    captions += np.float32(0.25) * np.repeat(images, wanted.captions_per_image, axis=0)
    return images, captions


def unit(vectors: Vectors) -> Floats:
    """``(n, d)`` of length one, in float64."""
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return wide


def _traced(function: Callable[[], Ranks]) -> tuple[Ranks, int]:
    """What it returns, and the bytes that numpy took for it at most at once."""
    tracemalloc.start()  # numpy reports its arrays to it
    try:
        found = function()
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def rows(found: Sequence[RankingCost], wanted: Settings) -> list[dict[str, Any]]:
    """A row for each implementation, as plain data."""
    return [
        {
            "implementation": one.name,
            "seconds": one.seconds,
            "ratio": one.ratio,
            "memory": one.memory,
            "inputs": one.inputs,
            "different": one.different,
            "images": wanted.images,
            "captions": wanted.images * wanted.captions_per_image,
            "width": wanted.width,
        }
        for one in found
    ]


def table(found: Sequence[RankingCost], wanted: Settings) -> Table:
    """The same for people."""
    laid_out = Table(
        title=f"Ranks of {wanted.images} images and {wanted.images * wanted.captions_per_image} captions of "
        f"{wanted.width} dimensions, both directions, in float64: median of {wanted.repeats} in turns",
        title_justify="left",
    )
    laid_out.add_column("implementation")
    for heading in ("seconds", "ratio", "embeddings, MB", "memory beyond them, MB", "ranks that differ"):
        laid_out.add_column(heading, justify="right")
    for one in found:
        cells = (f"{one.inputs / 1e6:.1f}", f"{one.memory / 1e6:.1f}", str(one.different))
        laid_out.add_row(one.name, f"{one.seconds:.2f}", f"{one.ratio:.1f}x", *cells)
    return laid_out
