"""The linear protocol on pictures: a linear classifier on a frozen encoder, by the published schedules.

The whole protocol (appendices C.2 and C.3) trains on random crops, so every epoch encodes the training pictures
anew. The quick variant fits a logistic regression to the features of one centre crop, which the run folder keeps;
its figures are labelled quick wherever they stand, because they are not those of the published protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mmvicreg.config import BranchConfig
from mmvicreg.errors import UserError
from mmvicreg.eval import logistic
from mmvicreg.eval.classification import (
    LARGE,
    about,
    announce,
    is_whole,
    published_rows,
    report_file,
    show,
    tops,
)
from mmvicreg.eval.classifier import Reading, train_run
from mmvicreg.eval.features import features
from mmvicreg.eval.labelled import DataOptions, Labelled, image_branch, labelled_data
from mmvicreg.eval.output import Report, command_line, save
from mmvicreg.eval.readable import readable
from mmvicreg.eval.schedules import LINEAR, Schedule, linear_schedule, usual_schedule
from mmvicreg.runs import Run
from mmvicreg.skipped import OnBadSample
from mmvicreg.training.distributed import World
from mmvicreg.training.processes import on_processes

_TRANSFER = {"places205": "Places205 top-1", "inat18": "iNat18 top-1"}


@dataclass(frozen=True)
class Settings:
    """What :func:`run` was asked for, besides the run."""

    branch: str
    quick: bool
    schedule: Schedule
    baseline: bool
    reading: Reading
    where: DataOptions

    def changed(self, run: Run) -> dict[str, object]:
        """Flag -> value of what is not the protocol's default, for the result's name."""
        found: dict[str, object] = {}
        if not self.quick:
            usual = usual_schedule(self.where.dataset or run.recipe.dataset.name)
            found |= {"schedule": self.schedule.name} if self.schedule.name != usual else {}
            found |= self.schedule.flags(LINEAR[self.schedule.name])
            found |= {"seed": self.reading.seed} if self.reading.seed else {}
        return found | self.where.changed(run) | ({} if self.baseline else {"no-baseline": True})

    def command(self, run: Run) -> str:
        """The command that gives the same result again."""
        options: dict[str, object] = {"branch": self.branch, **self.where.flags()}
        if not self.quick:
            options |= {"schedule": self.schedule.name, "seed": self.reading.seed}
            options |= self.schedule.flags(LINEAR[self.schedule.name])
        line = command_line("linear", run.path, options)
        line = f"{line} --quick" if self.quick else line
        return line if self.baseline else f"{line} --no-baseline"


def run(
    run: Run,
    *,
    branch: str | None = None,
    quick: bool = False,
    schedule: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    smallest_crop: float | None = None,
    seed: int | None = None,
    workers: int | None = None,
    data_root: Path | None = None,
    dataset: str | None = None,
    split: str | None = None,
    train_split: str | None = None,
    on_bad_sample: OnBadSample = "error",
    baseline: bool = True,
    devices: int = 1,
    device: str = "auto",
) -> Report:
    """Judge a branch by a linear classifier; print the table and write it into the run folder.

    The file is ``eval/linear-<split>.json``, or ``linear-quick-<split>.json``; what is not the default is in its name.

    Args:
        run: an opened run with a checkpoint.
        branch: which branch; None: the first that reads pictures.
        quick: logistic regression on the features of centre crops.
        schedule: ``imagenet`` (C.2), ``places205`` or ``inat18`` (C.3); None: the data set's own, else ``imagenet``.
        epochs: another length; milestones move with it.
        batch_size: another batch, over all processes; the rate stays.
        lr: another learning rate.
        smallest_crop: another smallest part of a picture that a crop covers.
        seed: of the order, the crops and the classifier's initial weights; None: 0.
        workers: processes that read pictures, for each process that trains; None: 2.
        data_root: where the data is; None: where it was in training.
        dataset: another data set with classes than the run's own, by name.
        split: what is tested on; None: ``test`` where there is one, else ``val``.
        train_split: what is trained on; None: what the run was trained on, else ``train``.
        on_bad_sample: ``error`` stops at a picture that cannot be read; ``skip`` reads all of them once before, leaves
            such out and lists them in the run folder, ``eval/skipped-<data set>-linear.jsonl``.
        baseline: also train on the run's own initial weights, on the same batches.
        devices: processes on this machine that share the work.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        What was written: ``top1`` and ``top5`` (None with ten classes or fewer), ``untrained_top1``, ``chance``,
        ``variant`` (``whole`` or ``quick``), every number of the schedule, and what it was measured on.

    Raises:
        UserError: no such branch, schedule, data set or split, no labels, a number out of range, or an option that
            does nothing with ``quick``.
    """
    of_schedules = {
        "schedule": schedule,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "smallest_crop": smallest_crop,
        "seed": seed,
        "workers": workers,
    }
    if quick and (given := [name for name, value in of_schedules.items() if value is not None]):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(
            f"--quick fits centre crops without a schedule, so {flags} would do nothing; leave one out"
        )
    chosen = linear_schedule(schedule or usual_schedule(dataset or run.recipe.dataset.name)).changed(
        epochs=epochs, batch_size=batch_size, head_lr=lr, smallest_crop=smallest_crop
    )
    settings = Settings(
        image_branch(run, branch),
        quick,
        chosen,
        baseline,
        Reading(seed or 0, 2 if workers is None else workers, run.recipe.evaluation.batch_size),
        DataOptions(data_root, dataset, split, train_split, on_bad_sample),
    )
    return on_processes(devices, device, _judge, run, settings)


def _judge(world: World, run: Run, settings: Settings) -> Report:
    """The whole protocol, on each of the processes; the main one prints and writes."""
    found = labelled_data(run, settings.where)
    announce(world, found.data)
    protocol = "linear-quick" if settings.quick else "linear"
    file = report_file(
        run,
        protocol,
        settings.branch,
        found.split,
        found.data,
        own=found.own,
        changed=settings.changed(run),
    )
    if settings.where.on_bad_sample == "skip":
        found = readable(world, run, settings.branch, found, protocol="linear")
    branch = run.recipe.branches[settings.branch]
    results = (_quick if settings.quick else _whole)(world, run, found, settings)
    report: Report = {
        **results["trained"],
        **{f"untrained_{name}": value for name, value in results.get("untrained", {}).items()},
        "variant": "quick" if settings.quick else "whole",
        **_method(settings),
        "published": [] if settings.quick else _published(found, branch, settings.schedule),
        **about(run, settings.branch, found, settings.command(run)),
    }
    if world.is_main:
        _show(report, results)
        save(file, report)
    return report


def _whole(world: World, run: Run, found: Labelled, settings: Settings) -> dict[str, Report]:
    tested = train_run(
        world,
        run,
        settings.branch,
        found,
        settings.schedule,
        initial_too=settings.baseline,
        tops=tops(found.classes),
        reading=settings.reading,
    )
    # the second is there with a baseline alone
    return {name: asdict(one) for name, one in zip(("trained", "untrained"), tested, strict=False)}


def _quick(world: World, run: Run, found: Labelled, settings: Settings) -> dict[str, Report]:
    results = {"trained": asdict(quick_probe(world, run, found, settings.branch, untrained=False))}
    if settings.baseline:
        results["untrained"] = asdict(quick_probe(world, run, found, settings.branch, untrained=True))
    return results


def quick_probe(world: World, run: Run, found: Labelled, branch: str, *, untrained: bool) -> logistic.Probed:
    """The quick variant on one set of weights; the same in every process."""
    model = run.model(untrained=untrained, device=world.device.type)
    of = f"{'untrained-' if untrained else ''}{found.data.name}"
    train, test = (
        features(world, run, model, branch, samples, of=f"{of}-{part}")
        for samples, part in ((found.train, found.train_split), (found.test, found.split))
    )
    # in every process: the others would only wait for one, and a process group loses patience
    return logistic.probe(
        train,
        found.train_labels,
        test,
        found.test_labels,
        classes=found.classes,
        tops=tops(found.classes),
        device=world.device,
    )


def _method(settings: Settings) -> Report:
    if settings.quick:
        return {
            "classifier": "logistic regression (L-BFGS, l2) on standardised features of one centre crop",
            "grid": list(logistic.GRID),
            "selection": "a held-out tenth of the training samples of each class",
        }
    return {
        "schedule": asdict(settings.schedule),
        "changed": settings.schedule.differs(LINEAR[settings.schedule.name]),
        "optimizer": "SGD",
        "seed": settings.reading.seed,
    }


def _published(found: Labelled, branch: BranchConfig, schedule: Schedule) -> list[Report]:
    """Rows of the paper on the same pictures by the same schedule, and of its larger encoders for one of them."""
    if not is_whole(found) or schedule != LINEAR[usual_schedule(found.data.name)]:
        return []
    if found.data.name == "imagenet":
        if branch.encoder["name"] in LARGE:
            return published_rows(9, {"top1": "top-1", "top5": "top-5"})
        return published_rows(1, {"top1": "linear top-1", "top5": "linear top-5"})
    return published_rows(2, {"top1": _TRANSFER[found.data.name]})


def _show(report: Report, results: Mapping[str, Report]) -> None:
    quick = report["variant"] == "quick"
    title = "Linear probe, QUICK variant (centre crops)" if quick else "Linear probe"
    columns = {"top1": "top-1"} | ({"top5": "top-5"} if report["top5"] is not None else {})
    notes = []
    if quick:
        notes.append(
            f"Quick: {report['classifier']}, penalty {report['penalty']:g}; not comparable with the published protocol."
        )
    else:
        used = report["schedule"]
        rates = (
            "cosine to 0"
            if used["decay"] == "cosine"
            else f"divided by 10 at epochs {', '.join(map(str, used['milestones']))}"
        )
        notes.append(
            f"Frozen encoder; schedule {used['name']} ({used['source']}): SGD {used['head_lr']:g}, {rates}, momentum "
            f"{used['momentum']:g}, weight decay {used['weight_decay']:g}, batch {used['batch_size']}, "
            f"{used['epochs']} epochs, crops of {used['smallest_crop']:g} to 1 of the area, flips."
        )
        if report["changed"]:
            notes.append(f"Not as published: {', '.join(report['changed'])}.")
        if report["dataset"] in LINEAR and used["name"] != report["dataset"]:
            notes.append(
                f"Not as published for {report['dataset']}: --schedule {report['dataset']} is its own."
            )
    show(
        f"{title}, {report['dataset']}: {report['classes']} classes, {report['train']:,} training pictures "
        f"('{report['train_split']}'), {report['test']:,} test pictures ('{report['split']}')",
        columns,
        {f"{name}{' (quick)' if quick else ''}": values for name, values in results.items()},
        report,
        notes,
    )
