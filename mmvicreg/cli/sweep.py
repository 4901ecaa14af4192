"""``mmvicreg sweep``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmvicreg.errors import UserError

if TYPE_CHECKING:
    from mmvicreg.sweep.finished import Result


def sweep(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A sweep of configs/<pair>/sweeps, or a YAML file.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of its runs and table. Default: runs/sweep-NAME.")
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Where the data is. Default: $MMVICREG_DATA/<name>, else the cache folder."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data, for every run.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds of every alternative, 0,1,2: the table has mean and deviation.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="This alternative only (repeat for more).")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of every recipe, dotted.")
    ] = None,
    devices: Annotated[int, typer.Option(help="Processes on this machine: GPUs, or CPU processes.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Loader workers per process.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the alternatives and stop.")] = False,
) -> None:
    """Train alternatives of a recipe, one after another, and judge them in one table: on validation data, or by
    their training."""
    from mmvicreg.registry import nearest
    from mmvicreg.sweep.file import base_recipe, changes, read_sweep, recipes, sweep_path, with_seeds
    from mmvicreg.sweep.finished import finished
    from mmvicreg.sweep.run import run_sweep
    from mmvicreg.sweep.table import markdown, write_table

    path = sweep_path(name)
    asked = read_sweep(path)
    if seeds is not None:
        asked = with_seeds(asked, seeds)
    for one in only or ():
        if one not in asked.alternatives:
            raise UserError(
                f"{path} has no alternative '{one}'{nearest(one, asked.alternatives)} It has "
                f"{', '.join(asked.alternatives)}."
            )
    overrides: dict[str, Any] = {
        "dataset.root": None if data_root is None else str(data_root.expanduser().absolute()),
        "training.epochs": epochs,
    }
    given = {key: value for key, value in overrides.items() if value is not None}
    plans = recipes(asked, overrides=given, settings=settings or [])
    chosen = {key: value for key, value in plans.items() if not only or key in only}
    base = base_recipe(asked)
    if listed:
        for key, runs in chosen.items():
            typer.echo(f"{key}: {', '.join(changes(base, runs[0])) or 'the recipe as it is'}")
        return
    folder = out if out is not None else Path("runs") / f"sweep-{path.stem}"
    command = shlex.join(["mmvicreg", *sys.argv[1:]])
    others = {key: value for key, value in plans.items() if key not in chosen}
    done = {result.name: result for result in finished(asked, others, folder, with_not_finite=True)}
    results: list[Result] = []
    for result in run_sweep(asked, chosen, folder, devices=devices, device=device, workers=workers):
        done[result.name] = result
        results = [done[key] for key in plans if key in done]
        write_table(
            folder, asked, results, base, command=command
        )  # what is done is there if the next one fails
    typer.echo(markdown(asked, results, base, command=command))
    typer.echo(f"Written: {folder / 'sweep.md'} and sweep.json")
