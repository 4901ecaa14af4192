"""Building what a recipe describes: inputs, and the model with its addressed initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mmvicreg.branches.model import JointModel, build_inputs
from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import Input
from mmvicreg.training.addressing import seed_weights


def build_model(recipe: Recipe, inputs: Mapping[str, Input], *, pretrained: bool = True) -> JointModel:
    """The model with its initial weights, which depend on the recipe and its seed alone.

    Args:
        recipe: the resolved recipe.
        inputs: its inputs, fitted or restored.
        pretrained: load the weights an encoder is to start from; false where a checkpoint follows.
    """
    with torch.random.fork_rng():
        seed_weights(recipe.seed)
        return JointModel(recipe, inputs, pretrained=pretrained)


def restore_inputs(recipe: Recipe, states: Mapping[str, Mapping[str, Any]]) -> dict[str, Input]:
    """The inputs of a recipe with what they had learned when the checkpoint was written."""
    inputs = build_inputs(recipe)
    if inputs.keys() != states.keys():
        raise UserError(
            f"the checkpoint is of inputs {', '.join(states)} and the recipe of {', '.join(inputs)}: they are not of "
            "one run; put the checkpoint or the recipe.yaml back that belong together"
        )
    for name, source in inputs.items():
        source.load_state(states[name])
    return inputs


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` as ``bf16`` on a GPU that computes in it, else ``fp32``: on a CPU bf16 is for who asks for it."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
