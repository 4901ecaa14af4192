"""Multinomial logistic regression on fixed features: the classifier of the quick linear probe.

Features are standardised by the training samples' means and deviations. The weights W minimise
``mean cross entropy + penalty / 2 * ||W||^2`` (the biases are free), which is scikit-learn's LogisticRegression
with ``C = 1 / (n penalty)``, by L-BFGS over all samples at once, in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from mmvicreg.errors import UserError
from mmvicreg.metrics import top_k_accuracy

GRID = tuple(float(10.0**power) for power in range(-1, -7, -1))
"""Penalties that are tried, strongest first."""
HELD_OUT = 10
"""One in so many training samples of each class chooses the penalty."""
_BLOCK, _ITERATIONS = 16_384, 200

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Standardised:
    """Features in blocks, shifted and scaled on the way to the device.

    Attributes:
        features: ``(n, d)``, also a map of a file.
        mean: ``(d,)``.
        scale: ``(d,)``, 1 where a feature is constant.
        device: where they are computed with.
    """

    features: Floats
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    device: torch.device

    @classmethod
    def fit(cls, features: Floats, device: torch.device) -> Standardised:
        """Mean and deviation of features; in float64, a block at a time."""
        n, total = len(features), np.zeros(features.shape[1])
        for start in range(0, n, _BLOCK):
            total += features[start : start + _BLOCK].astype(np.float64).sum(0)
        mean, square = total / n, np.zeros(features.shape[1])
        for start in range(0, n, _BLOCK):
            square += np.square(features[start : start + _BLOCK] - mean).sum(0)
        scale = np.sqrt(square / n)
        small = scale <= 1e-7 * (np.abs(mean) + 1e-12)  # constant up to float32's rounding
        return cls(features, mean, np.where(small, 1.0, scale), device)

    def like(self, features: Floats) -> Standardised:
        """Other features, moved and scaled as these."""
        return Standardised(features, self.mean, self.scale, self.device)

    def block(self, rows: Integers | slice) -> Tensor:
        """Some rows, float64 on a CPU and float32 on a GPU."""
        values = (self.features[rows] - self.mean) / self.scale
        dtype = torch.float32 if self.device.type == "cuda" else torch.float64
        return torch.from_numpy(values).to(self.device, dtype)


def fit(
    x: Standardised, labels: Integers, rows: Integers, *, classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    """Weights ``(classes, d)`` and biases ``(classes,)`` of some rows, from zero."""
    width, kind = x.features.shape[1], x.block(slice(0, 1)).dtype
    weight = torch.zeros(classes, width, device=x.device, dtype=kind, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, dtype=kind, requires_grad=True)
    # a few blocks that fit are read once
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    kept = [x.block(block) for block in blocks] if len(rows) * width <= 2**27 else None
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = 0.5 * penalty * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        value = total.detach()
        for place, block in enumerate(blocks):
            values = kept[place] if kept is not None else x.block(block)
            target = torch.from_numpy(labels[block]).to(x.device)
            part = functional.cross_entropy(values @ weight.T + bias, target, reduction="sum") / len(rows)
            part.backward()  # type: ignore[no-untyped-call]
            value = value + part.detach()
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def scores(x: Standardised, rows: Integers, weight: Tensor, bias: Tensor) -> Floats:
    """Class scores ``(rows, classes)``."""
    parts = [
        (x.block(rows[start : start + _BLOCK]) @ weight.T + bias).cpu().numpy()
        for start in range(0, len(rows), _BLOCK)
    ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Probed:
    """What a probe reached: percent on the test samples, and the penalty that the held-out ones chose."""

    top1: float
    top5: float | None
    penalty: float


def probe(
    train: Floats,
    train_labels: Integers,
    test: Floats,
    test_labels: Integers,
    *,
    classes: int,
    tops: tuple[int, ...],
    device: torch.device,
) -> Probed:
    """Choose a penalty on a held-out tenth of the training samples, fit all of them, test once.

    Args:
        train: ``(n, d)``.
        train_labels: ``(n,)``.
        test: ``(k, d)``.
        test_labels: ``(k,)``.
        classes: number of classes.
        tops: which top-k accuracies.
        device: where it is computed.

    Raises:
        UserError: fewer than two classes among the training samples.
    """
    if len(np.unique(train_labels)) < 2:
        raise UserError("a linear probe needs training samples of at least two classes")
    x = Standardised.fit(train, device)
    inner, held = _inner_split(train_labels)
    penalty = GRID[-1]
    if len(held):
        reached = [
            top_k_accuracy(
                scores(x, held, *fit(x, train_labels, inner, classes=classes, penalty=p)), train_labels[held]
            )
            for p in GRID
        ]
        penalty = GRID[int(np.argmax(reached))]  # of equal ones the strongest
    weight, bias = fit(x, train_labels, np.arange(len(train)), classes=classes, penalty=penalty)
    found = scores(x.like(test), np.arange(len(test)), weight, bias)
    reached = [top_k_accuracy(found, test_labels, k=top) for top in tops]
    return Probed(reached[0], reached[1] if len(tops) > 1 else None, penalty)


def _inner_split(labels: Integers) -> tuple[Integers, Integers]:
    """Every tenth sample of each class in a fixed random order is held out; none of a class of one sample."""
    order = np.random.default_rng(0).permutation(len(labels))
    held: list[int] = []
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        held += list(mine[: max(1, len(mine) // HELD_OUT)]) if len(mine) > 1 else []
    chosen = np.array(sorted(held), dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen
