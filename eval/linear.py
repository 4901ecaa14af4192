"""The linear protocol: what a linear classifier can read from frozen representations.

Data in folds. The probe is trained on all folds but one and tested on that one. When the run did not see
that fold in pretraining either, the result is *inductive*; otherwise it is labelled *transductive*. A
folder of runs ``fold1``, ``fold2``, ... that each held out their own fold gives the published protocol:
mean and standard deviation over the folds.

Data in splits. The probe is trained on the run's training split and tested on its evaluation split.

The same probe is trained on the untrained encoders (each run's own initial weights) and stands beside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmvicreg.datasets import evaluation_split, in_folds, open_dataset
from mmvicreg.encode import encode
from mmvicreg.errors import UserError
from mmvicreg.eval.linear_report import show, summarise
from mmvicreg.eval.output import Report, command_line, write_report
from mmvicreg.eval.probe import Outcome, ProbeResult, Task, chance_level, probe
from mmvicreg.registry import DATASETS
from mmvicreg.runs import RECIPE, Run, open_run
from mmvicreg.samples import DataSet, Sample

Features = Mapping[str, npt.NDArray[np.float32]]
"""Branch (or branches joined by ``+``) -> representations ``(n, d)``."""


def run(
    run: Run | Path, *, data_root: Path | None = None, dataset: str | None = None, fold: int | None = None
) -> Report:
    """Probe every branch of a run that is not text, and all of them side by side, concatenated.

    Prints a table and writes ``eval/linear.json`` into the run folder (and, for a folder of runs by fold,
    into that folder and each run's own).

    Args:
        run: an opened run with a checkpoint, a run folder, or a folder of runs ``fold1``, ``fold2``, ...
        data_root: where the data is; None: where it was in training.
        dataset: another labelled data set than the run's own, by name.
        fold: for data in folds, the fold to test on; None: the one the run held out, and every fold in
            turn for a run that held out none.

    Returns:
        What was written: ``top1``, ``untrained_top1``, ``std`` and ``folds`` of the branch named under
        ``branch`` (the last), ``chance``, ``transductive``, ``classes``, ``train`` (samples per probe),
        ``test`` (samples over all probes), and the same per branch under ``branches``.

    Raises:
        UserError: no labels, no such fold, runs that do not make up a set of folds, no branch to probe.
    """
    if isinstance(run, Path):
        members = fold_runs(run)
        if members and fold is not None:
            run = _member(run, members, fold)
        elif members:
            return _run_folds(run, members, data_root=data_root, dataset=dataset)
        else:
            run = open_run(run)
    data, own = _open(run, data_root=data_root, dataset=dataset)
    outcomes = _judge(run, data, own=own, fold=fold)
    command = _command(run.path, data_root=data_root, dataset=dataset, fold=fold)
    report = summarise(outcomes, data, [run], path=run.path, command=command)
    file = run.path / "eval" / _file(data, own=own)
    write_report(file, report)
    show(report, file)
    return report


def fold_runs(folder: Path) -> dict[int, Path]:
    """The runs ``fold1``, ``fold2``, ... in a folder that is not itself a run; empty when it has none."""
    if not folder.is_dir() or (folder / RECIPE).is_file():
        return {}
    found = {
        int(match[1]): entry
        for entry in folder.iterdir()
        if (match := re.fullmatch(r"fold(\d+)", entry.name)) and (entry / RECIPE).is_file()
    }
    return dict(sorted(found.items()))


def _run_folds(
    folder: Path, members: Mapping[int, Path], *, data_root: Path | None, dataset: str | None
) -> Report:
    runs = {number: open_run(path) for number, path in members.items()}
    first = next(iter(runs.values()))
    data, own = _open(first, data_root=data_root, dataset=dataset)
    _check_members(folder, runs, data)
    outcomes: list[Outcome] = []
    for number, member in runs.items():
        found = _judge(member, data, own=own, fold=number)
        command = _command(member.path, data_root=data_root, dataset=dataset, fold=number)
        report = summarise(found, data, [member], path=member.path, command=command)
        write_report(member.path / "eval" / _file(data, own=own), report)
        outcomes += found
    command = _command(folder, data_root=data_root, dataset=dataset, fold=None)
    report = summarise(outcomes, data, list(runs.values()), path=folder, command=command)
    file = folder / "eval" / _file(data, own=own)
    write_report(file, report)
    show(report, file)
    return report


def _check_members(folder: Path, runs: Mapping[int, Run], data: DataSet) -> None:
    """Runs by fold count as one result only when they are one recipe, a fold each, and complete."""
    if not in_folds(data):
        raise UserError(f"{folder} holds runs by fold, but {data.name} at {data.root} is not in folds")
    wanted = sorted(int(split.removeprefix("fold")) for split in data.splits())
    if missing := [number for number in wanted if number not in runs]:
        raise UserError(
            f"{folder} has no run of {', '.join(f'fold{number}' for number in missing)} of {data.name}'s "
            f"{len(wanted)} folds; train the rest (--fold all --resume), or judge one with --fold"
        )
    first = next(iter(runs.values())).recipe
    for number, member in runs.items():
        if member.recipe.dataset.fold != number:
            raise UserError(f"{member.path} held out fold {member.recipe.dataset.fold}, not fold {number}")
        alike = member.recipe.model_copy(update={"dataset": first.dataset})
        if alike != first or member.recipe.dataset.name != first.dataset.name:
            raise UserError(f"{member.path} was trained by another recipe than the other folds of {folder}")


def _member(folder: Path, members: Mapping[int, Path], fold: int) -> Run:
    if fold not in members:
        raise UserError(
            f"{folder} has no run fold{fold}; it has {', '.join(path.name for path in members.values())}"
        )
    return open_run(members[fold])


def _open(run: Run, *, data_root: Path | None, dataset: str | None) -> tuple[DataSet, bool]:
    """The data set, and whether it is the run's own."""
    if dataset is None or dataset == run.recipe.dataset.name:
        return run.dataset(root=data_root), True
    return open_dataset(dataset, root=data_root), False


def _judge(run: Run, data: DataSet, *, own: bool, fold: int | None) -> list[Outcome]:
    branches = [name for name, config in run.recipe.branches.items() if config.input != "text"]
    if not branches:
        raise UserError(
            f"the run {run.path} has only text branches; the linear protocol has nothing to probe"
        )
    samples, tasks = _tasks(run, data, own=own, fold=fold)
    labels = _labels(samples, data)
    groups = [_group(sample) for sample in samples]
    trained = _features(run, branches, samples, untrained=False)
    untrained = _features(run, branches, samples, untrained=True)

    def judge(features: Features, task: Task) -> dict[str, ProbeResult]:
        return {
            name: probe(
                x[task.train],
                labels[task.train],
                x[task.test],
                labels[task.test],
                groups=[groups[i] for i in task.train],
                classes=len(data.classes),
            )
            for name, x in features.items()
        }

    return [
        Outcome(
            task,
            judge(trained, task),
            judge(untrained, task),
            chance_level(labels[task.train], labels[task.test], classes=len(data.classes)),
        )
        for task in tasks
    ]


def _features(run: Run, branches: Sequence[str], samples: Sequence[Sample], *, untrained: bool) -> Features:
    model = run.model(untrained=untrained)
    which = "untrained " if untrained else ""
    found = {
        branch: encode(
            model,
            branch,
            samples,
            space="representation",
            batch_size=run.recipe.evaluation.batch_size,
            description=f"encoding with {which}{branch}",
        ).vectors
        for branch in branches
    }
    if len(found) > 1:
        found["+".join(branches)] = np.hstack(list(found.values()))
    return found


def _tasks(run: Run, data: DataSet, *, own: bool, fold: int | None) -> tuple[list[Sample], list[Task]]:
    """Every sample needed, and which of them each probe is trained and tested on."""
    if in_folds(data):
        return _fold_tasks(run, data, fold=fold)
    if fold is not None:
        raise UserError(
            f"--fold {fold}: {data.name} at {data.root} is not in folds (it has {', '.join(data.splits())})"
        )
    settings = run.recipe.dataset
    train = data.samples(settings.train_split if own else "train")
    split = evaluation_split(data, settings.eval_split if own else None)
    test = data.samples(split)
    both = {sample.id for sample in train} & {sample.id for sample in test}
    if both:
        raise UserError(
            f"{len(both)} samples of {data.name} at {data.root} are both in the training split and in "
            f"'{split}' ('{min(both)}'); a probe must be tested on others than it was trained on"
        )
    n = len(train)
    return [*train, *test], [Task(split, np.arange(n), np.arange(n, n + len(test)), False)]


def _fold_tasks(run: Run, data: DataSet, *, fold: int | None) -> tuple[list[Sample], list[Task]]:
    numbers = [int(split.removeprefix("fold")) for split in data.splits()]
    related = _related(data.name, run.recipe.dataset.name)
    held_out = run.recipe.dataset.fold
    if fold is not None and fold not in numbers:
        raise UserError(
            f"no fold {fold} in {data.name} at {data.root}; it has {', '.join(map(str, numbers))}"
        )
    if fold is not None:
        tested = [fold]
    else:
        tested = [held_out] if related and isinstance(held_out, int) and held_out in numbers else numbers
    parts = {number: data.samples(f"fold{number}") for number in numbers}
    samples = [sample for part in parts.values() for sample in part]
    place = np.repeat(numbers, [len(part) for part in parts.values()])
    return samples, [
        Task(
            str(number),
            np.flatnonzero(place != number),
            np.flatnonzero(place == number),
            _saw(run, data, number),
        )
        for number in tested
    ]


def _saw(run: Run, data: DataSet, fold: int) -> bool:
    """Whether the run saw a fold in pretraining, itself or through the weights its branches started from."""
    recipe = run.recipe
    trained_on = [(recipe.dataset.name, recipe.dataset.fold)]
    for branch in recipe.branches.values():
        trained_on += [(seen.dataset, seen.fold) for seen in (branch.init.seen if branch.init else ())]
    return any(_related(data.name, name) and held_out != fold for name, held_out in trained_on)


def _related(name: str, other: str) -> bool:
    """Whether two data sets share samples, fold for fold: the same one, or one a part of the other."""
    return name == other or any(
        b in getattr(DATASETS.load(a), "alternatives", ()) for a, b in ((name, other), (other, name))
    )


def _labels(samples: Sequence[Sample], data: DataSet) -> npt.NDArray[np.int64]:
    missing = [sample.id for sample in samples if sample.label is None]
    if not data.classes or len(missing) == len(samples):
        raise UserError(
            f"{data.name} at {data.root} has no labels, so there is nothing for a linear probe to predict; "
            "judge a run on captions with mmvicreg eval retrieval"
        )
    if missing:
        raise UserError(
            f"{len(missing)} samples of {data.name} at {data.root} have no label, first '{missing[0]}'"
        )
    return np.array([sample.label for sample in samples], dtype=np.int64)


def _group(sample: Sample) -> str:
    """What must stay on one side of the inner split: the fold, else the source, else the sample alone."""
    if sample.fold is not None:
        return f"fold {sample.fold}"
    return f"group {sample.group}" if sample.group is not None else f"sample {sample.id}"


def _file(data: DataSet, *, own: bool) -> str:
    return "linear.json" if own else f"linear-{data.name}.json"


def _command(path: Path, *, data_root: Path | None, dataset: str | None, fold: int | None) -> str:
    return command_line("linear", path, {"fold": fold, "data-root": data_root, "dataset": dataset})
