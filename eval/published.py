"""The tables of the VICReg paper, as data: ``eval/paper/tableNN.yaml``."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated

import yaml
from pydantic import Field, model_validator

from mmvicreg.errors import UserError
from mmvicreg.strict import Strict


class Row(Strict):
    """One method's numbers, in the order of the table's columns.

    A null was not measured; a word ("collapse") stands where the paper prints one.
    """

    method: str
    values: list[float | str | None]


class Elsewhere(Strict):
    """A figure that others published on the same data.

    Attributes:
        method: whose network.
        reads: its input.
        top1: percent.
        source: where it was published, and how it was measured.
    """

    method: str
    reads: str
    top1: float
    source: str


class Table(Strict):
    """A published table.

    Attributes:
        table: its number in the paper.
        title: what was measured.
        source: where it was published.
        metric: quantity and unit of the values.
        corrected: whether it differs from print; ``notes`` say how and why.
        notes: what a reader must know to compare with it.
        columns: names of the columns.
        rows: one method a row.
        elsewhere: figures of others that are not in the paper.
    """

    table: int
    title: str
    source: str
    metric: str
    corrected: bool
    notes: tuple[str, ...] = ()
    columns: Annotated[list[str], Field(min_length=1)]
    rows: Annotated[list[Row], Field(min_length=1)]
    elsewhere: tuple[Elsewhere, ...] = ()

    @model_validator(mode="after")
    def _rectangular(self) -> Table:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(
                    f"table {self.table}: {row.method} has {len(row.values)} values, not {len(self.columns)}"
                )
        return self

    def value(self, method: str, column: str) -> float | str | None:
        """One entry; of several rows of one method, the first.

        Raises:
            KeyError: no such method or column.
        """
        for row in self.rows:
            if row.method == method and column in self.columns:
                return row.values[self.columns.index(column)]
        raise KeyError(f"table {self.table} has no '{column}' of '{method}'")


def published_numbers() -> list[int]:
    """Numbers of the tables that are there."""
    names = (entry.name for entry in files("mmvicreg.eval").joinpath("paper").iterdir())
    return sorted(int(name[5:-5]) for name in names if name.startswith("table") and name.endswith(".yaml"))


def published(number: int) -> Table:
    """A table of the paper by its number.

    Raises:
        UserError: there is no such table; the known numbers are named.
    """
    known = published_numbers()
    if number not in known:
        raise UserError(f"no published table {number}. Known: {', '.join(map(str, known))}.")
    file = files("mmvicreg.eval").joinpath("paper", f"table{number:02d}.yaml")
    return Table.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
