"""The one progress bar: to stderr, silent unless stderr is a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Bar:
    """A running progress bar; see :func:`progress_bar`."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more units as done."""
        self._progress.advance(self._task, n)

    def say(self, status: str) -> None:
        """Show ``status`` behind the bar until the next call."""
        self._progress.update(self._task, status=status)


class _Rate(ProgressColumn):
    """Units per second, in the unit of the task."""

    def render(self, task: object) -> Text:
        speed = getattr(task, "speed", None)
        unit = getattr(task, "fields", {}).get("unit", "")
        if not speed:
            return Text("")
        if unit == "B":
            return Text(f"{speed / 1e6:.1f} MB/s", style="dim")
        return Text(f"{speed:.1f} {unit}/s", style="dim")


@contextmanager
def progress_bar(total: int | None, description: str, unit: str, *, visible: bool = True) -> Iterator[Bar]:
    """Show progress through ``total`` units (``None``: unknown) while the block runs.

    Args:
        total: how many units there are.
        description: what is being done, in a few words.
        unit: name of one unit for the rate ("file"); ``"B"`` counts bytes and shows MB/s.
        visible: false shows nothing (one process of several speaks for all).
    """
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn() if unit != "B" else TextColumn("{task.percentage:>3.0f} %"),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        console=console,
        disable=not (visible and console.is_terminal),
    )
    with progress:
        yield Bar(progress, progress.add_task(description, total=total, unit=unit, status=""))
