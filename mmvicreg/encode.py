"""From samples to vectors, for everything that judges or uses a trained branch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from mmvicreg.training.distributed import World, exchange_rows, shares
from mmvicreg.training.loader import Failure, begin_worker, end_workers
from mmvicreg.training.log import say


@dataclass(frozen=True)
class Encoded:
    """Vectors of one branch and what they belong to.

    Attributes:
        vectors: float32 ``(m, d)``.
        owner: int64 ``(m,)``: the sample each row was made from.
    """

    vectors: npt.NDArray[np.float32]
    owner: npt.NDArray[np.int64]


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

    def collate(self, items: Sequence[Item | Failure]) -> Item | Failure:
        whole: list[Item] = []
        for item in items:
            if isinstance(item, Failure):
                return item
            whole.append(item)
        return self.source.collate(whole)


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
        notes += source.prepare(samples)
    except NotPreparedError as error:  # only slower
        notes.append(f"warning: {error}")
    for note in notes if world is None or world.is_main else ():
        say(note)
    rows: list[tuple[int, int | None]] = [(i, None) for i in range(len(samples))]
    if part.config.input == "text":
        rows = [(i, c) for i, sample in enumerate(samples) for c in range(len(sample.captions[:captions]))]
    device = next(model.parameters()).device
    width = part.encoder.out_features if space == "representation" else part.config.expander.widths[-1]
    vectors = np.empty((len(rows), int(width)), np.float32)
    rank, size = (world.rank, world.size) if world is not None else (0, 1)
    bounds = shares(len(rows), size, unit=batch_size)
    place, last = bounds[rank], bounds[rank + 1]
    what = description or f"encoding {branch}"
    with progress_bar(last - place, what, "row", visible=rank == 0) as bar:
        for item in load_rows(source, samples, rows[place:last], batch_size=batch_size, workers=workers):
            y, z = part({name: value.to(device) for name, value in item.items()})
            found = (z if space == "embedding" else y).float().cpu().numpy()
            vectors[place : place + len(found)] = found
            place += len(found)
            bar.advance(len(found))
    exchange_rows(torch.from_numpy(vectors), bounds, device)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        index = rows[int(np.flatnonzero(~finite)[0])][0]
        raise UserError(
            f"branch '{branch}' gives NaN or infinity for {int((~finite).sum())} of {len(rows)} rows, first for "
            f"sample '{samples[index].id}'; the run's weights are not usable: take an earlier checkpoint"
        )
    return Encoded(vectors, np.array([index for index, _ in rows], dtype=np.int64))


def load_rows(
    source: Input,
    samples: Sequence[Sample],
    rows: Sequence[tuple[int, int | None]],
    *,
    batch_size: int,
    workers: int,
) -> Iterator[Item]:
    """Collated batches of (sample, caption) rows, in order, read as evaluation reads them.

    Raises:
        UserError: a sample cannot be read.
    """
    if not rows:
        return
    dataset = _Rows(source, samples, rows)
    loader = DataLoader(
        dataset,
        batch_size,
        collate_fn=dataset.collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=begin_worker,
    )
    try:
        for item in loader:
            if isinstance(item, Failure):
                raise UserError(item.message)
            yield item
    finally:
        end_workers(loader)
