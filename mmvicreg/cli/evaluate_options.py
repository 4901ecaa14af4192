"""What the commands of ``mmvicreg eval`` share: their flags, and finding a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

RunArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[RUN]", help="Run folder. Default: the newest fitting run of --runs."),
]
Runs = Annotated[Path, typer.Option(metavar="DIR", help="Where the newest run is looked for.")]
DataRoot = Annotated[
    Path | None, typer.Option(help="Where the data is. Default: where it was in training.", metavar="DIR")
]
Dataset = Annotated[str | None, typer.Option(help="Another data set than the run's own, by name.")]
Split = Annotated[
    str | None, typer.Option(help="Default: test, else val; for data in folds the held-out one.")
]
TrainSplit = Annotated[
    str | None, typer.Option(help="What is learned from. Default: what the run was trained on, else train.")
]
Branch = Annotated[str | None, typer.Option(help="Which branch. Default: the first that reads pictures.")]
Baseline = Annotated[
    bool, typer.Option("--baseline/--no-baseline", help="Also judge the run's own initial weights.")
]
Epochs = Annotated[int | None, typer.Option(help="Another length than the schedule's.")]
BatchSize = Annotated[int | None, typer.Option(help="Another batch than the schedule's, over all processes.")]
Lr = Annotated[float | None, typer.Option(help="Another learning rate of the classifier.")]
SmallestCrop = Annotated[
    float | None, typer.Option(help="Another smallest part of a picture that a training crop covers.")
]
Seed = Annotated[
    int, typer.Option(min=0, help="Of the order, the crops and the classifier's initial weights.")
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read pictures, for each that trains.")]
Devices = Annotated[int, typer.Option(help="Processes on this machine that share the work.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
OnBadSample = Annotated[
    str,
    typer.Option(
        help="A sample that cannot be decoded: error, or skip, which leaves it out, says so and lists it."
    ),
]


def newest(base: Path, pairs: Sequence[str] | None, *, joins_two: bool = False) -> Path:
    """The newest run of the pairs, or that joins two branches, said aloud."""
    from mmvicreg.runs import newest_run

    path = newest_run(base, pairs=pairs, joins_two=joins_two).path
    if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes speaks for all
        typer.echo(f"newest run: {path}")
    return path


def newest_of_folds(base: Path, pairs: Sequence[str] | None, *, joins_two: bool = False) -> Path:
    """As :func:`newest`; one of a run per fold stands for all of them."""
    run = newest(base, pairs, joins_two=joins_two)
    if run.name.startswith("fold") and not (run.parent / "recipe.yaml").is_file() and run.parent != base:
        run = run.parent
        if os.environ.get("RANK", "0") == "0":
            typer.echo(f"it is one of the runs by fold in {run}, which are judged together")
    return run


def check_dataset(name: str | None) -> None:
    """A data set that is asked for must be known."""
    from mmvicreg.registry import DATASETS

    if name is not None and name not in DATASETS.names():
        DATASETS.load(name)


def refuse(flag: str, given: bool, why: str) -> None:
    """A flag that would be silently without effect is a mistake."""
    from mmvicreg.errors import UserError

    if given:
        raise UserError(f"{flag} {why}")
