"""What is wrong with a recipe, in words: one problem that validation found, with its key and the nearest valid one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from mmvicreg.registry import nearest

NO_ACCUMULATION = (
    "gradients are not accumulated over batches, because an objective over batch statistics or negatives would "
    "then be that of the small batches; for a batch larger than memory, set training.batch_size to the whole batch "
    "and training.micro_batch (--micro-batch) to what fits, which trains the whole batch exactly"
)


def explain(problem: Any, schema: type[BaseModel]) -> str:
    """One entry of a ``ValidationError`` of ``schema`` in words; of a component's own options, each of them."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    context = problem.get("ctx", {}).get("error")
    if isinstance(context, ValidationError):  # a component's own options
        return "; ".join(
            explain({**inner, "loc": (*problem["loc"], *inner["loc"])}, schema) for inner in context.errors()
        )
    if problem["type"] == "extra_forbidden" and "accum" in location[-1].lower():
        return f"unknown key '{key}': {NO_ACCUMULATION}"
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest_key(location, schema)}"
    if problem["type"] == "missing":
        return f"missing key '{key}'"
    message = str(context) if context is not None else str(problem["msg"])
    return f"{key}: {message}" if key else message


def _nearest_key(location: list[str], schema: type[BaseModel]) -> str:
    """Suggest a sibling key, or any key of the schema whose last part is near."""
    model: Any = schema
    for part in location[:-1]:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[part].annotation
            arguments = [
                a for a in getattr(model, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)
            ]
            model = arguments[-1] if arguments else model
    if isinstance(model, type) and issubclass(model, BaseModel):
        return nearest(location[-1], model.model_fields)
    return ""
