"""A run's encoders trained on labels instead: cross-entropy, everything else as the run's recipe has it.

Every branch is its own network: encoder and one linear layer. They are trained side by side, because they then
read a recording once, and do not touch each other: the loss is the sum of theirs, AdamW works number by number,
and the gradient is clipped network by network. So each ends where it would have ended alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from mmvicreg.branches.model import Batch, JointModel, build_inputs
from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.objectives.precision import exact
from mmvicreg.progress import progress_bar
from mmvicreg.recipes import parse_recipe
from mmvicreg.samples import Sample
from mmvicreg.training.addressing import seed_step
from mmvicreg.training.distributed import cpu_count, resolve_device
from mmvicreg.training.loader import TrainingLoader
from mmvicreg.training.log import say
from mmvicreg.training.optim import build_optimizer, clip, rate_factor, set_rate
from mmvicreg.training.setup import build_model, fit_frontends, resolve_precision


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training samples looked like.

    Attributes:
        loss: branch -> mean cross-entropy, nats.
        top1: branch -> percent of the augmented training samples, while the weights were changing.
    """

    loss: dict[str, float]
    top1: dict[str, float]


def supervised_recipe(recipe: Recipe, classes: int) -> Recipe:
    """The recipe with a linear layer to the classes in every expander's place, and nothing frozen.

    Recordings are not mixed: a mixture of two classes with the label of one would only handicap the baseline.

    Raises:
        UserError: a branch of text, of which a sample has several.
    """
    if texts := [name for name, branch in recipe.branches.items() if branch.input == "text"]:
        raise UserError(f"the supervised baseline is for branches that classify samples, not for {texts[0]}")
    tree = recipe.model_dump(mode="json")
    for branch in tree["branches"].values():
        branch["expander"] = {"widths": [classes], "norm": "none", "last_bias": True}
        branch |= {"freeze": "none", "freeze_epochs": None}
    for source in tree["inputs"].values():
        source.pop("mix", None)
    tree["objective"] = "vicreg"  # not used; other methods have wishes about widths
    tree["dataset"]["captions"] = "one"
    return parse_recipe(tree, source="the recipe of the supervised baseline")


def fit(
    recipe: Recipe,
    samples: Sequence[Sample],
    labels: npt.NDArray[np.int64],
    *,
    device: str = "auto",
    workers: int | None = None,
) -> tuple[JointModel, list[Epoch]]:
    """Train what :func:`supervised_recipe` describes.

    Args:
        recipe: with heads for expanders.
        samples: training samples; no other file is opened.
        labels: their class indices ``(n,)``.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: processes that read samples; None: as many as training would start.

    Returns:
        The model in evaluation mode, whose embeddings are scores of the classes, and what each epoch was like.

    Raises:
        UserError: a sample that cannot be read, fewer samples than a batch, or a loss that is not finite.
    """
    place = torch.device(resolve_device(device))
    loader, model = _build(recipe, samples, workers=workers)
    try:
        training = recipe.training
        if training.channels_last:
            model.to(memory_format=torch.channels_last)
        model.to(place)
        precision = resolve_precision(training.precision, place)
        if precision == "fp64":
            model.double()
        model.autocast = torch.bfloat16 if precision == "bf16" else None
        epochs = list(_epochs(model, loader, torch.from_numpy(labels).to(place)))
    finally:
        loader.close()
    model.autocast = None  # evaluated in float32, as every protocol does
    return model.eval(), epochs


def _build(
    recipe: Recipe, samples: Sequence[Sample], *, workers: int | None
) -> tuple[TrainingLoader, JointModel]:
    inputs = build_inputs(recipe)
    for source in inputs.values():
        source.fit(samples)
        for note in source.survey(samples):
            say(note)
    workers = max(1, min(8, cpu_count())) if workers is None else workers
    loader = TrainingLoader(recipe, inputs, samples, workers=workers)
    model = build_model(recipe, inputs)
    fit_frontends(model, samples)
    return loader, model


def _epochs(model: JointModel, loader: TrainingLoader, labels: Tensor) -> Iterator[Epoch]:
    """Train, epoch by epoch."""
    recipe, steps = model.recipe, len(loader)
    optimizer = build_optimizer(model, recipe.optimizer)
    training, step = recipe.training, 0
    with progress_bar(steps * training.epochs, "supervised", "step") as bar:
        for epoch in range(training.epochs):
            model.train()
            seen: list[Tensor] = []
            for batch in loader.epoch(epoch):
                seed_step(recipe.seed, step, 0)
                factor = rate_factor(
                    step,
                    steps_per_epoch=steps,
                    epochs=training.epochs,
                    schedule=recipe.schedule,
                    rate=recipe.rate,
                )
                set_rate(optimizer, factor)
                optimizer.zero_grad(set_to_none=True)
                seen.append(_differentiate(model, batch.to(labels.device), labels))
                for name in model.branches:
                    clip(model.branch(name), recipe.optimizer.clip_norm)
                optimizer.step()
                step += 1
                bar.advance()
            found = _summary(model, torch.stack(seen).mean(0))
            bar.say(f"epoch {epoch + 1}: {_in_words(found)}")
            _check(found, epoch, recipe.seed)
            yield found


def _differentiate(model: JointModel, batch: Batch, labels: Tensor) -> Tensor:
    """Leave the gradient of the mean loss in the parameters; ``(branches, 2)``: loss, part that is right.

    A recipe's micro-batch is kept; the gradient is that of the whole batch but for what BatchNorm sees.
    """
    n, size = len(batch.index), model.recipe.training.micro_batch or len(batch.index)
    total = torch.zeros(len(model.branches), 2, device=labels.device)
    for start in range(0, n, size):
        part = batch.rows(slice(start, start + size))
        scores, _ = model.embed(part)
        target, share = labels[part.index], len(part.index) / n
        losses = []
        for place, name in enumerate(model.branches):
            own = [exact(z) for node, z in scores.items() if node.partition("/")[0] == name]
            losses.append(torch.stack([functional.cross_entropy(z, target) for z in own]).mean())
            right = torch.stack([(z.argmax(1) == target).float().mean() for z in own]).mean()
            total[place] += share * torch.stack([losses[-1].detach().float(), right])
        (share * torch.stack(losses).sum()).backward()  # type: ignore[no-untyped-call]
    return total


def _summary(model: JointModel, means: Tensor) -> Epoch:
    loss, right = means.T.tolist()
    names = list(model.branches)
    return Epoch(dict(zip(names, loss, strict=True)), {n: 100 * r for n, r in zip(names, right, strict=True)})


def _in_words(epoch: Epoch) -> str:
    return ", ".join(
        f"{name} loss {loss:.3f} top-1 {epoch.top1[name]:.0f}" for name, loss in epoch.loss.items()
    )


def _check(epoch: Epoch, number: int, seed: int) -> None:
    for name, loss in epoch.loss.items():
        if not np.isfinite(loss):
            raise UserError(
                f"the supervised baseline's loss is not finite for branch '{name}' in epoch {number + 1} (seed "
                f"{seed}); lower optimizer.lr or set optimizer.clip_norm in the run's recipe, and train it again"
            )
