"""Time and memory of a function on a CPU or a GPU, alone or on several processes at once."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors alive at most at once while ``function`` runs, beyond those that were there before.

    What it returns counts like everything else it makes. Counted is what torch's allocators hand out: on a
    GPU by the caching allocator's own statistics, on a CPU by the profiler, which records every allocation,
    an operation's temporaries included. What libraries take past torch is not seen: the packing buffers of
    matrix products (a few MB), gloo's and NCCL's messages.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else the profiler tells stderr when it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        record.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    moments = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    if not moments:
        return 0
    # The totals go on from earlier recordings, so they are counted from before the first allocation here.
    totals = [moment["args"]["Total Allocated"] for moment in moments]
    return int(max(totals) - (totals[0] - moments[0]["args"]["Bytes"]))


def interleaved_seconds(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each of ``repeats`` runs of every function, in turns: what else goes on falls on all alike.

    Under several processes all start a run together, and it lasts until the slowest is done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            _synchronise(device)
            if dist.is_initialized():
                dist.barrier()
            start = time.perf_counter()
            function()
            _synchronise(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: largest(values, device) for name, values in seconds.items()}


def largest(values: list[float], device: torch.device) -> list[float]:
    """Each number's largest value over the processes."""
    if not dist.is_initialized():
        return values
    found = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.tolist()


def sum_over_processes(*values: Tensor) -> None:
    """All-reduce in place, where there are several processes."""
    if dist.is_initialized():
        for value in values:
            dist.all_reduce(value)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
