"""``mmvicreg bench objective``: this project's VICReg against the same loss as others compute it.

Forward and backward on the same embeddings, run in turns. The embeddings are two related batches with
column deviations on both sides of gamma, so that every term is at work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.functional import mse_loss, relu

from mmvicreg.bench.measure import interleaved_seconds, largest, peak_memory, sum_over_processes
from mmvicreg.bench.peers import NAMES, Peer, installed, peer
from mmvicreg.branches.expander import expander
from mmvicreg.config import ExpanderConfig
from mmvicreg.errors import UserError
from mmvicreg.objectives import VICReg
from mmvicreg.progress import progress_bar
from mmvicreg.training.distributed import World, resolve_device, started_by_others
from mmvicreg.training.processes import on_new_processes, on_processes

PRECISIONS = ("fp32", "tf32", "bf16")
CHECKED_UP_TO = 2048 * 8192**2
"""n d^2 of the largest shape whose errors are measured: its reference takes a CPU about a minute."""
REPRESENTATION = 2048
"""Width of what the expanders of ``share`` are given: a ResNet-50's."""


@dataclass(frozen=True)
class Settings:
    """What to measure; see :func:`settings`."""

    shapes: tuple[tuple[int, int], ...]
    processes: tuple[int, ...]
    device: str
    precision: str
    peers: tuple[str, ...]
    repeats: int
    share: bool


@dataclass(frozen=True)
class Comparison:
    """One shape on so many processes.

    Attributes:
        n: samples of the global batch.
        d: dimensions.
        processes: how many share the batch.
        ms: median milliseconds of a forward and backward; ``ours`` and every peer.
        mb: peak memory of one process beyond its inputs, in 1e6 bytes; the gradients are in it.
        loss_error: of our loss, relative to float64; None where that costs too much.
        gradient_error: of our gradients: the larger of the two ``|g - g64| / |g64|`` (Frobenius).
        share: our time over that of a training step, at most; None unless asked for.
    """

    n: int
    d: int
    processes: int
    ms: dict[str, float]
    mb: dict[str, float]
    loss_error: float | None
    gradient_error: float | None
    share: float | None


def settings(
    *, shapes: str, processes: str, device: str, precision: str, peers: str | None, repeats: int, share: bool
) -> Settings:
    """The command's options, checked.

    Args:
        shapes: ``NxD,NxD``: samples of the global batch and dimensions.
        processes: ``1,2,4``.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``tf32`` (peers' products may use it on a GPU; ours never do) or ``bf16``
            (the embeddings are bfloat16).
        peers: some of :data:`.peers.NAMES`; None takes those that can be had.
        repeats: timed runs of each.
        share: measure :attr:`Comparison.share` too.

    Raises:
        UserError: any of them makes no sense, or is not to be had here.
    """
    if started_by_others():
        raise UserError("a benchmark starts its processes itself: leave torchrun away and give --processes N")
    kind = resolve_device(device)
    if precision not in PRECISIONS:
        raise UserError(f"--precision: unknown '{precision}'. Known: {', '.join(PRECISIONS)}.")
    if precision == "tf32" and kind != "cuda":
        raise UserError("--precision tf32 is a GPU's; use --device cuda, or another precision")
    counts = tuple(_count(word) for word in processes.split(","))
    if kind == "cuda" and max(counts) > torch.cuda.device_count():
        raise UserError(
            f"--processes {max(counts)}: there are {torch.cuda.device_count()} GPUs, one for each"
        )
    sizes = tuple(_shape(word) for word in shapes.split(","))
    for n, _ in sizes:
        for count in counts:
            if n % count or n // count < 2:
                raise UserError(
                    f"--shapes: {n} samples cannot be shared out evenly to {count} processes, two or more to each"
                )
    chosen = tuple(filter(installed, NAMES) if peers is None else peers.split(","))
    for name in chosen:
        peer(name)
    return Settings(sizes, counts, kind, precision, chosen, repeats, share)


def bench_objective(wanted: Settings) -> list[Comparison]:
    """Measure every shape on every number of processes."""
    cases = [(n, d, count) for count in wanted.processes for n, d in wanted.shapes]
    found = []
    with progress_bar(len(cases), "measuring", "case") as bar:
        for n, d, count in cases:
            bar.say(f"{n} x {d} on {count}")
            if count == 1:
                figures = on_processes(1, wanted.device, _compare, n, d, wanted)
            else:  # four on two cores is worth knowing
                figures = on_new_processes(count, wanted.device, _compare, n, d, wanted)
            found.append(Comparison(n, d, count, **figures))
            bar.advance()
    return found


def rows(comparisons: list[Comparison], wanted: Settings) -> list[dict[str, Any]]:
    """A row for each peer of each comparison, as plain data; times in ms, memory in 1e6 bytes.

    ``precision`` and ``share`` are in it where they were asked for.
    """
    found = []
    for c in comparisons:
        errors = [error for error in (c.loss_error, c.gradient_error) if error is not None]
        for name in wanted.peers:
            row: dict[str, Any] = {
                "n": c.n,
                "d": c.d,
                "processes": c.processes,
                "device": wanted.device,
                "ours_ms": c.ms["ours"],
                "peer": name,
                "peer_ms": c.ms[name],
                "ratio": c.ms[name] / c.ms["ours"],
                "ours_mb": c.mb["ours"],
                "peer_mb": c.mb[name],
                "max_rel_err": max(errors) if errors else None,
            }
            if wanted.precision != "fp32":
                row["precision"] = wanted.precision
            if c.share is not None:
                row["share"] = c.share
            found.append(row)
    return found


def table(comparisons: list[Comparison], wanted: Settings) -> Table:
    """The same for people."""
    threads = f", {torch.get_num_threads()} threads" if wanted.device == "cpu" else ""
    what = f"{wanted.device} ({wanted.precision}, torch {torch.__version__}{threads})"
    laid_out = Table(
        title=f"VICReg, forward and backward on {what}: median of {wanted.repeats} runs in turns; "
        "memory beyond the inputs; error against float64",
        title_justify="left",
    )
    laid_out.add_column("n x d")
    for heading in ("processes", "ours ms", "peer", "peer ms", "ratio"):
        laid_out.add_column(heading, justify="left" if heading == "peer" else "right")
    for heading in ("ours MB", "peer MB", "ratio", "loss error", "gradient error"):
        laid_out.add_column(heading, justify="right")
    if wanted.share:
        laid_out.add_column("of a step, at most", justify="right")
    for c in comparisons:
        errors = ["-" if error is None else f"{error:.1e}" for error in (c.loss_error, c.gradient_error)]
        share = ["-" if c.share is None else f"{100 * c.share:.2f} %"] if wanted.share else []
        for name in wanted.peers:
            laid_out.add_row(
                f"{c.n} x {c.d}",
                str(c.processes),
                f"{c.ms['ours']:.1f}",
                name,
                f"{c.ms[name]:.1f}",
                f"{c.ms[name] / c.ms['ours']:.1f}x",
                f"{c.mb['ours']:.1f}",
                f"{c.mb[name]:.1f}",
                f"{c.mb[name] / c.mb['ours']:.1f}x",
                *errors,
                *share,
            )
    return laid_out


def embeddings(n: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two batches ``(n, d)``, the same in every process."""
    generator = torch.Generator().manual_seed(n * 100_003 + d)
    common = torch.randn(n, d, generator=generator)
    scales = torch.linspace(0.5, 1.5, d)
    a, b = (((common + 0.3 * torch.randn(n, d, generator=generator)) * scales).to(dtype) for _ in "ab")
    return a, b


def reference(a: Tensor, b: Tensor, *, rank: int = 0, processes: int = 1) -> tuple[Tensor, list[Tensor]]:
    """The loss and its gradients in float64, from the definition: every entry of C, autograd behind it.

    Blocks of C's columns are differentiated one by one, to need no d x d matrix, and are dealt out to the
    processes, each of which passes the whole ``(n, d)`` batches and gets the whole result.
    """
    exact = [z.detach().double().requires_grad_() for z in (a, b)]
    loss = torch.zeros((), dtype=torch.float64, device=a.device)
    for part in _parts(*exact, rank=rank, processes=processes):
        part.backward()  # type: ignore[no-untyped-call]
        loss += part.detach()
    gradients = [torch.zeros_like(z) if z.grad is None else z.grad for z in exact]
    sum_over_processes(loss, *gradients)
    return loss, gradients


def _parts(a: Tensor, b: Tensor, *, rank: int, processes: int, width: int = 1024) -> Iterator[Tensor]:
    n, d = a.shape
    if rank == 0:
        yield 25 * mse_loss(a, b)
        for z in (a, b):
            yield 25 * relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()
    for z in (a, b):
        for start in range(rank * width, d, processes * width):
            centred = z - z.mean(dim=0)
            columns = centred.T @ centred[:, start : start + width] / (n - 1)
            diagonal = columns.diagonal(-start)
            yield (columns.square().sum() - diagonal.square().sum()) / d


def errors(
    loss: Tensor, gradients: tuple[Tensor, ...], batch: tuple[Tensor, Tensor], world: World
) -> tuple[float, float]:
    """Relative errors of a loss and of this process's rows of its gradients, largest over the processes.

    Args:
        loss: of the global batch.
        gradients: ``(n_local, d)`` each, times the number of processes (DistributedDataParallel averages).
        batch: the global batch ``(n, d)``, twice.
        world: this process among all.
    """
    right, exact = reference(*batch, rank=world.rank, processes=world.size)
    found = [float((loss.detach().double() - right).abs() / right.abs())]
    for mine, whole in zip(gradients, exact, strict=True):
        own = slice(world.rank * len(mine), (world.rank + 1) * len(mine))
        off = (mine.double() / world.size - whole[own]).square().sum()
        sum_over_processes(off)
        found.append(float((off / whole.square().sum()).sqrt()))
    found = largest(found, world.device)
    return found[0], max(found[1:])


def _compare(world: World, n: int, d: int, wanted: Settings) -> dict[str, Any]:
    """One process's part of one comparison; the figures of :class:`Comparison`, the same on all."""
    dtype = torch.bfloat16 if wanted.precision == "bf16" else torch.float32
    a, b = (z.to(world.device) for z in embeddings(n, d, dtype))
    own = slice(world.rank * (n // world.size), (world.rank + 1) * (n // world.size))
    local = [z[own].clone().requires_grad_() for z in (a, b)]

    def run(loss: Peer) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(loss(*local), local)

    losses: dict[str, Peer] = {"ours": _ours} | {name: peer(name) for name in wanted.peers}
    functions = {name: run(loss) for name, loss in losses.items()}
    loss_error = gradient_error = None
    with _products(wanted.precision):
        if n * d * d <= CHECKED_UP_TO:
            loss = _ours(*local)
            loss_error, gradient_error = errors(loss, torch.autograd.grad(loss, local), (a, b), world)
        mb = {}
        for name, function in functions.items():
            if world.device.type == "cuda":
                function()  # cuBLAS keeps the workspace that its first product takes
            mb[name] = largest([peak_memory(function, world.device) / 1e6], world.device)[0]
        seconds = interleaved_seconds(functions, repeats=wanted.repeats, device=world.device)
        share = _share(n, d, world, wanted.repeats) if wanted.share and world.size == 1 else None
    return {
        "ms": {name: 1e3 * median(values) for name, values in seconds.items()},
        "mb": mb,
        "loss_error": loss_error,
        "gradient_error": gradient_error,
        "share": share,
    }


def _ours(a: Tensor, b: Tensor) -> Tensor:
    return VICReg()(a, b).loss


def _share(n: int, d: int, world: World, repeats: int) -> float:
    """The objective's share of forward and backward through the objective and two expanders of d, d, d.

    The encoders, the augmentation and the optimiser come on top of that in every real step, hence at most.
    """
    config = ExpanderConfig(widths=[d, d, d])
    networks = [expander(REPRESENTATION, config).to(world.device) for _ in "ab"]
    inputs = [torch.randn(n, REPRESENTATION, device=world.device) for _ in "ab"]
    local = [net(x).detach().requires_grad_() for net, x in zip(networks, inputs, strict=True)]

    def step() -> None:
        _ours(*(net(x) for net, x in zip(networks, inputs, strict=True))).backward()  # type: ignore[no-untyped-call]
        for network in networks:
            network.zero_grad(set_to_none=True)

    functions = {"step": step, "ours": lambda: torch.autograd.grad(_ours(*local), local)}
    interleaved_seconds(functions, repeats=1, device=world.device)
    seconds = interleaved_seconds(functions, repeats=repeats, device=world.device)
    return median(seconds["ours"]) / median(seconds["step"])


@contextmanager
def _products(precision: str) -> Iterator[None]:
    """Whether a GPU may multiply float32 matrices in TF32, where nothing says otherwise."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        matmul.fp32_precision = before


def _shape(word: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d+)x(\d+)\s*", word)
    if match is None:
        raise UserError(f"--shapes: '{word}' is not SAMPLESxDIMENSIONS, as in 256x4096,512x8192")
    n, d = int(match[1]), int(match[2])
    if n < 2 or d < 2:
        raise UserError(f"--shapes: {word} is too small; two samples and two dimensions are the least")
    return n, d


def _count(word: str) -> int:
    if not word.strip().isdigit() or int(word) < 1:
        raise UserError(f"--processes: '{word}' is not a number of processes, as in 1,2,4")
    return int(word)
