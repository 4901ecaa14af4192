"""Which samples a classifier is trained on and which it is tested on, so that none is on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmvicreg.config import SeenConfig
from mmvicreg.datasets import evaluation_split, fold_number, in_folds
from mmvicreg.errors import UserError
from mmvicreg.eval.probe import Task, check_training
from mmvicreg.registry import DATASETS
from mmvicreg.runs import Run
from mmvicreg.samples import DataSet, Sample


def other_split(run: Run, data: DataSet, asked: str | None, *, own: bool) -> str | None:
    """The split that was asked for, where it is another than the one that is tested on anyway; else None.

    Raises:
        UserError: one was asked for of data in folds.
    """
    if asked is None:
        return None
    if in_folds(data):
        raise UserError(f"--split {asked}: {data.name} at {data.root} is in folds; name one with --fold")
    try:
        usual = evaluation_split(data, run.recipe.dataset.eval_split if own else None)
    except UserError:  # neither test nor val
        return asked
    return None if asked == usual else asked


def tasks_of(
    run: Run, data: DataSet, *, own: bool, fold: int | None, split: str | None = None
) -> tuple[list[Sample], list[Task]]:
    """Every sample needed, and which of them each classifier is trained and tested on.

    Args:
        run: the run whose representations or recipe are judged.
        data: an opened data set.
        own: it is the one the run was trained on.
        fold: for data in folds, the fold to test on; None: the one the run held out, else every fold in turn.
        split: for data in splits, the split to test on; None: the recipe's ``eval_split``, else ``test`` or ``val``.

    Raises:
        UserError: no such fold, or samples on both sides.
    """
    if in_folds(data):
        return _fold_tasks(run, data, fold=fold)
    if fold is not None:
        raise UserError(
            f"--fold {fold}: {data.name} at {data.root} is not in folds (it has {', '.join(data.splits())})"
        )
    settings = run.recipe.dataset
    train = data.samples(settings.train_split if own else "train")
    split = evaluation_split(data, split or (settings.eval_split if own else None))
    test = data.samples(split)
    both = {sample.id for sample in train} & {sample.id for sample in test}
    if both:
        raise UserError(
            f"{len(both)} samples of {data.name} at {data.root} are both in the training split and in "
            f"'{split}' ('{min(both)}'); a probe must be tested on others than it was trained on"
        )
    n, seen = len(train), saw_split(run, data.name, split)
    return [*train, *test], [Task(split, np.arange(n), np.arange(n, n + len(test)), seen)]


def _fold_tasks(run: Run, data: DataSet, *, fold: int | None) -> tuple[list[Sample], list[Task]]:
    numbers = [int(split.removeprefix("fold")) for split in data.splits()]
    shared = related(data.name, run.recipe.dataset.name)
    held_out = run.recipe.dataset.fold
    if fold is not None and fold not in numbers:
        raise UserError(
            f"no fold {fold} in {data.name} at {data.root}; it has {', '.join(map(str, numbers))}"
        )
    if fold is not None:
        tested = [fold]
    else:
        tested = [held_out] if shared and isinstance(held_out, int) and held_out in numbers else numbers
    parts = {number: data.samples(f"fold{number}") for number in numbers}
    samples = [sample for part in parts.values() for sample in part]
    place = np.repeat(numbers, [len(part) for part in parts.values()])
    return samples, [
        Task(
            str(number),
            np.flatnonzero(place != number),
            np.flatnonzero(place == number),
            saw(run, data, number),
        )
        for number in tested
    ]


def saw(run: Run, data: DataSet, fold: int) -> bool:
    """Whether the run saw a fold in pretraining, itself or through the weights its branches started from."""
    return any(related(data.name, seen.dataset) and seen.fold != fold for seen in _seen(run))


def saw_split(run: Run, dataset: str, split: str) -> bool:
    """Whether pretraining saw samples of this split, of a data set of the run or one that shares its samples.

    The run's own, or that of the weights its branches started from.
    """
    parts = set(split.split("+"))
    for seen in _seen(run):
        if not related(dataset, seen.dataset):
            continue
        trained = set(seen.split.split("+"))
        if all(fold_number(part) is not None for part in parts):
            if parts != {f"fold{seen.fold}"}:
                return True
        elif "all" in parts | trained or parts & trained:
            return True
    return False


def _seen(run: Run) -> list[SeenConfig]:
    """What a run was trained on, and what the weights its branches started from were."""
    own = [
        SeenConfig(dataset=config.name, fold=config.fold, split=config.train_split)
        for config in run.recipe.trained_on
    ]
    inits = [branch.init for branch in run.recipe.branches.values() if branch.init is not None]
    return own + [seen for init in inits for seen in init.seen]


def related(name: str, other: str) -> bool:
    """Whether two data sets share samples, fold for fold: the same one, or one a part of the other."""
    return name == other or any(
        b in getattr(DATASETS.load(a), "alternatives", ()) for a, b in ((name, other), (other, name))
    )


def labels_of(samples: Sequence[Sample], data: DataSet) -> npt.NDArray[np.int64]:
    """Class indices ``(n,)``.

    Raises:
        UserError: a sample has none.
    """
    missing = [sample.id for sample in samples if sample.label is None]
    if not data.classes or len(missing) == len(samples):
        raise UserError(
            f"{data.name} at {data.root} has no labels, so there is nothing for a classifier to predict; "
            "name a data set with classes (--dataset), or judge a run on captions with mmvicreg eval retrieval"
        )
    if missing:
        raise UserError(
            f"{len(missing)} samples of {data.name} at {data.root} have no label, first '{missing[0]}'"
        )
    return np.array([sample.label for sample in samples], dtype=np.int64)


def check_tasks(samples: Sequence[Sample], tasks: Sequence[Task], data: DataSet) -> None:
    """Refuse, before anything is encoded, tasks that no probe can be trained or tested on.

    Raises:
        UserError: no labels, training samples of one class or one group, or nothing to test on.
    """
    labels = labels_of(samples, data)
    for task in tasks:
        where = f"{data.name} at {data.root}, tested on {task_name(task)}"
        if len(task.test) == 0:
            raise UserError(f"{where}: no sample is left to test on")
        try:
            check_training(labels[task.train], groups_of([samples[i] for i in task.train]))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def task_name(task: Task) -> str:
    """What a task is tested on, in words."""
    return f"fold {task.name}" if task.name.isdigit() else f"the split '{task.name}'"


def groups_of(samples: Sequence[Sample]) -> list[str]:
    """What must stay on one side of an inner split of ``samples``, for each of them.

    The fold; where they are all of one (of two folds, one is tested on) or of none, the source, else the sample.
    """
    by_fold = len({sample.fold for sample in samples}) > 1
    return [_group(sample, by_fold=by_fold) for sample in samples]


def _group(sample: Sample, *, by_fold: bool) -> str:
    if by_fold and sample.fold is not None:
        return f"fold {sample.fold}"
    return f"group {sample.group}" if sample.group is not None else f"sample {sample.id}"
