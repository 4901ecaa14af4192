"""``mmvicreg bench lars``: a step of LARS against the authors' loop, written from its definition.

Both step the same weights with the same gradients, in turns; that they stay equal, bit for bit, is checked. The
default tensors are those of the published model: ResNet-50 and an expander 8192-8192-8192, 175 million numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torchvision
from rich.table import Table
from torch import Tensor, nn

from mmvicreg.bench.measure import interleaved_seconds, peak_memory
from mmvicreg.branches.expander import expander
from mmvicreg.config import ExpanderConfig
from mmvicreg.errors import UserError
from mmvicreg.training.distributed import resolve_device
from mmvicreg.training.lars import LARS

AUTHORS, OURS = "authors' loop", "ours"
OPTIONS = {"weight_decay": 1e-6, "momentum": 0.9, "eta": 0.001}
RATE = 1.6


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        width: of the expander's three layers.
        repeats: timed steps of each, after one that allocates the momenta.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    width: int = 8192
    repeats: int = 5
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.width < 1 or self.repeats < 1:
            raise UserError("bench lars needs an expander of one dimension and one repeat at least")


@dataclass(frozen=True)
class StepCost:
    """One implementation.

    Attributes:
        name: whose.
        seconds: of a step, the median.
        ratio: the authors' time over its own in the same round, the median.
        memory: bytes that a step takes beyond weights, gradients and momenta.
        parameters: numbers stepped.
        difference: largest difference of a weight from the authors'.
    """

    name: str
    seconds: float
    ratio: float
    memory: int
    parameters: int
    difference: float


class AuthorsLARS:
    """One step of the published loop at a time: tensor by tensor, its update in tensors of its own."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = weights
        self.momenta = [torch.zeros_like(w) for w in weights]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Step the weights; the gradients stay as they are."""
        for w, gradient, m in zip(self.weights, gradients, self.momenta, strict=True):
            update = gradient
            if w.ndim != 1:
                update = update.add(w, alpha=OPTIONS["weight_decay"])
                of_weight, of_update = torch.norm(w), torch.norm(update)
                one = torch.ones_like(of_weight)
                scaled = torch.where(of_update > 0, OPTIONS["eta"] * of_weight / of_update, one)
                update = update.mul(torch.where(of_weight > 0, scaled, one))
            m.mul_(OPTIONS["momentum"]).add_(update)
            w.add_(m, alpha=-RATE)


def published_tensors(width: int, device: str) -> list[Tensor]:
    """Weights of the shapes of ResNet-50 and its expander, drawn at random."""
    with torch.device("meta"):
        network = torchvision.models.resnet50()
        network.fc = nn.Identity()
        layers = expander(2048, ExpanderConfig(widths=[width] * 3))
    torch.manual_seed(0)
    shapes = [p.shape for module in (network, layers) for p in module.parameters()]
    return [torch.empty(shape, device=device).uniform_(-0.05, 0.05) for shape in shapes]


def bench_lars(wanted: Settings) -> list[StepCost]:
    """Measure both.

    Raises:
        UserError: the device is not there.
    """
    device = resolve_device(wanted.device)
    theirs = published_tensors(wanted.width, device)
    ours = [nn.Parameter(w.clone()) for w in theirs]
    for p in ours:
        p.grad = torch.empty_like(p).uniform_(-0.01, 0.01)
    gradients = [p.grad for p in ours if p.grad is not None]
    # ours comes last in a round, because it leaves other gradients behind
    loop = AuthorsLARS(theirs)
    step = LARS(_groups(ours), RATE, momentum=OPTIONS["momentum"], eta=OPTIONS["eta"])
    functions: dict[str, Callable[[], object]] = {AUTHORS: partial(loop.step, gradients), OURS: step.step}
    for function in functions.values():
        function()
    memory = {name: peak_memory(function, torch.device(device)) for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(wanted.repeats):
        for gradient in gradients:
            gradient.mul_(3.0)  # else the next would have the norm that ours gave it already
        spent = interleaved_seconds(functions, repeats=1, device=torch.device(device))
        for name, values in spent.items():
            seconds[name] += values
    apart = max(float((a.detach() - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    return [
        StepCost(
            name,
            median(spent),
            median(t / s for t, s in zip(seconds[AUTHORS], spent, strict=True)),
            memory[name],
            sum(w.numel() for w in theirs),
            apart if name == OURS else 0.0,
        )
        for name, spent in seconds.items()
    ]


def _groups(weights: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": OPTIONS["weight_decay"]},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]


def rows(found: Sequence[StepCost], wanted: Settings) -> list[dict[str, Any]]:
    """A row for each implementation, as plain data."""
    return [
        {
            "implementation": one.name,
            "seconds": one.seconds,
            "ratio": one.ratio,
            "memory": one.memory,
            "difference": one.difference,
            "parameters": one.parameters,
            "device": resolve_device(wanted.device),
            "threads": torch.get_num_threads(),
        }
        for one in found
    ]


def table(found: Sequence[StepCost], wanted: Settings) -> Table:
    """The same for people."""
    laid_out = Table(
        title=f"A step of LARS on {found[0].parameters / 1e6:.1f} M weights, {resolve_device(wanted.device)}: median "
        f"of {wanted.repeats} in turns",
        title_justify="left",
    )
    laid_out.add_column("implementation")
    for heading in ("seconds", "ratio", "memory, MB", "largest difference"):
        laid_out.add_column(heading, justify="right")
    for one in found:
        cells = (
            f"{one.seconds:.3f}",
            f"{one.ratio:.2f}x",
            f"{one.memory / 1e6:.1f}",
            f"{one.difference:.1g}",
        )
        laid_out.add_row(one.name, *cells)
    return laid_out
