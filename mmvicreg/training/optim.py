"""Parameter groups, the optimiser, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mmvicreg.branches.model import JointModel
from mmvicreg.config import OptimizerConfig, ScheduleConfig
from mmvicreg.training.lars import LARS


def parameter_groups(model: JointModel, config: OptimizerConfig) -> list[dict[str, object]]:
    """Groups per branch: its own rate, its own decay; biases and normalisation (ndim 1) undecayed.

    What the objective learns has the recipe's rate, and its decay unless the method says none. Parameters that start
    frozen are in their group already, so that thawing changes nothing here. Moving averages are in none.
    """
    groups: list[dict[str, object]] = []
    rate = config.rate(model.recipe.training.batch_size)
    for name in model.branches:
        branch = model.branch(name)
        decay = config.weight_decay if branch.config.weight_decay is None else branch.config.weight_decay
        groups += _groups(
            name, branch.parameters(), rate=rate * branch.config.lr_factor, decay=decay, fixed=False
        )
    learned = [*model.objective.parameters(), *model.objectives.parameters()]
    decay = config.weight_decay if model.objective.decayed else 0.0
    return groups + _groups("objective", learned, rate=rate, decay=decay, fixed=model.objective.fixed_rate)


def _groups(
    name: str, parameters: Iterable[nn.Parameter], *, rate: float, decay: float, fixed: bool
) -> list[dict[str, object]]:
    every = list(parameters)
    return [
        {
            "params": chosen,
            "lr": rate,
            "base_lr": rate,
            "fixed_lr": fixed,
            "weight_decay": value,
            "name": f"{name}.{label}",
        }
        for label, chosen, value in (
            ("weights", [p for p in every if p.ndim > 1], decay),
            ("biases", [p for p in every if p.ndim <= 1], 0.0),
        )
        if chosen
    ]


def build_optimizer(model: JointModel, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The recipe's optimiser over the groups of a model.

    torch's own are taken in their fused form: AdamW's is 3.6 times the plain loop on a CPU, one kernel on a GPU.
    """
    groups, rate = parameter_groups(model, config), config.rate(model.recipe.training.batch_size)
    if config.name == "lars":
        return LARS(groups, rate, momentum=config.momentum, eta=config.eta)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, fused=True)
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=rate, betas=config.betas, fused=True)
    return torch.optim.AdamW(groups, lr=rate, betas=config.betas, fused=True)


def rate_factor(
    step: int, *, steps_per_epoch: int, epochs: int, schedule: ScheduleConfig, rate: float = 1.0
) -> float:
    """What every group's rate is multiplied by at ``step`` (0-based): warm-up, then cosine or steps down.

    Of W warm-up steps and T in all, with f the last rate as a part of the highest: (step + 1) / (W + 1) before
    step W, so that none is spent at a rate of zero, and then f + (1 - f) / 2 * (1 + cos(pi (step - W) / (T - W))),
    or ``gamma`` to the number of milestones passed.

    Args:
        step: steps taken so far.
        steps_per_epoch: steps in an epoch.
        epochs: epochs of the whole run.
        schedule: its warm-up and its end.
        rate: the highest rate, which an end given as a rate is a part of.
    """
    warmup, total = schedule.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.name == "step":
        # in whole numbers: 15 x steps may come out below itself as a float
        passed = sum(step >= round(milestone * steps_per_epoch) for milestone in schedule.milestones)
        return float(schedule.gamma**passed)
    progress = (step - warmup) / max(1.0, total - warmup)
    low = schedule.final_factor(rate)
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to ``factor`` times its base, where it is not fixed."""
    for group in optimizer.param_groups:
        # checkpoints written before a rate could be fixed do not say
        group["lr"] = group["base_lr"] * (1.0 if group.get("fixed_lr") else factor)


def clip(model: nn.Module, norm: float | None) -> bool:
    """Scale the gradient down to l2 norm ``norm``, where a limit is given; false where it is not finite."""
    if norm is None:
        return True
    total = torch.nn.utils.get_total_norm(list(gradients(model).values()))
    if not bool(torch.isfinite(total)):  # scaled by NaN, every gradient would be NaN, and none could be named
        return False
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), norm, total)
    return True


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter that has one, by name."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Which branches' tensors hold NaN or infinity (``image``, ``text``), and ``the objective`` for all others."""
    found = dict.fromkeys(
        name.split(".")[1] if name.startswith(("branches.", "targets.")) else "the objective"
        for name, tensor in tensors.items()
        if not bool(torch.isfinite(tensor).all())
    )
    return list(found)
