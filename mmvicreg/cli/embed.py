"""``mmvicreg embed``: vectors and ids of a run's branches, for use elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def embed(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write: .npz or .parquet.")],
    dataset: Annotated[str | None, typer.Option(help="Another data set than the run's own, by name.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Default: test, else val; for data in folds the held-out one.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="embedding or representation. Default: the recipe's.")
    ] = None,
    captions: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many captions of each picture. Default: all.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where the data is. Default: where it was in training.", metavar="DIR")
    ] = None,
    branch: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this branch; may be given again. Default: all that the data has something for."
        ),
    ] = None,
    devices: Annotated[int, typer.Option(help="Processes on this machine that share the work.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    on_bad_sample: Annotated[
        str, typer.Option(help="A sample that cannot be decoded: error, or skip, which leaves it out.")
    ] = "error",
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Write what the branches make of a split: a vector and an id per row."""
    from mmvicreg.embed import embed as write_embeddings
    from mmvicreg.runs import open_run
    from mmvicreg.skipped import check_on_bad_sample

    write_embeddings(
        open_run(run),
        out,
        data_root=data_root,
        dataset=dataset,
        split=split,
        space=space,
        captions=captions,
        devices=devices,
        device=device,
        force=force,
        on_bad_sample=check_on_bad_sample(on_bad_sample),
        branches=branch,
    )
    if os.environ.get("RANK", "0") == "0":
        typer.echo(str(out))
