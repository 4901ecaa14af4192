"""From a list of samples to global batches, each process reading its own slice."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mmvicreg.branches.model import Batch, build_graph, view_key
from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import Input, Item, PartnerError
from mmvicreg.samples import Sample
from mmvicreg.skipped import Skipped
from mmvicreg.training.addressing import epoch_order, substitute, view_rng
from mmvicreg.training.log import say

ATTEMPTS = 20
"""Rows tried in the place of one that cannot be read, before the data counts as broken."""


@dataclass(frozen=True)
class Failure:
    """A user's mistake met by a loader worker, carried to the process that can report it."""

    message: str


@dataclass
class Loaded:
    """A batch, and which samples it should have held but others took their place."""

    batch: Batch
    skipped: tuple[Skipped, ...] = ()

    def pin_memory(self) -> Loaded:
        """Called by the data loader's pinning thread."""
        return Loaded(self.batch.pin_memory(), self.skipped)


@dataclass(frozen=True)
class Row:
    """One row as a worker read it: the sample it came from, its views, and those that could not be read."""

    index: int
    views: dict[str, Item]
    skipped: tuple[Skipped, ...] = ()


class ViewDataset(Dataset["Row | Failure"]):
    """Views of the training samples, addressed by (epoch, row).

    A row is a sample, or a pair of a sample and one of its captions when every caption is used each epoch.
    With ``dataset.on_bad_sample: skip`` a row that cannot be read is replaced by another, which its address
    chooses; that one may be in the same batch already, with a probability of about batch / rows.
    """

    def __init__(self, recipe: Recipe, inputs: Mapping[str, Input], samples: Sequence[Sample]) -> None:
        self.samples = samples  # as it is: a million of them may be listed in less than a list takes
        self.inputs = dict(inputs)
        self.seed = recipe.seed
        self.attempts = ATTEMPTS if recipe.dataset.on_bad_sample == "skip" else 0
        self.keys = sorted({view_key(recipe, node) for node in build_graph(recipe).nodes})
        self.views: dict[str, list[int]] = {}
        for key in self.keys:
            name, _, view = key.partition("/")
            self.views.setdefault(name, []).append(int(view))
        self.rows: list[tuple[int, int]] | None = None
        """Sample and caption; None: a row is a sample."""
        if recipe.dataset.captions == "all" and "text" in self.inputs:
            # one without captions has a row that cannot be read, so that it is told of
            self.rows = [
                (i, c) for i, sample in enumerate(self.samples) for c in range(len(sample.captions) or 1)
            ]

    def __len__(self) -> int:
        return len(self.samples) if self.rows is None else len(self.rows)

    def __getitem__(self, address: tuple[int, int]) -> Row | Failure:
        """The views of one row in one epoch, or of the row that takes its place."""
        epoch, row = address
        skipped: list[Skipped] = []
        chosen, again = row, 0
        for attempt in range(self.attempts + 1):
            index, _ = self._row(chosen)
            try:
                return Row(index, self._read(epoch, row, chosen, again), tuple(skipped))
            except PartnerError as error:
                if not self.attempts:
                    return Failure(str(error))
                skipped.append(Skipped.of(error.sample, str(error)))
                again += 1  # this sample once more, with another partner
                continue
            except UserError as error:
                if not self.attempts:
                    return Failure(str(error))
                skipped.append(Skipped.of(self.samples[index], str(error)))
            chosen = substitute(self.seed, epoch, row, attempt, len(self))
        return Failure(
            f"{len(skipped)} samples in a row cannot be read, which is no longer a matter of skipping some; the "
            f"first: {skipped[0].reason}"
        )

    def _row(self, row: int) -> tuple[int, int | None]:
        """Position in ``samples``, and which caption: None where the address draws it."""
        return (row, None) if self.rows is None else self.rows[row]

    def _read(self, epoch: int, row: int, chosen: int, again: int) -> dict[str, Item]:
        """Views of the row ``chosen`` as ``row``'s address draws them: no copy of its own in the same epoch.

        ``again``: how often these views were drawn before.
        """
        index, caption = self._row(chosen)
        views: dict[str, Item] = {}
        for name, numbers in self.views.items():
            rngs = {view: view_rng(self.seed, epoch, row, view, again) for view in numbers}
            loaded = self.inputs[name].load_views(self.samples[index], rngs, caption=caption)
            for view, item in loaded.items():
                views[f"{name}/{view}"] = {**item, "view": torch.tensor(view)}
        return views

    def collate(self, items: Sequence[Row | Failure]) -> Loaded | Failure:
        """Stack the views of a batch; a failure of any sample is the failure of the batch."""
        whole: list[Row] = []
        for item in items:
            if isinstance(item, Failure):
                return item
            whole.append(item)
        views = {
            key: self.inputs[key.partition("/")[0]].collate([item.views[key] for item in whole])
            for key in self.keys
        }
        batch = Batch(torch.tensor([item.index for item in whole]), views)
        return Loaded(batch, tuple(one for item in whole for one in item.skipped))


class AddressedBatches(Sampler["list[tuple[int, int]]"]):
    """This process's slice of every global batch of one epoch, from a given batch on.

    The order depends on (seed, epoch) alone, so that processes agree and a resumed epoch continues. The
    last partial batch is dropped: the statistics of the objective are over a full batch.
    """

    def __init__(self, rows: int, batch_size: int, *, seed: int, rank: int, world_size: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.local = rank, batch_size // world_size
        self.epoch, self.start = 0, 0

    def begin(self, epoch: int, start: int) -> None:
        """Make the next iteration that of ``epoch``, from batch ``start`` on."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = epoch_order(self.seed, self.epoch, self.rows)
        for batch in range(self.start, len(self)):
            first = batch * self.batch_size + self.rank * self.local
            yield [(self.epoch, int(row)) for row in order[first : first + self.local]]


class TrainingLoader:
    """Global batches of an epoch, decoded by worker processes that live as long as the run.

    ``to_skip`` is the flag with which it would go on without what cannot be read, for messages.
    """

    def __init__(
        self,
        recipe: Recipe,
        inputs: Mapping[str, Input],
        samples: Sequence[Sample],
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 2,
        pin_memory: bool = False,
        to_skip: str = "--on-bad-sample skip",
    ) -> None:
        dataset = ViewDataset(recipe, inputs, samples)
        size = recipe.training.batch_size
        if len(dataset) < size:
            raise UserError(
                f"a batch of {size} is larger than the training data ({len(dataset)} samples of "
                f"{recipe.dataset.name}): the objective's statistics need a full batch; lower --batch-size"
            )
        if size % world_size:
            raise UserError(
                f"a global batch of {size} does not divide among {world_size} processes; choose a multiple"
            )
        self._to_skip = to_skip
        self.skipped: dict[str, Skipped] = {}
        """What could not be read so far, by its id: of this process's part, since the run began or was resumed."""
        for source in inputs.values():
            for note in source.prepare(samples, skip=recipe.dataset.on_bad_sample == "skip"):
                say(note)  # by the process that did it
            source.train_on(samples)
        self.batches = AddressedBatches(
            len(dataset), size, seed=recipe.seed, rank=rank, world_size=world_size
        )
        self._loader = DataLoader(
            dataset,
            batch_sampler=self.batches,
            collate_fn=dataset.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            prefetch_factor=2 if workers else None,
            worker_init_fn=begin_worker,
        )

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self.batches)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch ``start`` on.

        Raises:
            UserError: a sample could not be read.
        """
        self.batches.begin(epoch, start)
        for loaded in self._loader:
            if isinstance(loaded, Failure):
                raise UserError(f"{loaded.message} (or go on without what cannot be read: {self._to_skip})")
            self.skipped |= {one.id: one for one in loaded.skipped}
            yield loaded.batch

    def close(self) -> None:
        """End the worker processes."""
        end_workers(self._loader)


def end_workers(loader: DataLoader[Any]) -> None:
    """End a loader's worker processes now, whoever still holds its iterator (a traceback, say).

    They do not hear SIGTERM (see :func:`begin_worker`), so at exit Python would wait for them for ever.
    """
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


def begin_worker(_: int) -> None:
    """Set up a loader worker: one thread, and deaf to the signals that ask a run to stop.

    Ctrl-C and SLURM signal every process of a run; a worker that died of it would take the training
    process along before that has written its checkpoint. Workers end with the process they serve.
    """
    torch.set_num_threads(1)  # they must not fight the training process for its cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
