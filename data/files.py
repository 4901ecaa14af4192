"""Which files are there, by listing each folder once instead of asking for each file."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from mmvicreg.errors import UserError


class Files:
    """The files that are there, as far as they were asked for."""

    def __init__(self) -> None:
        self._listed: dict[Path, frozenset[str]] = {}

    def __contains__(self, path: Path) -> bool:
        return path.name in self._names(path.parent)

    def find(self, path: Path) -> Path | None:
        """A file as the disk spells it, or None where it is not there.

        Letters with accents are one character or two (Unicode's NFC and NFD), which look alike and are different names:
        an archive made on a Mac may hold the one where its table has the other.
        """
        if path in self:
            return path
        folder = path.parent
        if not self._names(folder):
            above = None if folder == folder.parent else self.find(folder)
            if above is None:
                return None
            folder = above
        spellings = (
            path.name,
            unicodedata.normalize("NFC", path.name),
            unicodedata.normalize("NFD", path.name),
        )
        return next((folder / name for name in spellings if name in self._names(folder)), None)

    def _names(self, folder: Path) -> frozenset[str]:
        if folder not in self._listed:
            self._listed[folder] = list_folder(folder)
        return self._listed[folder]


def list_folder(folder: Path) -> frozenset[str]:
    """Names of everything in a folder; none where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from error
