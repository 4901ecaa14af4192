"""``mmvicreg bench step``: a training step on pictures against the step of the authors' script.

Both train one network from the same weights on the same views, in turns: encoder and expander forward (view by
view), the objective and its gradient, backward through the towers, LARS. Theirs is written from its definition:
Algorithm 1 with autograd and the published loop of LARS. The input is measured apart, since loader processes make
it while the step computes: theirs with PIL on one core, ours decoded and cropped there and coloured on the device.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from mmvicreg.bench import input as pictures
from mmvicreg.bench import lars, peers
from mmvicreg.bench.measure import peak_memory
from mmvicreg.branches.expander import expand
from mmvicreg.branches.model import Batch, JointModel, build_inputs
from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.recipes import parse_recipe
from mmvicreg.training.distributed import CUDNN, resolve_device
from mmvicreg.training.optim import build_optimizer
from mmvicreg.training.setup import build_model

AUTHORS, OURS = "authors' script", "ours"
Step = Callable[[Callable[[str], None]], None]
"""One step of training; what it is given is told the name of every phase that is done."""
PHASES = ("augment", "forward", "objective", "backward", "optimiser")
"""What the device does in a step, in order; only ours augments there."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        encoder: a ResNet by name.
        width: of the expander's three layers.
        batch_size: pictures, two views each.
        size: side of a view, pixels; the small stem is used up to 64.
        repeats: timed steps of each.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, or ``bf16``: autocast for both.
    """

    encoder: str = "resnet18"
    width: int = 8192
    batch_size: int = 128
    size: int = 32
    repeats: int = 3
    device: str = "auto"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if min(self.width, self.repeats) < 1 or self.batch_size < 2 or self.size < 8:
            raise UserError(
                "bench step needs a batch of two pictures of 8 pixels or more, an expander of one dimension and one "
                "repeat at least"
            )
        if self.precision not in {"fp32", "bf16"}:
            raise UserError(f"unknown precision '{self.precision}'. Known: fp32, bf16.")


@dataclass(frozen=True)
class StepCost:
    """One implementation.

    Attributes:
        name: whose.
        phases: phase of :data:`PHASES` -> seconds, the median.
        seconds: of a whole step without input, the median.
        ratio: the authors' time over its own in the same round, the median.
        memory: bytes that a step takes beyond what lives between steps (weights and momenta).
        input_seconds: processor time of one core for a batch's input.
        difference: how far the first step leaves the weights from the authors', as a part of that step (l2).
    """

    name: str
    phases: Mapping[str, float]
    seconds: float
    ratio: float
    memory: int
    input_seconds: float
    difference: float


class Ours:
    """The project's step, phase by phase; together they are what the trainer does."""

    def __init__(self, recipe: Recipe, views: Sequence[Mapping[str, Tensor]], device: str) -> None:
        self.model: JointModel = build_model(recipe, build_inputs(recipe), pretrained=False)
        self.model.to(device).train().to(memory_format=torch.channels_last)
        self.model.autocast = torch.bfloat16 if recipe.training.precision == "bf16" else None
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.batch = Batch(
            torch.arange(recipe.training.batch_size),
            {f"image/{view}": dict(item) for view, item in enumerate(views)},
        ).to(torch.device(device))

    def views(self) -> list[Tensor]:
        """What the frontend makes of the batch: two float ``(n, 3, size, size)``."""
        frontend = self.model.branch("image").frontend
        return [frontend(self.batch.views[f"image/{view}"]) for view in (0, 1)]

    def step(self, watch: Callable[[str], None]) -> None:
        """One step; ``watch`` is told the name of every phase that is done."""
        self.optimizer.zero_grad(set_to_none=True)
        branch = self.model.branch("image")
        views = self.views()
        watch("augment")
        with self.model.arithmetic(self.batch.index.device):
            embedded = expand(branch.expander, [branch.encoder(x) for x in views])
            z = {f"image/{view}": embedding for view, embedding in enumerate(embedded)}
        watch("forward")
        leaves = {name: value.detach().requires_grad_() for name, value in z.items()}
        torch.autograd.backward(self.model.judge(leaves, {}, {}).loss)
        watch("objective")
        torch.autograd.backward(list(z.values()), [leaves[name].grad for name in z])
        watch("backward")
        self.optimizer.step()
        watch("optimiser")


class Authors:
    """The published script's step, from its definition, on a copy of the same network."""

    def __init__(self, ours: Ours, precision: str) -> None:
        branch = ours.model.branch("image")
        self.network = nn.Sequential(copy.deepcopy(branch.encoder), copy.deepcopy(branch.expander))
        self.network.to(memory_format=torch.contiguous_format).train()
        self.pictures = [x.contiguous() for x in ours.views()]
        self.weights = list(self.network.parameters())
        self.loop = lars.AuthorsLARS(self.weights)
        self.precision = precision

    def step(self, watch: Callable[[str], None]) -> None:
        """One step; ``watch`` is told the name of every phase that is done."""
        self.network.zero_grad(set_to_none=True)
        watch("augment")
        with self._autocast():
            a, b = (self.network(x) for x in self.pictures)
        watch("forward")
        leaves = [z.detach().float().requires_grad_() for z in (a, b)]
        loss = peers.authors(*leaves)
        torch.autograd.backward(loss)
        watch("objective")
        gradients = [
            leaf.grad.to(z.dtype) for leaf, z in zip(leaves, (a, b), strict=True) if leaf.grad is not None
        ]
        torch.autograd.backward([a, b], gradients)
        watch("backward")
        self.loop.step([w.grad for w in self.weights if w.grad is not None])
        watch("optimiser")

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.pictures[0].device.type, dtype=torch.bfloat16)


def bench_step(wanted: Settings) -> list[StepCost]:
    """Measure both.

    Raises:
        UserError: no such encoder, or the device is not there.
    """
    device = resolve_device(wanted.device)
    torch.manual_seed(0)
    views, input_seconds = _measure_input(wanted)
    ours = Ours(recipe(wanted), views, device)
    authors = Authors(ours, wanted.precision)
    # each with cuDNN as its own script has it: theirs may search for the fastest kernels
    steps = {
        AUTHORS: _with_cudnn(authors.step, deterministic=False, benchmark=True),
        OURS: _with_cudnn(ours.step, **CUDNN),
    }
    start = [w.detach().clone() for w in authors.weights]
    for step in steps.values():
        step(_ignore)
    branch = ours.model.branch("image")
    apart = _distance([*branch.encoder.parameters(), *branch.expander.parameters()], authors.weights)
    apart /= _distance(start, authors.weights)
    del start
    for network in (authors.network, ours.model):
        network.zero_grad(set_to_none=True)  # a GPU would count them as there before, a CPU as the step's own
    memory = {
        name: peak_memory(lambda step=step: step(_ignore), torch.device(device))  # type: ignore[misc]
        for name, step in steps.items()
    }
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(wanted.repeats):
        for name, step in steps.items():
            spent[name].append(_phases(step, device))
    whole = {name: [sum(phases.values()) for phases in found] for name, found in spent.items()}
    return [
        StepCost(
            name=name,
            phases={phase: median(phases[phase] for phases in spent[name]) for phase in PHASES},
            seconds=median(whole[name]),
            ratio=median(theirs / own for theirs, own in zip(whole[AUTHORS], whole[name], strict=True)),
            memory=memory[name],
            input_seconds=input_seconds[name],
            difference=apart if name == OURS else 0.0,
        )
        for name in steps
    ]


def recipe(wanted: Settings) -> Recipe:
    """The published recipe's parts at the size asked for."""
    return parse_recipe(
        {
            "pair": "image-image",
            "dataset": {"name": "image-folder"},
            "inputs": {"image": {"size": wanted.size, "interpolation": "bicubic"}},
            "branches": {
                "image": {
                    "input": "image",
                    "frontend": {"name": "image", "augmentation": "official"},
                    "encoder": {"name": wanted.encoder, "small_stem": wanted.size <= 64},
                    "expander": {"widths": [wanted.width] * 3},
                    "variance": 25,
                    "covariance": 1,
                }
            },
            "edges": [{"a": "image", "b": "image", "invariance": 25}],
            "objective": "vicreg",
            "optimizer": {
                "name": "lars",
                "lr": lars.RATE,
                "weight_decay": lars.OPTIONS["weight_decay"],
                "momentum": lars.OPTIONS["momentum"],
                "eta": lars.OPTIONS["eta"],
            },
            "training": {"epochs": 1, "batch_size": wanted.batch_size, "precision": wanted.precision},
        },
        source="bench step",
    )


def _measure_input(wanted: Settings) -> tuple[list[Mapping[str, Tensor]], dict[str, float]]:
    """A batch of our input's two views, and seconds of one core for a batch, ours and the authors'."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's worker
    try:
        with tempfile.TemporaryDirectory() as folder:
            # a few files over and over: each is decoded every time
            drawn = pictures.write_photographs(
                Path(folder), pictures.Settings(pictures=min(16, wanted.batch_size))
            )
            files = [drawn[number % len(drawn)] for number in range(wanted.batch_size)]
            pipelines = {
                AUTHORS: pictures.authors_pipeline(files, wanted.size),
                OURS: pictures.our_pipeline(files, wanted.size, worker_augmentation="none"),
            }
            spent = pictures.in_turns(pipelines, wanted.repeats)
            made = pipelines[OURS](0)
    finally:
        torch.set_num_threads(threads)
    return made, {name: median(seconds) for name, seconds in spent.items()}


def _with_cudnn(step: Step, *, deterministic: bool, benchmark: bool) -> Step:
    """The step with cuDNN set so while it is taken, and as it was before afterwards."""
    flags = torch.backends.cudnn

    def run(watch: Callable[[str], None]) -> None:
        before = flags.deterministic, flags.benchmark
        flags.deterministic, flags.benchmark = deterministic, benchmark
        try:
            step(watch)
        finally:
            flags.deterministic, flags.benchmark = before

    return run


def _phases(step: Step, device: str) -> dict[str, float]:
    """Seconds of every phase of one step."""
    found: dict[str, float] = {}
    last = time.perf_counter()

    def watch(phase: str) -> None:
        nonlocal last
        if device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        found[phase], last = now - last, now

    step(watch)
    return found


@torch.no_grad()
def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    squares = [float((a - b).double().square().sum()) for a, b in zip(some, others, strict=True)]
    return math.sqrt(sum(squares))


def _ignore(_: str) -> None:
    pass


def rows(found: Sequence[StepCost], wanted: Settings) -> list[dict[str, Any]]:
    """A row for each implementation, as plain data."""
    return [
        {
            "implementation": one.name,
            "seconds": one.seconds,
            "images_per_second": wanted.batch_size / one.seconds,
            "ratio": one.ratio,
            "share": {phase: value / one.seconds for phase, value in one.phases.items()},
            "memory": one.memory,
            "input_images_per_second_per_core": wanted.batch_size / one.input_seconds,
            "input_core_seconds": one.input_seconds,
            "input_share_of_step": one.input_seconds / one.seconds,
            "difference": one.difference,
            "encoder": wanted.encoder,
            "width": wanted.width,
            "batch_size": wanted.batch_size,
            "size": wanted.size,
            "precision": wanted.precision,
            "device": resolve_device(wanted.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        for one in found
    ]


def table(found: Sequence[StepCost], wanted: Settings) -> Table:
    """The same for people."""
    laid_out = Table(
        title=f"A step of {wanted.encoder} and a {wanted.width}-{wanted.width}-{wanted.width} expander on "
        f"{wanted.batch_size} pictures of {wanted.size} pixels, two views, {wanted.precision}, "
        f"{resolve_device(wanted.device)}: median of {wanted.repeats} in turns",
        title_justify="left",
    )
    laid_out.add_column("")
    for one in found:
        laid_out.add_column(one.name, justify="right")
    figures: dict[str, Callable[[StepCost], str]] = {
        "seconds a step": lambda one: f"{one.seconds:.3f}",
        "pictures a second": lambda one: f"{wanted.batch_size / one.seconds:.1f}",
        "times the authors'": lambda one: f"{one.ratio:.2f}x",
        "MB beyond weights and momenta": lambda one: f"{one.memory / 1e6:.0f}",
        "input, pictures a second of a core": lambda one: f"{wanted.batch_size / one.input_seconds:.1f}",
        "input, seconds of a core for a step": lambda one: f"{one.input_seconds:.3f}",
        "the same, % of the step": lambda one: f"{100 * one.input_seconds / one.seconds:.1f}",
    }
    for name, figure in figures.items():
        laid_out.add_row(name, *(figure(one) for one in found))
    laid_out.add_section()
    for phase in PHASES:
        laid_out.add_row(f"{phase}, %", *(f"{100 * one.phases[phase] / one.seconds:.1f}" for one in found))
    laid_out.caption = (
        f"The first step's weights differ by {found[-1].difference:.1g} of the step.\nInput: both views of a step's "
        "pictures read, decoded, cropped and turned into a batch (the authors' coloured too) by one core. Loader "
        "processes do that while the step is computed, so it is in neither the seconds nor the ratio; divided by the "
        "number of loaders it must stay below 100 % for the step not to wait."
    )
    return laid_out
