"""Recipe files: where the shipped ones are, reading one, and what is set on top of it.

A recipe is a YAML file (``configs/<pair>/<name>.yaml``), overridden by named flags, overridden by
``--set a.b=c``; what may stand in it is in :mod:`mmvicreg.config`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.explain import explain
from mmvicreg.registry import PAIRS, nearest

_BY_NAME = {"frontend", "encoder", "objective", "augmentation", "worker_augmentation"}
"""Parts of a recipe that may be given by their name alone."""

_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)
"""What YAML, or its encoding, is refused with; ValueError: a date such as 2024-13-45, RecursionError: [[[[..."""


def recipes_folder() -> Path:
    """The folder of shipped recipes, in a checkout and in an installed wheel alike."""
    import mmvicreg

    for base in mmvicreg.__path__:
        if (Path(base) / "configs").is_dir():
            return Path(base) / "configs"
    raise FileNotFoundError("the package is installed without its configs folder")


def recipe_path(pair: str, dataset: str, recipe: str | None) -> Path:
    """The YAML file meant by ``--recipe`` (a path, or a name in ``configs/<pair>``; default: the data set).

    Raises:
        UserError: no such recipe; the nearest name and the known ones are given.
    """
    if recipe is not None and (recipe.endswith((".yaml", ".yml")) or "/" in recipe):
        path = Path(recipe)
        if not path.is_file():
            raise UserError(f"no recipe file '{recipe}'")
        return path
    folder = recipes_folder() / pair
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    name = recipe if recipe is not None else dataset
    if name not in names:
        raise UserError(
            f"no recipe '{name}' for the pair {pair}{nearest(name, names)} Known: {', '.join(names)}; "
            "or give the path of a YAML file."
        )
    return folder / f"{name}.yaml"


def load_recipe(
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    *,
    saved: bool = False,
) -> Recipe:
    """Read a recipe file and apply named overrides, then ``a.b=c`` settings, then the schema.

    Args:
        path: the YAML file.
        overrides: dotted key -> value, from named flags.
        settings: ``--set`` arguments; the value is parsed as YAML.
        saved: it is a run's, and read as :func:`parse_saved` does.

    Raises:
        UserError: unreadable YAML, a recipe of another pair than the overrides', a malformed setting, an
            unknown key (the nearest valid one is named) or a value out of range.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from error
    except _UNREADABLE as error:
        raise UserError(f"the recipe {path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"the recipe {path} is not a mapping of keys to values")
    asked, own = (overrides or {}).get("pair"), tree.get("pair")
    if asked is not None and isinstance(own, str) and own in PAIRS and own != asked:
        # its branches would train all the same, under the name of a pair that they are not
        raise UserError(f"the recipe {path} is for the pair {own}, and --pair is {asked}; give --pair {own}")
    for key, value in (overrides or {}).items():
        _assign(tree, key, value)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(
                f"--set expects key=value with a dotted key, such as training.epochs=5; got '{setting}'"
            )
        if asked is not None and key.strip() == "pair":
            raise UserError(f"--set {setting}: the pair is given by --pair, which is {asked}")
        try:
            _assign(tree, key.strip(), yaml.safe_load(text))
        except _UNREADABLE as error:
            raise UserError(f"the value in --set {setting} is not valid YAML: {error}") from error
    given = {**(overrides or {})}
    given |= {key.strip(): value for key, _, value in (setting.partition("=") for setting in settings)}
    return parse_recipe(_without_unread(tree) if saved else tree, source=str(path), given=given)


def parse_recipe(tree: Mapping[str, Any], *, source: str, given: Mapping[str, Any] | None = None) -> Recipe:
    """Validate a tree of plain values into a :class:`Recipe`.

    Args:
        tree: the values.
        source: where they are from, for messages.
        given: dotted keys whose values are from the command line instead, and these.

    Raises:
        UserError: an unknown key (the nearest valid one is named) or a value out of range.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        problems = [explain(problem, Recipe) for problem in error.errors()]
        named = "; ".join(problems)
        own = {key: value for key, value in (given or {}).items() if _is_named(key, named)}
        asked = "".join(f" with {key}={value}" for key, value in own.items())
        raise UserError(f"{source}{asked}: {named}") from error


def parse_saved(tree: Mapping[str, Any], *, source: str) -> Recipe:
    """The recipe that a run or its checkpoint holds, perhaps of an earlier version.

    Raises:
        UserError: as :func:`parse_recipe`.
    """
    return parse_recipe(_without_unread(tree), source=source)


def _without_unread(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved tree without options of another tokenizer, which earlier versions kept and nothing read."""
    inputs = tree.get("inputs")
    text = inputs.get("text") if isinstance(inputs, Mapping) else None
    if not isinstance(inputs, Mapping) or not isinstance(text, Mapping):
        return tree
    from mmvicreg.inputs.text import READ_BY, TextInput

    tokenizer = text.get("tokenizer", TextInput.Config.model_fields["tokenizer"].default)
    read = {key: value for key, value in text.items() if READ_BY.get(key, tokenizer) == tokenizer}
    return {**tree, "inputs": {**inputs, "text": read}}


def _is_named(key: str, problems: str) -> bool:
    """Whether problems are about a dotted key, or about what holds it and they speak of it (``a.b: c is ...``)."""
    parent, _, leaf = key.rpartition(".")
    place = rf"(^|; ){re.escape(key)}\b"
    if parent:
        place += rf"|(^|; ){re.escape(parent)}: [^;]*\b{re.escape(leaf)}\b"
    return re.search(place, problems) is not None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default filled in; :func:`parse_recipe` reads it back equal."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ, as ``key: old -> new``."""
    a, b = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    return [
        f"{key}: {a.get(key, 'absent')} -> {b.get(key, 'absent')}"
        for key in sorted({*a, *b})
        if a.get(key, "absent") != b.get(key, "absent")
    ]


def say_differences(changed: Sequence[str]) -> str:
    """:func:`differences` for a message: the first five, and how many more there are."""
    return "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        node = _descend(node, part, ".".join(parents[: depth + 1]), key)
    if isinstance(node, list):
        node[_position(node, leaf, key)] = value
    elif isinstance(node, dict):
        if leaf == "name" and parents and parents[-1].endswith("augmentation"):
            _forget_preset(node)
        node[leaf] = value
    else:
        raise UserError(f"cannot set '{key}': '{'.'.join(parents)}' holds a single value")


def _forget_preset(augmentation: dict[str, Any]) -> None:
    """Drop the options that are its name's: a run's recipe holds them all, and they would outlive another name."""
    from mmvicreg.inputs.augment import PRESETS

    for option, preset in PRESETS.get(str(augmentation.get("name")), {}).items():
        value = augmentation.get(option)
        if (tuple(value) if isinstance(value, list) else value) == preset:
            del augmentation[option]


def _descend(node: Any, part: str, path: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, part, key)]
    if not isinstance(node, dict):
        raise UserError(f"cannot set '{key}': '{path.rpartition('.')[0]}' holds a single value")
    if isinstance(node.get(part), str) and part in _BY_NAME:
        node[part] = {"name": node[part]}
    if path in {f"branches.{part}", f"inputs.{part}", f"sources.{part}"} and part not in node:
        raise UserError(
            f"cannot set '{key}': the recipe has no '{path}'{nearest(part, node)} It has: {', '.join(node) or 'none'}."
        )
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _position(items: list[Any], part: str, key: str) -> int:
    if not (part.isascii() and part.isdigit()) or int(part) >= len(items):
        raise UserError(f"cannot set '{key}': '{part}' is not a position in a list of {len(items)}")
    return int(part)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for name, node in tree.items() for k, v in _flatten(node, f"{prefix}{name}.").items()}
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        return {k: v for i, node in enumerate(tree) for k, v in _flatten(node, f"{prefix}{i}.").items()}
    return {prefix.rstrip("."): tree}
