"""The linear protocol's outcomes as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table as RichTable

from mmvicreg.eval.output import Report, console, number, origin
from mmvicreg.eval.probe import GRID, Outcome, ProbeResult
from mmvicreg.eval.published import published
from mmvicreg.runs import Run
from mmvicreg.samples import DataSet

_ESC50_CLIPS, _ESC50_CLASSES = 2000, 50


def summarise(
    outcomes: Sequence[Outcome], data: DataSet, runs: Sequence[Run], *, path: Path, command: str
) -> Report:
    """One report of one or several probes; means and standard deviations (n - 1) are over the probes."""
    names = list(outcomes[0].trained)
    single = [name for name in names if "+" not in name]
    branches = {name: _branch(outcomes, name) for name in names}
    headline = branches[single[-1]]
    transductive = any(outcome.task.transductive for outcome in outcomes)
    return {
        "branch": single[-1],
        "top1": headline["top1"],
        "top5": headline["top5"],
        "std": headline["std"],
        "untrained_top1": headline["untrained_top1"],
        "chance": float(np.mean([outcome.chance for outcome in outcomes])),
        "folds": {fold: result["top1"] for fold, result in headline["folds"].items()},
        "transductive": transductive,
        "setting": "transductive" if transductive else "inductive",
        "classes": len(data.classes),
        "train": max(len(outcome.task.train) for outcome in outcomes),
        "test": sum(len(outcome.task.test) for outcome in outcomes),
        "branches": branches,
        "dataset": data.name,
        "probe": {
            "classifier": "ridge classifier (closed form, l2) on standardised representations",
            "grid": list(GRID),
            "selection": "cross-validation over groups inside the training samples",
        },
        "published": _published_rows(data),
        **origin(runs[0], command),
        "run": str(path),
        "epoch": runs[0].epochs_done if len(runs) == 1 else [run.epochs_done for run in runs],
    }


def show(report: Report, file: Path) -> None:
    """Print a report as a table, with chance and, where the paper has them, its rows."""
    out = console()
    folds = list(report["folds"])
    several = len(folds) > 1
    where = f"{len(folds)} folds" if several else ("fold " if folds[0].isdigit() else "") + folds[0]
    out.print(
        f"Linear probe, {report['dataset']}, {where}, {report['setting']}: {report['classes']} "
        f"classes, {report['train']:,} training and {report['test']:,} test samples",
        style="bold",
        soft_wrap=True,
    )
    table = RichTable()
    table.add_column("frozen representation", no_wrap=True)
    has_top5 = report["top5"] is not None
    for column in ("top-1", *(["top-5"] if has_top5 else []), "untrained top-1", "dimensions"):
        table.add_column(column, justify="right", no_wrap=True)
    for fold in folds if several else ():
        table.add_column(f"fold {fold}", justify="right", no_wrap=True)
    for name, found in report["branches"].items():
        table.add_row(
            name,
            _spread(found["top1"], found["std"]),
            *([number(found["top5"])] if has_top5 else []),
            _spread(found["untrained_top1"], found["untrained_std"]),
            str(found["width"]),
            *(number(found["folds"][fold]["top1"]) for fold in folds if several),
            style="bold" if name == report["branch"] else None,
        )
    table.add_row("chance", number(report["chance"]), style="dim")
    for row in report["published"]:
        table.add_row(f"{row['method']} (paper, Table 6)", number(row["top1"]))
    out.print(table)
    spread = " ± standard deviation over folds" if several else ""
    out.print(
        f"Accuracy in percent{spread}; run {report['run']} after epoch {report['epoch']}.", soft_wrap=True
    )
    if report["transductive"]:
        out.print(
            "Transductive: pretraining saw the test samples (without their labels); not comparable with a "
            "run that held them out.",
            soft_wrap=True,
        )
    if report["published"]:
        out.print("Paper: one split of 1 600 / 400 clips; which fold is not published.", soft_wrap=True)
    else:
        out.print(f"No published row for {report['dataset']}.", soft_wrap=True)
    out.print(f"Written: {file}", soft_wrap=True)


def _branch(outcomes: Sequence[Outcome], name: str) -> Report:
    trained = [outcome.trained[name] for outcome in outcomes]
    untrained = [outcome.untrained[name] for outcome in outcomes]
    return {
        **_mean(trained),
        **{f"untrained_{key}": value for key, value in _mean(untrained).items()},
        "chance": float(np.mean([outcome.chance for outcome in outcomes])),
        "width": trained[0].width,
        "folds": {outcome.task.name: _fold(outcome, name) for outcome in outcomes},
    }


def _fold(outcome: Outcome, name: str) -> Mapping[str, float | int | bool | None]:
    trained, untrained = outcome.trained[name], outcome.untrained[name]
    return {
        "top1": trained.top1,
        "top5": trained.top5,
        "alpha": trained.alpha,
        "untrained_top1": untrained.top1,
        "untrained_top5": untrained.top5,
        "untrained_alpha": untrained.alpha,
        "chance": outcome.chance,
        "train": len(outcome.task.train),
        "test": len(outcome.task.test),
        "transductive": outcome.task.transductive,
    }


def _mean(results: Sequence[ProbeResult]) -> dict[str, float | None]:
    top5 = [result.top5 for result in results if result.top5 is not None]
    return {
        "top1": float(np.mean([result.top1 for result in results])),
        "std": float(np.std([result.top1 for result in results], ddof=1)) if len(results) > 1 else None,
        "top5": float(np.mean(top5)) if top5 else None,
    }


def _spread(mean: float, deviation: float | None) -> str:
    return number(mean) if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def _published_rows(data: DataSet) -> list[Report]:
    """Table 6, for ESC-50 itself: all its clips of all 50 classes, not a part of it."""
    if data.name != "esc50" or len(data.classes) != _ESC50_CLASSES:
        return []
    if sum(len(data.samples(split)) for split in data.splits()) != _ESC50_CLIPS:
        return []
    table = published(6)
    return [{"method": row.method, "top1": row.values[0]} for row in table.rows]
