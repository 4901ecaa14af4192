"""What a run is trained on, source by source: its samples, and the batches of every step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmvicreg.branches.model import Batch
from mmvicreg.config import DatasetConfig, Recipe
from mmvicreg.datasets import check_evaluation_split, in_folds, open_dataset, training_samples
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import Input
from mmvicreg.registry import DATASETS
from mmvicreg.samples import Sample, fingerprint
from mmvicreg.skipped import Skipped
from mmvicreg.sources import FIRST, in_source
from mmvicreg.trained_ids import hash_ids
from mmvicreg.training.distributed import World
from mmvicreg.training.loader import TrainingLoader
from mmvicreg.training.log import say
from mmvicreg.training.setup import restore_inputs

T = TypeVar("T")

_PAIR_OF = {frozenset({"image"}): "image-image", frozenset({"image", "text"}): "image-text"}
_PAIR_OF[frozenset({"audio"})] = "wave-mel"


class SourceData:
    """Every source's training samples, and its loader once the inputs are fitted.

    Args:
        parts: source -> the recipe of what is trained on it (:func:`mmvicreg.sources.part_recipes`).
        world: this process.
        new: the run is not one that is resumed.

    Raises:
        UserError: a data set that is not there, has no such split, or is not for the pair its edges
            make; the source is named.
    """

    def __init__(self, parts: Mapping[str, Recipe], world: World, *, new: bool) -> None:
        self.parts, self.world = parts, world
        self.samples = {
            name: _named(name, partial(_read_samples, part, name, main=world.is_main, new=new))
            for name, part in parts.items()
        }
        self.loaders: dict[str, TrainingLoader] = {}

    def load(self, inputs: Mapping[str, Input], *, workers: int) -> None:
        """Make the loaders; a source besides the first has its own copies of the fitted inputs.

        Raises:
            UserError: as :class:`TrainingLoader`; the source is named.
        """
        for name, part in self.parts.items():
            own = {key: inputs[key] for key in part.inputs}
            if name != FIRST:  # an input may keep samples for itself, to mix with or put aside
                own = restore_inputs(part, {key: source.state() for key, source in own.items()})
            make = partial(
                TrainingLoader,
                part,
                own,
                self.samples[name],
                rank=self.world.rank,
                world_size=self.world.size,
                workers=workers,
                pin_memory=self.world.device.type == "cuda",
                to_skip=_to_skip(name),
            )
            self.loaders[name] = _named(name, make)

    @property
    def batch_sizes(self) -> list[int]:
        """Samples of each source in a step, over all processes."""
        return [part.training.batch_size for part in self.parts.values()]

    def reading(self, name: str) -> list[str]:
        """The sources that read the input called ``name``; the first where none does."""
        return [source for source, part in self.parts.items() if name in part.inputs] or [FIRST]

    def of_input(self, name: str) -> Sequence[Sample]:
        """The training samples of every source that reads the input called ``name``."""
        first, *rest = (self.samples[source] for source in self.reading(name))
        return [sample for part in (first, *rest) for sample in part] if rest else first

    def streams(self, step: int) -> dict[str, Iterator[Batch]]:
        """The batches of the other sources from ``step`` of the run on, round after round."""
        return {name: _rounds(name, loader, step) for name, loader in self.loaders.items() if name != FIRST}

    def close(self) -> None:
        """End the loaders' worker processes."""
        for loader in self.loaders.values():
            loader.close()

    def skipped(self) -> list[Skipped]:
        """What could not be read so far, by this process; ids of other sources than the first begin with theirs."""
        return [
            replace(one, id=in_source(source, one.id))
            for source, loader in self.loaders.items()
            for one in loader.skipped.values()
        ]

    @cached_property
    def trained_on(self) -> dict[str, Tensor]:
        """Data set -> hashed ids of its training samples, of all sources; taken once, as every checkpoint asks."""
        by_name: dict[str, list[Sample]] = {}
        for name, samples in self.samples.items():
            by_name.setdefault(self.parts[name].dataset.name, []).extend(samples)
        return {name: hash_ids(samples) for name, samples in by_name.items()}

    def may_skip(self) -> bool:
        """Whether any source goes on without samples that cannot be read."""
        return any(part.dataset.on_bad_sample == "skip" for part in self.parts.values())

    def fingerprint(self) -> dict[str, Any]:
        """What decides which samples a step sees: of each source how many there are, and their names in order.

        Where captions are read, a digest of them as well: which one is drawn hangs on them, and with ``captions:
        all`` how many steps an epoch has.
        """
        found = dict(self._fingerprints)
        first = found.pop(FIRST)
        return {**first, "sources": found} if found else first

    @cached_property
    def _fingerprints(self) -> dict[str, dict[str, Any]]:
        """Taken once: a million names are hashed, and every checkpoint asks."""
        return {
            name: fingerprint(samples) | (_captions(samples) if "text" in self.parts[name].inputs else {})
            for name, samples in self.samples.items()
        }

    def check_same(self, before: Mapping[str, Any], path: Path) -> None:
        """Raise :class:`UserError` unless the samples are those that ``before`` is the fingerprint of."""
        now = self.fingerprint()
        others = now.pop("sources", {})
        pairs = {FIRST: (before, now)}
        pairs |= {name: (then, others.get(name, {})) for name, then in before.get("sources", {}).items()}
        for name, (then, found) in pairs.items():
            if then.get("captions", found.get("captions")) == found.get("captions") and all(
                then[key] == found.get(key) for key in ("samples", "names")
            ):  # checkpoints of earlier versions know nothing of captions
                continue
            count = found.get("samples", 0)
            if then["samples"] != count:
                differ = f"{count} samples"
            else:
                differ = "others" if then["names"] != found["names"] else "the same with other captions"
            whose, place = ("", "--data-root") if name == FIRST else (f" of source '{name}'", _place(name))
            raise UserError(
                f"the run {path} was trained on {then['samples']} samples{whose}, and the data there now are {differ}: "
                f"a resumed run needs the same data; give its place with {place}, or start a new run"
            )


def _captions(samples: Sequence[Sample]) -> dict[str, str]:
    """A digest of the captions of samples, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps(sample.captions).encode())
    return {"captions": digest.hexdigest()}


def check_fields(
    source: Input, samples: Sequence[Sample], *, name: str, dataset: DatasetConfig, part: str = FIRST
) -> None:
    """Raise :class:`UserError` where samples have nothing for an input to read: one of them, or all, with ``skip``.

    Args:
        source: the input.
        samples: what it will read.
        name: what it is called in the recipe.
        dataset: whose samples they are.
        part: which of the run's sources that is.
    """
    lacking = [sample for sample in samples if source.field and not getattr(sample, source.field)]
    if not lacking or (dataset.on_bad_sample == "skip" and len(lacking) < len(samples)):
        return
    what = {"image": "picture", "audio": "recording", "captions": "caption"}.get(source.field, source.field)
    fault = f" ({lacking[0].fault})" if lacking[0].fault else ""
    leave = f"go on without them ({_to_skip(part)}), or " if len(lacking) < len(samples) else ""
    raise UserError(
        f"{len(lacking):,} of {len(samples):,} training samples of {dataset.name} have no {what}, which the input "
        f"'{name}' reads, such as '{lacking[0].id}'{fault}; {leave}choose another --dataset (mmvicreg data list), or "
        "another --pair"
    )


def with_others(batch: Batch, streams: Mapping[str, Iterator[Batch]]) -> Batch:
    """A batch of the first source with the next of every other."""
    return replace(batch, others={name: next(stream) for name, stream in streams.items()})


def copied_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on ``device``, each copied there before the one in front of it is asked for.

    On a GPU they are copied in a stream of their own: in the one that computes, a copy would stand between two steps.
    """
    side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    waiting: tuple[Batch, torch.cuda.Event | None] | None = None
    for batch in batches:
        with torch.cuda.stream(side) if side is not None else nullcontext():
            ahead = batch.to(device), side.record_event() if side is not None else None
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = ahead
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Batch, copied: torch.cuda.Event | None) -> Batch:
    """The batch, once the stream that computes has been told to wait for its copy."""
    if copied is not None:
        now = torch.cuda.current_stream(batch.index.device)
        now.wait_event(copied)
        for part in batch.by_source().values():
            for tensor in (part.index, *(value for item in part.views.values() for value in item.values())):
                if tensor.is_cuda:
                    tensor.record_stream(now)  # its memory is not given to a later copy while a step reads it
    return batch


def _rounds(name: str, loader: TrainingLoader, step: int) -> Iterator[Batch]:
    turn, start = divmod(step, len(loader))
    while True:
        try:
            yield from loader.epoch(turn, start=start)
        except UserError as error:
            raise UserError(f"source '{name}': {error}") from error
        turn, start = turn + 1, 0


def _place(source: str) -> str:
    """How the place of a source is given."""
    return _option(source, "root=DIR")


def _to_skip(source: str) -> str:
    """How a source's samples that cannot be read are left out."""
    return _option(source, "on_bad_sample=skip") if source != FIRST else "--on-bad-sample skip"


def _option(source: str, setting: str) -> str:
    """How an option of a source's data set is given."""
    return f"--set sources.{source}.dataset.{setting}"


def _named(source: str, action: Callable[[], T]) -> T:
    """What ``action`` gives; a user's mistake in it names the source."""
    if source == FIRST:
        return action()
    try:
        return action()
    except UserError as error:
        raise UserError(f"source '{source}': {error}") from error


def _read_samples(recipe: Recipe, source: str, *, main: bool, new: bool) -> Sequence[Sample]:
    config = recipe.dataset
    # the run's pair is one of its first source; what another source pairs, its inputs say
    pair = recipe.pair if source == FIRST else _PAIR_OF.get(frozenset(recipe.inputs), "")
    pairs: tuple[str, ...] = DATASETS.load(config.name).pairs
    if pair and pair not in pairs:  # asked before it is opened: that may make it, which takes minutes
        raise UserError(
            f"the data set {config.name} is for {' and '.join(pairs) or 'evaluation'}, not for {pair}; "
            "choose another --dataset or --pair"
            if source == FIRST
            else f"the data set {config.name} is for {' and '.join(pairs)}, and its edges make {pair}"
        )
    try:
        dataset = open_dataset(config.name, root=Path(config.root) if config.root is not None else None)
    except UserError as error:
        if source == FIRST:
            raise
        raise UserError(
            f"{error} Where this source is: {_place(source)} (--data-root is that of the first data set)"
        ) from error
    if new:  # a run that is there can still be judged on another split
        check_evaluation_split(dataset, config.eval_split)
    samples = training_samples(dataset, split=config.train_split, fold=config.fold)
    if main:
        for note in dataset.notes:
            say(note)
        held = ""
        if in_folds(dataset):
            held = (
                f", fold {config.fold} of {len(dataset.splits())} held out"
                if config.fold != "none"
                else ", no fold held out: every evaluation of this run is transductive"
            )
        say(f"training on {len(samples)} samples of {config.name} at {dataset.root}{held}")
    return samples
