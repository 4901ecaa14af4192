"""Building what a recipe describes: inputs, and the model with its addressed initial weights; and what it comes to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvicreg.branches.model import Branch, JointModel, build_inputs
from mmvicreg.config import Recipe
from mmvicreg.encode import load_rows
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import Input, Item
from mmvicreg.progress import progress_bar
from mmvicreg.samples import Sample
from mmvicreg.training.addressing import seed_weights
from mmvicreg.training.distributed import from_main


def build_model(
    recipe: Recipe,
    inputs: Mapping[str, Input],
    *,
    pretrained: bool = True,
    initial: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> JointModel:
    """The model with its initial weights, which depend on the recipe, its seed and its ``init`` alone.

    Args:
        recipe: the resolved recipe.
        inputs: its inputs, fitted or restored.
        pretrained: load the weights an encoder is to start from; false where a checkpoint follows.
        initial: branch -> its encoder's state dict, kept from when the run began; loaded in place of ``init``.
    """
    with torch.random.fork_rng(devices=[]):
        seed_weights(recipe.seed)
        return JointModel(recipe, inputs, pretrained=pretrained, initial=initial)


def fit_frontends(
    model: JointModel, samples: Sequence[Sample], names: Collection[str] | None = None, *, main: bool = True
) -> None:
    """Have every frontend that learns (of the branches ``names``) do so from the training samples.

    In one process, for all of them.

    Raises:
        UserError: a sample that cannot be read, or samples that there is nothing to learn from; in every process.
    """
    learning = {
        name: model.branch(name)
        for name in model.branches
        if model.branch(name).frontend.learns and (names is None or name in names)
    }
    if not learning:
        return
    states: dict[str, Any] | str | None = None
    if main:
        try:
            for name, branch in learning.items():
                skip = model.recipe.dataset.on_bad_sample == "skip"
                _fit(name, branch, model.inputs[branch.config.input], samples, skip=skip)
            states = {name: branch.frontend.state_dict() for name, branch in learning.items()}
        except UserError as error:
            states = str(error)
    states = from_main(states)
    if not isinstance(states, dict):
        raise UserError(str(states))
    for name, branch in learning.items():
        branch.frontend.load_state_dict(states[name])


def _fit(name: str, branch: Branch, source: Input, samples: Sequence[Sample], *, skip: bool) -> None:
    rows = [(i, None) for i in range(len(samples))]
    with progress_bar(len(rows), f"statistics for {name}", "sample") as bar:

        def counted() -> Iterator[Item]:
            for item in load_rows(source, samples, rows, batch_size=32, workers=2, skip=skip):
                yield item
                bar.advance(len(next(iter(item.values()))))

        branch.frontend.fit(counted())


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


def warnings_of(recipe: Recipe, model: JointModel, device: torch.device) -> list[str]:
    """What is known to go wrong with a run before its first step, in plain sentences; often empty."""
    found = [
        f"{f'source {source}: ' if source else ''}{warning}"
        for source, graph in model.graphs.items()
        for warning in model.objective_of(source).warnings(graph)
    ]
    epochs, warmup = recipe.training.epochs, recipe.schedule.warmup_epochs
    if 0 < epochs <= warmup:
        found.append(
            f"the warm-up (schedule.warmup_epochs {warmup:g}) is as long as the run (training.epochs {epochs}), "
            "so that the rate hardly reaches optimizer.lr"
        )
    for name, branch in recipe.branches.items():
        if branch.freeze_epochs is not None and 0 < epochs <= branch.freeze_epochs:
            found.append(
                f"branches.{name}.freeze_epochs {branch.freeze_epochs} is not less than training.epochs {epochs}: what "
                f"is frozen ({branch.freeze}) stays so to the end"
            )
    if late := [m for m in recipe.schedule.milestones if 0 < epochs <= m]:
        found.append(
            f"the rate's steps (schedule.milestones) after {', '.join(f'{m:g}' for m in late)} epochs are beyond the "
            f"run's {epochs}"
        )
    if recipe.training.precision == "bf16" and not computes_bf16(device):
        found.append(f"this {device.type} has no bfloat16 arithmetic, so bf16 is many times slower than fp32")
    return found


def resolve_precision(precision: str, device: torch.device) -> str:
    """What ``auto`` and ``bf16-if-native`` come to on a device; others as they are.

    Of CPUs ``auto`` makes fp32 even where bf16 is native, so that a run gives the same figures on any of them.
    """
    if precision == "auto":
        return "bf16" if device.type == "cuda" and computes_bf16(device) else "fp32"
    if precision == "bf16-if-native":
        return "bf16" if computes_bf16(device) else "fp32"
    return precision


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16; a CPU without them converts every number."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    told = torch.cpu.get_capabilities()
    return any(told.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
