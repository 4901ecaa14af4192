"""What the classification protocols start from: a branch that reads pictures, and samples with their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmvicreg.datasets import evaluation_split, in_folds, training_samples
from mmvicreg.errors import UserError
from mmvicreg.eval.output import bad_sample_flag
from mmvicreg.eval.tasks import labels_of, saw_split
from mmvicreg.eval.trained_data import in_doubt
from mmvicreg.registry import nearest
from mmvicreg.runs import Run
from mmvicreg.samples import DataSet, Sample
from mmvicreg.skipped import OnBadSample

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DataOptions:
    """Where a protocol's samples are; what is None is the run's own or the usual one.

    Attributes:
        root: folder of the data.
        dataset: another data set than the run's own, by name.
        split: what is tested on.
        train_split: what is trained on.
        on_bad_sample: ``error``, or ``skip``: leave out what cannot be read (:mod:`mmvicreg.eval.readable`).
    """

    root: Path | None = None
    dataset: str | None = None
    split: str | None = None
    train_split: str | None = None
    on_bad_sample: OnBadSample = "error"

    def flags(self) -> dict[str, object]:
        """As flags of the command line."""
        return {
            "dataset": self.dataset,
            "data-root": self.root,
            "split": self.split,
            "train-split": self.train_split,
            **bad_sample_flag(self.on_bad_sample),
        }

    def changed(self, run: Run) -> dict[str, object]:
        """As flags too, for a result's name: training samples that are not the usual ones."""
        settings = run.recipe.trained_as(self.dataset or run.recipe.dataset.name)
        usual = settings.train_split if settings else "train"
        return {"train-split": self.train_split} if self.train_split not in (None, usual) else {}


@dataclass(frozen=True)
class Labelled:
    """A data set's training and test samples with their classes.

    Attributes:
        data: the data set.
        own: whether it is the run's own.
        train_split: name of the training split (of data in folds: all folds but the tested one).
        split: name of the test split.
        train: training samples.
        train_labels: ``(n,)`` class indices.
        test: test samples.
        test_labels: ``(k,)``.
        seen: whether pretraining saw test samples, or may have.
        doubt: why the latter, in words.
        left_out: what a report says of samples that could not be read and are not among these.
    """

    data: DataSet
    own: bool
    train_split: str
    split: str
    train: Sequence[Sample]
    train_labels: Integers
    test: Sequence[Sample]
    test_labels: Integers
    seen: bool = False
    doubt: str | None = None
    left_out: Mapping[str, object] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.classes)


def open_data(run: Run, options: DataOptions) -> tuple[DataSet, bool]:
    """The data set to judge on, and whether it is the run's own."""
    if options.dataset is None or options.dataset == run.recipe.dataset.name:
        return run.dataset(root=options.root), True
    return run.dataset(name=options.dataset, root=options.root), False


def labelled_data(run: Run, options: DataOptions) -> Labelled:
    """Training and test samples of a data set with classes.

    Raises:
        UserError: no such data set or split, nothing in it, samples without a class, or of several, or all of one, or
            in both splits; a fold of other samples than the run held out.
    """
    data, own = open_data(run, options)
    if hasattr(data, "targets"):
        raise UserError(
            f"the pictures of {data.name} at {data.root} may show several classes each, and this protocol is for one "
            "class a picture; judge them with mmvicreg eval svm, or name another --dataset"
        )
    settings = run.recipe.dataset if own else run.recipe.trained_as(data.name)
    fold = settings.fold if settings else 1
    split = evaluation_split(data, options.split or (settings.eval_split if settings else None), fold=fold)
    train_split = options.train_split or (settings.train_split if settings else "train")
    if in_folds(data) and options.train_split is None:
        train = training_samples(data, split=train_split, fold=split.removeprefix("fold"))
        train_split = f"all but {split}"
    else:
        train = data.samples(train_split)
    test = data.samples(split)
    for name, samples in ((train_split, train), (split, test)):
        if not samples:
            raise UserError(f"the split '{name}' of {data.name} at {data.root} is empty")
    both = {sample.id for sample in train} & {sample.id for sample in test}
    if both:
        raise UserError(
            f"{len(both):,} samples of {data.name} at {data.root} are both in the training split '{train_split}' and "
            f"in '{split}' ('{min(both)}'); a classifier must be tested on others than it was trained on: name other "
            "splits with --train-split and --split"
        )
    labels = labels_of(train, data), labels_of(test, data)
    check_two_classes(labels[0], data, f"the training split '{train_split}' of {data.name} at {data.root}")
    seen = saw_split(run, data.name, split)
    doubt = in_doubt(run, data, test, seen=seen)
    return Labelled(
        data, own, train_split, split, train, labels[0], test, labels[1], seen or doubt is not None, doubt
    )


def check_two_classes(
    labels: Integers,
    data: DataSet,
    where: str,
    *,
    way_out: str = "give data of two classes at least (--data-root, --dataset), or another --train-split",
) -> None:
    """Refuse training samples that are all of one class.

    Args:
        labels: ``(n,)`` class indices, at least one.
        data: has the names of the classes.
        where: what the samples are of, for the message.
        way_out: what to do about it.

    Raises:
        UserError: they are.
    """
    if len(there := np.unique(labels)) == 1:
        raise UserError(
            f"all {len(labels):,} samples of {where} are of one class, '{data.classes[there[0]]}', so there is nothing "
            f"for a classifier to tell apart; {way_out}"
        )


def image_branches(run: Run) -> list[str]:
    """Names of a run's branches that read pictures."""
    return [name for name, config in run.recipe.branches.items() if config.input == "image"]


def image_branch(run: Run, asked: str | None) -> str:
    """The branch to judge: ``asked``, or the first one that reads pictures.

    Raises:
        UserError: the run has no such branch (the nearest is named), or it reads something else.
    """
    branches, pictures = run.recipe.branches, image_branches(run)
    if asked is not None and asked not in branches:
        raise UserError(
            f"the run {run.path} has no branch '{asked}'{nearest(asked, branches)} It has {', '.join(branches)}."
        )
    if not pictures:
        raise UserError(
            f"the run {run.path} has no branch that reads pictures (its branches are {', '.join(branches)})"
        )
    if asked is not None and asked not in pictures:
        raise UserError(
            f"the branch '{asked}' of {run.path} reads {branches[asked].input}, and this protocol is for pictures: "
            f"choose {' or '.join(pictures)}"
        )
    return asked if asked is not None else pictures[0]
