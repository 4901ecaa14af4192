"""Semi-supervised classification: encoder and a linear head, fine-tuned on a part of the labels (C.2, Table 1).

The encoder that is trained is a copy in memory: the run keeps its weights whatever happens, and nothing is
written before the result is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from mmvicreg.config import BranchConfig
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
from mmvicreg.eval.labelled import DataOptions, Labelled, check_two_classes, image_branch, labelled_data
from mmvicreg.eval.output import Report, command_line, save
from mmvicreg.eval.readable import readable
from mmvicreg.eval.schedules import FINETUNE, Schedule
from mmvicreg.eval.subsets import Choice, choose_labels, list_name, parse_labels, published_share
from mmvicreg.runs import Run
from mmvicreg.skipped import OnBadSample
from mmvicreg.training.distributed import World
from mmvicreg.training.processes import on_processes


@dataclass(frozen=True)
class Settings:
    """What :func:`run` was asked for, besides the run."""

    branch: str
    labels: str
    schedule: Schedule
    baseline: bool
    reading: Reading
    where: DataOptions

    def changed(self, run: Run) -> dict[str, object]:
        """Flag -> value of what is not the protocol's default, for the result's name."""
        found = self.schedule.flags(FINETUNE[self.schedule.name])
        found |= {"seed": self.reading.seed} if self.reading.seed else {}
        return found | self.where.changed(run) | ({"baseline": True} if self.baseline else {})

    def command(self, run: Run) -> str:
        """The command that gives the same result again."""
        options: dict[str, object] = {"labels": self.labels, "branch": self.branch}
        options |= {"seed": self.reading.seed, **self.where.flags()}
        options |= self.schedule.flags(FINETUNE[self.schedule.name])
        line = command_line("finetune", run.path, options)
        return f"{line} --baseline" if self.baseline else line


def run(
    run: Run,
    *,
    labels: str = "10%",
    branch: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    encoder_lr: float | None = None,
    smallest_crop: float | None = None,
    seed: int = 0,
    workers: int = 2,
    data_root: Path | None = None,
    dataset: str | None = None,
    split: str | None = None,
    train_split: str | None = None,
    on_bad_sample: OnBadSample = "error",
    baseline: bool = False,
    devices: int = 1,
    device: str = "auto",
) -> Report:
    """Fine-tune a copy of a branch; print the table, write ``eval/finetune-<labels>-<split>.json``.

    What is not the default is in the file's name.

    Args:
        run: an opened run with a checkpoint; nothing else in its folder changes.
        labels: ``1%``, ``10%``, another percentage, ``100%``, or a file that lists training pictures.
        branch: which branch; None: the first that reads pictures.
        epochs: another length than 20.
        batch_size: another batch than 256, over all processes; the rates stay.
        lr: another rate of the head.
        encoder_lr: another rate of the encoder.
        smallest_crop: another smallest part of a picture that a crop covers.
        seed: of the order, the crops and the head's initial weights.
        workers: processes that read pictures, for each process that trains.
        data_root: where the data is; None: where it was in training.
        dataset: another data set with classes than the run's own, by name.
        split: what is tested on; None: ``test`` where there is one, else ``val``.
        train_split: what is trained on; None: what the run was trained on, else ``train``.
        on_bad_sample: ``error`` stops at a picture that cannot be read; ``skip`` reads all of them once before, leaves
            such out and lists them in the run folder, ``eval/skipped-<data set>-finetune.jsonl``.
        baseline: also train the run's own initial weights, on the same batches: supervised from scratch, or from what
            the branch was started with (``--init``, ``encoder.weights``), and called so.
        devices: processes on this machine that share the work.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        What was written: ``top1`` and ``top5`` (None with ten classes or fewer), with ``baseline`` the same as
        ``from_scratch_top1`` or ``initial_weights_top1``, ``chance``, ``labels``, ``labelled`` (samples), every number
        of the schedule, and what it was measured on.

    Raises:
        UserError: no such branch, data set or split, no labels, a subset that is not there or is
            of one class, a number out of range.
    """
    share = parse_labels(labels)
    percent = share if isinstance(share, float) else published_share(share)
    name = "other" if percent is None else f"{percent:g}%"
    schedule = FINETUNE.get(name, FINETUNE["other"]).changed(
        epochs=epochs,
        batch_size=batch_size,
        head_lr=lr,
        encoder_lr=encoder_lr,
        smallest_crop=smallest_crop,
    )
    settings = Settings(
        image_branch(run, branch),
        labels,
        schedule,
        baseline,
        Reading(seed, workers, run.recipe.evaluation.batch_size),
        DataOptions(data_root, dataset, split, train_split, on_bad_sample),
    )
    return on_processes(devices, device, _judge, run, settings)


def _judge(world: World, run: Run, settings: Settings) -> Report:
    """The whole protocol, on each of the processes; the main one prints and writes."""
    whole = labelled_data(run, settings.where)
    announce(world, whole.data)
    share = parse_labels(settings.labels)
    word = settings.labels if isinstance(share, float) else f"list-{list_name(share)}"
    protocol = f"finetune-{word.replace('%', 'percent')}"
    file = report_file(
        run,
        protocol,
        settings.branch,
        whole.split,
        whole.data,
        own=whole.own,
        changed=settings.changed(run),
    )
    choice = choose_labels(whole, share)
    found = replace(
        whole,
        train=[whole.train[int(row)] for row in choice.rows],
        train_labels=whole.train_labels[choice.rows],
    )
    check_two_classes(
        found.train_labels,
        found.data,
        f"{found.data.name} at {found.data.root} that have labels ({choice.words})",
        way_out="list pictures of two classes at least in the file that --labels names",
    )
    if settings.where.on_bad_sample == "skip":
        found = readable(world, run, settings.branch, found, protocol="finetune")
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
    start = baseline_name(run, settings.branch)
    results = {name: asdict(one) for name, one in zip(("fine-tuned", f"from {start}"), tested, strict=False)}
    key = "from_scratch" if start == "scratch" else "initial_weights"
    report: Report = {
        **results["fine-tuned"],
        **{f"{key}_{name}": value for name, value in results.get(f"from {start}", {}).items()},
        "labels": settings.labels,
        "labelled": len(found.train),
        "chosen": choice.words,
        "classes_without_labels": found.classes - len(np.unique(found.train_labels)),
        "schedule": asdict(settings.schedule),
        "changed": settings.schedule.differs(FINETUNE[settings.schedule.name]),
        "optimizer": "SGD",
        "seed": settings.reading.seed,
        "published": []
        if found.left_out.get("skipped")
        else _published(whole, choice, run.recipe.branches[settings.branch], settings.schedule),
        **about(run, settings.branch, found, settings.command(run)),
    }
    if world.is_main:
        _show(report, results)
        save(file, report)
    return report


def baseline_name(run: Run, branch: str) -> str:
    """What the baseline starts from: a branch that began with weights of elsewhere does not start from scratch."""
    config = run.recipe.branches[branch]
    begun = config.init is not None or config.encoder.get("weights", "none") != "none"
    # where nothing was trained, random weights are in the place of those it holds
    return "the weights before pretraining" if begun and not run.weights else "scratch"


def _published(whole: Labelled, choice: Choice, branch: BranchConfig, schedule: Schedule) -> list[Report]:
    """Rows of the paper for the same labels by the same schedule."""
    share = choice.published
    if share is None or schedule != FINETUNE[f"{share:g}%"] or not is_whole(whole):
        return []
    table = 10 if branch.encoder["name"] in LARGE else 1
    return published_rows(table, {f"top{top}": f"top-{top}, {share:g} % of labels" for top in (1, 5)})


def _show(report: Report, results: Mapping[str, Report]) -> None:
    used = report["schedule"]
    notes = [
        f"Labels: {report['chosen']}.",
        f"Encoder and head; schedule {used['name']} ({used['source']}): SGD, rates {used['encoder_lr']:g} and "
        f"{used['head_lr']:g}, cosine to 0, momentum {used['momentum']:g}, weight decay {used['weight_decay']:g}, "
        f"batch {used['batch_size']}, {used['epochs']} epochs, crops of {used['smallest_crop']:g} to 1 of the area, "
        "flips.",
    ]
    if report["changed"]:
        notes.append(f"Not as published: {', '.join(report['changed'])}.")
    if report["classes_without_labels"]:
        notes.append(f"{report['classes_without_labels']} classes have no label and cannot be learned.")
    show(
        f"Fine-tuning, {report['dataset']}, {report['labels']} of the labels: {report['classes']} classes, "
        f"{report['labelled']:,} training pictures, {report['test']:,} test pictures ('{report['split']}')",
        {"top1": "top-1"} | ({"top5": "top-5"} if report["top5"] is not None else {}),
        results,
        report,
        notes,
    )
