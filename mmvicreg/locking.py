"""One at a time: a lock that the system lets go of when its holder ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
