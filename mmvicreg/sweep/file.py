"""A sweep: alternatives of one recipe, trained one after another, judged in one table.

A sweep file (``configs/<pair>/sweeps/<name>.yaml``)::

    pair: image-text
    dataset: flickr8k              # and/or recipe: a name in configs/<pair>, or a file
    judge: retrieval               # the default; training: loss, spread, rank, and what the monitor said
    split: val                     # retrieval is judged on; test data are refused, because a sweep chooses
    settings: {training.epochs: 9} # dotted keys of the recipe, for every run
    seeds: [0, 1, 2]               # default [0]; with several the table has mean and deviation
    alternatives:
      paper: {}                    # the recipe as it is
      wide: {group: vicreg, method: vicreg, settings: {branches.image.variance: 10}}
      flat: {settings: {branches.image.variance: 0}, paper: collapse}     # the paper's figure, shown beside ours

Every run is a folder of its own, ``OUT/<alternative>/seed<n>``. A second call trains what is missing, continues
what was interrupted, judges what has not been judged, and writes ``OUT/sweep.json`` and ``OUT/sweep.md`` anew,
with what alternatives that were not asked for came to before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from mmvicreg import registry
from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.recipes import differences, load_recipe, recipe_path, recipes_folder
from mmvicreg.registry import check_pair
from mmvicreg.strict import Strict


class Alternative(Strict):
    """One line of the table."""

    method: str | None = None
    """Objective by name; null: the recipe's."""
    group: str | None = None
    """Alternatives of one group compete, and the best stands for it; null: a group of its own."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys of the recipe, after those of the whole sweep."""
    paper: float | str | None = None
    """What the paper has for it, for the table; null: nothing."""


class Sweep(Strict):
    """A sweep file."""

    pair: str
    dataset: str | None = None
    recipe: str | None = None
    judge: Literal["retrieval", "training"] = "retrieval"
    split: str = "val"
    settings: dict[str, Any] = Field(default_factory=dict)
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, default_factory=lambda: [0])]
    alternatives: Annotated[dict[str, Alternative], Field(min_length=1)]

    @field_validator("pair")
    @classmethod
    def _pair(cls, pair: str) -> str:
        check_pair(pair)
        return pair

    @field_validator("split")
    @classmethod
    def _validation(cls, split: str) -> str:
        if any("test" in part or part == "all" for part in split.split("+")):
            raise ValueError(f"a sweep chooses, so it is judged on validation data, not on '{split}'")
        return split

    @field_validator("alternatives", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        for name in value if isinstance(value, Mapping) else ():
            if not str(name) or any(mark in str(name) for mark in "/\\") or str(name).startswith("."):
                raise ValueError(f"'{name}' names a folder, so it must not hold '/' nor begin with '.'")
        return {str(name): one or {} for name, one in value.items()} if isinstance(value, Mapping) else value


def with_seeds(sweep: Sweep, seeds: str) -> Sweep:
    """The sweep with other seeds, ``"0,1,2"``.

    Raises:
        UserError: that is no list of whole numbers from 0 on, or one stands there twice.
    """
    words = seeds.split(",")
    if not all(word.strip().isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise UserError(f"--seeds takes whole numbers from 0 on, each once, parted by commas; got '{seeds}'")
    return sweep.model_copy(update={"seeds": [int(word) for word in words]})


def sweep_path(name: str) -> Path:
    """The file of a shipped sweep by name, or of one's own by path.

    Raises:
        UserError: no such sweep.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise UserError(f"no sweep file '{name}'")
        return Path(name)
    known = {path.stem: path for path in sorted(recipes_folder().glob("*/sweeps/*.yaml"))}
    if name not in known:
        raise UserError(
            f"no sweep '{name}'{registry.nearest(name, known)} Known: {', '.join(known)}; or give the path of a file."
        )
    return known[name]


def read_sweep(path: Path) -> Sweep:
    """A sweep file.

    Raises:
        UserError: not YAML, an unknown key, or judged on test data.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Sweep.model_validate(tree)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the sweep {path}: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        )
        raise UserError(f"the sweep {path}: {problems}") from error


def recipes(
    sweep: Sweep, *, overrides: Mapping[str, Any] | None = None, settings: Sequence[str] = ()
) -> dict[str, list[Recipe]]:
    """Alternative -> its recipe, once a seed.

    Args:
        sweep: the file.
        overrides: dotted keys for every run, after the sweep's own (``dataset.root``, ``training.epochs``).
        settings: ``key=value`` for every run, last.

    Raises:
        UserError: a key or value that the recipe does not take; the alternative is named.
    """
    found: dict[str, list[Recipe]] = {}
    path = recipe_path(sweep.pair, sweep.dataset or registry.PAIRS[sweep.pair], sweep.recipe)
    for name, one in sweep.alternatives.items():
        tree = {"pair": sweep.pair, "dataset.name": sweep.dataset, "objective": one.method}
        given = {key: value for key, value in tree.items() if value is not None}
        lines = [f"{key}={json.dumps(value)}" for key, value in (sweep.settings | one.settings).items()]
        lines += [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()]
        try:
            recipe = load_recipe(path, given, [*lines, *settings])
        except UserError as error:
            raise UserError(f"alternative '{name}': {error}") from error
        found[name] = [recipe.model_copy(update={"seed": seed}) for seed in sweep.seeds]
    return found


def changes(base: Recipe, recipe: Recipe) -> list[str]:
    """What an alternative changes of another, as ``key=value``; the seed and the place of the data aside."""
    lines = []
    for line in differences(base, recipe):
        key, _, values = line.partition(": ")
        value = values.partition(" -> ")[2]
        if key not in ("seed", "dataset.root") and value != "absent":
            lines.append(f"{key}={value}")
    return lines


def base_recipe(sweep: Sweep) -> Recipe:
    """The sweep's recipe file, nothing changed but the data set's name."""
    path = recipe_path(sweep.pair, sweep.dataset or registry.PAIRS[sweep.pair], sweep.recipe)
    return load_recipe(path, {"dataset.name": sweep.dataset} if sweep.dataset else {})
