"""Fixtures of the data sets' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from file_server import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on this machine."""
    with serving() as state:
        yield state
