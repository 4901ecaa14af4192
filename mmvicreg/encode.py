"""From samples to vectors, for everything that judges or uses a trained branch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from mmvicreg.branches.model import JointModel
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import Input, Item, NotPreparedError
from mmvicreg.progress import progress_bar
from mmvicreg.registry import nearest
from mmvicreg.samples import Sample
from mmvicreg.skipped import Skipped
from mmvicreg.training.distributed import World, cpu_count, exchange_rows, gather_objects, shares
from mmvicreg.training.loader import Failure, begin_worker, end_workers
from mmvicreg.training.log import say


@dataclass(frozen=True)
class Encoded:
    """Vectors of one branch and what they belong to.

    Attributes:
        vectors: float32 ``(m, d)``.
        owner: int64 ``(m,)``: the sample each row was made from.
        failed: samples that could not be read, by their place, and why; they have no rows.
    """

    vectors: npt.NDArray[np.float32]
    owner: npt.NDArray[np.int64]
    failed: Mapping[int, str] = field(default_factory=dict)


def without_failed(
    encoded: Mapping[str, Encoded], samples: Sequence[Sample]
) -> tuple[dict[str, Encoded], list[Sample], list[Skipped]]:
    """The same branches without the samples that any of them could not read, and the list of these.

    Raises:
        UserError: there is nothing left.
    """
    failed = {index: reason for part in encoded.values() for index, reason in part.failed.items()}
    if not failed:
        return dict(encoded), list(samples), []
    if len(failed) == len(samples):
        raise UserError(f"none of {len(samples):,} samples can be read, the first: {failed[0]}")
    kept = np.ones(len(samples), dtype=bool)
    kept[list(failed)] = False
    place = np.cumsum(kept) - 1
    rest = {
        name: Encoded(part.vectors[kept[part.owner]], place[part.owner[kept[part.owner]]])
        for name, part in encoded.items()
    }
    skipped = [Skipped.of(samples[index], failed[index]) for index in sorted(failed)]
    return rest, [samples[int(index)] for index in np.flatnonzero(kept)], skipped


def row_ids(samples: Sequence[Sample], owner: npt.NDArray[np.int64], *, text: bool) -> list[str]:
    """An id for every row that :func:`encode` gives: the sample's, or, for a text branch, the caption's.

    Args:
        samples: what was encoded.
        owner: ``(m,)``, as :class:`Encoded` has it.
        text: whether the rows are captions.
    """
    if not text:
        return [samples[index].id for index in owner]
    starts = np.searchsorted(owner, owner)  # a sample's captions lie together, in order
    places = np.arange(len(owner)) - starts
    return [samples[i].caption_id(int(place)) for i, place in zip(owner, places, strict=True)]


class _Rows(Dataset["Item | Failure"]):
    def __init__(
        self, source: Input, samples: Sequence[Sample], rows: Sequence[tuple[int, int | None]]
    ) -> None:
        self.source, self.samples, self.rows = source, samples, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Item | Failure:
        index, caption = self.rows[row]
        try:
            return self.source.load(self.samples[index], None, caption=caption)
        except UserError as error:
            return Failure(str(error))

    def collate(self, items: Sequence[Item | Failure]) -> _Read:
        """The items that could be read, collated, and what is wrong with each of the others."""
        whole = [item for item in items if not isinstance(item, Failure)]
        return _Read(
            self.source.collate(whole) if whole else None,
            [item.message if isinstance(item, Failure) else None for item in items],
        )


@dataclass(frozen=True)
class _Read:
    """A batch: its readable items, and for every item None or what is wrong with it."""

    item: Item | None
    faults: list[str | None]


@torch.inference_mode()
def encode(
    model: JointModel,
    branch: str,
    samples: Sequence[Sample],
    *,
    space: Literal["representation", "embedding"],
    batch_size: int = 128,
    captions: int | None = None,
    description: str = "",
    workers: int = 2,
    world: World | None = None,
    skip: bool = False,
) -> Encoded:
    """Run ``samples`` through one branch, in evaluation mode and in float32.

    A text branch gives one row per caption, in order; every other branch one row per sample. Several
    processes share the work by whole batches, the same batches whatever their number, and all get all rows.

    Args:
        model: a model in evaluation mode.
        branch: name of the branch.
        samples: what to encode.
        space: the encoder's ``representation`` or the expander's ``embedding``.
        batch_size: samples at a time.
        captions: take only the first so many captions of each sample; None takes all.
        description: words for the progress bar; empty names the branch.
        workers: processes that read samples.
        world: this process among those that encode the same samples; None: it is alone.
        skip: leave samples out that cannot be read (all their rows), instead of stopping.

    Raises:
        UserError: no such branch, a sample that cannot be read, or a vector that is not finite.
    """
    if branch not in model.branches:
        raise UserError(
            f"the run has no branch '{branch}'{nearest(branch, model.branches)} It has {', '.join(model.branches)}."
        )
    part = model.branch(branch)
    source = model.inputs[part.config.input]
    notes: list[str] = []
    try:
        notes += source.prepare(samples, skip=skip)
    except NotPreparedError as error:  # only slower
        notes.append(f"warning: {error}")
    for note in notes if world is None or world.is_main else ():
        say(note)
    rows: list[tuple[int, int | None]] = [(i, None) for i in range(len(samples))]
    if part.config.input == "text":
        # a sample without captions has a row that cannot be read: it must not stay among those of the other branch
        rows = [
            (i, c) for i, sample in enumerate(samples) for c in range(len(sample.captions[:captions]) or 1)
        ]
    device = next(model.parameters()).device
    width = part.encoder.out_features if space == "representation" else part.config.expander.widths[-1]
    vectors = np.empty((len(rows), int(width)), np.float32)
    rank, size = (world.rank, world.size) if world is not None else (0, 1)
    bounds = shares(len(rows), size, unit=batch_size)
    place, last = bounds[rank], bounds[rank + 1]
    what = description or f"encoding {branch}"
    failed: dict[int, str] = {}
    with progress_bar(last - place, what, "row", visible=rank == 0) as bar:
        for read in _read(
            source, samples, rows[place:last], batch_size=batch_size, workers=workers, skip=skip
        ):
            good = [place + i for i, fault in enumerate(read.faults) if fault is None]
            if read.item is not None:
                y, z = part({name: value.to(device) for name, value in read.item.items()})
                vectors[good] = (z if space == "embedding" else y).float().cpu().numpy()
            failed |= {rows[place + i][0]: fault for i, fault in enumerate(read.faults) if fault is not None}
            place += len(read.faults)
            bar.advance(len(read.faults))
    exchange_rows(torch.from_numpy(vectors), bounds, device)
    owner = np.array([index for index, _ in rows], dtype=np.int64)
    if skip:
        failed = {index: fault for found in gather_objects(failed) for index, fault in found.items()}
    if failed:
        kept = ~np.isin(owner, list(failed))
        vectors, owner = vectors[kept], owner[kept]
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        index = int(owner[np.flatnonzero(~finite)[0]])
        raise UserError(
            f"branch '{branch}' gives NaN or infinity for {int((~finite).sum())} of {len(owner)} rows, first for "
            f"sample '{samples[index].id}'; the run's weights are not usable: take an earlier checkpoint"
        )
    return Encoded(vectors, owner, failed)


def unreadable(
    source: Input,
    samples: Sequence[Sample],
    *,
    batch_size: int = 128,
    workers: int = 2,
    world: World | None = None,
) -> dict[int, str]:
    """Which samples an input cannot read, by their place, and why; the same in every process.

    Args:
        source: a fitted input that reads a sample as one row (not text).
        samples: what to read, as evaluation reads it.
        batch_size: samples at a time.
        workers: processes that read samples.
        world: this process among those that share the reading; None: it is alone.
    """
    with contextlib.suppress(NotPreparedError):  # only slower, as whoever encodes them will say
        source.prepare(samples, skip=True)
    rank, size = (world.rank, world.size) if world is not None else (0, 1)
    bounds = shares(len(samples), size, unit=batch_size)
    place, last = bounds[rank], bounds[rank + 1]
    rows: list[tuple[int, int | None]] = [(i, None) for i in range(place, last)]
    found: dict[int, str] = {}
    with progress_bar(last - place, "looking for what cannot be read", "sample", visible=rank == 0) as bar:
        for read in _read(source, samples, rows, batch_size=batch_size, workers=workers, skip=True):
            found |= {place + i: fault for i, fault in enumerate(read.faults) if fault is not None}
            place += len(read.faults)
            bar.advance(len(read.faults))
    return {index: fault for part in gather_objects(found) for index, fault in part.items()}


def load_rows(
    source: Input,
    samples: Sequence[Sample],
    rows: Sequence[tuple[int, int | None]],
    *,
    batch_size: int,
    workers: int,
    skip: bool = False,
) -> Iterator[Item]:
    """Collated batches of (sample, caption) rows, in order, read as evaluation reads them.

    Raises:
        UserError: a sample cannot be read; not with ``skip``, which leaves it out.
    """
    for read in _read(source, samples, rows, batch_size=batch_size, workers=workers, skip=skip):
        if read.item is not None:
            yield read.item


def _read(
    source: Input,
    samples: Sequence[Sample],
    rows: Sequence[tuple[int, int | None]],
    *,
    batch_size: int,
    workers: int,
    skip: bool,
) -> Iterator[_Read]:
    """What :func:`load_rows` reads, with what could not be read."""
    if not rows:
        return
    dataset = _Rows(source, samples, rows)
    loader = DataLoader(
        dataset,
        batch_size,
        collate_fn=dataset.collate,
        num_workers=min(workers, cpu_count()),  # more than there are cores would only get in each other's way
        persistent_workers=workers > 0,
        worker_init_fn=begin_worker,
    )
    try:
        for read in loader:
            fault = next((fault for fault in read.faults if fault is not None), None)
            if fault is not None and not skip:
                raise UserError(
                    f"{fault} (or leave out what cannot be read, where the command takes --on-bad-sample skip)"
                )
            yield read
    finally:
        end_workers(loader)
