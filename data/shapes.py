"""shapes: pictures of one to four coloured shapes with five captions each, in COCO's 2017 layout.

Made, not found: the same seed gives the same files. Every picture's description (its set of objects, with
kind, colour, size and place, and its background) occurs once in the whole data set, so no caption of the
test split has been seen in training; a caption names all or most of a description in words of its own.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw

from mmvicreg.data.bars import counted
from mmvicreg.data.card import Card
from mmvicreg.data.coco import Coco
from mmvicreg.data.making import make_folder
from mmvicreg.data.shapes_captions import BACKGROUNDS, COLOURS, KINDS, PLACES, SIZES, describe

VERSION = 1
"""Raised whenever the same seed would give other files."""
PIXELS = 64
"""Height and width of a picture."""
_SCALE = 4  # drawn this much larger, then averaged down
COUNTS: Mapping[str, int] = MappingProxyType({"train": 4_000, "val": 500, "test": 1_000})

RGB: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (214, 32, 36),
        "green": (40, 160, 60),
        "blue": (36, 70, 210),
        "yellow": (244, 216, 40),
        "orange": (245, 134, 22),
        "purple": (128, 44, 160),
        "pink": (246, 140, 190),
        "turquoise": (56, 206, 200),
        "brown": (124, 74, 34),
        "white": (244, 244, 244),
        "grey": (134, 134, 134),
        "black": (18, 18, 18),
    }
)


@dataclass(frozen=True, order=True)
class Thing:
    """One object of a picture; each field is an index into the table of its name."""

    place: int
    kind: int
    colour: int
    size: int


@dataclass(frozen=True)
class Scene:
    """What a picture shows: things in different places, by place, before a background."""

    things: tuple[Thing, ...]
    background: int


class Shapes(Coco):
    """The made data set, read by COCO's reader."""

    name: ClassVar[str] = "shapes"
    marker: ClassVar[str | None] = "shapes.json"
    lasting_ids: ClassVar[bool] = False  # made anew from another seed, the same ids are other pictures
    card: ClassVar[Card] = Card(
        name="shapes",
        title="shapes",
        source=("made by mmvicreg (data/shapes.py)",),
        licence="CC0 1.0",
        description=(
            "Pictures of one to four coloured shapes, 64 x 64, five paraphrased captions each, in COCO's "
            "2017 layout. Every picture shows something that no other one does."
        ),
        pairs=("image-text", "image-image"),
        splits=tuple(COUNTS),
        counts=MappingProxyType({"2017": COUNTS}),
        made=True,
        citation="mmvicreg",
    )

    @classmethod
    def make(
        cls, root: Path, *, progress: bool = True, seed: int = 0, counts: Mapping[str, int] = COUNTS
    ) -> None:
        """Write the data set at ``root``; nothing happens where it is already.

        Args:
            root: an absent or empty folder.
            progress: show a bar.
            seed: another seed gives other pictures.
            counts: split -> pictures.

        Raises:
            UserError: ``root`` holds something else, or cannot be written.
        """
        facts = {"maker": cls.name, "version": VERSION, "seed": seed, "counts": dict(counts)}
        make_folder(
            Path(root),
            lambda folder: _write(folder, seed=seed, counts=counts, progress=progress),
            name=cls.name,
            marker="shapes.json",
            facts=facts,
        )


def _write(folder: Path, *, seed: int, counts: Mapping[str, int], progress: bool) -> None:
    scenes = draw_scenes(seed, counts)
    (folder / "annotations").mkdir()
    with counted(sum(counts.values()), "Making shapes", "pictures", progress=progress) as advance:
        first = 1
        for split, chosen in scenes.items():
            (folder / f"{split}2017").mkdir()
            images: list[dict[str, object]] = []
            annotations: list[dict[str, object]] = []
            for image_id, scene in enumerate(chosen, start=first):
                random = np.random.default_rng([seed, 1, image_id])
                file_name = f"{image_id:012d}.jpg"
                (folder / f"{split}2017" / file_name).write_bytes(render(scene, random))
                images.append({"id": image_id, "file_name": file_name, "height": PIXELS, "width": PIXELS})
                for number, caption in enumerate(captions(scene, random)):
                    annotations.append(
                        {"id": image_id * 10 + number, "image_id": image_id, "caption": caption}
                    )
                advance(1)
            first += len(chosen)
            tree = {"info": {"description": "shapes"}, "images": images, "annotations": annotations}
            path = folder / "annotations" / f"captions_{split}2017.json"
            path.write_text(json.dumps(tree), encoding="utf-8")


def draw_scenes(seed: int, counts: Mapping[str, int]) -> dict[str, list[Scene]]:
    """What each picture shows: every scene once over all splits."""
    seen: set[Scene] = set()
    scenes: dict[str, list[Scene]] = {}
    for order, (split, count) in enumerate(counts.items()):
        scenes[split] = []
        for position in range(count):
            attempt = 0
            while True:
                scene = draw_scene(np.random.default_rng([seed, 0, order, position, attempt]))
                if scene not in seen:
                    break
                attempt += 1
            seen.add(scene)
            scenes[split].append(scene)
    return scenes


def draw_scene(random: np.random.Generator) -> Scene:
    """One scene: one to four things in different places of a three by three grid."""
    number = 1 + int(random.choice(4, p=[0.12, 0.38, 0.32, 0.18]))
    places = sorted(int(place) for place in random.choice(len(PLACES), number, replace=False))
    things = tuple(
        Thing(
            place=place,
            kind=int(random.integers(len(KINDS))),
            colour=int(random.integers(len(COLOURS))),
            size=int(random.integers(len(SIZES))),
        )
        for place in places
    )
    return Scene(things, int(random.integers(len(BACKGROUNDS))))


def captions(scene: Scene, random: np.random.Generator) -> list[str]:
    """Five different captions of a scene, the first of which leaves nothing out but the background."""
    found: dict[str, None] = {}
    while len(found) < 5:
        found[describe(scene.things, scene.background, random, full=not found)] = None
    return list(found)


def render(scene: Scene, random: np.random.Generator) -> bytes:
    """A scene as the bytes of a JPEG of 64 x 64 pixels; position, size, angle, colours and light vary."""
    side = PIXELS * _SCALE
    picture = Image.new("RGB", (side, side), _vary(RGB[BACKGROUNDS[scene.background]], random, 8))
    draw = ImageDraw.Draw(picture)
    for thing in scene.things:
        cell = side / 3
        centre = (
            (thing.place % 3 + 0.5 + random.uniform(-0.08, 0.08)) * cell,
            (thing.place // 3 + 0.5 + random.uniform(-0.08, 0.08)) * cell,
        )
        low, high = (0.20, 0.25) if SIZES[thing.size] == "small" else (0.38, 0.46)
        radius = cell * random.uniform(low, high)
        colour = _vary(RGB[COLOURS[thing.colour]], random, 14)
        _draw(draw, KINDS[thing.kind], centre, radius, random.uniform(-0.2, 0.2), colour)
    small = np.asarray(picture.resize((PIXELS, PIXELS), Image.Resampling.BOX), dtype=np.float32)
    light = np.linspace(-1.0, 1.0, PIXELS, dtype=np.float32) * np.float32(random.uniform(-12, 12))
    grain = random.normal(0.0, 3.0, small.shape).astype(np.float32)
    small = small + light[None, :, None] + grain
    buffer = io.BytesIO()
    Image.fromarray(np.clip(small, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def _vary(colour: Sequence[int], random: np.random.Generator, spread: int) -> tuple[int, int, int]:
    red, green, blue = (int(np.clip(c + random.integers(-spread, spread + 1), 0, 255)) for c in colour)
    return red, green, blue


def _draw(
    draw: ImageDraw.ImageDraw,
    kind: str,
    centre: tuple[float, float],
    radius: float,
    angle: float,
    colour: tuple[int, int, int],
) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if kind == "circle":
        draw.ellipse(box, fill=colour)
    elif kind == "ring":
        draw.ellipse(box, outline=colour, width=round(radius * 0.42))
    else:
        corners = [
            (
                x + radius * (px * math.cos(angle) - py * math.sin(angle)),
                y + radius * (px * math.sin(angle) + py * math.cos(angle)),
            )
            for px, py in outline(kind)
        ]
        draw.polygon(corners, fill=colour)


def outline(kind: str) -> list[tuple[float, float]]:
    """Corners of a shape inside the unit circle, y downwards."""
    if kind == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if kind == "triangle":
        return [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)]
    if kind == "diamond":
        return [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)]
    if kind == "cross":
        arm = 0.3
        return [
            (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
            (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
        ]  # fmt: skip
    if kind == "star":
        tips = [(math.pi * k / 5, 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
        return [(far * math.sin(turn), -far * math.cos(turn)) for turn, far in tips]
    if kind == "heart":
        turns = [2 * math.pi * k / 40 for k in range(40)]
        return [
            (
                math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
            )
            for t in turns
        ]
    raise ValueError(f"no outline for {kind}")
