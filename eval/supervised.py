"""The supervised baseline of Table 6, by the run's own protocol: the same folds, epochs, batch and augmentations.

Each branch's encoder and a linear layer are trained on the labels of the samples that the run was pretrained on,
and tested on those it held out. "Both" is the mean of the networks' log-probabilities. A fold that is done is
kept in ``eval/supervised.json`` of its run (the weights in ``eval/supervised/``) and not trained again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table as RichTable

import mmvicreg
from mmvicreg.config import Recipe
from mmvicreg.encode import encode
from mmvicreg.errors import UserError
from mmvicreg.eval.fold_runs import check_fold_runs, one_of
from mmvicreg.eval.output import (
    Report,
    bad_sample_flag,
    command_line,
    mean_and_spread,
    number,
    save,
    say_skipped,
    spread,
    write_report,
)
from mmvicreg.eval.probe import TOP5_CLASSES, Task, chance_level
from mmvicreg.eval.readable import find_skipped, list_skipped, without
from mmvicreg.eval.supervised_training import fit, supervised_recipe
from mmvicreg.eval.tasks import labels_of, other_split, tasks_of
from mmvicreg.eval.trained_data import check_trained_data
from mmvicreg.metrics import top_k_accuracy
from mmvicreg.recipes import dump_recipe
from mmvicreg.runs import Run, check_writable, fold_runs, open_run
from mmvicreg.samples import DataSet, Sample
from mmvicreg.skipped import OnBadSample, Skipped
from mmvicreg.tables import console, print_table
from mmvicreg.training.checkpoint import list_checkpoints, plain_state, save_checkpoint
from mmvicreg.training.log import say

BOTH = "mean of the networks' log-probabilities"


def run(
    run: Run | Path,
    *,
    data_root: Path | None = None,
    fold: int | None = None,
    split: str | None = None,
    on_bad_sample: OnBadSample = "error",
    device: str = "auto",
) -> Report:
    """Train and test the baseline of a run, or of every run in a folder of runs by fold; print a table.

    Args:
        run: an opened run, its folder, or a folder of runs ``fold1``, ``fold2``, ...; only their recipes are used.
        data_root: where the data is; None: where it was in training.
        fold: of a folder of runs by fold, that one alone.
        split: for data in splits, the split to test on; None: the recipe's ``eval_split``, else ``test`` or ``val``.
            Another than that is added to the names of what is written, ``eval/supervised-<split>.json``.
        on_bad_sample: ``error`` stops at a sample that cannot be read; ``skip`` reads all of them once before, leaves
            such out of training and test, and lists them in the folder, ``eval/skipped-<data set>-supervised.jsonl``.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        ``branches`` (top1, std, top5 and folds of each), ``chance``, ``epochs``, ``classes``, ``train``, ``test``.

    Raises:
        UserError: a run that held nothing out, no labels, a result that is there already and of something else, data
            that are not those the run was trained on.
    """
    path, runs = _opened(run, fold)
    for folder in (path, *(member.path for member in runs)):
        check_writable(folder / "eval" / "supervised.json")
    data = runs[0].dataset(root=data_root)
    split = other_split(runs[0], data, split, own=True)
    if len(runs) > 1:
        check_fold_runs(path, {_fold_of(member): member for member in runs}, data)
    elif list_checkpoints(runs[0].checkpoints):  # only its recipe is needed
        check_trained_data(runs[0], data)
    skipped: list[Skipped] = []
    if on_bad_sample == "skip":
        samples = _plan(runs[0], data, split)[1]
        skipped = find_skipped(runs[0], runs[0].recipe.branches, samples)
        data = without(data, skipped)
    results = obtain(runs, data, split=split, data_root=data_root, on_bad_sample=on_bad_sample, device=device)
    options = {"data-root": data_root, "fold": fold, "split": split, **bad_sample_flag(on_bad_sample)}
    command = command_line("supervised", path, options)
    report = summarise_supervised(results, path=path, command=command)
    report |= list_skipped(path, data, _name(split), skipped)
    file = path / "eval" / f"{_name(split)}.json"
    _show(report)
    if len(runs) > 1:
        save(file, report)
    else:  # the fold's own file, written when it was done
        console().print(f"Written: {file}", soft_wrap=True)
    return report


def obtain(
    runs: Sequence[Run],
    data: DataSet,
    *,
    split: str | None = None,
    data_root: Path | None = None,
    on_bad_sample: OnBadSample = "error",
    device: str = "auto",
) -> list[Report]:
    """The baseline of each run on ``data``: what is there, else trained now (the rest is for its command).

    Args:
        split: what is tested on, where it is not the usual one (:func:`mmvicreg.eval.tasks.other_split`).

    Raises:
        UserError: as :func:`run`; before the first of them is trained.
    """
    for member in runs:
        _plan(member, data, split)
    there = supervised_results(runs, data, split=split)
    options = {"data-root": data_root, "split": split, **bad_sample_flag(on_bad_sample)}
    return [
        part
        or _train(
            member,
            data,
            split,
            command=command_line("supervised", member.path, options),
            device=device,
        )
        for part, member in zip(there, runs, strict=True)
    ]


def supervised_results(
    runs: Sequence[Run], data: DataSet, *, split: str | None = None
) -> list[Report | None]:
    """What is there of each run's baseline, on ``split`` as for :func:`obtain`; None where it has not been trained.

    Raises:
        UserError: a result of another recipe or of other samples.
    """
    return [_done(run, data, split) for run in runs]


def summarise_supervised(results: Sequence[Report], *, path: Path, command: str) -> Report:
    """The results of one or several folds as one: means and standard deviations (n - 1)."""
    branches = {}
    for name in results[0]["branches"]:
        folds = {key: value for result in results for key, value in result["branches"][name]["folds"].items()}
        branches[name] = {**mean_and_spread(list(folds.values())), "folds": folds}
    return {
        "branches": branches,
        "chance": float(np.mean([result["chance"] for result in results])),
        "test": sum(result["test"] for result in results),
        **{key: results[0][key] for key in ("classes", "train", "epochs", "dataset", "both", "pair")},
        "run": str(path),
        "command": command,
        "mmvicreg": mmvicreg.__version__,
    }


def _opened(run: Run | Path, fold: int | None) -> tuple[Path, list[Run]]:
    if isinstance(run, Path):
        members = fold_runs(run)
        if members and fold is None:
            return run, [open_run(path) for path in members.values()]
        run = open_run(one_of(run, members, fold) if members and fold is not None else run)
    if fold not in (None, run.recipe.dataset.fold):
        raise UserError(f"the run {run.path} held out fold {run.recipe.dataset.fold}, not fold {fold}")
    return run.path, [run]


def _fold_of(run: Run) -> int:
    fold = run.recipe.dataset.fold
    return fold if isinstance(fold, int) else 0


def _name(split: str | None) -> str:
    """What the files of the baseline are called; None: of the usual split or the fold that was held out."""
    return "supervised" if split is None else f"supervised-{split}"


def _plan(
    run: Run, data: DataSet, split: str | None
) -> tuple[Recipe, list[Sample], Task, npt.NDArray[np.int64]]:
    """The baseline's recipe, every sample, the one task, and labels."""
    samples, tasks = tasks_of(run, data, own=True, fold=None, split=split)
    if len(tasks) != 1 or tasks[0].transductive:
        raise UserError(
            f"the run {run.path} held out no fold, so there is no protocol for a supervised baseline to share; "
            "train a run per fold (--fold all)"
        )
    labels = labels_of(samples, data)
    if len(set(labels[tasks[0].train])) < 2:
        raise UserError(
            f"a supervised baseline needs training samples of at least two classes, and those of {data.name} at "
            f"{data.root} are all of one; give others their label"
        )
    return supervised_recipe(run.recipe, len(data.classes)), samples, tasks[0], labels


def _done(run: Run, data: DataSet, split: str | None) -> Report | None:
    """The result in the run's folder."""
    file = run.path / "eval" / f"{_name(split)}.json"
    if not file.is_file():
        return None
    recipe, samples, task, labels = _plan(run, data, split)
    try:
        report: Report = json.loads(file.read_text(encoding="utf-8"))
        known = report["basis"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a result of this protocol; move it away to train again") from error
    if known != _basis(recipe, samples, task, labels):
        raise UserError(
            f"{file} is of another recipe or of other samples than the run's now; move it away to train again"
        )
    return report


def _basis(recipe: Recipe, samples: Sequence[Sample], task: Task, labels: npt.NDArray[np.int64]) -> Report:
    """What decides a result: the recipe, and the names, labels and sides of the samples; not where they lie."""
    dataset = recipe.dataset.model_copy(update={"root": None})
    sides = {
        side: [f"{samples[i].id} {labels[i]}" for i in rows]
        for side, rows in (("train", task.train), ("test", task.test))
    }
    return {
        "recipe": _digest(dump_recipe(recipe.model_copy(update={"dataset": dataset}))),
        **{side: _digest("\n".join(lines)) for side, lines in sides.items()},
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _train(run: Run, data: DataSet, split: str | None, *, command: str, device: str) -> Report:
    recipe, samples, task, labels = _plan(run, data, split)
    train, test = ([samples[i] for i in rows] for rows in (task.train, task.test))
    say(f"supervised baseline of {run.path}: {len(train)} samples, {recipe.training.epochs} epochs")
    model, epochs = fit(recipe, train, labels[task.train], device=device)
    content: dict[str, Any] = {
        "model": plain_state(model),
        "inputs": {name: source.state() for name, source in model.inputs.items()},
        "recipe": recipe.model_dump(mode="json"),
    }
    save_checkpoint(run.path / "eval" / _name(split), recipe.training.epochs, content, keep=1)
    size = recipe.evaluation.batch_size
    scores = {
        name: encode(model, name, test, space="embedding", batch_size=size).vectors for name in model.branches
    }
    report = {
        "branches": _branches(scores, labels[task.test], fold=task.name, classes=len(data.classes)),
        "chance": chance_level(labels[task.train], labels[task.test], classes=len(data.classes)),
        "classes": len(data.classes),
        "train": len(train),
        "test": len(test),
        "epochs": recipe.training.epochs,
        "dataset": data.name,
        "pair": recipe.pair,
        "both": BOTH,
        "history": [asdict(epoch) for epoch in epochs],
        "basis": _basis(recipe, samples, task, labels),
        "run": str(run.path),
        "command": command,
        "mmvicreg": mmvicreg.__version__,
    }
    file = run.path / "eval" / f"{_name(split)}.json"
    write_report(file, report)  # last: its being there says that the fold is done
    return report


def _branches(
    scores: Mapping[str, npt.NDArray[np.float32]], labels: npt.NDArray[np.int64], *, fold: str, classes: int
) -> Report:
    every: dict[str, npt.NDArray[np.floating]] = dict(scores)
    if len(scores) > 1:
        logs = [torch.from_numpy(x).double().log_softmax(dim=1).numpy() for x in scores.values()]
        every["+".join(scores)] = np.mean(logs, axis=0)
    found: Report = {}
    for name, x in every.items():
        top5 = top_k_accuracy(x, labels, k=5) if classes > TOP5_CLASSES else None
        result = {"top1": top_k_accuracy(x, labels, k=1), "top5": top5}
        found[name] = {**mean_and_spread([result]), "folds": {fold: result}}
    return found


def _show(report: Report) -> None:
    out = console()
    folds = list(next(iter(report["branches"].values()))["folds"])
    out.print(
        f"Supervised baseline, {report['dataset']}, {report['classes']} classes, {report['epochs']} epochs, "
        f"{report['train']:,} training and {report['test']:,} test samples",
        style="bold",
        soft_wrap=True,
    )
    say_skipped(report)
    table = RichTable()
    for column in ("network", "top-1", *(f"fold {fold}" for fold in folds if len(folds) > 1)):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, found in report["branches"].items():
        each = [number(value["top1"]) for value in found["folds"].values()]
        table.add_row(name, spread(found["top1"], found["std"]), *(each if len(folds) > 1 else []))
    table.add_row("chance", number(report["chance"]), style="dim")
    print_table(table)
    out.print(f"Accuracy in percent; both: {report['both']}.", soft_wrap=True)
