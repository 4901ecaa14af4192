"""Fixtures of the data sets' tests."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from file_server import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on this machine."""
    with serving() as state:
        yield state


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """``unlisted(folder)`` makes it as another user's of mode 700 is; root may list every folder, so by pretence."""

    def make(locked: Path) -> None:
        scandir = os.scandir

        def denied(path: Any = ".") -> Any:
            if not isinstance(path, int) and Path(path) == locked:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", denied)

    return make
