"""A folder of runs ``fold1``, ``fold2``, ..., each of which held out its own fold: the published protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmvicreg.datasets import in_folds
from mmvicreg.errors import UserError
from mmvicreg.eval.trained_data import check_trained_data
from mmvicreg.runs import Run
from mmvicreg.samples import DataSet
from mmvicreg.training.checkpoint import list_checkpoints


def one_of(folder: Path, members: Mapping[int, Path], fold: int) -> Path:
    """The run that held out ``fold``.

    Raises:
        UserError: there is none.
    """
    if fold not in members:
        raise UserError(
            f"{folder} has no run fold{fold}; it has {', '.join(path.name for path in members.values())}"
        )
    return members[fold]


def check_fold_runs(folder: Path, runs: Mapping[int, Run], data: DataSet) -> None:
    """Runs by fold count as one result only when they are one recipe, a fold each, all of them, and of these data.

    Raises:
        UserError: they are not.
    """
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
    for member in runs.values():
        if list_checkpoints(member.checkpoints):  # for the supervised baseline a run need not be trained
            check_trained_data(member, data)


def check_finished(folder: Path, runs: Sequence[Run]) -> None:
    """The mean over the runs by fold in ``folder`` is one figure only when each was trained to its end.

    Raises:
        UserError: some were not; the command that goes on with them is named.
    """
    short = [
        f"{run.path.name} after epoch {done} of {run.recipe.training.epochs}"
        for run in runs
        if (done := run.epochs_done) < run.recipe.training.epochs
    ]
    if not short:
        return
    raise UserError(
        f"{folder} is not finished: {', '.join(short)}, and a mean is of runs that were all trained to their end. "
        f"Go on with mmvicreg train --resume --out {folder}, or judge a run by itself, such as {runs[0].path}"
    )
