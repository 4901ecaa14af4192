"""Listing pictures by the million: names in one block of bytes, samples made when they are asked for.

A ``Sample`` with its path takes about 800 bytes, so that ImageNet as a list would take 1 GB, and as much again
in every loader worker: counting references writes to each object, which ends the sharing of memory after a fork.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np

from mmvicreg.data.reader import encode_name, shorten
from mmvicreg.errors import UserError
from mmvicreg.samples import Sample

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""File names, in any case, that are taken for pictures."""


class Pictures(Sequence[Sample]):
    """Labelled pictures below a folder, about 40 bytes each.

    Args:
        root: what the names are relative to.
        names: paths below ``root``, ``/`` between their parts; a sample's id is its name.
        labels: the class of each, or None where there are no classes.

    Raises:
        UserError: a name that is not UTF-8.
    """

    def __init__(self, root: Path, names: Iterable[str], labels: Sequence[int] | None) -> None:
        self.root = root
        block, ends = bytearray(), []
        for name in names:
            block += encode_name(name, "picture", root)
            ends.append(len(block))
        # arrays, not bytes and lists: nothing in them counts references
        self._names = np.frombuffer(bytes(block), dtype=np.uint8)
        self._ends = np.array([0, *ends], dtype=np.int64)
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int32)
        if self.labels is not None and len(self.labels) != len(self):
            raise ValueError(f"{len(self.labels)} labels for {len(self)} names")

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        name = self._names[self._ends[place] : self._ends[place + 1]].tobytes().decode("utf-8")
        label = None if self.labels is None else int(self.labels[place])
        return Sample(id=name, image=self.root / name, label=label)

    def __iter__(self) -> Iterator[Sample]:
        return (self[place] for place in range(len(self)))


def list_pictures(folder: Path) -> tuple[list[str], int]:
    """The pictures of a folder and of those inside it, sorted, and how many files are none by their names.

    Hidden files are passed over, and links to folders followed, as torchvision's ImageFolder does, but not to one that
    they lie in, however far above: it holds what is of other classes. No file is opened or asked for: on a
    million files that is the difference between seconds and minutes.

    Returns:
        Paths relative to ``folder``.
    """
    found: list[str] = []
    others = 0
    for name in files_below(folder, SUFFIXES):
        if is_picture(name):
            found.append(name)
        else:
            others += 1
    return sorted(found), others


def holds_pictures(folder: Path, least: int = 1) -> bool:
    """Whether there are so many pictures in a folder and in those inside it; listing ends when there are."""
    return len(list(islice(filter(is_picture, files_below(folder, SUFFIXES)), least))) == least


def files_below(folder: Path, suffixes: tuple[str, ...], *, links: bool = True) -> Iterator[str]:
    """The files of a folder and of those inside it, relative to it, in no order; ``links``: folders linked into it too.

    A link whose name has one of ``suffixes`` is taken for such a file without being asked for, so that one whose target
    is gone is found missing when it is read.
    """
    real = os.path.realpath(folder)
    # a class folder may be a link itself: it lies in what holds the link too
    lies_in = _and_above(real) | _and_above(os.path.realpath(folder.parent))
    waiting = [("", real, lies_in)]  # where it is, where it really is, and that of all it lies in
    while waiting:
        inside, real, above = waiting.pop()
        try:
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        target = f"{real}{os.sep}{entry.name}"
                    elif _links_folder(entry, suffixes):
                        if not links:
                            continue
                        target = os.path.realpath(entry.path)
                    else:
                        yield inside + entry.name
                        continue
                    if target not in above:
                        waiting.append((f"{inside}{entry.name}/", target, above | _and_above(target)))
        except OSError as error:
            raise UserError(f"cannot list {folder / inside}: {error.strerror}") from error


def _and_above(folder: str) -> frozenset[str]:
    """A folder and all that it lies in."""
    return frozenset({folder, *map(str, Path(folder).parents)})


def is_picture(name: str) -> bool:
    """Whether a file name is that of a picture."""
    return name.lower().endswith(SUFFIXES)


def _links_folder(entry: os.DirEntry[str], suffixes: tuple[str, ...]) -> bool:
    return entry.is_symlink() and not entry.name.lower().endswith(suffixes) and Path(entry).is_dir()


def subfolders(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """The names of the folders in a folder (links to folders too), sorted; hidden ones are passed over.

    Links whose names have one of ``suffixes`` are those of files (:func:`files_below`).

    Raises:
        UserError: it cannot be listed, or holds a link to what is not there, which may have been a class.
    """
    found: list[str] = []
    gone: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    found.append(entry.name)
                elif (
                    entry.is_symlink()
                    and not entry.name.lower().endswith(suffixes)
                    and not Path(entry).exists()
                ):
                    gone.append(entry.name)
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from error
    if gone:
        raise UserError(
            f"{folder} holds links to what is not there: {shorten(sorted(gone))}; mend or remove them"
        )
    return sorted(found)


def loose_pictures(folder: Path) -> list[str]:
    """The names of the pictures that lie in a folder itself, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if is_picture(entry.name) and not entry.name.startswith(".") and not entry.is_dir()
            )
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from error
