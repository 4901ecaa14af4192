"""The words of shapes: its tables of attributes and the grammar of its captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

KINDS = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "turquoise", "brown")
SIZES = ("small", "large")
PLACES = (
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
"""The cells of a three by three grid, row by row."""
BACKGROUNDS = ("white", "grey", "black")

_KIND_WORDS = (
    ("circle", "disc", "dot"),
    ("square", "box"),
    ("triangle",),
    ("star",),
    ("cross", "plus sign"),
    ("ring", "hoop"),
    ("diamond", "rhombus"),
    ("heart",),
)
_SIZE_WORDS = (("small", "little", "tiny"), ("large", "big", "huge"))
_PLACE_WORDS = (
    ("in the top left corner", "at the upper left"),
    ("at the top", "in the upper middle"),
    ("in the top right corner", "at the upper right"),
    ("on the left", "at the left edge"),
    ("in the centre", "in the middle"),
    ("on the right", "at the right edge"),
    ("in the bottom left corner", "at the lower left"),
    ("at the bottom", "in the lower middle"),
    ("in the bottom right corner", "at the lower right"),
)
_NUMBERS = ("one", "two", "three", "four")


class Describable(Protocol):
    """What the grammar needs of an object: indices into the tables above."""

    @property
    def place(self) -> int: ...  # noqa: D102
    @property
    def kind(self) -> int: ...  # noqa: D102
    @property
    def colour(self) -> int: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102


def describe(
    things: Sequence[Describable], background: int, random: np.random.Generator, *, full: bool
) -> str:
    """One caption of a scene.

    Args:
        things: its objects.
        background: index into ``BACKGROUNDS``.
        random: decides the words, their order and what is left out.
        full: name every object with all its attributes.

    Returns:
        One sentence in lower case, without a full stop.
    """
    order = [things[int(i)] for i in random.permutation(len(things))]
    if not full and len(order) > 2 and random.random() < 0.2:
        order = order[:-1]
    phrases = [_phrase(thing, random, full=full) for thing in order]
    body = _join(phrases, random)
    ground = BACKGROUNDS[background]
    opening = random.integers(6)
    if opening == 1:
        body = f"there is {body}"
    elif opening == 2:
        body = f"a picture of {body}"
    elif opening == 3 and len(order) == len(things) and len(things) > 1:
        body = f"{_NUMBERS[len(things) - 1]} shapes, {body}"
    if full or random.random() < 0.5:
        return body
    return f"{body} on a {ground} background" if random.random() < 0.5 else f"on {ground}, {body}"


def _phrase(thing: Describable, random: np.random.Generator, *, full: bool) -> str:
    """``a big red star in the middle``, or with the place first or left out."""
    words = [_pick(_KIND_WORDS[thing.kind], random)]
    words.insert(0, COLOURS[thing.colour])
    if full or random.random() < 0.6:
        words.insert(0, _pick(_SIZE_WORDS[thing.size], random))
    noun = f"{_article(words[0])} {' '.join(words)}"
    if not full and random.random() < 0.2:
        return noun
    place = _pick(_PLACE_WORDS[thing.place], random)
    return f"{place} {noun}" if random.random() < 0.25 else f"{noun} {place}"


def _join(phrases: Sequence[str], random: np.random.Generator) -> str:
    last = _pick(("and", "with"), random) if len(phrases) == 2 else "and"
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} {last} {phrases[-1]}"


def _pick(words: Sequence[str], random: np.random.Generator) -> str:
    # The first word of each table is the usual one, as in real captions.
    if len(words) == 1 or random.random() < 0.5:
        return words[0]
    return words[1 + int(random.integers(len(words) - 1))]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
