"""Retrieval over a folder of runs by fold: each judged on the fold it held out; mean and deviation."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table as RichTable

from mmvicreg.errors import UserError
from mmvicreg.eval import retrieval
from mmvicreg.eval.fold_runs import check_finished, check_fold_runs
from mmvicreg.eval.output import Report, command_line, save, spread
from mmvicreg.eval.retrieval_report import RECALLS, SEEN, file_name
from mmvicreg.runs import check_writable, fold_runs, open_run
from mmvicreg.tables import console, print_table

FIGURES = (*(f"R@{k}" for k in RECALLS), "median_rank", "mean_rank")


def run(
    folder: Path,
    *,
    data_root: Path | None = None,
    split: str | None = None,
    export: Path | None = None,
    **options: Any,
) -> Report:
    """Judge every run of a folder ``fold1``, ``fold2``, ..., print the mean, write ``eval/retrieval-folds.json``.

    Another protocol, space or similarity than by default is added to its name, as for one run.

    Each run's own table and file come first, as :func:`mmvicreg.eval.retrieval.run` gives them.

    Args:
        folder: holds the runs.
        data_root: where the data is; None: where it was in training.
        split: must be None: each run is judged on what it held out.
        export: must be None: there is no one ranking.
        options: further ones of the retrieval protocol.

    Returns:
        Per direction ``R@1``, ``R@5``, ``R@10``, ``median_rank`` and ``mean_rank``, each with ``mean``, ``std``
        (n - 1) and ``folds``; ``chance``; ``queries`` over all folds; ``rsum``, the mean over folds; ``transductive``,
        whether pretraining saw any of the folds that were judged, or may have (``seen_in_pretraining``, and
        ``doubt``, why it is not known, by fold).

    Raises:
        UserError: no runs by fold, not one of each fold, another recipe or an unfinished one among them; anything of
            one run's.
    """
    members = fold_runs(folder)
    if not members:
        raise UserError(f"{folder} holds no runs by fold")
    for flag, value in (("--split", split), ("--export", export)):
        if value is not None:
            raise UserError(
                f"{flag} is for one run, and {folder} holds a run per fold, each judged on the fold it held out; name "
                f"one, such as {next(iter(members.values()))}"
            )
    runs = {number: open_run(path) for number, path in members.items()}
    first = next(iter(runs.values()))
    check_fold_runs(folder, runs, first.dataset(root=data_root))
    check_finished(folder, list(runs.values()))
    for place in (folder, *members.values()):
        check_writable(place / "eval" / "retrieval.json")
    found = {
        str(number): retrieval.run(member, data_root=data_root, split=f"fold{number}", **options)
        for number, member in runs.items()
    }
    one = next(iter(found.values()))
    directions = [name for name in one if "_to_" in name]
    report: Report = {
        **{name: _over_folds({fold: part[name] for fold, part in found.items()}) for name in directions},
        **{
            key: one[key]
            for key in ("dataset", "space", "similarity", "protocol", "pair", "method", "mmvicreg")
        },
        "rsum": float(np.mean([part["rsum"] for part in found.values()])),
        "samples": sum(part["samples"] for part in found.values()),
        "transductive": any(part["seen_in_pretraining"] for part in found.values()),
        "seen_in_pretraining": {fold: part["seen_in_pretraining"] for fold, part in found.items()},
        "doubt": {fold: part["doubt"] for fold, part in found.items()},
        "epoch": [part["epoch"] for part in found.values()],
        "run": str(folder),
        "command": command_line("retrieval", folder, {"data-root": data_root, **_asked(options)}),
    }
    if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes speaks for all
        data = first.dataset(name=options.get("dataset"), root=data_root)
        file = folder / "eval" / file_name(first, data, report, "folds", search=options.get("search", "auto"))
        _show(report, directions)
        save(file, report)
    return report


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    """Options that differ from the protocol's own, as flags; processes change nothing in a result."""
    known = inspect.signature(retrieval.run).parameters
    return {
        name.replace("_", "-"): value
        for name, value in options.items()
        if name not in ("devices", "device") and value != known[name].default
    }


def _over_folds(found: dict[str, Report]) -> Report:
    report: Report = {}
    for figure in FIGURES:
        each = {fold: part[figure] for fold, part in found.items() if part[figure] is not None}
        values = list(each.values())
        report[figure] = {
            "mean": float(np.mean(values)) if values else None,
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "folds": each,
        }
    report["chance"] = {
        f"R@{k}": float(np.mean([part["chance"][f"R@{k}"] for part in found.values()])) for k in RECALLS
    }
    report["queries"] = sum(part["queries"] for part in found.values())
    report["gallery"] = float(np.mean([part["gallery"] for part in found.values()]))
    return report


def _show(report: Report, directions: list[str]) -> None:
    out = console()
    folds = list(report[directions[0]]["R@1"]["folds"])
    how = "transductive" if report["transductive"] else "each held out"
    out.print(
        f"Retrieval, {report['dataset']}, {len(folds)} folds, {how}: {report['samples']:,} samples",
        style="bold",
        soft_wrap=True,
    )
    table = RichTable()
    for column in ("direction", "", *FIGURES, "queries", "gallery"):
        words = column.replace("_", " ")
        table.add_column(words, justify="left" if column in ("direction", "") else "right")
    for name in directions:
        found = report[name]
        cells = [
            "-" if found[figure]["mean"] is None else spread(found[figure]["mean"], found[figure]["std"])
            for figure in FIGURES
        ]
        sizes = (f"{found['queries']:,}", f"{found['gallery']:g}")
        table.add_row(name.replace("_to_", " to "), "this run", *cells, *sizes, style="bold")
        chance = [f"{found['chance'][f'R@{k}']:.2f}" for k in RECALLS]
        table.add_row("", "chance", *chance, "", "", "", style="dim", end_section=True)
    print_table(table)
    out.print(f"rsum {report['rsum']:.1f}, the sum of this run's recalls, mean over folds.", soft_wrap=True)
    out.print(
        f"Recall in percent, ranks from 1, mean ± standard deviation over folds, {report['similarity']} in "
        f"{report['space']} space; run {report['run']} after epoch {report['epoch']}.",
        soft_wrap=True,
    )
    doubts = {fold: doubt for fold, doubt in report["doubt"].items() if doubt is not None}
    if seen := [fold for fold, was in report["seen_in_pretraining"].items() if was and fold not in doubts]:
        out.print(f"Fold {', '.join(seen)}: {SEEN}", soft_wrap=True)
    for fold, doubt in doubts.items():
        out.print(
            f"Fold {fold}: counted as transductive. {doubt}, so that whether it saw this fold is not known.",
            soft_wrap=True,
        )
