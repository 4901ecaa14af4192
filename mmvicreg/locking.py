"""One at a time: a lock that the system lets go of when its holder ends, however it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmvicreg.errors import UserError

PATIENCE = 20.0
"""Seconds: the loader workers of a process that was killed hold its locks until they notice that it is gone."""


@contextmanager
def locked(place: Path, *, create: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on a folder or file that is there, or on a file that is made for it.

    Args:
        place: the folder or file.
        create: it is a file for nothing but the lock, made where there is none. Between machines that share a
            disk only this serves: network file systems lock what is open for writing.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system: processes work side by side, the first one wins
        yield
        return
    handle = os.open(place, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder that is there, or refuse when another process does for longer than ``PATIENCE``.

    Args:
        folder: the folder.
        what: what the other process does there, for the message.

    Raises:
        UserError: it is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + PATIENCE
        while not _taken(fcntl.flock, handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if time.monotonic() > until:
                raise UserError(f"another process {what} {folder}; wait for it, or stop it first")
            time.sleep(0.2)
        yield
    finally:
        os.close(handle)


def free(file: Path) -> bool:
    """Whether a file made for :func:`locked` is there and its holder gone; False where that cannot be told."""
    try:
        import fcntl

        handle = os.open(file, os.O_RDWR)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _taken(flock: Callable[[int, int], None], handle: int, operation: int) -> bool:
    try:
        flock(handle, operation)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: side by side, as before
        return True
    return True
