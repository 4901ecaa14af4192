"""Folds for recordings that come without any: whole sources, classes spread evenly, always the same."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

FOLDS = 5

_SCHEMES = tuple(
    re.compile(scheme)
    for scheme in (
        r"\d+-(?P<source>\d+)-[A-Z]-\d+",  # ESC-50: fold, source, take, class
        r"(?P<source>\d{4,})-\d-\d{1,3}-\d{1,3}",  # UrbanSound8K: source, class, occurrence, slice
        r"(?P<source>[0-9a-f]{8})_nohash_\d+",  # Speech Commands: speaker, repetition
        r"(?:\d\d-){6}(?P<source>\d\d)",  # RAVDESS: six factors, actor
    )
)
_TAKE = re.compile(r"(?P<source>.*[^\s._-])[\s._-]+(?:\d+|[A-Za-z])")
"""``SOURCE-TAKE``: a name that ends in a number or a single letter of its own."""


def published_source(name: str) -> str | None:
    """The source that a file name gives in the scheme of a published data set, or None."""
    stem = PurePosixPath(name).stem
    matches = (scheme.fullmatch(stem) for scheme in _SCHEMES)
    return next((match["source"] for match in matches if match is not None), None)


def sources_by_name(names: Sequence[str], labels: Sequence[str | None]) -> list[str]:
    """The source of each recording, as far as names say.

    A name in the scheme of a published data set gives its source. Otherwise ``SOURCE-TAKE`` (also with ``_``,
    ``.`` or a space; a take is a number or a letter) is a take of SOURCE, unless that makes a whole class one
    source (``dog_1``, ``dog_2``, ...). A name that says nothing is a source of its own.

    Args:
        names: file names, perhaps with folders; they differ.
        labels: their classes.
    """
    takes = {name: match["source"] for name in names if (match := _TAKE.fullmatch(PurePosixPath(name).stem))}
    of_class: dict[str | None, set[str]] = {}
    for name, label in zip(names, labels, strict=True):
        of_class.setdefault(label, set()).add(takes.get(name, name))
    return [
        published_source(name) or (takes.get(name, name) if len(of_class[label]) > 1 else name)
        for name, label in zip(names, labels, strict=True)
    ]


def make_folds(sources: Sequence[str], labels: Sequence[str | None]) -> list[int]:
    """A fold, 1 to :data:`FOLDS`, for each recording; those of one source share theirs.

    Sources, larger ones first and then in the order of a checksum of their names, go each to the fold that has
    least of their classes, then least of all. Nothing is drawn: the same names and classes give the same folds.

    Args:
        sources: the source of each recording; with fewer than :data:`FOLDS` there are as many folds as sources.
        labels: their classes.
    """
    holds: dict[str, Counter[str | None]] = {}
    for source, label in zip(sources, labels, strict=True):
        holds.setdefault(source, Counter())[label] += 1
    folds: list[Counter[str | None]] = [Counter() for _ in range(min(FOLDS, len(holds)))]
    place: dict[str, int] = {}
    for source in sorted(holds, key=lambda source: (-holds[source].total(), _checksum(source))):
        share = holds[source]

        def load(fold: int, share: Counter[str | None] = share) -> tuple[int, int, int]:
            return sum(folds[fold][label] * n for label, n in share.items()), folds[fold].total(), fold

        chosen = min(range(len(folds)), key=load)
        folds[chosen] += share
        place[source] = chosen + 1
    return [place[source] for source in sources]


def _checksum(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
