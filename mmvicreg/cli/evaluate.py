"""``mmvicreg eval``: judge a run by a protocol."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(name="eval", help="Judge a run by a protocol.", no_args_is_help=True)

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
Devices = Annotated[int, typer.Option(help="Processes on this machine that share the work.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.command("retrieval")
def retrieval(
    run: RunArgument = None,
    split: Split = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="5k: COCO's 5 000 test images; 1k-5fold: mean of five folds of them; all: the whole split."
        ),
    ] = "all",
    space: Annotated[
        str | None, typer.Option(help="embedding or representation. Default: the recipe's.")
    ] = None,
    similarity: Annotated[
        str | None, typer.Option(help="cosine, dot or euclidean. Default: the recipe's.")
    ] = None,
    search: Annotated[
        str, typer.Option(help="exact, faiss, or auto: exact up to a million candidates.")
    ] = "auto",
    export: Annotated[
        Path | None,
        typer.Option(help="Also write the ranking to this JSON file, by ids, as ECCV Caption reads it."),
    ] = None,
    export_depth: Annotated[int, typer.Option(help="Candidates per query in --export.")] = 200,
    data_root: DataRoot = None,
    dataset: Dataset = None,
    devices: Devices = 1,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """Recall at 1, 5, 10 and ranks between two branches, both directions; a folder of runs by fold is one result."""
    from mmvicreg import registry
    from mmvicreg.runs import RECIPE, open_run

    _check_dataset(dataset)
    path = run if run is not None else _newest(runs, ["image-text"])
    by_fold = not (path / RECIPE).is_file() and any(path.glob(f"fold*/{RECIPE}"))
    judge = registry.PROTOCOLS.load("retrieval-folds" if by_fold else "retrieval")
    judge(
        path if by_fold else open_run(path),
        data_root=data_root,
        dataset=dataset,
        split=split,
        protocol=protocol,
        space=space,
        similarity=similarity,
        search=search,
        export=export,
        export_depth=export_depth,
        devices=devices,
        device=device,
    )


@app.command("linear")
def linear(
    run: RunArgument = None,
    fold: Annotated[
        int | None,
        typer.Option(help="Fold to test on. Default: the one the run held out, or all of a run per fold."),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Another run of the same data and folds, beside this one; repeatable."
        ),
    ] = None,
    supervised: Annotated[
        bool, typer.Option("--supervised", help="Train the supervised baseline first, where it is not there.")
    ] = False,
    data_root: DataRoot = None,
    dataset: Dataset = None,
    runs: Runs = Path("runs"),
) -> None:
    """A linear classifier on each branch's frozen representation, beside the same on the untrained branch."""
    from mmvicreg import registry

    judge = registry.PROTOCOLS.load("linear")
    _check_dataset(dataset)
    judge(
        run if run is not None else _newest_of_folds(runs),
        data_root=data_root,
        dataset=dataset,
        fold=fold,
        compare=compare or (),
        supervised=supervised,
    )


@app.command("supervised")
def supervised(
    run: RunArgument = None,
    fold: Annotated[int | None, typer.Option(help="Of a folder of runs by fold, this one alone.")] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """A run's encoders trained on the labels instead, everything else alike; folds that are done are kept."""
    from mmvicreg import registry

    judge = registry.PROTOCOLS.load("supervised")
    judge(run if run is not None else _newest_of_folds(runs), data_root=data_root, fold=fold, device=device)


def _newest_of_folds(runs: Path) -> Path:
    """The newest run with a linear protocol; one of a run per fold stands for all of them."""
    from mmvicreg import registry

    run = _newest(runs, [pair for pair in registry.PAIRS if pair != "image-text"])
    if run.name.startswith("fold") and not (run.parent / "recipe.yaml").is_file() and run.parent != runs:
        run = run.parent
        typer.echo(f"it is one of the runs by fold in {run}, which are judged together")
    return run


def _newest(base: Path, pairs: Sequence[str]) -> Path:
    from mmvicreg.runs import newest_run

    path = newest_run(base, pairs=pairs).path
    if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes speaks for all
        typer.echo(f"newest run: {path}")
    return path


def _check_dataset(name: str | None) -> None:
    """A data set that is asked for must be known."""
    from mmvicreg.registry import DATASETS

    if name is not None and name not in DATASETS.names():
        DATASETS.load(name)
