"""``mmvicreg train``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmvicreg.errors import UserError

if TYPE_CHECKING:
    from mmvicreg.config import Recipe


def train(
    pair: Annotated[
        str | None, typer.Option(help="What is paired: image-text, wave-mel, image-image.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set by name (mmvicreg data list).")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe of configs/<pair> by name, or a YAML file. Default: the data set's."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Objective by name.")] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Where the data is. Default: $MMVICREG_DATA/<name>, else the cache folder."),
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option(
            "--fold",
            "--folds",
            help="Data in folds: the fold held out (1, 2, ...), 'all' for a run per fold, or 'none'.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the training data; 0 makes a run of --init's weights as they are."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step over all processes.")] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Samples in memory at once per process; the objective and its gradient stay the whole batch's, while "
            "BatchNorm in a branch sees this many."
        ),
    ] = None,
    accumulate: Annotated[
        str | None,
        typer.Option(
            "--accumulate",
            "--grad-accum",
            "--accumulate-grad-batches",
            "--gradient-accumulation-steps",
            hidden=True,
            help="Refused, with the reason.",
        ),
    ] = None,
    on_bad_sample: Annotated[
        str | None,
        typer.Option(
            help="A sample that cannot be decoded: error (default), or skip, which puts another in its place."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentation.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16, bf16-if-native, fp64 (to check).")
    ] = None,
    devices: Annotated[int, typer.Option(help="Processes on this machine: GPUs, or CPU processes.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Loader workers per process.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/<pair>-<dataset>-<method>-<time>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, dotted.")
    ] = None,
    init: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BRANCH=RUN",
            help="Start a branch's encoder from a run's branch of that name, or from a file or URL of weights.",
        ),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved recipe and stop.")
    ] = False,
) -> None:
    """Train the branches of a pair on two views of each sample."""
    if accumulate is not None:
        from mmvicreg.explain import NO_ACCUMULATION

        raise UserError(NO_ACCUMULATION)
    overrides: dict[str, Any] = {
        "dataset.root": None if data_root is None else str(data_root.expanduser().absolute()),
        "dataset.fold": None if fold in (None, "all") else _fold(str(fold)),
        "dataset.on_bad_sample": on_bad_sample,
        "objective": method,
        "training.epochs": epochs,
        "training.batch_size": batch_size,
        "training.micro_batch": micro_batch,
        "training.precision": precision,
        "seed": seed,
        **_inits(init or []),
    }
    asked = {key: value for key, value in overrides.items() if value is not None}
    if resume and fold is None and out is not None and _fold_runs(out):
        fold = "all"
    if (
        pair is None
        and resume
        and out is not None
        and not (dataset or recipe)
        and all(_may_change(key) for key in [*asked, *(text.partition("=")[0] for text in settings or ())])
    ):
        first = next(iter(_fold_runs(out).values()), out) if fold == "all" else out
        resolved = _recipe_of(first, asked, settings or [])
    else:
        resolved = _recipe(pair, dataset, recipe, asked, settings or [], resume=resume)
    if print_config:
        from mmvicreg.recipes import dump_recipe

        typer.echo(dump_recipe(resolved), nl=False)
        return
    if fold not in (None, "all"):
        _check_fold(resolved)
    folder = out if out is not None else _default_out(resolved, resume=resume, folds=fold == "all")
    from mmvicreg.runs import RECIPE, check_free
    from mmvicreg.training.launch import Launch
    from mmvicreg.training.launch import train as run_training

    if fold == "all":
        if "RANK" in os.environ:
            raise UserError(
                "--fold all starts one run after another: start it without torchrun, with --devices N"
            )
        _check_set(folder)
        launches = [
            Launch(part, place, resume and (place / RECIPE).is_file(), devices, device, workers, whole=folder)
            for number, part in _folds(resolved).items()
            for place in [folder / f"fold{number}"]
        ]
        for launch in launches:
            if not launch.resume:  # found before the folds in front of it are trained
                check_free(launch.out)
        for launch in launches:
            run_training(launch)
    else:
        run_training(Launch(resolved, folder, resume, devices, device, workers))
    typer.echo(str(folder))


def _recipe(
    pair: str | None,
    dataset: str | None,
    recipe: str | None,
    overrides: dict[str, Any],
    settings: list[str],
    *,
    resume: bool,
) -> Recipe:
    """The recipe that the flags ask for."""
    from mmvicreg import registry
    from mmvicreg.recipes import load_recipe, recipe_path
    from mmvicreg.registry import check_pair

    if pair is None:
        if resume:
            keys = [*overrides, *(text.partition("=")[0].strip() for text in settings)]
            others = ", ".join(key for key in keys if not _may_change(key))
            raise UserError(
                "--resume takes the run folder alone (--out RUN), where its data is now (--data-root DIR, --set "
                "sources.NAME.dataset.root=DIR) and what decides no weight (--set monitor.patience=100), or the flags "
                "the run was started with, --pair too"
                + (f"; {others} is none of these (name every key of a mapping by itself)" if others else "")
            )
        raise UserError(f"name the pair: --pair {' or --pair '.join(registry.PAIRS)}")
    check_pair(pair)
    name = dataset or (None if recipe else registry.PAIRS[pair])
    if name is not None and name not in registry.DATASETS.names():
        registry.DATASETS.load(name)
    if name is not None:
        overrides = {"dataset.name": name, **overrides}
    return load_recipe(recipe_path(pair, name or "", recipe), {"pair": pair, **overrides}, settings)


def _may_change(key: str) -> bool:
    """Whether a resumed run may be told a key anew: where its data is, when it is stopped, and what else decides
    no weight."""
    from mmvicreg.runs import is_free

    return is_free(f"{key.strip()}:")


def _recipe_of(out: Path, overrides: dict[str, Any], settings: list[str]) -> Recipe:
    """The recipe of the run to be resumed, with what it is told anew: its data perhaps moved or found to be damaged."""
    from mmvicreg.recipes import load_recipe
    from mmvicreg.runs import RECIPE, open_run
    from mmvicreg.skipped import check_on_bad_sample

    check_on_bad_sample(overrides.get("dataset.on_bad_sample", "error"))
    return load_recipe(open_run(out).path / RECIPE, overrides, settings, saved=True)


def _folds(recipe: Recipe) -> dict[int, Recipe]:
    """The recipe once per fold of its data set, that fold held out."""
    from mmvicreg.datasets import in_folds, open_dataset

    root = Path(recipe.dataset.root) if recipe.dataset.root is not None else None
    dataset = open_dataset(recipe.dataset.name, root=root)
    if not in_folds(dataset):
        raise UserError(
            f"--fold all: {recipe.dataset.name} is not in folds (it has {', '.join(dataset.splits())})"
        )
    numbers = [int(split.removeprefix("fold")) for split in dataset.splits()]
    return {
        number: recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"fold": number})})
        for number in numbers
    }


def _check_fold(recipe: Recipe) -> None:
    """A fold asked for by name must mean something."""
    from mmvicreg.datasets import in_folds, open_dataset

    root = Path(recipe.dataset.root) if recipe.dataset.root is not None else None
    dataset = open_dataset(recipe.dataset.name, root=root)
    if not in_folds(dataset):
        raise UserError(
            f"--fold: {recipe.dataset.name} is not in folds (it has {', '.join(dataset.splits())})"
        )


def _inits(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Each ``image=RUN`` as the key of the recipe and its value."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        branch, equals, source = text.partition("=")
        if not (branch and equals and source):
            raise UserError(f"--init expects BRANCH=RUN, or BRANCH=FILE of weights; got '{text}'")
        if (key := f"branches.{branch}.init") in found:
            raise UserError(
                f"--init names the branch {branch} twice, {found[key]['source']} and {source}; give one"
            )
        found[key] = {"source": source}
    return found


def _fold(fold: str) -> int | str:
    if fold == "none":
        return fold
    if not (fold.isascii() and fold.isdigit()):
        raise UserError(f"--fold expects a number, 'all' or 'none'; got '{fold}'")
    return int(fold)


def _fold_runs(folder: Path) -> dict[int, Path]:
    from mmvicreg.runs import fold_runs

    return fold_runs(folder)


def _check_set(folder: Path) -> None:
    """A folder of runs by fold is no run itself."""
    from mmvicreg.runs import RECIPE

    if (folder / RECIPE).is_file():
        raise UserError(
            f"{folder} is a run, and --fold all makes a folder of runs, one a fold; choose another --out"
        )


def _default_out(recipe: Recipe, *, resume: bool, folds: bool) -> Path:
    if resume:
        from mmvicreg.runs import newest_run

        newest = newest_run(Path("runs"), like=recipe).path
        if not folds:
            return newest
        if newest not in _fold_runs(newest.parent).values():
            raise UserError(
                f"{newest}, the newest run of this kind, is not one of runs by fold; name them with --out"
            )
        return newest.parent
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{recipe.pair}-{recipe.dataset.name}-{recipe.objective['name']}-{stamp}"
