"""Any folder of recordings: listed by a CSV table, or lying in one folder a class.

A table (the one ``.csv`` in the folder) has a column ``filename``, relative to it, and where wanted ``label``,
``fold`` or ``split`` (splits called ``fold1``, ``fold2``, ... are folds), and ``source``, what a fragment was cut
from. Without a table every folder is a class; where all of them are called train, val, test and the like, the
classes are the folders in those. Without folds and splits, folds are made (:mod:`mmvicreg.data.folds`) that keep the
recordings of one source together.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from mmvicreg.data.card import Card
from mmvicreg.data.folds import FOLDS, make_folds, published_source, sources_by_name
from mmvicreg.data.names import check_split
from mmvicreg.data.pictures import files_below, subfolders
from mmvicreg.data.reader import (
    Reader,
    check_inside,
    check_present,
    class_order,
    csv_rows,
    encode_name,
    shorten,
    unlabelled,
)
from mmvicreg.datasets import fold_number
from mmvicreg.errors import UserError
from mmvicreg.inputs.decode import SUFFIXES
from mmvicreg.samples import Sample

COLUMNS = ("filename", "label", "fold", "split", "source")
MEANT = MappingProxyType(
    {
        **dict.fromkeys(("class", "classes", "class_name", "category", "target"), "label"),
        **dict.fromkeys(("subset", "partition"), "split"),
        **dict.fromkeys(("group", "src_file"), "source"),  # as a manifest and ESC-50 call it
    }
)
"""Names of other tables, and the column they are here."""
ENDINGS = tuple(sorted(SUFFIXES))
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"))
"""Folders of these names alone hold splits, not classes."""


class AudioFolder(Reader):
    """A user's own recordings, of any format, rate and length."""

    name: ClassVar[str] = "audio-folder"
    pairs: ClassVar[tuple[str, ...]] = ("wave-mel",)
    card: ClassVar[Card] = Card(
        name="audio-folder",
        title="a folder of recordings",
        source=("your own data",),
        licence="yours",
        description=(
            "A folder of recordings with a CSV table (columns filename and, where wanted, label, fold or split, "
            "source), or with one folder a class. Any format that soundfile or librosa reads. Without folds and "
            f"splits {FOLDS} folds are made, always the same, recordings of one source (column source, else by "
            "their names) together."
        ),
        pairs=("wave-mel",),
        splits=("those of the table or folders, else fold1 to fold5",),
        manual="Give a folder of recordings, with one .csv or one folder a class in it, with --data-root.",
        citation="none",
    )

    def _find(self) -> tuple[str, ...]:
        tables = sorted(
            path
            for path in self.root.iterdir()
            if path.suffix.lower() == ".csv" and not path.name.startswith(".") and not path.is_dir()
        )
        if len(tables) > 1:
            raise UserError(
                f"{self.root} holds {len(tables)} tables ({shorten([path.name for path in tables])}); leave the one "
                "that lists the recordings"
            )
        rows, notes = read_table(tables[0]) if tables else read_folders(self.root, self.card)
        place = tables[0] if tables else self.root
        self.notes = (*notes, *unlabelled([row.label for row in rows], place))
        if rows[0].fold is None and rows[0].split is None:
            rows = self._make_folds(rows, place)
        _check_sources(rows, place)
        self.classes = class_order(row.label for row in rows if row.label is not None)
        index = {label: position for position, label in enumerate(self.classes)}
        parsed: dict[str, list[Sample]] = {}
        for row in rows:
            parsed.setdefault(row.place, []).append(
                Sample(
                    id=row.name,
                    audio=self.root / (row.file or row.name),
                    label=None if row.label is None else index[row.label],
                    fold=row.fold,
                    group=row.source,
                )
            )
        self._parsed.update(parsed)
        if rows[0].fold is None:
            return tuple(parsed)
        return tuple(sorted(parsed, key=lambda name: int(name.removeprefix("fold"))))

    def _make_folds(self, rows: list[Row], place: Path) -> list[Row]:
        """The rows with folds, and a note that says how they were made."""
        labels = [row.label for row in rows]
        told = rows[0].source is not None
        sources = (
            [row.source or "" for row in rows] if told else sources_by_name([r.name for r in rows], labels)
        )
        number = len(set(sources))
        if number < 2:
            raise UserError(
                f"{place} holds recordings of one source, which no fold may divide; give more, or name their splits in "
                "a table (columns filename and split)"
            )
        how = "as its column source says" if told else "by their names"
        self.notes = (
            *self.notes,
            f"{place} says nothing of folds: {min(FOLDS, number)} were made of its {len(rows)} recordings, those "
            f"of one source together ({number} sources, {how})",
        )
        return [
            replace(row, fold=fold, source=source)
            for row, fold, source in zip(rows, make_folds(sources, labels), sources, strict=True)
        ]

    def _load(self, split: str) -> Sequence[Sample]:
        return self._parsed[split]


@dataclass(frozen=True, slots=True)
class Row:
    """One recording; ``name`` is its path in the folder, ``file`` the same as the disk spells it."""

    name: str
    label: str | None = None
    fold: int | None = None
    split: str | None = None
    source: str | None = None
    file: str | None = None

    @property
    def place(self) -> str:
        """Its fold or split."""
        return f"fold{self.fold}" if self.fold is not None else str(self.split)


def read_table(path: Path) -> tuple[list[Row], tuple[str, ...]]:
    """The rows of a table of recordings, and what to say about columns that are not used.

    Raises:
        UserError: not such a table, a malformed or repeated row (named), or recordings that are missing.
    """
    rows: dict[str, tuple[Row, str]] = {}
    columns: dict[str, None] = {}
    for _, where, cells in csv_rows(path, one_of=("filename",)):
        columns.update((key, None) for key in cells)
        row = _row(cells, path, where)
        if row.name in rows:
            raise UserError(f"{where} lists {row.name} again (first in {rows[row.name][1]})")
        rows[row.name] = row, where
    if not rows:
        raise UserError(f"{path} has no rows")
    unused = [column for column in columns if column not in COLUMNS]
    _check_spelling(unused, columns, path)
    for column in ("label", "fold", "split", "source"):
        lacking = [where for row, where in rows.values() if getattr(row, column) is None]
        if lacking and len(lacking) < len(rows):
            raise UserError(f"some rows of {path} have a {column}, but not {shorten(lacking)}")
    found = [row for row, _ in rows.values()]
    if found[0].fold is not None and found[0].split is not None:
        raise UserError(f"{path} gives both split and fold; give one of them")
    present = check_present(
        [Sample(id=row.name, audio=path.parent / row.name) for row in found],
        "recordings",
        path,
        f"Paths are relative to {path.parent}.",
    )
    notes = [f"columns of {path} that are not used: {', '.join(unused)}"] if unused else []
    beside = {
        file.relative_to(path.parent).as_posix() for file in _recordings(_files(path.parent, links=False))
    }
    spelt = [sample.audio.relative_to(path.parent).as_posix() for sample in present if sample.audio]
    found = [replace(row, file=file) for row, file in zip(found, spelt, strict=True)]
    others = sorted(beside - {*spelt})
    if others:
        notes.append(f"{path} does not list {len(others)} recordings that lie beside it: {shorten(others)}")
    return found, tuple(notes)


def _check_spelling(unused: Iterable[str], used: Iterable[str], path: Path) -> None:
    """Refuse a column that seems to be one that is read: folds would be made where they are told, or no probe run."""
    told = {*used}
    if told & {"fold", "split"}:  # a table may not have both
        told |= {"fold", "split"}
    absent = [column for column in COLUMNS if column not in told]
    for column in unused:
        name = column.strip().lower()
        name = MEANT.get(name, name)
        if close := difflib.get_close_matches(name, absent, n=1, cutoff=0.75):
            raise UserError(
                f"{path} has a column '{column}', which is not read, and none called '{close[0]}': rename it (to "
                "something less alike, if that is not what it is)"
            )


def _row(cells: Mapping[str, object], path: Path, where: str) -> Row:
    text = {key: str(value).strip() for key, value in cells.items()}
    if "filename" not in text:
        raise UserError(f"{where}: the column filename is empty")
    fold, split = text.get("fold"), text.get("split")
    if fold is None and split is not None and (number := fold_number(split)) is not None:
        fold, split = str(number), None
    if fold is not None and not (fold.isdecimal() and len(fold) < 10 and int(fold) >= 1):
        raise UserError(f"{where}: the fold '{fold}' is not a whole number of 1 or more")
    if split is not None:
        check_split(split, where)
    name = check_inside(text["filename"], path, path.parent)
    return Row(name, text.get("label"), None if fold is None else int(fold), split, text.get("source"))


def read_folders(root: Path, card: Card) -> tuple[list[Row], tuple[str, ...]]:
    """The recordings in one folder a class (in folders of splits, perhaps), and how many files are none.

    Raises:
        UserError: no class folders, recordings outside of them, a class folder without recordings, or a name that is
            not UTF-8.
    """
    tops = _subfolders(root)
    splits: list[Path | None] = [None]
    if tops and all(top.name.lower() in SPLITS for top in tops):
        splits = [*tops]
    rows: list[Row] = []
    others = 0
    for split in splits:
        _check_loose(split or root)
        for folder in _subfolders(split or root):
            files = _files(folder, links=True)
            found = _recordings(files)
            if not found:
                raise UserError(
                    f"the class folder {folder} holds no recording ({len(files)} other files); add some, or remove it. "
                    f"Recordings end in {', '.join(sorted(SUFFIXES))}."
                )
            others += len(files) - len(found)
            names = [path.relative_to(root).as_posix() for path in found]
            for name in names:
                encode_name(name, "recording", root)
                rows.append(Row(name, folder.name, split=split.name if split else None))
    if not rows:
        raise UserError(f"{root} holds neither a table (.csv) nor class folders. {card.way_out(root)}")
    return rows, (f"{others} files in {root} are no recordings by their names",) if others else ()


def _recordings(files: Iterable[Path]) -> list[Path]:
    return [path for path in files if path.suffix.lower() in SUFFIXES]


def _files(folder: Path, *, links: bool) -> list[Path]:
    """The files of a folder, however deep, in order; ``links``: of folders that are linked into it too."""
    return sorted(folder / name for name in files_below(folder, ENDINGS, links=links))


def _subfolders(folder: Path) -> list[Path]:
    return [folder / name for name in subfolders(folder, ENDINGS)]


def _check_loose(folder: Path) -> None:
    """Refuse recordings that lie where class folders should be."""
    files = (path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())
    loose = [path.name for path in files if path.suffix.lower() in SUFFIXES]
    if loose:
        raise UserError(
            f"{folder} holds recordings that are in no class folder ({shorten(sorted(loose))}); put them into one "
            "folder a class, or list them in a table (a .csv with the columns filename and label)"
        )


def _check_sources(rows: list[Row], place: Path) -> None:
    """Refuse folds or splits that divide a source: the one that is told, or that names give for certain."""
    first: dict[str, Row] = {}
    for row in rows:
        source = row.source or published_source(row.name)
        if source is None or first.setdefault(source, row).place == row.place:
            continue
        other = first[source]
        how = "" if row.source else " by their names (a column source would say otherwise)"
        raise UserError(
            f"{place}: {other.name} in {other.place} and {row.name} in {row.place} are of one source, {source}{how}; a "
            "source must not straddle folds or splits"
        )
