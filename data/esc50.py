"""ESC-50 and ESC-10: environmental recordings in five published folds.

Piczak 2015, "ESC: Dataset for Environmental Sound Classification". Fragments of one source recording
(``src_file``) lie in one fold, so a model is never judged on a recording whose other half it has seen.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from mmvicreg.data.card import Card, RemoteFile, TableFilter
from mmvicreg.data.esc50_published import ESC10, TARGETS, check_listed, published_faults
from mmvicreg.data.folds import published_source
from mmvicreg.data.reader import Reader, check_inside, check_present, duplicates, not_here, shorten
from mmvicreg.errors import UserError
from mmvicreg.samples import Sample

COLUMNS = ("filename", "fold", "target", "category", "src_file")
"""Columns without which the protocol cannot be followed; ``esc10`` is needed by ESC-10 alone."""

CLASSES = frozenset(TARGETS)
"""ESC-50's fifty category names."""

_ARCHIVE = RemoteFile(
    # A branch archive made by GitHub when asked: neither its size nor a checksum is published.
    url="https://github.com/karolpiczak/ESC-50/archive/master.zip",
    path="ESC-50-master.zip",
    extract=True,
    members=("ESC-50-master/meta/", "ESC-50-master/audio/", "ESC-50-master/LICENSE"),
    strip="ESC-50-master/",
)
_FOLDS = ("fold1", "fold2", "fold3", "fold4", "fold5")
_CITATION = "Piczak, ESC: Dataset for Environmental Sound Classification, ACM Multimedia 2015"

CARD = Card(
    name="esc50",
    title="ESC-50",
    source=("https://github.com/karolpiczak/ESC-50",),
    licence="CC BY-NC 3.0",
    description=(
        "2 000 five-second recordings (44.1 kHz, mono, 16 bit) of 50 classes of environmental sounds, "
        "40 each, in five folds."
    ),
    pairs=("wave-mel",),
    splits=_FOLDS,
    counts=MappingProxyType({"esc50": MappingProxyType(dict.fromkeys(_FOLDS, 400))}),
    files=(_ARCHIVE,),
    citation=_CITATION,
)
CARD_ESC10 = Card(
    name="esc10",
    title="ESC-10",
    source=("https://github.com/karolpiczak/ESC-50",),
    licence="CC BY 3.0 (the rows of ESC-50 whose column esc10 says True; the rest of the download: CC BY-NC)",
    description="The 400 recordings of ESC-50's ten easier classes, in the same five folds.",
    pairs=("wave-mel",),
    splits=_FOLDS,
    counts=MappingProxyType({"esc10": MappingProxyType(dict.fromkeys(_FOLDS, 80))}),
    files=(
        replace(
            _ARCHIVE,
            only=TableFilter("ESC-50-master/meta/esc50.csv", column="esc10", folder="ESC-50-master/audio/"),
        ),
    ),
    citation=_CITATION,
)


class Esc50(Reader):
    """``meta/esc50.csv`` beside ``audio/``; a file that lists a part of ESC-50 is read, and said so."""

    name: ClassVar[str] = "esc50"
    pairs: ClassVar[tuple[str, ...]] = ("wave-mel",)
    card: ClassVar[Card] = CARD
    marker: ClassVar[str | None] = None
    """File that a folder of this data set holds and folders of its relatives do not."""
    known: ClassVar[frozenset[str]] = CLASSES
    """The class names that the published set has."""

    def _find(self) -> tuple[str, ...]:
        self._csv = self.root / "meta" / "esc50.csv"
        if self.marker is not None and not (self.root / self.marker).is_file():
            raise not_here(self.root, self.card, f"it should hold {self.marker}")
        if self.marker is None and (self.root / "tones.json").is_file():
            raise not_here(self.root, self.card, "it should hold ESC-50's own files")
        if not self._csv.is_file():
            raise not_here(self.root, self.card, "it should hold meta/esc50.csv")
        if not (self.root / "audio").is_dir():
            raise not_here(self.root, self.card, "it should hold the folder audio/")
        rows = read_rows(self._csv, esc10=self._needs_esc10())
        check_listed(rows, self.root / "audio", self._csv)
        self._rows = self._choose(rows)
        targets = {row.target: row.category for row in self._rows}
        order = sorted(targets)
        self.classes = tuple(targets[target] for target in order)
        self._labels = {target: label for label, target in enumerate(order)}
        self.notes = self._remarks()
        return tuple(f"fold{fold}" for fold in sorted({row.fold for row in self._rows}))

    def _load(self, split: str) -> list[Sample]:
        rows = [row for row in self._rows if split == f"fold{row.fold}"]
        samples = [
            Sample(
                id=row.filename,
                audio=self.root / "audio" / row.filename,
                label=self._labels[row.target],
                fold=row.fold,
                group=row.source,
            )
            for row in rows
        ]
        return check_present(samples, "recordings", self._csv, self.card.way_out(self.root))

    def faults(self) -> list[str]:
        """What differs from the published set, beside its counts by fold, in words: for ``verify``."""
        if self.name not in ("esc50", "esc10"):
            return []
        names = [name for target, name in enumerate(TARGETS) if self.name == "esc50" or target in ESC10]
        return published_faults(self._rows, self.root / "audio", names)

    def _needs_esc10(self) -> bool:
        return False

    def _choose(self, rows: list[Row]) -> list[Row]:
        """The rows that belong to this data set."""
        return rows

    def _remarks(self) -> tuple[str, ...]:
        """What a run says once: that this is a part of the published set, or something else."""
        whole = sum(next(iter(self.card.counts.values())).values())
        notes = []
        if len(self._rows) != whole:
            kinds = "" if self.name == "esc10" else f", {len(self.classes)} of {len(self.known)} classes"
            notes.append(f"{len(self._rows):,} of {self.card.title}'s {whole:,} clips{kinds}")
        if strange := sorted(set(self.classes) - self.known):
            notes.append(f"classes that {self.card.title} does not have: {shorten(strange)}")
        folds: dict[str, set[int]] = {}
        for row in self._rows:
            if (source := published_source(row.filename)) is not None:
                folds.setdefault(source, set()).add(row.fold)
        if straddling := sorted(source for source, there in folds.items() if len(there) > 1):
            # a table of somebody's own may say of every clip that it is its own source
            notes.append(
                f"by the names of the files, {len(straddling):,} sources have fragments in several folds "
                f"({shorten(straddling)}), which would be a leak; the column src_file says that they have not"
            )
        return tuple(notes)


class Esc10(Esc50):
    """The ESC-10 part of an ESC-50 folder (or a folder that holds nothing else)."""

    name: ClassVar[str] = "esc10"
    card: ClassVar[Card] = CARD_ESC10
    alternatives: ClassVar[tuple[str, ...]] = ("esc50",)

    def _needs_esc10(self) -> bool:
        return True

    def _choose(self, rows: list[Row]) -> list[Row]:
        chosen = [row for row in rows if row.esc10]
        if not chosen:
            raise UserError(f"no row of {self._csv} belongs to ESC-10: its column esc10 never says True")
        return chosen


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table, its numbers parsed."""

    filename: str
    fold: int
    target: int
    category: str
    source: str
    esc10: bool


def read_rows(path: Path, *, esc10: bool) -> list[Row]:
    """The table of an ESC-50 folder.

    Args:
        path: ``meta/esc50.csv``.
        esc10: the column ``esc10`` is needed.

    Raises:
        UserError: not such a table, a missing or doubled column, a malformed or repeated row, a target with two
            names, or a source whose fragments lie in two folds; the row is named.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            header = table.fieldnames or []
            wanted = (*COLUMNS, "esc10") if esc10 else COLUMNS
            if missing := [column for column in wanted if column not in header]:
                raise UserError(
                    f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
                    f"it has {', '.join(header) or 'nothing'}"
                )
            twice = duplicates(name for name in header if name)
            if twice:  # the last would be read, whichever it is
                raise UserError(
                    f"the first line of {path} names the column {shorten(twice)} more than once; rename or remove all "
                    "but one"
                )
            rows = [_row(cells, f"{path}, line {table.line_num}") for cells in table]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV table: {error}") from error
    if not rows:
        raise UserError(f"{path} lists no recordings")
    _check_rows(rows, path)
    return rows


def _row(cells: Mapping[str | None, str | None], where: str) -> Row:
    """Parse one line; ``where`` names it in errors."""

    def text(column: str) -> str:
        value = cells.get(column)
        if value is None or not value.strip():
            raise UserError(f"{where}: the column {column} is empty (truncated file?)")
        return value.strip()

    def whole(column: str, least: int) -> int:
        value = text(column)
        if re.fullmatch(r"-?[0-9]{1,9}", value) is None:  # int() takes 1_0 too, and numbers without end
            raise UserError(f"{where}: the {column} '{value}' is not a whole number")
        if int(value) < least:
            raise UserError(f"{where}: the {column} {value} is below {least}")
        return int(value)

    if None in cells:
        raise UserError(f"{where}: more cells than columns; a value with a comma needs quotes")
    flag = (cells.get("esc10") or "False").strip().lower()
    if flag not in {"true", "false"}:
        raise UserError(f"{where}: the column esc10 says '{flag}', not True or False")
    name = check_inside(text("filename"), Path(where))
    return Row(name, whole("fold", 1), whole("target", 0), text("category"), text("src_file"), flag == "true")


def _check_rows(rows: list[Row], path: Path) -> None:
    files: set[str] = set()
    names: dict[int, str] = {}
    targets: dict[str, int] = {}
    folds: dict[str, int] = {}
    for row in rows:
        if row.filename in files:
            raise UserError(f"{path} lists {row.filename} twice")
        files.add(row.filename)
        if names.setdefault(row.target, row.category) != row.category:
            raise UserError(
                f"{path}: {row.filename} calls target {row.target} '{row.category}', an earlier row "
                f"'{names[row.target]}'"
            )
        if targets.setdefault(row.category, row.target) != row.target:
            raise UserError(
                f"{path}: {row.filename} gives '{row.category}' the target {row.target}, an earlier row "
                f"{targets[row.category]}"
            )
        if folds.setdefault(row.source, row.fold) != row.fold:
            raise UserError(
                f"{path}: fragments of the source {row.source} lie in fold {folds[row.source]} and, "
                f"{row.filename}, in fold {row.fold}; a source must not straddle folds"
            )
