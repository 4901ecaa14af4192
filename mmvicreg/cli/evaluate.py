"""``mmvicreg eval``: judge a run by a protocol."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

PICTURES = ("image-image", "image-text")
"""Pairs with a branch that reads pictures."""

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
Seed = Annotated[int, typer.Option(help="Of the order, the crops and the classifier's initial weights.")]
Workers = Annotated[int, typer.Option(help="Processes that read pictures, for each that trains.")]
Devices = Annotated[int, typer.Option(help="Processes on this machine that share the work.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
OnBadSample = Annotated[
    str,
    typer.Option(
        help="A sample that cannot be decoded: error, or skip, which leaves it out of queries and gallery."
    ),
]


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
    schedule: Annotated[str | None, typer.Option(help="Pictures: imagenet, places205 or inat18.")] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    smallest_crop: SmallestCrop = None,
    seed: Seed = 0,
    workers: Workers = 2,
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

    _check_dataset(dataset)
    if run is None:
        run = _newest_of_folds(runs)
    pictures: dict[str, object] = {
        "schedule": schedule,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "smallest_crop": smallest_crop,
        "branch": branch,
        "split": split,
        "train_split": train_split,
    }
    given = {name: value for name, value in pictures.items() if value is not None}
    if _reads_pictures(run, branch):
        _refuse("--fold", fold is not None, "is for recordings; name another --split instead")
        _refuse("--compare", bool(compare), "is for recordings")
        _refuse("--supervised", supervised, "is for recordings")
        _refuse("--schedule", quick and schedule is not None, "and --quick are two ways to judge; choose one")
        judge = registry.PROTOCOLS.load("linear-image")
        judge(
            open_run(run),
            **given,
            quick=quick,
            seed=seed,
            workers=workers,
            baseline=baseline,
            data_root=data_root,
            dataset=dataset,
            devices=devices,
            device=device,
        )
        return
    flags = [f"--{name.replace('_', '-')}" for name in given] + (["--quick"] if quick else [])
    _refuse(
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
        compare=compare or (),
        supervised=supervised,
    )


@app.command("finetune")
def finetune(
    run: RunArgument = None,
    labels: Annotated[
        str,
        typer.Option(
            help="1%, 10% (of ImageNet the published lists), another percentage, or a file that lists pictures."
        ),
    ] = "10%",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    encoder_lr: Annotated[float | None, typer.Option(help="Another rate of the encoder.")] = None,
    smallest_crop: SmallestCrop = None,
    seed: Seed = 0,
    workers: Workers = 2,
    branch: Branch = None,
    split: Split = None,
    train_split: TrainSplit = None,
    baseline: Baseline = False,
    data_root: DataRoot = None,
    dataset: Dataset = None,
    devices: Devices = 1,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """Fine-tune a copy of an image branch on a part of the labels; the run keeps its own weights."""
    from mmvicreg import registry
    from mmvicreg.runs import open_run

    judge = registry.PROTOCOLS.load("finetune")
    _check_dataset(dataset)
    judge(
        open_run(run if run is not None else _newest(runs, PICTURES)),
        labels=labels,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        encoder_lr=encoder_lr,
        smallest_crop=smallest_crop,
        seed=seed,
        workers=workers,
        branch=branch,
        split=split,
        train_split=train_split,
        baseline=baseline,
        data_root=data_root,
        dataset=dataset,
        devices=devices,
        device=device,
    )


@app.command("svm")
def svm(
    run: RunArgument = None,
    costs: Annotated[
        str | None,
        typer.Option(help="Values of C to choose from. Default: the published 26.", metavar="C,C,..."),
    ] = None,
    branch: Branch = None,
    baseline: Baseline = True,
    data_root: DataRoot = None,
    dataset: Annotated[str, typer.Option(help="Data with several classes a picture.")] = "voc07",
    devices: Devices = 1,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """Linear support vector machines on VOC07: mean average precision of an image branch."""
    from mmvicreg import registry
    from mmvicreg.runs import open_run

    judge = registry.PROTOCOLS.load("svm")
    _check_dataset(dataset)
    options = {} if costs is None else {"costs": _numbers("--costs", costs)}
    judge(
        open_run(run if run is not None else _newest(runs, PICTURES)),
        branch=branch,
        baseline=baseline,
        data_root=data_root,
        dataset=dataset,
        devices=devices,
        device=device,
        **options,
    )


@app.command("knn")
def knn(
    run: RunArgument = None,
    k: Annotated[str, typer.Option("--k", help="Numbers of neighbours.", metavar="K,K,...")] = "20,200",
    temperature: Annotated[float, typer.Option(help="Votes weigh exp(cosine / temperature).")] = 0.07,
    weighting: Annotated[str, typer.Option(help="exp, or uniform: a vote each.")] = "exp",
    space: Annotated[str, typer.Option(help="representation or embedding.")] = "representation",
    branch: Branch = None,
    split: Split = None,
    train_split: TrainSplit = None,
    baseline: Baseline = True,
    data_root: DataRoot = None,
    dataset: Dataset = None,
    devices: Devices = 1,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """Classes by the nearest training pictures, on an image branch's frozen representation."""
    from mmvicreg import registry
    from mmvicreg.runs import open_run

    judge = registry.PROTOCOLS.load("knn")
    _check_dataset(dataset)
    path = run if run is not None else _newest(runs, PICTURES)
    judge(
        open_run(path),
        k=_whole_numbers("--k", k),
        temperature=temperature,
        weighting=weighting,
        space=space,
        branch=branch,
        split=split,
        train_split=train_split,
        baseline=baseline,
        data_root=data_root,
        dataset=dataset,
        devices=devices,
        device=device,
    )


def _reads_pictures(run: Path, branch: str | None) -> bool:
    """Whether the linear protocol is the one for pictures: all branches but text read them, or the one asked for."""
    from mmvicreg.runs import RECIPE, open_run

    if not (run / RECIPE).is_file():
        return False  # runs by fold, or no run at all
    branches = open_run(run).recipe.branches
    kinds = {config.input for config in branches.values()} - {"text"}
    if branch is not None and branch in branches:
        return branches[branch].input == "image"
    return kinds == {"image"} or (branch is not None and "image" in kinds)


def _refuse(flag: str, given: bool, why: str) -> None:
    """A flag that would be silently without effect is a mistake."""
    from mmvicreg.errors import UserError

    if given:
        raise UserError(f"{flag} {why}")


def _numbers(flag: str, text: str) -> list[float]:
    """``"0.1,1"`` as numbers."""
    from mmvicreg.errors import UserError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{flag} expects numbers with commas between them; got '{text}'") from error


def _whole_numbers(flag: str, text: str) -> list[int]:
    """``"20,200"`` as numbers."""
    numbers = _numbers(flag, text)
    _refuse(flag, any(value != int(value) for value in numbers), f"expects whole numbers; got '{text}'")
    return [int(value) for value in numbers]


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
