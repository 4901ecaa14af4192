"""What the classification protocols report alike: where the result is from, published rows, one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table as RichTable

from mmvicreg.eval.labelled import Labelled, image_branches
from mmvicreg.eval.output import Report, number, origin, say_skipped, short
from mmvicreg.eval.probe import TOP5_CLASSES, chance_level
from mmvicreg.eval.published import published
from mmvicreg.eval.trained_data import elsewhere
from mmvicreg.runs import Run, check_writable
from mmvicreg.samples import DataSet
from mmvicreg.tables import console, print_table
from mmvicreg.training.distributed import World
from mmvicreg.training.log import say

WHOLE = {
    "imagenet": (1000, 1_281_167, 50_000),
    "places205": (205, 2_448_873, 20_500),
    "inat18": (8_142, 437_513, 24_426),
}
"""Data set -> its classes, training and test pictures as they were published, which the paper's rows are of."""

LARGE = frozenset(
    {"resnet50x2", "resnet50x4", "narrow_resnet50x2", "narrow_resnet50x4", "resnet200x2", "resnext101_32x16d"}
)
"""Encoders that the paper has in tables of their own (9 and 10), beside those of a ResNet-50 (1)."""

ENCODER = {1: "resnet50", 2: "resnet50", 11: "resnet50"}
"""Table -> the encoder of all its rows; those of 9 and 10 name theirs."""


def tops(classes: int) -> tuple[int, ...]:
    """Which top-k accuracies are reported: top-5 where it means something."""
    return (1, 5) if classes > TOP5_CLASSES else (1,)


def about(run: Run, branch: str, found: Labelled, command: str) -> Report:
    """What a result was measured on, and where it comes from."""
    return {
        "branch": branch,
        "encoder": run.recipe.branches[branch].encoder["name"],
        "dataset": found.data.name,
        "train_split": found.train_split,
        "split": found.split,
        "classes": found.classes,
        "train": len(found.train),
        "test": len(found.test),
        "chance": chance_level(found.train_labels, found.test_labels, classes=found.classes),
        "seen_in_pretraining": found.seen,
        "doubt": found.doubt,
        "skipped": 0,
        **found.left_out,
        **origin(run, command),
    }


def announce(world: World, data: DataSet) -> None:
    """Say once what a data set wants said of itself (what was held out, what is missing)."""
    for note in data.notes if world.is_main else ():
        say(note)


def report_file(
    run: Run,
    protocol: str,
    branch: str,
    split: str,
    data: DataSet,
    *,
    own: bool,
    changed: Mapping[str, object],
) -> Path:
    """``eval/<protocol>[-<data set>][-<branch>]-<split>[-<flag>=<value>...].json``, to be asked for before the work.

    Data set and branch are named where they are not the run's only ones, and what is not the protocol's default
    always: a trial of one epoch must not take the place of a result by the published schedule. So are data that are
    others under the name of the run's (:func:`mmvicreg.eval.trained_data.elsewhere`).

    Args:
        run: whose folder it lies in.
        protocol: what was judged.
        branch: of the run.
        split: what is tested on.
        data: the data set.
        own: whether it is the run's own.
        changed: flag -> value of what is not at its default; True: the flag stands alone.

    Raises:
        UserError: it cannot be written there.
    """
    all_changed = {**changed, **elsewhere(run, data)}
    words = [
        protocol,
        *([] if own else [data.name]),
        *([branch] if len(image_branches(run)) > 1 else []),
        split,
        *(flag if value is True else f"{flag}={short(value)}" for flag, value in all_changed.items()),
    ]
    file = run.path / "eval" / f"{'-'.join(words)}.json"
    check_writable(file)
    return file


def is_whole(found: Labelled) -> bool:
    """Whether the samples are all of a published data set's, so that published rows may stand beside."""
    return WHOLE.get(found.data.name) == (found.classes, len(found.train), len(found.test))


def published_rows(table: int, columns: Mapping[str, str]) -> list[Report]:
    """Rows of a table of the paper: the method, and under our names what the table's columns say.

    Args:
        table: its number.
        columns: our name -> the table's column.
    """
    found = published(table)
    places = {name: found.columns.index(column) for name, column in columns.items()}
    rows: list[Report] = [
        {
            "method": row.method,
            "table": table,
            "encoder": ENCODER.get(table),
            **{name: row.values[at] for name, at in places.items()},
        }
        for row in found.rows
    ]
    return [row for row in rows if any(row[name] is not None for name in columns)]


def show(
    title: str,
    columns: Mapping[str, str],
    rows: Mapping[str, Mapping[str, object]],
    report: Report,
    notes: Sequence[str],
) -> None:
    """Print a table: our rows, chance, the paper's rows; then notes.

    Args:
        title: what was measured on what.
        columns: key -> heading.
        rows: name of a row -> its values by key.
        report: the whole result.
        notes: sentences below the table.
    """
    out = console()
    out.print(title, style="bold", soft_wrap=True)
    say_skipped(report)
    table = RichTable()
    table.add_column(report["branch"])
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for place, (name, values) in enumerate(rows.items()):
        cells = (_cell(values.get(key)) for key in columns)
        table.add_row(name, *cells, style="bold" if place == 0 else None)
    if report.get("chance") is not None:
        table.add_row("chance", number(report["chance"]), style="dim")
    for row in report["published"]:
        other = f", {row['encoder']}" if row["encoder"] not in (None, report["encoder"]) else ""
        table.add_row(
            f"{row['method']} (paper, Table {row['table']}{other})", *(_cell(row.get(key)) for key in columns)
        )
    print_table(table)
    held = ", ".join(dict.fromkeys(report.get("weights", {}).values()))
    at = f"with the weights {held} as they are" if held else f"after epoch {report['epoch']}"
    out.print(f"Percent; run {report['run']} {at}.", soft_wrap=True)
    more = []
    if report.get("doubt") is not None:
        more.append(
            f"Counted as seen in pretraining: {report['doubt']}, so that whether it saw '{report['split']}' is not "
            "known."
        )
    elif report.get("seen_in_pretraining"):
        more.append(f"Pretraining saw the pictures of '{report['split']}' (without their classes).")
    if not report["published"]:
        more.append(f"No published row for {report['dataset']} in this setting.")
    for note in (*notes, *more):
        out.print(note, soft_wrap=True)


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float | int) or value is None else str(value)
