"""Run one function on several gloo processes and bring back what each returned."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_processes(processes: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``function(*arguments)`` on each of ``processes`` processes; the results in the order of ranks.

    The function must be importable, its arguments and results plain tensors, numbers and containers.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_enter, (processes, folder, function, arguments), nprocs=processes)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(processes)]


def _enter(rank: int, processes: int, folder: str, function: Callable[..., Any], arguments: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    try:
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
        dist.barrier()  # the first to end would take the store with it
    finally:
        dist.destroy_process_group()
