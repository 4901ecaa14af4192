"""From samples to vectors, for everything that judges or uses a trained branch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mmvicreg.branches.model import JointModel
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import Input, Item, NotPreparedError
from mmvicreg.progress import progress_bar
from mmvicreg.registry import nearest
from mmvicreg.samples import Sample
from mmvicreg.training.loader import Failure, begin_worker, end_workers
from mmvicreg.training.log import say


@dataclass(frozen=True)
class Encoded:
    """Vectors of one branch and what they belong to.

    Attributes:
        vectors: float32 ``(m, d)``.
        owner: int64 ``(m,)``: the sample each row was made from.
    """

    vectors: np.ndarray
    owner: np.ndarray


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
) -> Encoded:
    """Run ``samples`` through one branch, in evaluation mode and in float32.

    A text branch gives one row per caption, in order; every other branch one row per sample.

    Args:
        model: a model in evaluation mode.
        branch: name of the branch.
        samples: what to encode.
        space: the encoder's ``representation`` or the expander's ``embedding``.
        batch_size: samples at a time.
        captions: take only the first so many captions of each sample; None takes all.
        description: words for the progress bar; empty names the branch.
        workers: processes that read samples.

    Raises:
        UserError: no such branch, a sample that cannot be read, or a vector that is not finite.
    """
    if branch not in model.branches:
        raise UserError(
            f"the run has no branch '{branch}'{nearest(branch, model.branches)} It has {', '.join(model.branches)}."
        )
    part = model.branch(branch)
    source = model.inputs[part.config.input]
    try:
        for note in source.prepare(samples):
            say(note)
    except NotPreparedError as error:  # only slower
        say(f"warning: {error}")
    rows: list[tuple[int, int | None]] = [(i, None) for i in range(len(samples))]
    if part.config.input == "text":
        rows = [(i, c) for i, sample in enumerate(samples) for c in range(len(sample.captions[:captions]))]
    device = next(model.parameters()).device
    parts: list[np.ndarray] = []
    with progress_bar(len(rows), description or f"encoding {branch}", "row") as bar:
        for item in load_rows(source, samples, rows, batch_size=batch_size, workers=workers):
            y, z = part({name: value.to(device) for name, value in item.items()})
            parts.append((z if space == "embedding" else y).float().cpu().numpy())
            bar.advance(len(parts[-1]))
    vectors = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
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
