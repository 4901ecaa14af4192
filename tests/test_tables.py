"""Tables on narrow terminals: folded, never cut."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table

from mmvicreg.tables import print_table

LABEL = "barlow_twins, this run (transductive)"
CHECKSUM = "0123456789abcdef" * 4


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [60, 80, 120, None])
def test_every_character_of_a_cell_is_printed(monkeypatch: pytest.MonkeyPatch, columns: int | None) -> None:
    """Method, branches, mean and deviation and five folds, as eval linear prints them; None: into a file."""
    out = io.StringIO() if columns is None else Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    table = Table()
    folds = [f"fold {number}" for number in range(1, 6)]
    for heading in ("method", "frozen representation", "top-1", "top-5", *folds, "width"):
        table.add_column(heading, no_wrap=True)
    cells = [LABEL, "wave+mel", "77.5 ± 12.3", CHECKSUM, *(f"{value}.5" for value in range(71, 76)), "896"]
    table.add_row(*cells)
    print_table(table)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("│")]
    assert max(map(len, lines)) <= (columns or 400)
    printed = ["".join(parts) for parts in zip(*(line.split("│")[1:-1] for line in lines), strict=True)]
    assert [text.replace(" ", "") for text in printed] == [cell.replace(" ", "") for cell in cells]
    if columns is None:
        assert len(lines) == 1
    assert "…" not in out.getvalue()
