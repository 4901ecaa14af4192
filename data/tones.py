"""tones: 2 000 short sounds of 50 classes in ESC-50's layout, five folds.

Made, not found: the same seed gives the same files. A class is a timbre with an envelope ("bell pulsing");
pitch, onset, length, loudness, detuning, room, equalisation and background noise vary inside it. Two clips
(takes A and B) are cut from each source: they share its parameters and lie in one fold.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import soundfile

from mmvicreg.data.bars import counted
from mmvicreg.data.card import Card
from mmvicreg.data.esc50 import Esc50
from mmvicreg.data.making import make_folder
from mmvicreg.data.tones_synthesis import ENVELOPES, RATE, TIMBRES, draw_source, synthesise

VERSION = 1
"""Raised whenever the same seed would give other files."""
FOLDS = 5
TAKES = "AB"
SOURCES = 4
"""Sources a class and fold; two clips each."""
NAMES = tuple(f"{timbre}_{envelope}" for timbre in TIMBRES for envelope in ENVELOPES)
"""The fifty classes, in the order of their targets."""


class Tones(Esc50):
    """The made data set, read by ESC-50's reader."""

    name: ClassVar[str] = "tones"
    marker: ClassVar[str | None] = "tones.json"
    known: ClassVar[frozenset[str]] = frozenset(NAMES)
    card: ClassVar[Card] = Card(
        name="tones",
        title="tones",
        source=("made by mmvicreg (data/tones.py)",),
        licence="CC0 1.0",
        description=(
            f"2 000 synthetic sounds of 1.5 s ({RATE:,} Hz, mono, 16 bit): 50 classes (ten timbres by five "
            "envelopes), 40 each, in five folds, in ESC-50's layout."
        ),
        pairs=("wave-mel",),
        splits=tuple(f"fold{fold}" for fold in range(1, FOLDS + 1)),
        counts=MappingProxyType(
            {"esc50": MappingProxyType({f"fold{fold}": 400 for fold in range(1, FOLDS + 1)})}
        ),
        made=True,
        citation="mmvicreg",
    )

    @classmethod
    def make(
        cls,
        root: Path,
        *,
        progress: bool = True,
        seed: int = 0,
        classes: int = len(NAMES),
        sources: int = SOURCES,
    ) -> None:
        """Write the data set at ``root``; nothing happens where it is already.

        Args:
            root: an absent or empty folder.
            progress: show a bar.
            seed: another seed gives other sounds.
            classes: the first so many classes.
            sources: sources of each class in each fold, two clips each.

        Raises:
            UserError: ``root`` holds something else, or cannot be written.
        """
        facts = {"maker": cls.name, "version": VERSION, "seed": seed, "classes": classes, "sources": sources}
        make_folder(
            Path(root),
            lambda folder: _write(folder, seed=seed, classes=classes, sources=sources, progress=progress),
            name=cls.name,
            marker="tones.json",
            facts=facts,
        )


def _write(folder: Path, *, seed: int, classes: int, sources: int, progress: bool) -> None:
    (folder / "audio").mkdir()
    (folder / "meta").mkdir()
    total = classes * FOLDS * sources * len(TAKES)
    rows: list[Mapping[str, object]] = []
    with counted(total, "Making tones", "clips", progress=progress) as advance:
        for target, fold, number in np.ndindex(classes, FOLDS, sources):
            source_id = 10_000 + (target * FOLDS + fold) * sources + number
            timbre, envelope = divmod(target, len(ENVELOPES))
            source = draw_source(
                TIMBRES[timbre], ENVELOPES[envelope], np.random.default_rng([seed, source_id])
            )
            for position, take in enumerate(TAKES):
                name = f"{fold + 1}-{source_id}-{take}-{target}.wav"
                clip = synthesise(source, np.random.default_rng([seed, source_id, position]))
                soundfile.write(folder / "audio" / name, clip, RATE, subtype="PCM_16")
                rows.append(
                    {
                        "filename": name,
                        "fold": fold + 1,
                        "target": target,
                        "category": NAMES[target],
                        "esc10": False,
                        "src_file": source_id,
                        "take": take,
                    }
                )
                advance(1)
    with (folder / "meta" / "esc50.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(rows, key=lambda row: str(row["filename"])))
