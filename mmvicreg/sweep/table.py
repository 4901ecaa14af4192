"""The table of a sweep: what each alternative changed, and what it came to."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.runs import write_whole
from mmvicreg.sweep.file import Sweep, changes
from mmvicreg.sweep.finished import Result
from mmvicreg.sweep.training import HEADER, columns

RECALLS = ("R@1", "R@5", "R@10")
SEEN = "†"
"""Marks an alternative that was judged on what it was pretrained on."""


def directions(results: Sequence[Result]) -> list[str]:
    """The directions that the reports have, ``image_to_text`` and ``text_to_image`` for pictures and captions."""
    first = next((report for result in results for report in result.reports), {})
    return [name for name, value in first.items() if isinstance(value, Mapping) and "R@1" in value]


def best_of_groups(results: Sequence[Result]) -> dict[str, str]:
    """Group -> the alternative of it with the largest sum of recalls, the first of equals."""
    best: dict[str, Result] = {}
    for result in results:
        rsum = result.rsum
        if rsum is not None and rsum > (
            (best[result.group].rsum or float("-inf")) if result.group in best else float("-inf")
        ):
            best[result.group] = result
    return {group: result.name for group, result in best.items()}


def competing(results: Sequence[Result]) -> set[str]:
    """The best of every group that has more than one alternative."""
    sizes = Counter(result.group for result in results)
    return {name for group, name in best_of_groups(results).items() if sizes[group] > 1}


def rows(sweep: Sweep, results: Sequence[Result]) -> list[list[str]]:
    """A header, then a row an alternative, whether it was judged by retrieval or by its training."""
    return _training_rows(sweep, results) if sweep.judge == "training" else _retrieval_rows(results)


def _training_rows(sweep: Sweep, results: Sequence[Result]) -> list[list[str]]:
    """Name, method, what the paper has where it has any, the figures of training, what the monitor said."""
    paper = {name: one.paper for name, one in sweep.alternatives.items()}
    told = ["paper"] if any(value is not None for value in paper.values()) else []
    table = [["alternative", "method", *told, *HEADER]]
    for result in results:
        value = paper.get(result.name)
        cells = [str("-" if value is None else value)] if told else []
        table.append([result.name, result.recipe.objective["name"], *cells, *columns(result.reports)])
    return table


def _retrieval_rows(results: Sequence[Result]) -> list[list[str]]:
    """Name, method, recalls of each direction, rsum, epochs, seeds."""
    ways = directions(results)
    header = ["alternative", "method"]
    header += [f"{way.replace('_to_', ' to ')} {k}" for way in ways for k in RECALLS]
    header += ["rsum", "epochs", "seeds"]
    best = competing(results)
    table = [header]
    for result in results:
        marks = (" *" if result.name in best else "") + (f" {SEEN}" if _seen(result) else "")
        row = [result.name + marks, result.recipe.objective["name"]]
        reports = result.reports
        cells = [spread([report[way][k] for report in reports]) for way in ways for k in RECALLS]
        row += [*cells, spread([report["rsum"] for report in reports])]
        epochs = sorted({report["epoch"] for report in reports})
        row += [_stopped(result) or "/".join(map(str, epochs)), str(len(reports))]
        table.append(row)
    return table


def _seen(result: Result) -> list[Mapping[str, Any]]:
    """The reports on a split that pretraining saw, or may have."""
    return [report for report in result.reports if report.get("seen_in_pretraining")]


def _seen_notes(results: Sequence[Result]) -> list[str]:
    """What :data:`SEEN` means, for each alternative that has it and why."""
    notes: dict[str, list[str]] = {}
    for result in results:
        for report in _seen(result):
            doubt = report.get("doubt")
            note = (
                f"{SEEN} transductive: pretrained on samples of the split, so that this measures memory"
                if doubt is None
                else f"{SEEN} counted as transductive: {doubt}, so that whether it saw this split is not known"
            )
            names = notes.setdefault(note, [])
            names += [result.name] if result.name not in names else []
    return [f"{note} ({', '.join(names)})." for note, names in notes.items()]


def _stopped(result: Result) -> str:
    if not result.problem:
        return ""
    return "collapsed" if " has collapsed " in result.problem else "stopped"


def spread(values: Sequence[float]) -> str:
    """``12.3``, or the mean and standard deviation (n - 1) of several."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def method_settings(recipe: Recipe) -> str:
    """A method with all of its options; of VICReg also the coefficients of every branch and edge."""
    options = [f"{key} {value}" for key, value in recipe.objective.items() if key != "name"]
    if recipe.objective["name"] == "vicreg":
        options += [f"mu_{n} {b.variance:g}, nu_{n} {b.covariance:g}" for n, b in recipe.branches.items()]
        options += [f"lambda_{edge.a}-{edge.b} {edge.invariance:g}" for edge in recipe.edges]
    return f"{recipe.objective['name']} ({', '.join(options)})"


def other_settings(base: Recipe, recipe: Recipe) -> list[str]:
    """What an alternative changes of the recipe file besides its method and the coefficients."""
    own = ("objective.", "branches.", "edges.")
    told = (".variance", ".covariance", ".invariance")
    return [
        line
        for line in changes(base, recipe)
        if not (line.startswith(own) and (line.startswith(own[0]) or line.partition("=")[0].endswith(told)))
    ]


def markdown(sweep: Sweep, results: Sequence[Result], base: Recipe, *, command: str) -> str:
    """The whole result as a page: table, settings of each alternative, and how to make it again."""
    table = rows(sweep, results)
    lines = [
        _about(sweep, results, base),
        "",
        *("| " + " | ".join(row) + " |" for row in table[:1]),
        "|" + "---|" * len(table[0]),
        *("| " + " | ".join(row) + " |" for row in table[1:]),
        "",
        *(["\\* the largest rsum of its group.", ""] if competing(results) else []),
        *(line for note in _seen_notes(results) for line in (note, "")),
        "The settings of each; all else is the recipe's:",
        "",
    ]
    changed = {result.name: other_settings(base, result.recipe) for result in results}
    shared = [
        line for line in next(iter(changed.values()), []) if all(line in own for own in changed.values())
    ]
    if shared and len(results) > 1:
        lines.append(f"- every run: {_code(shared)}")
    else:
        shared = []
    for result in results:
        own = [line for line in changed[result.name] if line not in shared]
        lines.append(
            f"- {result.name}: {', '.join([method_settings(result.recipe), *([_code(own)] if own else [])])}"
        )
    lines += [f"- {result.name} did not finish: {result.problem}" for result in results if result.problem]
    return "\n".join([*lines, "", f"Made by `{command}`.", ""])


def _about(sweep: Sweep, results: Sequence[Result], base: Recipe) -> str:
    """The sentence above the table."""
    if sweep.judge == "training":
        return (
            f"Training on {base.dataset.name}: the loss from the first measurement to the last; the embeddings of "
            f"the last batch ({results[0].recipe.training.batch_size}, which bounds the rank), per branch or view; "
            "the monitor's verdict."
        )
    report: Mapping[str, Any] = next((one for result in results for one in result.reports), {})
    sizes = "; ".join(
        f"{way.replace('_to_', ' to ')}: {report[way]['queries']:,} queries, gallery {report[way]['gallery']:,}, "
        f"chance R@1 {report[way]['chance']['R@1']:.2f}"
        for way in directions(results)
    )
    return f"Retrieval on {base.dataset.name} {sweep.split}, recall in percent, one gallery. {sizes}."


def _code(lines: Sequence[str]) -> str:
    return ", ".join(f"`{line}`" for line in lines)


def write_table(
    out: Path, sweep: Sweep, results: Sequence[Result], base: Recipe, *, command: str
) -> tuple[Path, Path]:
    """Write ``sweep.md`` and ``sweep.json`` (every report whole) into a folder.

    Raises:
        UserError: it cannot be written.
    """
    tree = {
        "command": command,
        "judge": sweep.judge,
        "split": sweep.split if sweep.judge == "retrieval" else None,
        "best": best_of_groups(results),
        "alternatives": {
            result.name: {
                "group": result.group,
                "changes": changes(base, result.recipe),
                "rsum": result.rsum,
                "paper": sweep.alternatives[result.name].paper,
                "problem": result.problem,
                "reports": result.reports,
            }
            for result in results
        },
    }
    page, data = out / "sweep.md", out / "sweep.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(page, markdown(sweep, results, base, command=command))
        write_whole(data, json.dumps(tree, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write the table into {out}: {error.strerror or error}") from error
    return page, data
