"""How classifiers on pictures are trained: the published schedules, by name.

The paper gives every number of the linear and semi-supervised schedules but these, which are from the authors'
code or assumed: momentum 0.9 and a head that starts from N(0, 0.01) and zero biases (the code), rates that change
once an epoch (the code), the crops' ratio 3/4 to 4/3 (torchvision's default, which the code uses). C.2 crops 0.2
to 1.0 of the area; the authors' code crops 0.08 to 1.0, which is one option away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mmvicreg.errors import UserError
from mmvicreg.registry import nearest


@dataclass(frozen=True)
class Schedule:
    """Everything that decides the training of a classifier, besides the data and the seed.

    Attributes:
        name: what it is called.
        source: where the numbers are from.
        epochs: passes over the training samples.
        batch_size: samples of a step, over all processes.
        head_lr: learning rate of the linear classifier.
        encoder_lr: of the encoder; None: it is frozen and evaluates.
        weight_decay: of everything that is trained.
        momentum: of SGD.
        decay: ``cosine`` to zero, or ``steps``: divided by ten at every milestone.
        milestones: epochs (0-based) before which a rate is divided, for ``steps``.
        smallest_crop: the smallest part of a picture's area that a training crop covers; the largest is all.
    """

    name: str
    source: str
    epochs: int
    batch_size: int
    head_lr: float
    encoder_lr: float | None
    weight_decay: float
    momentum: float = 0.9
    decay: Literal["cosine", "steps"] = "cosine"
    milestones: tuple[int, ...] = ()
    smallest_crop: float = 0.2

    def factor(self, epoch: int) -> float:
        """What the rates are multiplied by in an epoch (0-based)."""
        if self.decay == "steps":
            return float(10.0 ** -sum(epoch >= milestone for milestone in self.milestones))
        return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))

    def changed(
        self,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        head_lr: float | None = None,
        encoder_lr: float | None = None,
        smallest_crop: float | None = None,
    ) -> Schedule:
        """The same with what is not None replaced; milestones move with the length.

        Raises:
            UserError: a number out of range.
        """
        for flag, value, low in (("--epochs", epochs, 1), ("--batch-size", batch_size, 1)):
            if value is not None and value < low:
                raise UserError(f"{flag} must be at least {low}, got {value}")
        for flag, rate in (("--lr", head_lr), ("--encoder-lr", encoder_lr)):
            if rate is not None and not (math.isfinite(rate) and rate > 0):
                raise UserError(f"{flag} must be above 0, got {rate:g}")
        if smallest_crop is not None and not 0 < smallest_crop <= 1:
            raise UserError(f"--smallest-crop must be above 0 and at most 1, got {smallest_crop:g}")
        given: dict[str, object] = {
            "epochs": epochs,
            "batch_size": batch_size,
            "head_lr": head_lr,
            "encoder_lr": encoder_lr,
            "smallest_crop": smallest_crop,
        }
        new = {name: value for name, value in given.items() if value is not None}
        if epochs is not None and self.milestones:
            moved: list[int] = []
            for at in self.milestones:  # however short, an epoch at least at every rate
                moved.append(max(round(at * epochs / self.epochs), moved[-1] + 1 if moved else 1))
            new["milestones"] = tuple(moved)
        return replace(self, **new)  # type: ignore[arg-type]

    def differs(self, other: Schedule) -> dict[str, object]:
        """Names of the numbers that are not another schedule's, with this one's values."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("name", "source") and value != getattr(other, name)
        }

    def flags(self, other: Schedule) -> dict[str, object]:
        """The same as flags of the command line."""
        changes = self.differs(other)
        return {flag: changes[name] for name, flag in _FLAGS.items() if name in changes}


_FLAGS = {
    "epochs": "epochs",
    "batch_size": "batch-size",
    "head_lr": "lr",
    "encoder_lr": "encoder-lr",
    "smallest_crop": "smallest-crop",
}

LINEAR: Mapping[str, Schedule] = {
    "imagenet": Schedule("imagenet", "C.2", 100, 256, 0.02, None, 1e-6),
    # VISSL's crops cover 0.08 to 1.0 (torchvision's default); C.3 does not say
    "places205": Schedule(
        "places205",
        "C.3",
        28,
        256,
        0.003,
        None,
        1e-4,
        decay="steps",
        milestones=(4, 8, 12),
        smallest_crop=0.08,
    ),
    "inat18": Schedule(
        "inat18",
        "C.3",
        84,
        256,
        0.005,
        None,
        1e-4,
        decay="steps",
        milestones=(24, 48, 72),
        smallest_crop=0.08,
    ),
}
"""Linear classifiers on a frozen encoder (appendices C.2 and C.3)."""

FINETUNE: Mapping[str, Schedule] = {
    "10%": Schedule("10%", "C.2", 20, 256, 0.1, 0.01, 0.0),
    "1%": Schedule("1%", "C.2", 20, 256, 0.08, 0.03, 0.0),
    "other": Schedule("other", "assumed: C.2's for 10 % of the labels", 20, 256, 0.1, 0.01, 0.0),
}
"""Fine-tuning on a part of the labels (appendix C.2)."""


def usual_schedule(dataset: str) -> str:
    """The linear schedule that a data set is judged by: its own, or ImageNet's."""
    return dataset if dataset in LINEAR else "imagenet"


def linear_schedule(name: str) -> Schedule:
    """A linear schedule by its name.

    Raises:
        UserError: no such schedule; the nearest is named.
    """
    if name not in LINEAR:
        raise UserError(f"unknown schedule '{name}'{nearest(name, LINEAR)} Known: {', '.join(LINEAR)}.")
    return LINEAR[name]
