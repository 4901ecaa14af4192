"""Tables and sentences for people, on stdout."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

_WIDE = 400
"""Columns of a file or a pipe, where a line may be as long as a table needs."""


def console() -> Console:
    """Where tables go: stdout, as wide as they are when it is not a terminal; text is never markup."""
    width = None if sys.stdout.isatty() else _WIDE
    return Console(width=width, highlight=False, markup=False, emoji=False)


def print_table(table: Table) -> None:
    """Print a table with all that is in it: where a terminal is too narrow, cells go over several lines.

    (By default rich cuts them short, so that a fold's figure or a checksum is not there to be read.)
    """
    out = console()
    for column in table.columns:
        column.no_wrap, column.overflow = False, "fold"
    if out.measure(table, options=out.options.update(max_width=_WIDE)).maximum > out.width:
        table.padding = (0, 0, 0, 0)  # two columns more for each
    out.print(table)
