"""Fetching what a card lists: resumed where it stopped, checked, unpacked.

A file grows as ``<name>.part`` and gets its name when its size and checksum are right. What was unpacked
is written down in ``.downloaded/``, so a second call fetches nothing that is there; with it the checksums that a
zip has of its members, which is all that a publisher without checksums gives to hold the files against.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmvicreg.data.bars import counted
from mmvicreg.data.card import Card, RemoteFile
from mmvicreg.data.files import Files
from mmvicreg.data.unpack import check_room, unpack
from mmvicreg.errors import UserError
from mmvicreg.locking import locked

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""


@dataclass(frozen=True)
class Downloader:
    """How files are fetched.

    Attributes:
        mirror: base URL; a file is then taken from ``<mirror>/<file name>`` instead of its publisher.
        retries: attempts in a row that bring nothing before giving up.
        pause: seconds before the second attempt, doubled each time.
        progress: show bars.
        sleep: how to wait.
        moved: the way out that is named where a server refuses.
        checked: hold files against the sizes and checksums on the card; without, whatever comes is taken (a part
            of the data set, or another packing of it), and a later checked call fetches it anew.
    """

    mirror: str | None = None
    retries: int = 5
    pause: float = 0.5
    progress: bool = True
    sleep: Callable[[float], None] = time.sleep
    moved: str = "if it has moved, give another place: --mirror"
    checked: bool = True

    def __post_init__(self) -> None:
        if self.mirror is not None and not self.mirror.startswith(("http://", "https://")):
            raise UserError(f"the mirror '{self.mirror}' is not a http:// or https:// address")

    def get(self, card: Card, root: Path, *, layout: str | None = None) -> list[str]:
        """Fetch and unpack every file of a card into ``root``.

        Args:
            card: what to fetch.
            root: the data set's folder, made where it is absent.
            layout: which of the published layouts; None: the card's first.

        Returns:
            What happened, a line a file.

        Raises:
            UserError: nothing to download (the message tells the way), too little room, a server that
                refuses or keeps failing, or a file whose size or checksum is wrong.
        """
        if not card.files:
            raise UserError(f"{card.title} is not downloaded. {card.way_out(root)}")
        files = card.files_of(layout)
        if not self.checked:
            files = tuple(replace(file, size=None, sha256=None, md5=None) for file in files)
        if root.exists() and not root.is_dir():
            raise UserError(f"{root} is a file; --data-root names the folder to download into")
        try:
            root.mkdir(parents=True, exist_ok=True)
            with locked(root):
                todo = [file for file in files if not _fetched(file, root, checked=self.checked)]
                self._check_room(todo, root)
                done = [f"{file.path}: already there" for file in files if file not in todo]
                return done + [self._fetch(file, root) for file in todo]
        except OSError as error:
            raise UserError(f"cannot download into {root}: {error.strerror or error}") from error

    def fetch(self, url: str, path: Path) -> None:
        """Fetch a single file that is of no data set; one that is there already stays.

        Args:
            url: where it is.
            path: what it is called here; its folder is made where it is absent.

        Raises:
            UserError: as :meth:`get`.
        """
        file = RemoteFile(url=url, path=path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.parent):
                if not path.is_file():
                    self._check_room([file], path.parent)
                    self._transfer(file, path)
        except OSError as error:
            raise UserError(f"cannot download {url} to {path}: {error.strerror or error}") from error

    def url(self, file: RemoteFile) -> str:
        """Where a file is fetched from."""
        return f"{self.mirror.rstrip('/')}/{file.path}" if self.mirror else file.url

    def _fetch(self, file: RemoteFile, root: Path) -> str:
        path = root / file.path
        if not (path.is_file() and not wrong(path, file)):
            self._transfer(file, path)
        if not file.extract:
            return f"{file.path}: fetched"
        try:
            names: list[str] | dict[str, str]
            if file.unpacker is not None:
                names = file.unpacker(path, root, self.progress)
            else:
                names = unpack(path, root, file, progress=self.progress)
        except UserError as error:
            if file.algorithm is not None:
                raise UserError(
                    f"{error}. {path} stays: its {file.algorithm} is the published one, so that fetching it again "
                    "would bring the same"
                ) from error
            # Nothing vouches for it: the next call must fetch it anew.
            path.unlink(missing_ok=True)
            raise UserError(f"{error}. It was removed: run the command again to fetch it anew") from error
        _write_receipt(file, root, names, checked=self.checked)
        path.unlink()
        return f"{file.path}: fetched, {len(names):,} files unpacked"

    def _transfer(self, file: RemoteFile, path: Path) -> None:
        """Bring a file to ``path``, over as many connections as it takes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        failures, most = 0, _size(part)
        while True:
            try:
                _continue(self.url(file), part, file, progress=self.progress)
                break
            except (_LostError, OSError, http.client.HTTPException) as error:
                _raise_if_final(self.url(file), error, self.moved)
                # Only what nobody has seen before counts as progress: a server that cannot continue may
                # bring the same beginning for ever.
                failures = 1 if _size(part) > most else failures + 1
                most = max(most, _size(part))
                if failures >= self.retries:
                    raise UserError(
                        f"{self.url(file)} failed {failures} times ({_reason(error)}); the "
                        f"{_size(part):,} bytes that came are kept: run the command again to continue"
                    ) from error
                self.sleep(self.pause * 2 ** (failures - 1))
        problem = wrong(part, file)
        _validator(part).unlink(missing_ok=True)
        if problem:
            part.unlink()
            raise UserError(
                f"{self.url(file)} came with the wrong {problem}. It was removed: run the command again; if "
                "that does not help, the file at its source has changed"
            )
        part.replace(path)

    def _check_room(self, files: list[RemoteFile], root: Path) -> None:
        sizes = {file.path: file.size if file.size is not None else self._ask_size(file) for file in files}
        coming = sum(
            max(0, size - max(_size(root / f"{path}.part"), _size(root / path)))
            for path, size in sizes.items()
        )
        # Archives go as soon as they are unpacked, so only one of them lies beside its contents.
        unpacked = max((sizes[file.path] for file in files if file.extract), default=0)
        parts = f" ({coming / 1e9:.1f} GB to fetch, {unpacked / 1e9:.1f} GB to unpack)" if unpacked else ""
        check_room(coming + unpacked, root, f"the download{parts}")

    def _ask_size(self, file: RemoteFile) -> int:
        """The size the server tells, 0 where it does not."""
        request = urllib.request.Request(self.url(file), method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return _told_size(response) or 0
        except (OSError, http.client.HTTPException):
            return 0


class _LostError(Exception):
    """The connection ended before the file did."""


def _continue(url: str, part: Path, file: RemoteFile, *, progress: bool) -> None:
    """Ask for what is missing of ``part`` and append it; start over where the server cannot continue."""
    have = _size(part)
    headers = {"Accept-Encoding": "identity", "User-Agent": "mmvicreg"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _validator(part).is_file():  # continue only if it is still the same file
            headers["If-Range"] = _validator(part).read_text(encoding="utf-8")
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # all of it was there already
        part.unlink()
        raise _LostError("the server has less than came before; starting over") from error
    with response:
        resumed = response.status == 206
        if resumed and not str(response.headers.get("Content-Range")).startswith(f"bytes {have}-"):
            part.unlink()
            raise _LostError("the server continued at another place; starting over")
        start = have if resumed else 0
        told = _told_size(response)
        total = None if told is None else told + start
        if total is not None and file.size is not None and total != file.size:
            raise UserError(
                f"{url} has {total:,} bytes where {file.size:,} are published: it is another file; "
                "nothing was fetched"
            )
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if validator and not validator.startswith("W/"):
            _validator(part).write_text(validator, encoding="utf-8")
        with (
            part.open("ab" if resumed else "wb") as out,
            counted(total, f"Fetching {file.path}", "B", progress=progress) as advance,
        ):
            advance(start)
            while chunk := response.read1(CHUNK):
                out.write(chunk)
                advance(len(chunk))
    if total is not None and _size(part) < total:
        raise _LostError(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _told_size(response: http.client.HTTPResponse) -> int | None:
    """Bytes of an answer's body by its header; None where that is absent or no number."""
    told = response.headers.get("Content-Length", "").strip()
    return int(told) if told.isdecimal() and len(told) < 20 else None


def _raise_if_final(url: str, error: Exception, moved: str) -> None:
    """Raise unless another attempt may help: a server's refusal, or a fault on this side (no room)."""
    if isinstance(error, urllib.error.HTTPError):
        if error.code not in {408, 425, 429} and error.code < 500:
            raise UserError(f"{url} answers {error.code} {error.reason}; {moved}") from error
    elif isinstance(error, OSError) and not isinstance(
        error, urllib.error.URLError | TimeoutError | ConnectionError | ssl.SSLError
    ):
        raise error


def _reason(error: Exception) -> str:
    return str(error.reason if isinstance(error, urllib.error.URLError) else error) or type(error).__name__


def wrong(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with a fetched file, both values named, or None."""
    if file.size is not None and _size(path) != file.size:
        return f"size: {path.name} has {_size(path):,} bytes, {file.size:,} are published"
    if file.algorithm is None:
        return None
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, file.algorithm).hexdigest()
    wanted = file.sha256 or file.md5
    return None if found == wanted else f"{file.algorithm}: {path.name} has {found}, published is {wanted}"


def _fetched(file: RemoteFile, root: Path, *, checked: bool) -> bool:
    """Whether a file is there: itself, or, for an archive, everything that was unpacked from it."""
    path = root / file.path
    if not file.extract:
        return path.is_file() and wrong(path, file) is None
    receipt = _read_receipt(file, root)
    if receipt.get("members") != list(file.members):
        return False
    if checked and not receipt.get("checked", True):
        return False
    present = Files()
    return all(root / name in present for name in receipt["unpacked"])


def unpacked_checksums(file: RemoteFile, root: Path) -> dict[str, str]:
    """CRC-32 (hexadecimal) of every file that was unpacked from a zip into ``root``, as the zip has it.

    Empty where it was not downloaded by this program, or is no zip.
    """
    unpacked = _read_receipt(file, root).get("unpacked")
    return unpacked if isinstance(unpacked, dict) else {}


def _read_receipt(file: RemoteFile, root: Path) -> dict[str, Any]:
    try:
        receipt = json.loads(_receipt(file, root).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return receipt if isinstance(receipt, dict) else {}


def _write_receipt(file: RemoteFile, root: Path, names: list[str] | dict[str, str], *, checked: bool) -> None:
    path = _receipt(file, root)
    path.parent.mkdir(exist_ok=True)
    receipt = {"url": file.url, "members": list(file.members), "unpacked": names, "checked": checked}
    path.write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")


def _receipt(file: RemoteFile, root: Path) -> Path:
    return root / ".downloaded" / f"{file.path}.json"


def _validator(part: Path) -> Path:
    """Where the server's name for the version of the file is kept (its ETag, or its date)."""
    return part.with_name(part.name + ".version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
