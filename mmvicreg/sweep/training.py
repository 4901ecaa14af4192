"""Judging a run by its training: the loss, what its embeddings look like, and whether they collapsed.

For the questions that are answered there: does a method train on these data, and do the settings that collapse
in the paper collapse? Everything is read from the run's ``metrics.jsonl``; nothing is encoded anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mmvicreg import registry
from mmvicreg.runs import Run
from mmvicreg.training.log import read_lines
from mmvicreg.training.monitor import Health, Verdict, judge, last_words

METRICS = "metrics.jsonl"


def verdict_of(run: Run) -> Verdict:
    """What the monitor said, or would have said with the run's thresholds."""
    measured = _measurements(read_lines(run.path / METRICS))
    return judge(run.recipe.monitor, measured, advice=_advice(run))


def _advice(run: Run) -> str:
    advice: str = registry.OBJECTIVES.load(run.recipe.objective["name"]).advice
    return advice


def training_report(run: Run) -> dict[str, Any] | None:
    """First and last measurement of a run; None where nothing was measured.

    Returns:
        ``steps``; ``loss``, the first and the last measured, with ``first_step``; per node of ``branches`` the
        last figures (:class:`~mmvicreg.training.monitor.Health`); ``agreement``, per edge the last;
        ``monitor``, the verdict; what was said at the end: ``nothing_shared``, of edges that taught nothing, and
        ``nearly_collapsed``, of nodes far below the spread that was asked for.
    """
    lines = read_lines(run.path / METRICS)
    if not lines:
        return None
    first, last = lines[0], lines[-1]
    return {
        "steps": last["step"],
        "first_step": first["step"],
        "loss": [first["loss"], last["loss"]],
        "branches": last["branches"],
        "agreement": last.get("agreement", {}),  # runs of earlier versions have none
        "monitor": asdict(verdict_of(run)),
        **last_words(last, run.recipe.monitor, advice=_advice(run)),
    }


def columns(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells of one alternative, beside :data:`HEADER`; several seeds are parted by a semicolon."""
    return ["; ".join(cells) or "-" for cells in zip(*map(_cells, reports), strict=True)] or ["-"] * len(
        HEADER
    )


HEADER = ["steps", "loss", "standard deviation", "dead", "effective rank", "agreement", "monitor"]


def _cells(report: Mapping[str, Any]) -> list[str]:
    figures = [Health(**one) for one in report["branches"].values()]
    return [
        str(report["steps"]),
        f"{report['loss'][0]:.4g} to {report['loss'][1]:.4g}",
        " / ".join(f"{one.std:.2g}" for one in figures),
        " / ".join(f"{100 * one.dead:.0f} %" for one in figures),
        " / ".join(f"{one.effective_rank:.1f}" for one in figures),
        " / ".join(f"{value:.2f}" for value in report["agreement"].values()) or "-",
        _words(
            Verdict(**report["monitor"]),
            nothing_shared=bool(report["nothing_shared"]),
            nearly_collapsed=bool(report["nearly_collapsed"]),
        ),
    ]


def _words(verdict: Verdict, *, nothing_shared: bool, nearly_collapsed: bool) -> str:
    if verdict.stopped is not None:
        return f"collapsed: warned at step {verdict.warned}, stopped at {verdict.stopped}"
    if verdict.collapsed:
        return f"looks collapsed: warned at step {verdict.warned}"
    if nearly_collapsed:
        return "at the end: nearly collapsed"
    if nothing_shared:
        return "at the end: nothing in common"
    if verdict.warned is not None:
        return f"warned at step {verdict.warned}, then silent again"
    return "silent" if verdict.looked else "silent (shorter than monitor.grace_steps)"


def _measurements(lines: Sequence[Mapping[str, Any]]) -> list[tuple[int, dict[str, Health]]]:
    return [
        (line["step"], {node: Health(**figures) for node, figures in line["branches"].items()})
        for line in lines
    ]
