"""Runs and data sets that exist in memory: the protocols are judged without any network or file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmvicreg.config import Recipe
from mmvicreg.datasets import training_samples
from mmvicreg.encode import Encoded
from mmvicreg.errors import UserError
from mmvicreg.recipes import load_recipe, parse_recipe, recipe_path
from mmvicreg.runs import Run
from mmvicreg.samples import Sample, fingerprint
from mmvicreg.trained_ids import hash_ids

Vectors = npt.NDArray[np.float32]


@dataclass
class StubData:
    """A data set that is a dictionary of lists."""

    parts: Mapping[str, list[Sample]]
    name: str = "shapes"
    classes: tuple[str, ...] = ()
    layout: str = ""
    root: Path = Path("somewhere")
    notes: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()

    def splits(self) -> tuple[str, ...]:
        return tuple(self.parts)

    def samples(self, split: str) -> list[Sample]:
        if split == "all":
            return [sample for part in self.parts.values() for sample in part]
        if split not in self.parts:
            raise UserError(f"no split '{split}'")
        return list(self.parts[split])


@dataclass(frozen=True)
class StubRun(Run):
    """A run whose model is only a word, ``trained`` or ``untrained``."""

    data: StubData = field(default_factory=lambda: StubData({}))

    @property
    def epochs_done(self) -> int:
        return self.recipe.training.epochs

    @cached_property
    def content(self) -> dict[str, Any]:
        """A checkpoint that says it was trained on what ``data`` holds."""
        config = self.recipe.dataset
        try:
            seen = training_samples(self.data, split=config.train_split, fold=config.fold)
        except UserError:
            seen = []
        return {"data": fingerprint(seen), "trained_on": {self.data.name: hash_ids(seen)}}

    def model(self, *, untrained: bool = False, device: str | None = None) -> Any:
        return "untrained" if untrained else "trained"

    def dataset(self, *, name: str | None = None, root: Path | None = None) -> Any:
        own = name in {None, self.recipe.dataset.name}
        return self.data if own else super().dataset(name=name, root=root)


class StubEncode:
    """Stands for :func:`mmvicreg.encode.encode`; vectors are looked up by model, branch and sample.

    ``table[(model, branch)]`` maps a sample's id to its vector or, for a text branch, its captions' vectors.
    """

    def __init__(self, table: Mapping[tuple[str, str], Mapping[str, Vectors]]) -> None:
        self.table = table
        self.spaces: set[str] = set()

    def __call__(
        self,
        model: str,
        branch: str,
        samples: Sequence[Sample],
        *,
        space: str,
        batch_size: int,
        captions: int | None = None,
        description: str = "",
        world: Any = None,
        skip: bool = False,
    ) -> Encoded:
        self.spaces.add(space)
        rows, owner = [], []
        for index, sample in enumerate(samples):
            found = np.atleast_2d(self.table[model, branch][sample.id])
            if branch == "text":
                found = found[: len(sample.captions)][:captions]
            rows.append(found)
            owner += [index] * len(found)
        return Encoded(np.concatenate(rows).astype(np.float32), np.array(owner, dtype=np.int64))


def recipe(pair: str, dataset: str, **changes: Any) -> Recipe:
    """A shipped recipe of 7 epochs with some keys changed, dotted keys written with two underscores."""
    keys = {"training__epochs": 7, **changes}
    return load_recipe(
        recipe_path(pair, dataset, None), {key.replace("__", "."): value for key, value in keys.items()}
    )


def renamed(original: Recipe, names: Mapping[str, str]) -> Recipe:
    """The same recipe with other branch names."""
    tree = original.model_dump(mode="json")
    tree["branches"] = {names[name]: branch for name, branch in tree["branches"].items()}
    tree["edges"] = [{**edge, "a": names[edge["a"]], "b": names[edge["b"]]} for edge in tree["edges"]]
    return parse_recipe(tree, source="a test")
