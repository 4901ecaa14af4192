"""Small folders of pictures with classes, and runs over them."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import IMAGE_IMAGE, IMAGE_TEXT, untrained_run

from mmvicreg.cli import main
from mmvicreg.recipes import load_recipe, recipe_path
from mmvicreg.runs import Run

SIDE = 32


def write_pictures(root: Path, *, classes: int = 3, train: int = 8, val: int = 4, seed: int = 0) -> Path:
    """``train`` and ``val`` in ImageNet's layout: a class is a colour, under noise."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(7).uniform(60, 196, (classes, 3))
    for split, count in (("train", train), ("val", val)):
        for label, colour in enumerate(colours):
            folder = root / split / f"c{label:02d}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = colour + rng.normal(0, 40, (SIDE, SIDE, 3)) + rng.normal(0, 20, 3)
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / f"{split}{label}-{i}.png")
    return root


def picture_run(path: Path, root: Path, *settings: str, dataset: str = "image-folder") -> Run:
    """An image-image run over ``root`` with its initial weights for trained ones."""
    recipe = load_recipe(
        recipe_path("image-image", "shapes", None),
        {"dataset.name": dataset, "dataset.root": str(root)},
        [*IMAGE_IMAGE, "evaluation.batch_size=16", *settings],
    )
    return untrained_run(path, recipe)


def captioned_run(path: Path, shapes: Path) -> Run:
    """An image-text run over captioned pictures without classes."""
    recipe = load_recipe(
        recipe_path("image-text", "shapes", None), {"dataset.root": str(shapes)}, [*IMAGE_TEXT]
    )
    return untrained_run(path, recipe)


def contents(folder: Path, *, besides: str = "") -> dict[str, str]:
    """Every file of a folder and its digest; without those whose path starts with ``besides``."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in sorted(files.items())
        if not (besides and name.startswith(besides))
    }


def mmvicreg(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit status of a command."""
    monkeypatch.setattr(sys, "argv", ["mmvicreg", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)
