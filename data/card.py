"""A data set's card: where it comes from, what may be done with it, and what a whole copy holds."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from mmvicreg import registry
from mmvicreg.errors import UserError


@dataclass(frozen=True)
class TableFilter:
    """Which files of an archive's folder are wanted, said by a table in the archive.

    Attributes:
        table: the CSV member; its column ``filename`` names files of ``folder``.
        column: the column that says True for a wanted file.
        folder: the folder, with a slash at its end.
    """

    table: str
    column: str
    folder: str


@dataclass(frozen=True)
class RemoteFile:
    """One file to download.

    Attributes:
        url: where the publisher keeps it.
        path: where it lands, relative to the data set's root.
        size: bytes, or None where nobody has published it.
        sha256: hexadecimal digest, or None.
        md5: hexadecimal digest, or None; checked where there is no sha256.
        extract: it is an archive to unpack into the root, after which it is deleted.
        unpacker: what unpacks an archive that is no zip; it is given the archive, the root and whether to show a
            bar, and returns the files it wrote, relative to the root.
        members: prefixes of the members to unpack; empty: all of them.
        layouts: the published layouts (keys of ``Card.counts``) that need it; empty: all.
        only: of the members in a table's folder, those whose row says True.
        strip: this leading folder of the archive is dropped ("ESC-50-master/").
    """

    url: str
    path: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    extract: bool = False
    unpacker: Callable[[Path, Path, bool], list[str]] | None = None
    members: tuple[str, ...] = ()
    strip: str = ""
    only: TableFilter | None = None
    layouts: tuple[str, ...] = ()

    @property
    def algorithm(self) -> str | None:
        """Of the known checksum, as hashlib calls it."""
        return "sha256" if self.sha256 else "md5" if self.md5 else None

    @property
    def checksum(self) -> str:
        """The known checksum in words, for tables."""
        if self.sha256:
            return f"sha256 {self.sha256}"
        return f"md5 {self.md5}" if self.md5 else "not published / not checked"


@dataclass(frozen=True)
class Card:
    """What a person should know before using a data set, and what ``verify`` holds a copy against.

    Attributes:
        name: its name in the registry.
        title: its name in the world.
        source: pages that describe it.
        licence: what its publisher allows.
        description: one paragraph.
        pairs: the pairs it can train.
        splits: names of its splits.
        counts: split -> samples in the whole published set, one mapping per published layout.
        classes: how many classes the whole published set has; None where it has none.
        unions: unions of splits that are published as one (COCO's train+restval).
        captions_each: captions of each picture that evaluation takes, which every picture must have; 0: any number.
        files: what ``download`` fetches; empty where the publisher wants to be asked, or where it is made.
        manual: how to get what cannot be downloaded without a person; empty where everything can.
        made: the project makes it itself (``mmvicreg data make NAME``).
        citation: whom to cite.
    """

    name: str
    title: str
    source: tuple[str, ...]
    licence: str
    description: str
    pairs: tuple[str, ...]
    splits: tuple[str, ...]
    citation: str
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: MappingProxyType({}))
    classes: int | None = None
    unions: tuple[str, ...] = ()
    captions_each: int = 0
    files: tuple[RemoteFile, ...] = ()
    manual: str = ""
    made: bool = False

    def files_of(self, layout: str | None) -> tuple[RemoteFile, ...]:
        """The files of one published layout; None: the first.

        Raises:
            UserError: the data set is not published in such a layout.
        """
        if layout is None:
            layout = next(iter(self.counts), "")
        elif layout not in self.counts:
            raise UserError(
                f"{self.title} has no layout '{layout}'{registry.nearest(layout, self.counts)}"
                f" Known: {', '.join(self.counts) or 'none'}."
            )
        return tuple(file for file in self.files if not file.layouts or layout in file.layouts)

    def lacking(self, split: str, found: int, layout: str | None = None) -> tuple[str, ...]:
        """A note where a split has another number of samples than the published set of that layout."""
        published = self.counts.get(layout or next(iter(self.counts), ""), {}).get(split, found)
        if found == published:
            return ()
        return (f"{found:,} of {self.title}'s {published:,} pictures in the split {split}",)

    def way_out(self, root: Path) -> str:
        """The sentence that ends an error about data missing at ``root``: the command that gets it."""
        if self.made:
            return f"Make it with: mmvicreg data make {self.name} --data-root {shlex.quote(str(root))}"
        command = f"mmvicreg data download {self.name} --data-root {shlex.quote(str(root))}"
        if self.files and self.manual:
            return f"{self.manual} The rest comes with: {command}"
        return f"Get it with: {command}" if self.files else self.manual


def card_of(name: str) -> Card:
    """The card of the data set registered as ``name``.

    Raises:
        UserError: no such data set, or one (of another package) that has no card.
    """
    cls = registry.DATASETS.load(name)
    card = getattr(cls, "card", None)
    if not isinstance(card, Card):
        raise UserError(f"the data set '{name}' ({cls.__module__}.{cls.__qualname__}) has no card")
    return card
