"""What every part of a recipe is made of: a class that knows its keys, and a component that declares its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from mmvicreg.registry import Registry, nearest


class Strict(BaseModel):
    """A part of a recipe: unknown keys are forbidden, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def component(value: Any, table: Registry) -> dict[str, Any]:
    """Check ``{"name": ..., **options}`` against the options its component declares; fill the defaults."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or "name" not in value:
        raise ValueError(f"expected {table.kind} as {{name: ..., option: ...}}")
    cls = table.load(str(value["name"]))
    options = {key: option for key, option in value.items() if key != "name"}
    for key in options:
        if key not in cls.Config.model_fields:
            known, near = sorted(cls.Config.model_fields), nearest(key, cls.Config.model_fields)
            raise ValueError(
                f"unknown key '{key}' for the {table.kind} '{value['name']}'{near}"
                f" Known: {', '.join(known)}{_left_over(value['name'], table) if near == '.' else ''}"
            )
    return {"name": value["name"], **cls.Config.model_validate(options).model_dump(mode="json")}


def _left_over(name: str, table: Registry) -> str:
    """What a key that is nothing like the known ones may be: an option of a component whose name alone was changed."""
    key = table.group.rpartition(".")[2].removesuffix("s")
    if key == "input":  # is called by its kind
        return ""
    return (
        f". If it is left from the {table.kind} that was there before, replace that whole: {key}={name} in place of "
        f"{key}.name={name}"
    )
