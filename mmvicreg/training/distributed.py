"""Who this process is, and the few collectives the loop needs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from mmvicreg.errors import UserError

BUCKET = 25 * 2**20
"""Bytes that go over the network at once, as many as DistributedDataParallel sends."""

LONGEST_WAIT = timedelta(hours=12)
"""How long a process waits for the others. What the main process does alone before training (fitting a vocabulary,
surveying headers, fitting statistics) takes longer than NCCL's 10 or gloo's 30 minutes on large data. Nobody has to
wait this long for a process that died: torchrun's agent ends the others, and srun does with --kill-on-bad-exit."""

LONGEST_MEETING = timedelta(minutes=30)
"""How long a process waits for the others to start: all of them do at about the same time."""

CUDNN = {"deterministic": True, "benchmark": False}
"""How training sets cuDNN: a resumed run is to go on in the same bits, and its fastest kernels add in any order."""


@dataclass(frozen=True)
class World:
    """This process among all of a run: its rank, how many there are, and its device."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0


def join_world(device: str = "auto") -> World:
    """Join the process group that torchrun or SLURM describes; one process needs none.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: the device is not there, or the other processes.
    """
    _adopt_slurm()
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    kind = resolve_device(device)
    place = torch.device("cuda", local_rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                "lower --devices"
            )
        torch.cuda.set_device(place)
        torch.backends.cudnn.deterministic = CUDNN["deterministic"]
        torch.backends.cudnn.benchmark = CUDNN["benchmark"]
    if size > 1:
        if kind == "cpu":
            torch.set_num_threads(own_cores(size))
        backend = "nccl" if kind == "cuda" else "gloo"
        store = _meet(rank, size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    return World(rank, size, local_rank, place)


def _meet(rank: int, size: int) -> Any:
    """The store (``torch.distributed.Store``) of all processes of the run, once all of them are there."""
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=LONGEST_MEETING))
    except (ValueError, dist.DistError) as error:  # ValueError: a variable that is not set
        place = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        raise UserError(
            f"process {rank} of {size} did not meet the others at {place} ({str(error).splitlines()[0]}); MASTER_ADDR "
            f"and MASTER_PORT must name the machine of process 0 and a free port of it, and all {size} processes "
            f"(WORLD_SIZE) must start within {LONGEST_MEETING.total_seconds() / 60:g} minutes"
        ) from error
    store.set_timeout(LONGEST_WAIT)
    return store


def resolve_device(device: str) -> str:
    """``auto`` as ``cuda`` where there is one, else ``cpu``."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda was asked for, and torch finds no usable GPU here; use --device cpu")
    if device not in ("cpu", "cuda"):
        raise UserError(f"unknown device '{device}'. Known: auto, cpu, cuda.")
    return device


def check_devices(devices: int, device: str) -> None:
    """Refuse more processes than there are GPUs, or than processor cores on a CPU."""
    kind = resolve_device(device)
    there = torch.cuda.device_count() if kind == "cuda" else cpu_count()
    what = "GPUs" if kind == "cuda" else "processor cores"
    if not 1 <= devices <= there:
        raise UserError(f"--devices {devices}: this machine has {there} {what}; choose 1 to {there}")


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cores(processes: int) -> int:
    """Cores for this process alone, of a run of so many: those it may use, shared with the others of this machine.

    Under srun without torchrun a task may mostly use its own cores and no others, which are not to be shared again;
    where it may use all that the job has on the machine, it was not bound to any.
    """
    cores, sharing = cpu_count(), processes
    if "LOCAL_WORLD_SIZE" in os.environ:
        sharing = int(os.environ["LOCAL_WORLD_SIZE"])
    elif under_srun():
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
        bound = cores < int(os.environ.get("SLURM_CPUS_ON_NODE") or cores + 1)
        sharing = 1 if bound else -(-processes // nodes)
    return max(1, cores // sharing)


def leave_world() -> None:
    """Take the process group down, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def from_main(value: Any) -> Any:
    """The main process's ``value``, on every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on at least one process."""
    if not dist.is_initialized():
        return flag
    vote = torch.tensor(float(flag), device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item() > 0)


def gather_rows(x: Tensor) -> Tensor:
    """Rows of every process, in rank order, without gradient: ``(n_local, ...)`` to ``(n, ...)``."""
    if not dist.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def share_state(module: nn.Module) -> None:
    """Give every process the main process's parameters and buffers."""
    if dist.is_initialized():
        state = [*module.parameters(), *module.buffers()]
        _in_buckets([tensor.detach() for tensor in state], lambda flat: dist.broadcast(flat, src=0))


def average_gradients(module: nn.Module) -> None:
    """Replace every gradient by its mean over the processes, a missing one counting as zero.

    What DistributedDataParallel does during the backward pass, done once after it. A parameter without a
    gradient on every process keeps none.
    """
    if not dist.is_initialized():
        return
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        return
    found = torch.tensor([int(p.grad is not None) for p in parameters], device=parameters[0].device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, somewhere in zip(parameters, found.tolist(), strict=True):
        if somewhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    processes = dist.get_world_size()

    def mean(flat: Tensor) -> None:
        dist.all_reduce(flat.div_(processes))

    _in_buckets(gradients, mean)


def _in_buckets(tensors: Sequence[Tensor], act: Callable[[Tensor], object]) -> None:
    """Apply a collective in place to many tensors, in flat pieces of one dtype and about ``BUCKET`` bytes."""
    bucket: list[Tensor] = []
    for tensor, following in zip(tensors, [*tensors[1:], None], strict=True):
        bucket.append(tensor)
        full = sum(t.nbytes for t in bucket) >= BUCKET
        if full or following is None or following.dtype != tensor.dtype:
            flat = torch.cat([t.reshape(-1) for t in bucket])
            act(flat)
            for t, part in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
                t.copy_(part.view(t.shape))
            bucket = []


def gather_objects(value: Any) -> list[Any]:
    """What every process has, in rank order; small picklable things only."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def shares(n: int, processes: int, *, unit: int = 1) -> list[int]:
    """Where each process's share of ``n`` rows begins, and, last, ``n``.

    Shares are consecutive, of whole units (the last may be cut short), and differ by one unit at most.
    """
    each, more = divmod(-(-n // unit), processes)
    return [min(n, unit * (rank * each + min(rank, more))) for rank in range(processes + 1)]


def exchange_rows(x: Tensor, bounds: Sequence[int], device: torch.device) -> None:
    """Fill in, in place, the rows of ``x`` that other processes have made.

    Args:
        x: ``(n, ...)`` on the CPU, the same shape on every process.
        bounds: process ``r`` has made the rows from ``bounds[r]`` to before ``bounds[r + 1]``.
        device: where this process's collectives run.
    """
    if not dist.is_initialized():
        return
    for source, (first, last) in enumerate(pairwise(bounds)):
        if first < last:
            part = x[first:last].to(device)
            dist.broadcast(part, src=source)
            x[first:last] = part.cpu()


def started_by_others() -> bool:
    """Whether torchrun or srun started this process, as one of those of a job."""
    return "RANK" in os.environ or under_srun()


def under_srun() -> bool:
    """Whether srun started this process as one of several (a batch script alone is not one of them)."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ


def _adopt_slurm() -> None:
    """Under ``srun`` without torchrun, translate SLURM's description of the job into torch's."""
    if "RANK" in os.environ or not under_srun():
        return
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
    # every job its own port, the same on all of its nodes
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000))
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_JOB_NODELIST", "localhost")
        try:
            listed = subprocess.run(
                ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
            )
            os.environ["MASTER_ADDR"] = listed.stdout.split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError) as error:
            raise UserError(
                f"cannot resolve SLURM's node list '{nodes}' with scontrol; set MASTER_ADDR yourself"
            ) from error
