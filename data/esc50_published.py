"""What ESC-50 is as published: class names by target, names of recordings, their length; held against a copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmvicreg.data.reader import shorten
from mmvicreg.errors import UserError
from mmvicreg.inputs.decode import read_header

if TYPE_CHECKING:
    from mmvicreg.data.esc50 import Row

TARGETS = (
    *("dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow"),
    *("rain", "sea_waves", "crackling_fire", "crickets", "chirping_birds", "water_drops", "wind"),
    *("pouring_water", "toilet_flush", "thunderstorm", "crying_baby", "sneezing", "clapping", "breathing"),
    *("coughing", "footsteps", "laughing", "brushing_teeth", "snoring", "drinking_sipping"),
    *("door_wood_knock", "mouse_click", "keyboard_typing", "door_wood_creaks", "can_opening"),
    *("washing_machine", "vacuum_cleaner", "clock_alarm", "clock_tick", "glass_breaking", "helicopter"),
    *(
        "chainsaw",
        "siren",
        "car_horn",
        "engine",
        "train",
        "church_bells",
        "airplane",
        "fireworks",
        "hand_saw",
    ),
)
"""ESC-50's fifty category names; the place of each is its target."""
ESC10 = frozenset((0, 1, 10, 11, 12, 20, 21, 38, 40, 41))
"""Targets of the ten classes that are ESC-10."""
FOLDS, EACH = 5, 8
"""Folds, and recordings of every class in each."""
_RATE, _FRAMES = 44100, 220500


def check_listed(rows: Sequence[Row], audio: Path, table: Path) -> None:
    """Refuse a table that lacks rows of recordings that lie there: it would be another data set unnoticed.

    Whole folds and whole classes may be left out: that is a part somebody chose (all but fold 1, ESC-10).

    Raises:
        UserError: there are some; they are named.
    """
    listed = {row.filename for row in rows}
    folds, targets = {str(row.fold) for row in rows}, {str(row.target) for row in rows}
    missing = []
    for name in sorted({path.name for path in audio.glob("*.wav")} - listed):
        parts = name.removesuffix(".wav").split("-")
        if len(parts) == 4 and parts[0] in folds and parts[3] in targets:
            missing.append(name)
    if missing:
        raise UserError(
            f"{table} does not list {len(missing):,} recordings of its folds and classes that lie in {audio} "
            f"({shorten(missing)}); put the missing rows back, or move what is not to be used out of that folder"
        )


def published_faults(rows: Sequence[Row], audio: Path, classes: Sequence[str]) -> list[str]:
    """What differs from the published set, in words: counts by fold and class, names, targets, lengths.

    Args:
        rows: the table's, of the classes that are meant.
        audio: the folder of recordings.
        classes: names of the classes that should be there.
    """
    counts, sizes = Counter((row.fold, row.category) for row in rows), Counter(row.fold for row in rows)
    wrong = [
        f"{counts[fold, name]} of {name} in fold {fold}"
        for fold in range(1, FOLDS + 1)
        for name in classes
        if counts[fold, name] != EACH and sizes[fold] == EACH * len(classes)  # else its size has been told
    ]
    published = {name: target for target, name in enumerate(TARGETS)}
    renumbered = sorted({f"{r.category} {r.target}" for r in rows if published.get(r.category) != r.target})
    unlike = [row.filename for row in rows if not _named(row)]
    marked = sorted({row.category for row in rows if row.esc10 != (row.target in ESC10)})
    other = [row.filename for row in rows if not _as_published(audio / row.filename)]
    return [
        f"{what}: {shorten(found)}"
        for what, found in (
            (f"not {EACH} recordings of every class in every fold", wrong),
            ("targets that are not the published ones", renumbered),
            ("names that do not say fold, source and target as the table does", unlike),
            ("classes whose column esc10 is not the published one", marked),
            (f"recordings that are not 5 s at {_RATE} Hz, mono", other),
        )
        if found
    ]


def _named(row: Row) -> bool:
    """``<fold>-<source>-<take>-<target>.wav``."""
    parts = row.filename.removesuffix(".wav").split("-")
    return len(parts) == 4 and (parts[0], parts[1], parts[3]) == (str(row.fold), row.source, str(row.target))


def _as_published(path: Path) -> bool:
    """Whether the header says what ESC-50's do; what cannot be read at all is another fault, told elsewhere."""
    try:
        header = read_header(path)
    except UserError:
        return True
    return header is not None and (header.sample_rate, header.channels, header.frames) == (_RATE, 1, _FRAMES)
