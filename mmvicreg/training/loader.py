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
from mmvicreg.inputs.base import Input, Item
from mmvicreg.samples import Sample
from mmvicreg.training.addressing import epoch_order, view_rng
from mmvicreg.training.log import say


@dataclass(frozen=True)
class Failure:
    """A user's mistake met by a loader worker, carried to the process that can report it."""

    message: str


class ViewDataset(Dataset["tuple[int, dict[str, Item] | Failure]"]):
    """Views of the training samples, addressed by (epoch, row).

    A row is a sample, or a pair of a sample and one of its captions when every caption is used each epoch.
    """

    def __init__(self, recipe: Recipe, inputs: Mapping[str, Input], samples: Sequence[Sample]) -> None:
        self.samples = samples  # as it is: a million of them may be listed in less than a list takes
        self.inputs = dict(inputs)
        self.seed = recipe.seed
        self.keys = sorted({view_key(recipe, node) for node in build_graph(recipe).nodes})
        self.views: dict[str, list[int]] = {}
        for key in self.keys:
            name, _, view = key.partition("/")
            self.views.setdefault(name, []).append(int(view))
        self.rows: list[tuple[int, int]] | None = None
        """Sample and caption; None: a row is a sample."""
        if recipe.dataset.captions == "all" and "text" in self.inputs:
            self.rows = [(i, c) for i, sample in enumerate(self.samples) for c in range(len(sample.captions))]

    def __len__(self) -> int:
        return len(self.samples) if self.rows is None else len(self.rows)

    def __getitem__(self, address: tuple[int, int]) -> tuple[int, dict[str, Item] | Failure]:
        """The views of one row in one epoch."""
        epoch, row = address
        index, caption = (row, None) if self.rows is None else self.rows[row]
        views: dict[str, Item] = {}
        try:
            for name, numbers in self.views.items():
                rngs = {view: view_rng(self.seed, epoch, row, view) for view in numbers}
                loaded = self.inputs[name].load_views(self.samples[index], rngs, caption=caption)
                for view, item in loaded.items():
                    views[f"{name}/{view}"] = {**item, "view": torch.tensor(view)}
        except UserError as error:
            return index, Failure(str(error))
        return index, views

    def collate(self, items: Sequence[tuple[int, dict[str, Item] | Failure]]) -> Batch | Failure:
        """Stack the views of a batch; a failure of any sample is the failure of the batch."""
        whole: list[dict[str, Item]] = []
        for _, item in items:
            if isinstance(item, Failure):
                return item
            whole.append(item)
        views = {
            key: self.inputs[key.partition("/")[0]].collate([item[key] for item in whole])
            for key in self.keys
        }
        return Batch(torch.tensor([index for index, _ in items]), views)


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
    """Global batches of an epoch, decoded by worker processes that live as long as the run."""

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
        for source in inputs.values():
            for note in source.prepare(samples):  # said by the process that did it
                say(note)
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
        for batch in self._loader:
            if isinstance(batch, Failure):
                raise UserError(batch.message)
            yield batch

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
