"""The linear protocol's outcomes as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmvicreg.eval.linear_rivals import Rival
from mmvicreg.eval.output import Report, mean_and_spread, origin
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
        "methods": _methods(outcomes, runs, transductive=transductive, path=path),
        "dataset": data.name,
        "probe": {
            "classifier": "ridge classifier (closed form, l2) on standardised representations",
            "grid": list(GRID),
            "selection": "cross-validation over groups inside the training samples",
        },
        **_published_rows(data),
        **origin(runs[0], command),
        "run": str(path),
        "epoch": runs[0].epochs_done if len(runs) == 1 else [run.epochs_done for run in runs],
    }


def compared(outcomes: Sequence[Outcome], rival: Rival) -> Report:
    """Another run's entry among the methods."""
    return {
        "method": rival.method,
        "run": str(rival.path),
        "epoch": [run.epochs_done for run in rival.runs],
        "transductive": any(outcome.task.transductive for outcome in outcomes),
        "differs": list(rival.differs),
        "branches": _results(outcomes, [outcome.trained for outcome in outcomes]),
    }


def _methods(
    outcomes: Sequence[Outcome], runs: Sequence[Run], *, transductive: bool, path: Path
) -> list[Report]:
    trained = _results(outcomes, [outcome.trained for outcome in outcomes])
    untrained = _results(outcomes, [outcome.untrained for outcome in outcomes])
    method = {"method": runs[0].recipe.objective["name"], "run": str(path), "transductive": transductive}
    return [
        {**method, "branches": trained},
        {"method": "untrained", "transductive": False, "branches": untrained},
    ]


def _results(outcomes: Sequence[Outcome], found: Sequence[Mapping[str, ProbeResult]]) -> Report:
    return {
        name: {
            **_mean([results[name] for results in found]),
            "width": found[0][name].width,
            "folds": {
                outcome.task.name: {"top1": results[name].top1, "top5": results[name].top5}
                for outcome, results in zip(outcomes, found, strict=True)
            },
        }
        for name in found[0]
    }


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
    return mean_and_spread([{"top1": result.top1, "top5": result.top5} for result in results])


def _published_rows(data: DataSet) -> Report:
    """Table 6 and others' figures, for ESC-50 itself: all its clips of all 50 classes, not a part of it."""
    if data.name != "esc50" or len(data.classes) != _ESC50_CLASSES:
        return {"published": [], "published_elsewhere": []}
    if sum(len(data.samples(split)) for split in data.splits()) != _ESC50_CLIPS:
        return {"published": [], "published_elsewhere": []}
    table = published(6)
    return {
        "published": [{"method": row.method, "top1": row.values[0]} for row in table.rows],
        "published_elsewhere": [row.model_dump(mode="json") for row in table.elsewhere],
    }
