"""What a data set is to the rest of the library: a list of samples per split."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an archive that is not compressed (a tar), read where it lies.

    Attributes:
        archive: the archive.
        name: its name in there.
        offset: where it begins, bytes.
        size: bytes.
    """

    archive: Path
    name: str
    offset: int
    size: int

    def open(self) -> BinaryIO:
        """Its content, in memory.

        Raises:
            OSError: the archive is not there, or ends before the file does.
        """
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError(f"the archive ends after {len(content)} of its {self.size} bytes")
        return io.BytesIO(content)

    @property
    def parent(self) -> Path:
        """What it lies in: the archive."""
        return self.archive

    def stat(self) -> os.stat_result:
        """The archive's: a file in it has changed when that has."""
        return self.archive.stat()

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


File: TypeAlias = Path | Member
"""Where a picture is."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing, and where its views are. A data set fills the fields it has.

    Attributes:
        id: unique within the data set (COCO's image id, a file name).
        image: picture, a file or inside an archive.
        captions: its captions, in the publisher's order.
        audio: recording file.
        label: class index into ``DataSet.classes``.
        fold: 1-based fold, for data sets published in folds.
        group: the source a fragment was cut from; groups never straddle folds.
        caption_ids: the publisher's id of each caption (COCO's annotation id), where it gives them.
        fault: why it lacks a picture or captions, where its reader found some and could not take them; who would read
            what is lacking says so, or leaves the sample out.
    """

    id: str
    image: File | None = None
    captions: tuple[str, ...] = ()
    audio: Path | None = None
    label: int | None = None
    fold: int | None = None
    group: str | None = None
    caption_ids: tuple[str, ...] = ()
    fault: str = ""

    def caption_id(self, position: int) -> str:
        """The publisher's id of one caption; where there is none, ``<sample id>#<position>``, from 0."""
        return self.caption_ids[position] if self.caption_ids else f"{self.id}#{position}"


class DataSet(Protocol):
    """A data set opened for reading at a root folder (or file, for a manifest).

    Opening one checks its layout and raises :class:`~mmvicreg.errors.UserError` naming what is missing
    and the command that gets it.
    """

    name: ClassVar[str]
    pairs: ClassVar[tuple[str, ...]]
    root: Path
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    """Things to say once when a run starts ("400 of ESC-50's 2 000 clips")."""

    def __init__(self, root: Path) -> None: ...

    def splits(self) -> tuple[str, ...]:
        """Names of the splits present, e.g. ``("train", "val", "test")`` or ``("fold1", ...)``."""
        ...

    def samples(self, split: str) -> Sequence[Sample]:
        """The samples of one split, in a fixed order, not to be changed. ``"a+b"`` is the union, ``"all"`` everything.

        Raises:
            UserError: no such split (the nearest and the known ones are named).
        """
        ...


def fingerprint(samples: Sequence[Sample]) -> dict[str, Any]:
    """How many samples there are, and a digest of their names in order; not of where they lie or what is in them."""
    names = hashlib.sha256("\n".join(sample.id for sample in samples).encode()).hexdigest()
    return {"samples": len(samples), "names": names}
