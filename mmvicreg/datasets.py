"""Finding a data set: the folder it should be in, and the class that reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmvicreg.errors import UserError
from mmvicreg.registry import DATASETS, nearest
from mmvicreg.samples import DataSet, Sample

OWN_DATA = {
    "manifest": "FILE.csv (or .jsonl, or their folder)",
    "audio-folder": "DIR, the folder of your recordings",
    "image-folder": "DIR, the folder of your pictures",
    "webdataset": "DIR, the folder of your shards (or 'train-{0000..0099}.tar')",
}
"""Data sets that are the user's own, so that they have no place of their own, and what to give instead."""

USUAL = MappingProxyType({"test": ("test", "testing"), "val": ("val", "valid", "validation", "dev")})
"""The splits to judge on, the likelier first, and what else they are called, in any case."""


def cache_folder() -> Path:
    """Where data goes when nothing else is said: ``$XDG_CACHE_HOME/mmvicreg`` or ``~/.cache/mmvicreg``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mmvicreg"


def dataset_root(name: str, root: Path | None = None) -> Path:
    """The folder (or manifest) to look in: ``root``, else ``$MMVICREG_DATA/<name>``, else the cache."""
    if root is not None:
        return root.expanduser()
    home = os.environ.get("MMVICREG_DATA")
    return (Path(home).expanduser() if home else cache_folder()) / name


def open_dataset(name: str, *, root: Path | None = None) -> DataSet:
    """Open a data set by name.

    ``shapes`` and ``tones`` are made at their default place on first use. A data set that is a part of
    another (ESC-10 of ESC-50) is also looked for in the other's default place.

    Raises:
        UserError: unknown name, nothing readable there (the message says which command gets it), or a default place
            in which nothing can be made.
    """
    cls = DATASETS.load(name)
    if name in OWN_DATA and root is None:
        raise UserError(f"the data set '{name}' needs --data-root {OWN_DATA[name]}")
    place = dataset_root(name, root)
    try:
        if root is None and not place.exists():
            if hasattr(cls, "make"):
                _make(cls, name, place)
            for other in getattr(cls, "alternatives", ()):
                if dataset_root(other).exists():
                    place = dataset_root(other)
        dataset: DataSet = cls(place)
    except OSError as error:  # a name too long, a folder that may not be entered, a disk that has gone
        raise UserError(
            f"{name} cannot be read at {place}: {error.strerror or error}"
            + (f" ({error.filename})" if error.filename and str(error.filename) != str(place) else "")
        ) from error
    return dataset


def _make(cls: Any, name: str, place: Path) -> None:
    """Have a data set made at its default place."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{name} is made on first use, and cannot be in {place.parent}: {error.strerror}. Give another folder by "
            f"the variable MMVICREG_DATA, or make it with 'mmvicreg data make {name} --data-root DIR' and give that"
            " --data-root DIR"
        ) from error
    cls.make(place)


def fold_number(split: str) -> int | None:
    """Which fold a split is (``fold3``: 3); None for any other name."""
    match = re.fullmatch(r"fold([1-9]\d{0,8})", split)
    return int(match[1]) if match is not None else None


def in_folds(dataset: DataSet) -> bool:
    """Whether the data set is published in folds (``fold1``, ``fold2``, ...) rather than train and test."""
    return all(fold_number(split) is not None for split in dataset.splits())


def training_samples(dataset: DataSet, *, split: str, fold: int | str) -> Sequence[Sample]:
    """The samples a run may see: the split, or, for data in folds, every fold but the held-out one.

    Args:
        dataset: an opened data set.
        split: the training split, for data with splits.
        fold: 1-based fold that is held out, or ``"none"``.

    Raises:
        UserError: no such fold or split, or nothing in it.
    """
    if not in_folds(dataset):
        samples = dataset.samples(split)
        if not samples:
            raise UserError(f"the split '{split}' of {dataset.name} at {dataset.root} is empty")
        return samples
    folds = dataset.splits()
    if fold != "none" and f"fold{fold}" not in folds:
        raise UserError(f"no fold {fold} in {dataset.name} at {dataset.root}; it has {', '.join(folds)}")
    if folds == (f"fold{fold}",):
        raise UserError(
            f"{dataset.name} at {dataset.root} has fold {fold} alone, so that holding it out leaves nothing to train "
            "on; put its samples into two folds or more, or pretrain on all of them with --fold none"
        )
    return [sample for name in folds if name != f"fold{fold}" for sample in dataset.samples(name)]


def check_evaluation_split(dataset: DataSet, asked: str | None) -> None:
    """Refuse the recipe's ``eval_split`` where the data set has no such split; none of its samples is looked at.

    Raises:
        UserError: there is none (the nearest is named).
    """
    splits = dataset.splits()
    for part in [] if asked in (None, "all") else [part.strip() for part in str(asked).split("+")]:
        if part not in splits:
            raise UserError(
                f"dataset.eval_split: {dataset.name} at {dataset.root} has no split '{part}'{nearest(part, splits)} "
                f"Known: {', '.join(splits)}, all; a+b is a union. Name one of them, or none: it is only judged on"
            )


def evaluation_split(dataset: DataSet, asked: str | None, *, fold: int | str = "none") -> str:
    """The split to judge on: ``asked``, else the held-out fold, else ``test`` where there is one, else ``val``.

    Where one is not there by that name, another that it usually has (:data:`USUAL`) stands for it.

    Raises:
        UserError: nothing is asked for, and there is neither.
    """
    if asked is not None:
        return asked
    splits = dataset.splits()
    if in_folds(dataset):
        return f"fold{fold}" if fold != "none" else splits[0]
    for usual, others in USUAL.items():
        if usual in splits:
            return usual
        for name in splits:
            if name.lower() in others:
                return name
    raise UserError(
        f"{dataset.name} at {dataset.root} has neither a test nor a val split (it has {', '.join(splits)}); "
        "name one with --split"
    )
