"""The library's progress bar, or none where the caller wants quiet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmvicreg.progress import progress_bar


@contextmanager
def counted(
    total: int | None, description: str, unit: str, *, progress: bool
) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; it is told of every so many units done."""
    if not progress:
        yield lambda n: None
        return
    with progress_bar(total, description, unit) as bar:
        yield bar.advance
