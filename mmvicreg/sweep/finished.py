"""What an earlier call of a sweep has done already: runs trained to their end by the same recipe, and judged."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmvicreg.config import LEFT_TO_THE_MACHINE, Recipe
from mmvicreg.errors import UserError
from mmvicreg.recipes import differences
from mmvicreg.runs import RECIPE, Run, open_run
from mmvicreg.sweep.file import Sweep

_PLACE = re.compile(r"(sources\.[^.]+\.)?dataset\.(root|on_bad_sample):")
"""Lines of :func:`differences` that make no other run of it: where its data are, and what is done with damaged ones."""


@dataclass
class Result:
    """What one alternative came to, over its seeds.

    Attributes:
        name: the alternative.
        group: which others it competes with.
        recipe: of its first seed.
        reports: one a seed that was judged: of the retrieval protocol, or on its training.
        problem: why a seed has none; empty where all were judged.
    """

    name: str
    group: str
    recipe: Recipe
    reports: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""

    @property
    def rsum(self) -> float | None:
        """Mean over seeds of the sum of all recalls, in percent; None where a seed or retrieval is missing."""
        if self.problem or not all("rsum" in report for report in self.reports) or not self.reports:
            return None
        return float(sum(report["rsum"] for report in self.reports) / len(self.reports))


def finished(
    sweep: Sweep, plans: Mapping[str, Sequence[Recipe]], out: Path, *, with_not_finite: bool = False
) -> list[Result]:
    """The alternatives that an earlier call trained and judged by these recipes, all seeds of each; nothing is made.

    What is half done, of another recipe or unreadable is left out: a call for that alternative says what it is.
    So is what met NaN or infinity, which is tried anew with data that may have been mended since; ``with_not_finite``
    takes it from the table that lies there, for those that are not asked for now.
    """
    found = []
    told = _told_problems(out) if with_not_finite else {}
    for name, seeds in plans.items():
        result = Result(name, sweep.alternatives[name].group or name, seeds[0])
        try:
            if all(
                _add_finished(
                    result, sweep, recipe, out / name / f"seed{recipe.seed}", told=told.get(name, "")
                )
                for recipe in seeds
            ):
                found.append(result)
        except UserError:
            continue
    return found


def _told_problems(out: Path) -> dict[str, str]:
    """Alternative -> why it did not finish, as the table that lies there says; a run keeps no other record of NaN."""
    try:
        lines = json.loads((out / "sweep.json").read_text(encoding="utf-8"))["alternatives"]
        return {name: str(line["problem"]) for name, line in lines.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}  # no table, or of something else


def _add_finished(result: Result, sweep: Sweep, recipe: Recipe, place: Path, *, told: str) -> bool:
    """Add one seed's report, or why it has none; False where it is not finished.

    ``told`` is the problem that the table has for it.
    """
    from mmvicreg.sweep.training import training_report, verdict_of

    if not (place / RECIPE).is_file():
        return False
    run = open_run(place)
    if changed(run.recipe, recipe):
        return False
    report: dict[str, Any] | None = None
    if not is_whole(run, recipe):
        # one that was stopped may have been continued all the same, to its end
        if (verdict := verdict_of(run)).stopped is not None:
            result.problem = f"training stopped: {verdict.message}"
        elif is_not_finite(told):
            result.problem = told
        else:
            return False
    elif sweep.judge == "retrieval":
        asked = {"split": sweep.split, "on_bad_sample": recipe.dataset.on_bad_sample}
        if (report := judged(run, asked)) is None:
            if not is_not_finite(told):
                return False
            result.problem = told
    if sweep.judge == "training":
        report = training_report(run)
    if report is not None:
        result.reports.append(report)
    return True


def is_whole(run: Run, recipe: Recipe) -> bool:
    """Whether a run was trained to the end of a recipe."""
    from mmvicreg.training.checkpoint import list_checkpoints

    return bool(list_checkpoints(run.checkpoints)) and run.epochs_done >= recipe.training.epochs


def changed(old: Recipe, new: Recipe) -> list[str]:
    """What differs of a run's recipe but where the data lie, and what it was told when it began.

    That is a precision that was left to the machine, absolute paths, and the checksums of weights it starts from.
    """
    from mmvicreg.branches.init import pin_as, settle

    lines = differences(settle(old), pin_as(settle(new), old))
    left = new.training.precision in LEFT_TO_THE_MACHINE
    return [
        line
        for line in lines
        if not _PLACE.match(line) and not (left and line.startswith("training.precision:"))
    ]


def judged(run: Run, asked: Mapping[str, str]) -> dict[str, Any] | None:
    """The report that lies in a run's folder, where it is what the sweep would make."""
    file = run.path / "eval" / f"retrieval-{asked['split']}.json"
    if not file.is_file():
        return None
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return report if _as_asked(report, run, asked) else None
    except (ValueError, KeyError, AttributeError):
        return None  # half a file is no report


def _as_asked(report: Mapping[str, Any], run: Run, asked: Mapping[str, str]) -> bool:
    """Whether a report that lies there is what the sweep would make: somebody may have judged the run otherwise."""
    reading = run.recipe.evaluation
    return (
        report["epoch"] == run.epochs_done
        and report["dataset"] == run.recipe.dataset.name
        and report["protocol"] == "all"
        and (report["space"], report["similarity"]) == (reading.space, reading.similarity)
        and not any("search" in part for part in report.values() if isinstance(part, Mapping))
        and (asked["on_bad_sample"] == "skip" or not report["skipped"])
    )


def is_not_finite(problem: str) -> bool:
    """Whether a run, or its judgement, ended by NaN or infinity: the messages of the loop and of the encoding."""
    return problem.startswith("step ") or " gives NaN or infinity for " in problem
