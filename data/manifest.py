"""A manifest: a user's own pairs, as a CSV table or a file of JSON lines.

Columns (or keys): ``image`` with ``caption`` or ``captions`` (a JSON list), or ``audio`` with, if it has
them, ``label``, ``fold`` and ``group``; ``id`` (else the file, as it is written) and ``split`` (else ``train``;
``fold1``, ``fold2``, ... are folds) where wanted. Rows of one picture are one sample with several captions. Paths are
relative to the manifest; ``a.jpg`` and ``./a.jpg`` are one file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from mmvicreg.data.card import Card
from mmvicreg.data.files import list_folder
from mmvicreg.data.folds import published_source
from mmvicreg.data.names import check_split
from mmvicreg.data.reader import (
    Reader,
    check_captions,
    check_folder,
    check_present,
    check_unicode,
    class_order,
    csv_rows,
    not_here,
    shorten,
    unlabelled,
)
from mmvicreg.datasets import fold_number
from mmvicreg.errors import UserError
from mmvicreg.registry import nearest
from mmvicreg.samples import Sample

KEYS = ("id", "split", "image", "caption", "captions", "audio", "label", "fold", "group")
FILES = ("manifest.csv", "manifest.jsonl")
"""What the manifest is called, in any case, when its folder is given."""


class Manifest(Reader):
    """A user's own data set. With ``fold`` and without ``split`` its splits are the folds."""

    name: ClassVar[str] = "manifest"
    pairs: ClassVar[tuple[str, ...]] = ("image-text", "wave-mel")
    card: ClassVar[Card] = Card(
        name="manifest",
        title="a manifest",
        source=("your own data",),
        licence="yours",
        description=(
            "A CSV table or JSON lines: image with caption or captions (a JSON list), or audio with label, "
            "fold and group; id and split where wanted. Paths are relative to the manifest."
        ),
        pairs=("image-text", "wave-mel"),
        splits=("those the manifest names",),
        manual="Give a .csv or .jsonl file, or a folder with a manifest.csv or .jsonl, with --data-root.",
        citation="none",
    )

    def _check_root(self) -> None:
        if not self.root.is_file():
            check_folder(self.root, self.card)

    def _file(self) -> Path:
        """The manifest: the root itself, or the one of the usual name in it."""
        if self.root.is_file():
            return self.root
        names = sorted(name for name in list_folder(self.root) if name.lower() in FILES)
        found = [self.root / name for name in names if (self.root / name).is_file()]
        if len(found) > 1:
            raise UserError(f"{self.root} holds {' and '.join(names)}; name one of them with --data-root")
        if not found:
            raise not_here(self.root, self.card, f"it should hold {' or '.join(FILES)}")
        return found[0]

    def _find(self) -> tuple[str, ...]:
        path = self._file()
        rows, notes = read_rows(path)
        rows = _merge(rows)
        self.notes = (*notes, *_repeated(rows, path))
        if rows[0].audio is not None:
            self.notes += unlabelled([row.label for row in rows], path)
        _check_whole(rows, path)
        labels = {row.label for row in rows if row.label is not None}
        self.classes = class_order(labels)
        index = {label: position for position, label in enumerate(self.classes)}
        in_folds = rows[0].fold is not None and all(row.split is None for row in rows)
        if any(row.fold is not None for row in rows) and not in_folds:
            raise UserError(f"{path} gives both split and fold; give one of them")
        parsed: dict[str, list[Sample]] = {}
        for row in rows:
            split = f"fold{row.fold}" if in_folds else row.split or "train"
            parsed.setdefault(split, []).append(_sample(row, index, path))
        self._parsed.update(parsed)
        self._check_files(path)
        order = sorted(parsed, key=lambda name: int(name[4:])) if in_folds else list(parsed)
        return tuple(order)

    def _load(self, split: str) -> Sequence[Sample]:
        return self._parsed[split]

    def _check_files(self, path: Path) -> None:
        every = [sample for samples in self._parsed.values() for sample in samples]
        hint = f"Paths are relative to {path.parent}."
        every = check_present(every, "pictures", path, hint)
        every = check_present(every, "recordings", path, hint)
        found = iter(every)
        self._parsed.update(
            {split: [next(found) for _ in samples] for split, samples in self._parsed.items()}
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One row, its values parsed.

    Attributes:
        where: its name in errors.
        id: None where it gives none; its files then stand for it.
        picture, recording: the files that ``image`` and ``audio`` mean, however they are written.
    """

    where: str
    id: str | None
    split: str | None
    image: str | None
    captions: tuple[object, ...]
    audio: str | None
    label: str | None
    fold: int | None
    group: str | None
    picture: str | None
    recording: str | None


def read_rows(path: Path) -> tuple[list[Row], tuple[str, ...]]:
    """Every row of a manifest, and what should be said about columns that are not used.

    Raises:
        UserError: not CSV or JSON lines, no rows, a column that looks misspelt, or a malformed row (named).
    """
    if path.suffix.lower() not in {".csv", ".jsonl", ".ndjson"}:
        raise UserError(f"{path} is neither .csv nor .jsonl; a manifest is one of the two")
    folder = path.parent.absolute()
    rows: list[Row] = []
    unused: dict[str, None] = {}
    try:
        rows_of = (
            csv_rows(path, one_of=("image", "audio")) if path.suffix.lower() == ".csv" else _json_rows(path)
        )
        for _, where, cells in rows_of:
            for key in cells:
                check_unicode(key, f"{where}: a key")
                if key not in KEYS and key not in unused:
                    guess = nearest(key, KEYS)
                    if guess != ".":
                        raise UserError(f"{where}: unknown column '{key}'{guess} Known: {', '.join(KEYS)}.")
                    unused[key] = None
            rows.append(_row(cells, where, folder))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as text: {error}; save it in UTF-8") from error
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows, (f"columns of {path} that are not used: {', '.join(unused)}",) if unused else ()


def _json_rows(path: Path) -> Iterator[tuple[int, str, Mapping[str, object]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file):
            where = f"{path}, line {number + 1}"
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where} is not JSON: {error.msg} (truncated file?)") from error
            except (
                ValueError,
                RecursionError,
            ) as error:  # a number of thousands of digits, thousands of brackets
                raise UserError(f"{where} cannot be read: {error}; mend or remove it") from error
            if not isinstance(cells, dict):
                raise UserError(f"{where} is not a JSON object")
            yield number, where, {key: value for key, value in cells.items() if value is not None}


def _row(cells: Mapping[str, object], where: str, folder: Path) -> Row:
    def text(key: str) -> str | None:
        value = cells.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise UserError(f"{where}: {key} is not text: {value!r}")
        check_unicode(str(value), f"{where}: {key}")
        return str(value).strip()

    def file(key: str) -> str | None:
        name = text(key)
        return None if name is None else os.path.normpath(folder / name)

    fold, split = _fold(text("fold"), where), text("split")
    if fold is None and split is not None and (told := fold_number(split)) is not None:
        fold, split = told, None
    row = Row(
        where=where,
        id=text("id"),
        split=split,
        image=text("image"),
        captions=_captions(cells, where),
        audio=text("audio"),
        label=text("label"),
        fold=fold,
        group=text("group"),
        picture=file("image"),
        recording=file("audio"),
    )
    if row.image is None and row.audio is None:
        raise UserError(f"{where} has neither an image nor an audio")
    if row.image is not None and not row.captions:
        raise UserError(f"{where}: the image '{row.image}' has no caption, or an empty one")
    if row.split is not None:
        check_split(row.split, where)
    return row


def _captions(cells: Mapping[str, object], where: str) -> tuple[object, ...]:
    if "caption" in cells and "captions" in cells:
        raise UserError(f"{where} gives both caption and captions; give one of them")
    captions = cells.get("captions", [cells["caption"]] if "caption" in cells else [])
    if isinstance(captions, str):
        try:
            captions = json.loads(captions)
        except (ValueError, RecursionError):
            captions = None
    if not isinstance(captions, list):
        raise UserError(f"{where}: captions is not a JSON list of texts; one caption goes in caption")
    for caption in captions:
        check_unicode(str(caption), f"{where}: a caption")
    return tuple(captions)


def _fold(value: str | None, where: str) -> int | None:
    if value is None:
        return None
    if not value.isdecimal() or len(value) > 9 or int(value) < 1:
        raise UserError(f"{where}: the fold '{value}' is not a whole number of 1 or more")
    return int(value)


def _repeated(rows: Sequence[Row], path: Path) -> tuple[str, ...]:
    """A note on pictures that have a caption again; not refused: two people may write the same (in COCO they do)."""
    again = [
        str(row.image) for row in rows if len({str(c).strip() for c in row.captions}) < len(row.captions)
    ]
    if not again:
        return ()
    return (f"{len(again):,} pictures of {path} have a caption twice, which counts twice: {shorten(again)}",)


def _merge(rows: list[Row]) -> list[Row]:
    """Rows of one picture (or one picture and recording) as one row with all their captions."""
    merged: dict[tuple[str | None, str | None], Row] = {}
    for row in rows:
        key = (row.picture, row.recording)
        first = merged.get(key)
        if first is None:
            merged[key] = row
            continue
        if row.image is None:
            raise UserError(f"{row.where} lists the recording '{row.audio}' again (first in {first.where})")
        for field in ("split", "label", "fold", "group"):
            if getattr(row, field) != getattr(first, field):
                raise UserError(
                    f"{row.where} gives the image '{row.image}' the {field} {getattr(row, field)!r}, "
                    f"{first.where} {getattr(first, field)!r}"
                )
        if None not in (row.id, first.id) and row.id != first.id:
            raise UserError(
                f"{row.where} gives the image '{row.image}' the id '{row.id}', {first.where} '{first.id}'; an id is "
                "that of the picture, not of a caption: give one, or leave the column out"
            )
        merged[key] = replace(first, id=first.id or row.id, captions=first.captions + row.captions)
    whole = list(merged.values())
    ids: dict[str, Row] = {}
    for row in whole:
        other = ids.setdefault(_id(row), row)
        if other is not row:
            raise UserError(f"{row.where} has the id '{_id(row)}' of {other.where}; ids must differ")
    return whole


def _check_whole(rows: list[Row], path: Path) -> None:
    """What must hold for all rows or none, and what must not straddle folds or splits: groups and files."""
    for field in ("label", "fold", "split", "image", "audio"):
        lacking = [row.where for row in rows if getattr(row, field) is None]
        if lacking and len(lacking) < len(rows):
            raise UserError(f"some rows of {path} have a {field}, but not {shorten(lacking)}")
    for field in ("group", "picture", "recording"):
        first: dict[str, Row] = {}
        for row in rows:
            value = getattr(row, field)
            if value is None:
                continue
            other = first.setdefault(value, row)
            if (row.fold, row.split) != (other.fold, other.split):
                raise UserError(
                    f"{row.where}: the {field} '{value}' lies in {_part(row)} and, in {other.where}, in "
                    f"{_part(other)}; a {field} must not straddle folds or splits"
                )
    _check_sources(rows)


def _check_sources(rows: list[Row]) -> None:
    """Refuse folds or splits that divide a source of recordings, where names give one for certain and no group."""
    first: dict[str, Row] = {}
    for row in rows:
        source = published_source(row.audio) if row.audio is not None and row.group is None else None
        if source is None:
            continue
        other = first.setdefault(source, row)
        if (row.fold, row.split) != (other.fold, other.split):
            raise UserError(
                f"{row.where}: {row.audio} lies in {_part(row)}, and {other.audio} in {_part(other)} ({other.where}); "
                f"by their names they are of one source, {source}, which must not straddle folds or splits (a column "
                "group would say otherwise)"
            )


def _id(row: Row) -> str:
    # not the row's number: of a table edited or put in another order, samples would go by others' names, and a run
    # could not tell that it was trained on what is now held out
    return row.id or "+".join(file for file in (row.image, row.audio) if file is not None)


def _part(row: Row) -> str:
    return f"fold {row.fold}" if row.fold is not None else f"the split '{row.split}'"


def _sample(row: Row, index: Mapping[str, int], path: Path) -> Sample:
    return Sample(
        id=_id(row),
        image=path.parent / row.image if row.image else None,
        captions=check_captions(row.captions, row.image or _id(row), path) if row.captions else (),
        audio=path.parent / row.audio if row.audio else None,
        label=None if row.label is None else index[row.label],
        fold=row.fold,
        group=row.group,
    )
