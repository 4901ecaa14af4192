"""``mmvicreg eval``: judge a run by a protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import mmvicreg.cli.evaluate_pictures as pictures
from mmvicreg.cli.evaluate_options import (
    Baseline,
    BatchSize,
    Branch,
    DataRoot,
    Dataset,
    Device,
    Devices,
    Epochs,
    Lr,
    OnBadSample,
    RunArgument,
    Runs,
    SmallestCrop,
    Split,
    TrainSplit,
    check_dataset,
    newest_of_folds,
    refuse,
)

app = typer.Typer(name="eval", help="Judge a run by a protocol.", no_args_is_help=True)
app.command("knn")(pictures.knn)
app.command("curve")(pictures.curve)
app.command("finetune")(pictures.finetune)
app.command("svm")(pictures.svm)


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
    on_bad_sample: OnBadSample = "error",
    data_root: DataRoot = None,
    dataset: Dataset = None,
    devices: Devices = 1,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """Recall at 1, 5, 10 and ranks between two branches, both directions; a folder of runs by fold is one result."""
    from mmvicreg import registry
    from mmvicreg.runs import RECIPE, open_run
    from mmvicreg.skipped import check_on_bad_sample

    check_dataset(dataset)
    path = run if run is not None else newest_of_folds(runs, None, joins_two=True)
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
        on_bad_sample=check_on_bad_sample(on_bad_sample),
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
    quick: Annotated[
        bool, typer.Option("--quick", help="Pictures: logistic regression on centre crops, encoded once.")
    ] = False,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Pictures: imagenet, places205 or inat18. Default: the data set's own, else imagenet."
        ),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    smallest_crop: SmallestCrop = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Pictures: of the order, the crops and the classifier's initial weights. Default: 0."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Pictures: processes that read them, for each that trains. Default: 2."),
    ] = None,
    branch: Branch = None,
    split: Split = None,
    train_split: TrainSplit = None,
    baseline: Baseline = True,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Another run of the same data and folds, beside this one; repeatable."
        ),
    ] = None,
    supervised: Annotated[
        bool, typer.Option("--supervised", help="Train the supervised baseline first, where it is not there.")
    ] = False,
    on_bad_sample: OnBadSample = "error",
    data_root: DataRoot = None,
    dataset: Dataset = None,
    devices: Devices = 1,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """A linear classifier on frozen representations, beside the same on the untrained encoder.

    Recordings: every branch, by the folds. Pictures: one branch, by a published schedule; --quick for a first look.
    """
    from mmvicreg import registry
    from mmvicreg.runs import open_run
    from mmvicreg.skipped import check_on_bad_sample

    check_dataset(dataset)
    skip_or_not = check_on_bad_sample(on_bad_sample)
    if run is None:
        run = _newest_probed(runs)
    asked: dict[str, object] = {
        "schedule": schedule,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "smallest_crop": smallest_crop,
        "seed": seed,
        "workers": workers,
        "branch": branch,
        "split": split,
        "train_split": train_split,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if _reads_pictures(run, branch):
        refuse("--fold", fold is not None, "is for recordings; name another --split instead")
        refuse("--compare", bool(compare), "is for recordings")
        refuse("--supervised", supervised, "is for recordings")
        judge = registry.PROTOCOLS.load("linear-image")
        judge(
            open_run(run),
            **given,
            quick=quick,
            baseline=baseline,
            on_bad_sample=skip_or_not,
            data_root=data_root,
            dataset=dataset,
            devices=devices,
            device=device,
        )
        return
    others = {"--quick": quick, "--no-baseline": not baseline, "--devices": devices != 1}
    flags = [f"--{name.replace('_', '-')}" for name in given if name != "split"] + [
        flag for flag, on in others.items() if on
    ]
    refuse(
        ", ".join(flags),
        bool(flags),
        f"is for branches that read pictures, and {run} is judged on its others",
    )
    judge = registry.PROTOCOLS.load("linear")
    judge(
        run,
        data_root=data_root,
        dataset=dataset,
        fold=fold,
        split=split,
        compare=compare or (),
        supervised=supervised,
        on_bad_sample=skip_or_not,
        device=device,
    )


def _reads_pictures(run: Path, branch: str | None) -> bool:
    """Whether the linear protocol is the one for pictures: all branches but text read them, or the one asked for."""
    from mmvicreg.runs import RECIPE, open_run

    if not (run / RECIPE).is_file():
        if not any(run.glob(f"fold*/{RECIPE}")):
            open_run(run)  # says that no run is there
        return False  # runs by fold
    branches = open_run(run).recipe.branches
    kinds = {config.input for config in branches.values()} - {"text"}
    if branch is not None and branch in branches:
        return branches[branch].input == "image"
    return kinds == {"image"} or (branch is not None and "image" in kinds)


@app.command("supervised")
def supervised(
    run: RunArgument = None,
    fold: Annotated[int | None, typer.Option(help="Of a folder of runs by fold, this one alone.")] = None,
    split: Split = None,
    on_bad_sample: OnBadSample = "error",
    data_root: DataRoot = None,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """A run's encoders trained on the labels instead, everything else alike; folds that are done are kept."""
    from mmvicreg import registry
    from mmvicreg.skipped import check_on_bad_sample

    judge = registry.PROTOCOLS.load("supervised")
    judge(
        run if run is not None else _newest_probed(runs),
        data_root=data_root,
        fold=fold,
        split=split,
        on_bad_sample=check_on_bad_sample(on_bad_sample),
        device=device,
    )


def _newest_probed(runs: Path) -> Path:
    """The newest run, or runs by fold, with a linear protocol."""
    from mmvicreg import registry

    return newest_of_folds(runs, [pair for pair in registry.PAIRS if pair != "image-text"])
