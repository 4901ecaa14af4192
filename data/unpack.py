"""Unpacking a data set's archive: only what is wanted, only inside the folder, each file whole."""

from __future__ import annotations

import csv
import io
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from mmvicreg.data.bars import counted
from mmvicreg.data.card import RemoteFile
from mmvicreg.errors import UserError


def unpack(path: Path, root: Path, file: RemoteFile, *, progress: bool = True) -> dict[str, str]:
    """Unpack a zip below ``root``; files already there in full are left alone.

    Args:
        path: the archive.
        root: the data set's folder.
        file: which members are wanted, and the leading folder to drop.
        progress: show a bar.

    Returns:
        The files unpacked, relative to ``root``, and the CRC-32 that the archive gives each, hexadecimal.

    Raises:
        UserError: not a zip, a damaged or encrypted member, a member that leads outside ``root``, nothing
            of what is wanted, or too little room.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            chosen = _choose(archive, path, root, file)
            check_room(sum(info.file_size for info in chosen.values()), root, f"unpacking {path.name}")
            with counted(len(chosen), f"Unpacking {path.name}", "files", progress=progress) as advance:
                for target, info in chosen.items():
                    _extract(archive, info, target)
                    advance(1)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path} cannot be unpacked ({error})") from error
    except OSError as error:
        raise UserError(f"cannot unpack {path} into {root}: {error.strerror or error}") from error
    return {target.relative_to(root).as_posix(): f"{info.CRC:08x}" for target, info in chosen.items()}


def _choose(
    archive: zipfile.ZipFile, path: Path, root: Path, file: RemoteFile
) -> dict[Path, zipfile.ZipInfo]:
    """Target -> member, for the members wanted."""
    rows = _rows(archive, path, file)
    chosen: dict[Path, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename
        relative = PurePosixPath(name.removeprefix(file.strip))
        mode = info.external_attr >> 16
        if PurePosixPath(name).is_absolute() or ".." in relative.parts or "\\" in name or ":" in name:
            raise UserError(f"{path}: the member '{name}' leads outside {root}; nothing was unpacked")
        if stat.S_ISLNK(mode):
            raise UserError(f"{path}: the member '{name}' is a link; nothing was unpacked")
        if info.is_dir() or (file.members and not name.startswith(file.members)):
            continue
        if file.only and rows is not None and name.startswith(file.only.folder) and name not in rows:
            continue
        chosen[root / relative] = info
    if not chosen:
        wanted = ", ".join(file.members) or "any file"
        raise UserError(f"{path} holds nothing of what is wanted ({wanted}); it is another archive")
    return chosen


def _rows(archive: zipfile.ZipFile, path: Path, file: RemoteFile) -> set[str] | None:
    """The members that the filter's table says True for; None without a filter."""
    if file.only is None:
        return None
    try:
        text = archive.read(file.only.table).decode("utf-8-sig")
    except (KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path} has no readable {file.only.table}; it is another archive") from error
    table = csv.DictReader(io.StringIO(text))
    return {file.only.folder + row["filename"] for row in table if row.get(file.only.column) == "True"}


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    if target.is_file() and target.stat().st_size == info.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    with archive.open(info) as source, partial.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
    partial.replace(target)


def check_room(needed: int, root: Path, what: str) -> None:
    """Raise :class:`UserError` unless ``needed`` bytes are free at ``root``."""
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB at {root}, where {free / 1e9:.1f} GB are free; "
            "free some, or choose another place with --data-root"
        )
