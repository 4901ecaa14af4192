"""What the readers share: splits and unions, finding files cheaply, and saying what is wrong.

A reader looks at its folder when it is opened and parses a split when that is asked for, so that one
damaged or absent split does not stand in the way of another.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

from mmvicreg.data.card import Card
from mmvicreg.data.files import Files, list_folder
from mmvicreg.errors import UserError
from mmvicreg.registry import nearest
from mmvicreg.samples import Sample

SHOWN = 3
"""How many of many wrong things a message names before it counts the rest."""


class Reader(ABC):
    """A data set in a folder. Subclasses set ``card`` and fill in ``_find`` and ``_load``.

    Args:
        root: the folder (for a manifest, the file).

    Raises:
        UserError: the folder is missing, empty, or holds something else.
    """

    name: ClassVar[str]
    pairs: ClassVar[tuple[str, ...]]
    card: ClassVar[Card]
    alternatives: ClassVar[tuple[str, ...]] = ()
    """Other data sets whose default place is looked at when this one's is absent."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.classes: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._parsed: dict[str, Sequence[Sample]] = {}
        self._check_root()
        self._splits = self._find()

    def _check_root(self) -> None:
        check_folder(self.root, self.card)

    @abstractmethod
    def _find(self) -> tuple[str, ...]:
        """Look at the layout; return the names of the splits present."""

    @abstractmethod
    def _load(self, split: str) -> Sequence[Sample]:
        """Parse one split, files checked."""

    def _absent(self, split: str) -> str:
        """Where a split that is not here comes from: a sentence, after a space; empty where that is unknown."""
        return ""

    def splits(self) -> tuple[str, ...]:
        """Names of the splits present."""
        return self._splits

    def samples(self, split: str) -> Sequence[Sample]:
        """The samples of one split, in the publisher's order; ``"a+b"`` is a union, ``"all"`` everything.

        Raises:
            UserError: no such split, or something in it is missing or malformed.
        """
        names = list(self._splits) if split == "all" else [part.strip() for part in split.split("+")]
        for part in names:
            if part not in self._splits:
                raise UserError(
                    f"{self.name} at {self.root} has no split '{part}'{nearest(part, self._splits)}"
                    f" Known: {', '.join(self._splits)}, all; a+b is a union.{self._absent(part)}"
                )
            if names.count(part) > 1:
                raise UserError(f"the union '{split}' names the split '{part}' twice")
            if part not in self._parsed:
                self._parsed[part] = self._load(part)
        if len(names) == 1:
            return self._parsed[names[0]]
        union = [sample for part in names for sample in self._parsed[part]]
        seen: set[str] = set()
        for sample in union:
            if sample.id in seen:
                raise UserError(
                    f"{self.name} at {self.root}: the sample '{sample.id}' is in two of the splits {split}"
                )
            seen.add(sample.id)
        return union


def check_folder(root: Path, card: Card) -> None:
    """Raise :class:`UserError` with the way out unless ``root`` is a folder with something in it."""
    if not root.exists():
        raise UserError(f"{card.title} is not at {root}: no such folder. {card.way_out(root)}")
    if not root.is_dir():
        raise UserError(f"{card.title} is looked for in a folder, but {root} is a file.")
    if not list_folder(root):
        raise UserError(f"{card.title} is not at {root}: the folder is empty. {card.way_out(root)}")


def not_here(root: Path, card: Card, wanted: str) -> UserError:
    """The error for a folder that has other things in it, naming the data set it looks like."""
    found = looks_like(root, besides=card.name)
    seen = (
        (f"it looks like {found} (--dataset {found})" if " " not in found else f"it looks like {found}")
        if found
        else "it holds " + shorten(sorted(entry.name for entry in root.iterdir()))
    )
    return UserError(f"{card.title} is not at {root}: {wanted}, but {seen}. {card.way_out(root)}")


def looks_like(root: Path, *, besides: str = "") -> str | None:
    """Which known data set lies in a folder, or None. ``besides`` is not considered."""
    signs = (
        ("shapes", "shapes.json"),
        ("tones", "tones.json"),
        ("coco", "dataset_coco.json"),
        ("coco", "annotations/captions_*.json"),
        ("flickr8k", "dataset_flickr8k.json"),
        ("flickr8k", "Flicker8k_Dataset"),
        ("flickr30k", "dataset_flickr30k.json"),
        ("flickr30k", "flickr30k-images"),
        ("esc50", "meta/esc50.csv"),
        ("voc07", "ImageSets/Main/aeroplane_*.txt"),
        ("voc07", "VOC2007/ImageSets/Main/aeroplane_*.txt"),
        ("imagenet", "train/n01440764"),
        ("imagenet", "ILSVRC/Data/CLS-LOC"),
        ("manifest", "manifest.csv"),
        ("manifest", "manifest.jsonl"),
        ("webdataset", "*-[0-9]*.tar"),
    )
    for name, sign in signs:
        if name != besides and next(root.glob(sign), None) is not None:
            return name
    if {"train", "val"} & {entry.name for entry in root.iterdir() if entry.is_dir()}:
        return "a folder of pictures by class"
    return None


def read_json(path: Path, card: Card, root: Path) -> object:
    """Parse a JSON file in UTF-8.

    Raises:
        UserError: unreadable, or not JSON; the message says where it breaks.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            tree: object = json.load(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # the latter of thousands of brackets
        raise _broken_json(path, error, card, root) from error
    return tree


def csv_rows(path: Path, *, one_of: Sequence[str]) -> Iterator[tuple[int, str, Mapping[str, object]]]:
    """Rows of a table as (number, place for messages, column -> cell that is not empty).

    Args:
        path: a CSV file in UTF-8.
        one_of: its first line must name one of these columns.

    Raises:
        UserError: not readable as a table, no such first line, a column named twice, or a row of another length.
    """
    read = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            _check_header(table.fieldnames or [], path, one_of)
            read = table.line_num
            for number, cells in enumerate(table):
                where, read = f"{path}, line {table.line_num}", table.line_num
                if None in cells:
                    raise UserError(f"{where}: more cells than columns; a value with a comma needs quotes")
                if None in cells.values():
                    raise UserError(f"{where}: fewer cells than columns (truncated file?)")
                yield number, where, {key: value for key, value in cells.items() if value.strip()}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as a table: {error}; save it in UTF-8") from error
    except csv.Error as error:
        raise UserError(
            f"{path}: the row that begins in line {read + 1} is not CSV: {error}. Mend its quotes: one that begins a "
            "value also ends it, and one inside of it is written twice"
        ) from error


def _check_header(header: Sequence[str], path: Path, one_of: Sequence[str]) -> None:
    if header and not {*one_of} & {*header}:
        raise UserError(
            f"the first line of {path} must name its columns, {' or '.join(one_of)} among them; it has "
            f"{shorten(header)}{_what_to_mend(header, one_of)}"
        )
    if twice := duplicates(name for name in header if name):
        raise UserError(
            f"the first line of {path} names the column {shorten(twice)} more than once; rename or remove all but one"
        )


def _what_to_mend(header: Sequence[str], wanted: Sequence[str]) -> str:
    """What spreadsheets do to a first line: another separator, spaces, capitals; empty where it is none of them."""
    if header[0].lower().startswith("sep="):
        return ". Remove the line 'sep=', and separate the columns by commas"
    if len(header) == 1 and (found := [mark for mark in (";", "\t") if mark in header[0]]):
        mark = "a tab" if found[0] == "\t" else f"'{found[0]}'"
        return f". Its columns are separated by {mark}: save it with commas"
    if {*wanted} & {name.strip().lower() for name in header}:
        return ". Names of columns are in lower case, without spaces around them"
    return ""


def class_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Class names sorted, as numbers where all of them are."""
    names = set(labels)
    numbers = all(name.isdecimal() and len(name) < 1000 for name in names)  # int refuses thousands of digits
    return tuple(sorted(names, key=int) if numbers else sorted(names))


def unlabelled(labels: Sequence[str | None], place: Path) -> tuple[str, ...]:
    """A note where recordings have no class."""
    if any(label is not None for label in labels):
        return ()
    return (f"{place} has no column label: a run can be trained on it, and no probe",)


def _broken_json(path: Path, error: Exception, card: Card, root: Path) -> UserError:
    """The error for a JSON file that does not parse: truncated, or something else."""
    size = path.stat().st_size
    at_end = isinstance(error, json.JSONDecodeError) and error.pos >= len(error.doc.rstrip()) - 1
    why = "it is empty" if not size else "it ends too early (truncated?)" if at_end else str(error)
    return UserError(f"{path} is not valid JSON: {why}. Remove it and get it again. {card.way_out(root)}")


class MissingFilesError(UserError):
    """Files of a split that its list names are not there.

    Attributes:
        present: the samples whose files are there, for who counts them.
    """

    def __init__(self, message: str, present: Sequence[Sample] = ()) -> None:
        super().__init__(message)
        self.present = present


def check_present(
    samples: Sequence[Sample], what: Literal["pictures", "recordings"], source: Path, hint: str
) -> list[Sample]:
    """The samples, their files as the disk spells them (:meth:`mmvicreg.data.files.Files.find`).

    Args:
        samples: whose files must exist; those that have none of this kind are passed over.
        what: which of their files.
        source: the file that lists them.
        hint: the way out.

    Raises:
        MissingFilesError: files are missing; the first and their number are named.
        UserError: one file is listed in two spellings.
    """
    pictures, files = what == "pictures", Files()
    found: list[Sample] = []
    missing: list[str] = []
    respelt: dict[object, Path] = {}
    for sample in samples:
        path = sample.image if pictures else sample.audio
        there = files.find(path) if isinstance(path, Path) else path
        if path is not None and there is None:
            missing.append(str(path))
        elif path is there:
            found.append(sample)
        elif isinstance(there, Path):
            respelt[path] = there
            found.append(replace(sample, image=there) if pictures else replace(sample, audio=there))
    if missing:
        present = [sample for sample in found if (sample.image if pictures else sample.audio) is not None]
        raise MissingFilesError(
            f"{len(missing):,} of {len(missing) + len(present):,} {what} listed in {source} are missing: "
            f"{shorten(missing)}. {hint}",
            present,
        )
    listed = {sample.image if pictures else sample.audio for sample in samples} if respelt else {}
    if twice := duplicates(str(respelt.get(path, path)) for path in listed if path is not None):
        raise UserError(f"{source} lists the same file in two spellings that look alike: {shorten(twice)}")
    return found


def check_captions(captions: Sequence[object], image: str, source: Path) -> tuple[str, ...]:
    """The captions as they are, or :class:`UserError` naming the picture and position of an empty one."""
    if not captions:
        raise UserError(f"{source}: the picture '{image}' has no caption")
    good: list[str] = []
    for position, caption in enumerate(captions, start=1):
        if not isinstance(caption, str):
            raise UserError(f"{source}: caption {position} of the picture '{image}' is not text: {caption!r}")
        if not caption.strip():
            raise UserError(
                f"{source}: caption {position} of {len(captions)} of the picture '{image}' is empty; "
                "mend or remove it"
            )
        check_unicode(caption, f"{source}: caption {position} of the picture '{image}'")
        good.append(caption)
    return tuple(good)


def check_unicode(text: str, what: str) -> None:
    r"""Refuse half a character: JSON may say ``\ud83d``, which no tokeniser takes and no file in UTF-8 can hold.

    Raises:
        UserError: there is one in ``text``, which the message calls ``what``.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} holds half a character, {text[error.start]!a} (an emoji that was cut in two?); mend or remove it"
        ) from error


def check_inside(name: object, source: Path, folder: Path | None = None) -> str:
    """A file name from a data set's list, ``./`` and ``//`` taken out; refused when it leaves the data set's folder.

    Args:
        name: the name as it is listed.
        source: the list.
        folder: the data set's, where an absolute name of a file in it is taken too.

    Raises:
        UserError: it is not text, leads outside, or is absolute.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"{source}: a file name is missing or not text: {name!r}")
    path = PurePosixPath(name)
    if folder is not None and path.is_relative_to(folder.absolute()):
        path = path.relative_to(folder.absolute())
    if path.is_absolute():
        where = "the data set's folder" if folder is None else folder
        raise UserError(f"{source}: the file name '{name}' is an absolute path; give it relative to {where}")
    if ".." in path.parts:
        raise UserError(f"{source}: the file name '{name}' leads outside the data set's folder")
    return str(path)


def encode_name(name: str, what: str, root: Path) -> bytes:
    """A file name found below ``root`` as UTF-8, which everything that is written of samples is in.

    Raises:
        UserError: it is not UTF-8 on the disk; the message calls the file a ``what``.
    """
    try:
        return name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the name of the {what} {name!r} in {root} is not UTF-8; rename it") from error


def shorten(names: Sequence[str]) -> str:
    """The first few names and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def duplicates(names: Iterable[str]) -> list[str]:
    """Every name that occurs more than once, in order of its second appearance."""
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for name in names:
        if name in seen:
            twice[name] = None
        seen.add(name)
    return list(twice)
