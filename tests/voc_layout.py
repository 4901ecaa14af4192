"""VOC 2007 in its publisher's layout, made of noise or of given pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmvicreg.data.voc import CLASSES


def write_voc(
    root: Path, *, trainval: int = 30, test: int = 16, pictures: Sequence[Sequence[Path]] = ()
) -> dict[str, np.ndarray]:
    """VOC's layout: picture ``i`` shows the classes ``i`` and ``i + 1`` (modulo 10 and 20), some of them difficult.

    ``pictures`` are files of ten classes, for what picture ``i`` of trainval and then of test shows modulo 10; none:
    noise about a grey of the class's own.
    """
    files = [list(some) for some in pictures]
    lists = root / "ImageSets" / "Main"
    (root / "JPEGImages").mkdir(parents=True)
    lists.mkdir(parents=True)
    targets = {}
    rng = np.random.default_rng(0)
    for split, count, start in (("trainval", trainval, 1), ("test", test, 5001)):
        shown = np.full((count, len(CLASSES)), -1)
        for i in range(count):
            shown[i, [i % 10, 10 + (i + 1) % 10]] = 1
            shown[i, (i + 5) % 10] = 0
            pixels = 128 + 12 * (i % 10 - 5) + rng.normal(0, 20, (36, 32, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            if files:
                image = Image.open(files[i % 10].pop()).convert("RGB")
            image.save(root / "JPEGImages" / f"{start + i:06d}.jpg")
        for place, name in enumerate(CLASSES):
            lines = [f"{start + i:06d} {shown[i, place]:2d}\n" for i in range(count)]
            (lists / f"{name}_{split}.txt").write_text("".join(lines))
        targets[split] = shown
    return targets
