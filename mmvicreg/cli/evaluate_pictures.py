"""``mmvicreg eval finetune``, ``svm``, ``knn`` and ``curve``: the protocols for branches that read pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    Seed,
    SmallestCrop,
    Split,
    TrainSplit,
    Workers,
    check_dataset,
    newest,
    refuse,
)

PICTURES = ("image-image", "image-text")
"""Pairs with a branch that reads pictures."""


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
    on_bad_sample: OnBadSample = "error",
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
    from mmvicreg.skipped import check_on_bad_sample

    judge = registry.PROTOCOLS.load("finetune")
    check_dataset(dataset)
    judge(
        open_run(run if run is not None else newest(runs, PICTURES)),
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
        on_bad_sample=check_on_bad_sample(on_bad_sample),
        baseline=baseline,
        data_root=data_root,
        dataset=dataset,
        devices=devices,
        device=device,
    )


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
    check_dataset(dataset)
    options = {} if costs is None else {"costs": _numbers("--costs", costs)}
    judge(
        open_run(run if run is not None else newest(runs, PICTURES)),
        branch=branch,
        baseline=baseline,
        data_root=data_root,
        dataset=dataset,
        devices=devices,
        device=device,
        **options,
    )


def knn(
    run: RunArgument = None,
    k: Annotated[str, typer.Option("--k", help="Numbers of neighbours.", metavar="K,K,...")] = "20,200",
    temperature: Annotated[float, typer.Option(help="Votes weigh exp(cosine / temperature).")] = 0.07,
    weighting: Annotated[str, typer.Option(help="exp, or uniform: a vote each.")] = "exp",
    space: Annotated[str, typer.Option(help="representation or embedding.")] = "representation",
    branch: Branch = None,
    split: Split = None,
    train_split: TrainSplit = None,
    on_bad_sample: OnBadSample = "error",
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
    from mmvicreg.skipped import check_on_bad_sample

    judge = registry.PROTOCOLS.load("knn")
    check_dataset(dataset)
    path = run if run is not None else newest(runs, PICTURES)
    judge(
        open_run(path),
        k=_whole_numbers("--k", k),
        temperature=temperature,
        weighting=weighting,
        space=space,
        branch=branch,
        split=split,
        train_split=train_split,
        on_bad_sample=check_on_bad_sample(on_bad_sample),
        baseline=baseline,
        data_root=data_root,
        dataset=dataset,
        devices=devices,
        device=device,
    )


def curve(
    run: RunArgument = None,
    k: Annotated[str, typer.Option("--k", help="Numbers of neighbours.", metavar="K,K,...")] = "20",
    branch: Branch = None,
    split: Split = None,
    train_split: TrainSplit = None,
    on_bad_sample: OnBadSample = "error",
    data_root: DataRoot = None,
    dataset: Dataset = None,
    devices: Devices = 1,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """Neighbours and the quick probe at every checkpoint a run has kept (training.keep_every)."""
    from mmvicreg import registry
    from mmvicreg.runs import open_run
    from mmvicreg.skipped import check_on_bad_sample

    judge = registry.PROTOCOLS.load("curve")
    check_dataset(dataset)
    judge(
        open_run(run if run is not None else newest(runs, PICTURES)),
        k=_whole_numbers("--k", k),
        branch=branch,
        split=split,
        train_split=train_split,
        on_bad_sample=check_on_bad_sample(on_bad_sample),
        data_root=data_root,
        dataset=dataset,
        devices=devices,
        device=device,
    )


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
    refuse(flag, any(not value.is_integer() for value in numbers), f"expects whole numbers; got '{text}'")
    return [int(value) for value in numbers]
