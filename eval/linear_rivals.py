"""Other runs that stand beside one in the linear protocol's table: same data, same folds, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmvicreg.errors import UserError
from mmvicreg.eval.fold_runs import check_finished, one_of
from mmvicreg.recipes import differences
from mmvicreg.runs import Run, fold_runs, open_run


@dataclass(frozen=True)
class Rival:
    """A run, or a run per fold, to be compared with.

    Attributes:
        path: its folder.
        runs: one for each of the runs it is compared with, in their order.
        differs: in which keys its recipe is another, ``key: ours -> its``.
    """

    path: Path
    runs: Sequence[Run]
    differs: Sequence[str]

    @property
    def method(self) -> str:
        """Its objective's name."""
        return str(self.runs[0].recipe.objective["name"])


def open_rival(path: Path, runs: Sequence[Run], *, by_fold: bool) -> Rival:
    """Open what ``--compare`` names.

    Args:
        path: a run folder, or a folder of runs by fold.
        runs: the run, or the runs by fold, to compare with.
        by_fold: they are runs by fold.

    Raises:
        UserError: no such run, another data set, another fold held out, other samples trained on, or runs by fold that
            are not all finished.
    """
    members = fold_runs(path)
    if by_fold and not members:
        raise UserError(f"--compare {path}: not a folder of runs by fold, as what it is compared with is")
    found = [_counterpart(path, members, run) for run in runs]
    for own, other in zip(runs, found, strict=True):
        _check(own, other)
    if by_fold:
        check_finished(path, found)
    changed = [
        line for line in differences(runs[0].recipe, found[0].recipe) if not line.startswith("dataset.root")
    ]
    return Rival(path, found, changed)


def _counterpart(path: Path, members: Mapping[int, Path], run: Run) -> Run:
    fold = run.recipe.dataset.fold
    if not members:
        return open_run(path)
    if not isinstance(fold, int):
        raise UserError(f"--compare {path}: its runs each held a fold out, and {run.path} held out none")
    return open_run(one_of(path, members, fold))


def _check(own: Run, other: Run) -> None:
    mine, theirs = own.recipe.dataset, other.recipe.dataset
    for what, a, b in (
        ("the data set", theirs.name, mine.name),
        ("the held-out fold", theirs.fold, mine.fold),
        ("the training split", theirs.train_split, mine.train_split),
        ("the evaluation split", theirs.eval_split, mine.eval_split),
    ):
        if a != b:
            raise UserError(
                f"--compare {other.path}: {what} is {a}, and {b} for {own.path}; they do not compare"
            )
    a, b = own.content["data"], other.content["data"]
    if a != b:
        raise UserError(
            f"--compare {other.path}: it was pretrained on {b['samples']} samples and {own.path} on {a['samples']}, or "
            "on others by name; they do not compare"
        )
