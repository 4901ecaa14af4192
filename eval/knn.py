"""The nearest-neighbour protocol: what class the most similar training pictures have (appendix D.3, Table 11).

A test picture's K nearest training pictures, by the cosine of frozen representations, vote with the weight
exp(cosine / 0.07), as in Wu et al. 2018 (section 3.4), which the paper follows. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmvicreg.errors import UserError
from mmvicreg.eval.classification import (
    about,
    announce,
    is_whole,
    published_rows,
    report_file,
    show,
    tops,
)
from mmvicreg.eval.features import Space, check_space, features
from mmvicreg.eval.labelled import DataOptions, Labelled, image_branch, labelled_data
from mmvicreg.eval.output import Report, command_line, save
from mmvicreg.eval.readable import readable
from mmvicreg.metrics import neighbour_credit
from mmvicreg.metrics.neighbours import Weighting, check_votes
from mmvicreg.runs import Run
from mmvicreg.skipped import OnBadSample
from mmvicreg.training.distributed import World, exchange_rows, shares
from mmvicreg.training.processes import on_processes

NEIGHBOURS = (20, 200)
TEMPERATURE = 0.07


@dataclass(frozen=True)
class Settings:
    """What :func:`run` was asked for, besides the run."""

    branch: str
    k: tuple[int, ...]
    temperature: float
    weighting: Weighting
    space: Space
    baseline: bool
    where: DataOptions

    @property
    def votes(self) -> dict[str, object]:
        """Flag -> value of how neighbours vote where it is not as published; a temperature is of weighted votes."""
        if self.weighting != "exp":
            return {"weighting": self.weighting}
        return {"temperature": self.temperature} if self.temperature != TEMPERATURE else {}

    @property
    def as_published(self) -> bool:
        """Whether Table 11 may stand beside, for what of K it has."""
        return not self.votes and self.space == "representation"

    def changed(self, run: Run) -> dict[str, object]:
        """Flag -> value of what is not the protocol's default, for the result's name."""
        found: dict[str, object] = {}
        if set(self.k) != set(NEIGHBOURS):
            found["k"] = ",".join(map(str, sorted(self.k)))
        found |= self.votes
        found |= {"space": self.space} if self.space != "representation" else {}
        return found | self.where.changed(run) | ({} if self.baseline else {"no-baseline": True})

    def command(self, run: Run) -> str:
        """The command that gives the same result again."""
        options: dict[str, object] = {"branch": self.branch, "k": ",".join(map(str, self.k))}
        options |= {"temperature": self.temperature, "weighting": self.weighting, "space": self.space}
        line = command_line("knn", run.path, options | self.where.flags())
        return line if self.baseline else f"{line} --no-baseline"


def run(
    run: Run,
    *,
    branch: str | None = None,
    k: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    weighting: Weighting = "exp",
    space: Space = "representation",
    data_root: Path | None = None,
    dataset: str | None = None,
    split: str | None = None,
    train_split: str | None = None,
    on_bad_sample: OnBadSample = "error",
    baseline: bool = True,
    devices: int = 1,
    device: str = "auto",
) -> Report:
    """Judge a branch by its neighbours, print the table, write ``eval/knn-<split>.json`` into the run folder.

    What is not the default is in the file's name.

    Args:
        run: an opened run with a checkpoint.
        branch: which branch; None: the first that reads pictures.
        k: numbers of neighbours.
        temperature: of the votes.
        weighting: ``exp``, or ``uniform``: every neighbour has one vote.
        space: ``representation`` or ``embedding``.
        data_root: where the data is; None: where it was in training.
        dataset: another data set with classes than the run's own, by name.
        split: what is tested on; None: ``test`` where there is one, else ``val``.
        train_split: what the neighbours are of; None: what the run was trained on, else ``train``.
        on_bad_sample: ``error`` stops at a picture that cannot be read; ``skip`` reads all of them once before, leaves
            such out and lists them in the run folder, ``eval/skipped-<data set>-knn.jsonl``.
        baseline: also judge the run's own initial weights.
        devices: processes on this machine that share the work; the result is the same for any number.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        What was written: under ``k`` for each number of neighbours ``top1`` (and ``top5`` with more than ten
        classes) and ``untrained_top1``, in percent; ``chance``; and what it was measured on.

    Raises:
        UserError: no such branch, data set or split, no labels, more neighbours than training samples.
    """
    check_votes(k, temperature=temperature, weighting=weighting)
    check_space(space)
    settings = Settings(
        image_branch(run, branch),
        tuple(dict.fromkeys(k)),
        temperature,
        weighting,
        space,
        baseline,
        DataOptions(data_root, dataset, split, train_split, on_bad_sample),
    )
    return on_processes(devices, device, _judge, run, settings)


def _judge(world: World, run: Run, settings: Settings) -> Report:
    """The whole protocol, on each of the processes; the main one prints and writes."""
    found = labelled_data(run, settings.where)
    announce(world, found.data)
    file = report_file(
        run,
        "knn",
        settings.branch,
        found.split,
        found.data,
        own=found.own,
        changed=settings.changed(run),
    )
    if settings.where.on_bad_sample == "skip":
        found = readable(world, run, settings.branch, found, protocol="knn")
    check_enough(found, settings.k)  # before anything is encoded
    trained = accuracies(world, run, found, settings, untrained=False)
    untrained = accuracies(world, run, found, settings, untrained=True) if settings.baseline else {}
    results = {
        number: values | {f"untrained_{name}": value for name, value in untrained.get(number, {}).items()}
        for number, values in trained.items()
    }
    comparable = found.data.name == "imagenet" and is_whole(found) and settings.as_published
    report: Report = {
        "k": results,
        "temperature": settings.temperature if settings.weighting == "exp" else None,
        "weighting": settings.weighting,
        "similarity": "cosine",
        "space": settings.space,
        "published": published_rows(11, {"20": "20-NN", "200": "200-NN"}) if comparable else [],
        **about(run, settings.branch, found, settings.command(run)),
    }
    if world.is_main:
        _show(report)
        save(file, report)
    return report


def check_enough(found: Labelled, k: Sequence[int]) -> None:
    """Raise :class:`UserError` where more neighbours are asked for than there are training samples."""
    if max(k, default=0) > len(found.train):
        raise UserError(
            f"{max(k)} neighbours were asked for, and {found.data.name} has only {len(found.train)} training samples; "
            "give smaller numbers with --k"
        )


def accuracies(
    world: World, run: Run, found: Labelled, settings: Settings, *, untrained: bool
) -> dict[str, dict[str, float]]:
    """Number of neighbours -> ``top1`` (and ``top5``), percent; the same in every process."""
    model = run.model(untrained=untrained, device=world.device.type)
    name = f"{'untrained-' if untrained else ''}{found.data.name}"
    train, test = (
        features(world, run, model, settings.branch, samples, of=f"{name}-{part}", space=settings.space)
        for samples, part in ((found.train, found.train_split), (found.test, found.split))
    )
    bounds = shares(len(found.test), world.size)
    mine = bounds[world.rank], bounds[world.rank + 1]
    credit = np.zeros((len(found.test), len(settings.k), len(tops(found.classes))))
    credit[slice(*mine)] = neighbour_credit(
        test,
        found.test_labels,
        train,
        found.train_labels,
        k=settings.k,
        classes=found.classes,
        temperature=settings.temperature,
        weighting=settings.weighting,
        tops=tops(found.classes),
        rows=mine,
    )
    exchange_rows(torch.from_numpy(credit), bounds, world.device)
    mean = 100 * credit.mean(0)
    return {
        str(number): {f"top{top}": float(mean[i, j]) for j, top in enumerate(tops(found.classes))}
        for i, number in enumerate(settings.k)
    }


def _show(report: Report) -> None:
    results = report["k"]
    rows = {"trained": {number: values["top1"] for number, values in results.items()}}
    if all("untrained_top1" in values for values in results.values()):
        rows["untrained"] = {number: values["untrained_top1"] for number, values in results.items()}
    if all("top5" in values for values in results.values()):
        rows["trained, top-5"] = {number: values["top5"] for number, values in results.items()}
    votes = (
        f"votes weighted by exp(cosine / {report['temperature']:g})"
        if report["weighting"] == "exp"
        else "a vote each"
    )
    show(
        f"Nearest neighbours, {report['dataset']}: {report['test']:,} of '{report['split']}' among "
        f"{report['train']:,} of '{report['train_split']}', {report['classes']} classes",
        {number: f"{number}-NN top-1" for number in results},
        rows,
        report,
        [f"Cosine of {report['space']}s, {votes}."],
    )
