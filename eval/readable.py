"""Samples that cannot be read, found before a protocol of classes begins and left out of all of it.

A classifier is trained on some samples and tested on others, for the run and for whatever it is compared with; with
``--on-bad-sample skip`` they must all be without the same ones. So every sample is read once beforehand, which costs
a pass over the data, and the protocol is given what is left: its figures are those of a data set that never had the
others. They are listed in the run folder, in ``eval/skipped-<data set>-<protocol>.jsonl``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from mmvicreg.encode import unreadable
from mmvicreg.errors import UserError
from mmvicreg.eval.labelled import Labelled, check_two_classes
from mmvicreg.eval.output import Report
from mmvicreg.runs import Run
from mmvicreg.samples import DataSet, Sample
from mmvicreg.skipped import Skipped, write_skipped
from mmvicreg.training.distributed import World
from mmvicreg.training.setup import restore_inputs


class _Rest:
    """A data set without some of its samples; everything else is the whole one's."""

    def __init__(self, whole: DataSet, gone: Collection[str]) -> None:
        self._whole, self._gone = whole, gone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def samples(self, split: str) -> Sequence[Sample]:
        return [sample for sample in self._whole.samples(split) if sample.id not in self._gone]


def find_skipped(
    run: Run, branches: Collection[str], samples: Sequence[Sample], *, world: World | None = None
) -> list[Skipped]:
    """Those of ``samples`` that some branch's input cannot read, in their order.

    Args:
        run: the run whose inputs read them.
        branches: names of branches with one row a sample (not text).
        samples: what the protocol would use.
        world: this process among those that share the reading; None: it is alone.

    Raises:
        UserError: none can be read.
    """
    names = dict.fromkeys(run.recipe.branches[branch].input for branch in branches)
    inputs = restore_inputs(run.recipe, run.content["inputs"])
    failed: dict[int, str] = {}
    for name in names:
        failed |= unreadable(inputs[name], samples, batch_size=run.recipe.evaluation.batch_size, world=world)
    if samples and len(failed) == len(samples):
        raise UserError(f"none of {len(samples):,} samples can be read, the first: {failed[0]}")
    return [Skipped.of(samples[index], failed[index]) for index in sorted(failed)]


def without(data: DataSet, skipped: Collection[Skipped]) -> DataSet:
    """The data set without them; itself where there are none."""
    if not skipped:
        return data
    return cast(DataSet, _Rest(data, {one.id for one in skipped}))


def readable(world: World, run: Run, branch: str, found: Labelled, *, protocol: str) -> Labelled:
    """A protocol's samples without those that cannot be read, the same in every process; these are listed.

    Args:
        world: this process among those that share the reading.
        run: the run that is judged.
        branch: the branch that is judged.
        found: every sample the protocol would use.
        protocol: its name, for the list's.

    Raises:
        UserError: nothing is left on one side, or one class alone to train on.
    """
    skipped = find_skipped(run, [branch], [*found.train, *found.test], world=world)
    gone = {one.id for one in skipped}
    train = [i for i, sample in enumerate(found.train) if sample.id not in gone]
    test = [i for i, sample in enumerate(found.test) if sample.id not in gone]
    for split, rows in ((found.train_split, train), (found.split, test)):
        if not rows:
            raise UserError(
                f"no sample of the split '{split}' of {found.data.name} at {found.data.root} can be read, the first: "
                f"{skipped[0].reason}"
            )
    if skipped:
        check_two_classes(
            found.train_labels[train],
            found.data,
            f"the training split '{found.train_split}' of {found.data.name} at {found.data.root} that can be read",
            way_out=f"mend the others, the first: {skipped[0].reason}",
        )
    return replace(
        found,
        train=[found.train[i] for i in train],
        train_labels=found.train_labels[train],
        test=[found.test[i] for i in test],
        test_labels=found.test_labels[test],
        left_out=list_skipped(run.path, found.data, protocol, skipped, write=world.is_main),
    )


def list_skipped(
    folder: Path, data: DataSet, protocol: str, skipped: Sequence[Skipped], *, write: bool = True
) -> Report:
    """Write the list into ``folder``'s ``eval`` (of none: remove an earlier one); what a report says of it.

    Returns:
        ``skipped``, their number, and ``skipped_list``, the file, or None.

    Raises:
        UserError: it cannot be written.
    """
    file = folder / "eval" / f"skipped-{data.name}-{protocol}.jsonl"
    if write:
        write_skipped(file, skipped)
    return {"skipped": len(skipped), "skipped_list": str(file) if skipped else None}
