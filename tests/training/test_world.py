"""What a process is told of the others: how long it waits for them, and which cores are its own."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mmvicreg.errors import UserError
from mmvicreg.training import distributed
from mmvicreg.training.distributed import join_world, own_cores

SLURM = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}
TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TOLD, *SLURM, "SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_CPUS_ON_NODE"):
        # set and taken away: what is written into the environment meanwhile does not outlive the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_the_others_wait_for_hours_while_one_reads_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *_, **options: asked.update(options))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in one_of_two(rank=1, port=store.port).items():
        monkeypatch.setenv(name, value)
    assert join_world("cpu").rank == 1
    assert asked["timeout"] >= timedelta(hours=6)
    assert asked["store"].timeout >= timedelta(hours=6)


@pytest.mark.parametrize("rank", [0, 1])
def test_nobody_waits_for_hours_for_processes_that_never_start(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "LONGEST_MEETING", timedelta(seconds=2))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in one_of_two(rank=rank, port=port).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match=rf"process {rank} of 2 did not meet .* at 127.0.0.1:{port} .*MASTER_ADDR"
    ):
        join_world("cpu")


def test_a_process_group_without_a_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="MASTER_ADDR expected, but not set"):
        join_world("cpu")


def one_of_two(*, rank: int, port: int) -> dict[str, str]:
    """What torchrun tells one of two processes."""
    return {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.mark.parametrize(
    ("told", "processes", "own"),
    [
        ({}, 1, 8),
        ({}, 4, 2),  # started by hand, on one machine as far as can be known
        ({"LOCAL_WORLD_SIZE": "2"}, 4, 4),
        ({"LOCAL_WORLD_SIZE": "16"}, 16, 1),
        # srun, every task bound to 8 of the node's 32 cores; and where it is not said how many there are
        ({**SLURM, "SLURM_NNODES": "1", "SLURM_CPUS_ON_NODE": "32"}, 4, 8),
        ({**SLURM, "SLURM_NNODES": "1"}, 4, 8),
        # srun --cpu-bind=none: all tasks may use all the cores of their node
        ({**SLURM, "SLURM_NNODES": "1", "SLURM_CPUS_ON_NODE": "8"}, 4, 2),
        ({**SLURM, "SLURM_NNODES": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "8"}, 4, 4),
        # torchrun, itself started by srun once a node
        ({**SLURM, "LOCAL_WORLD_SIZE": "2", "SLURM_NNODES": "4", "SLURM_CPUS_ON_NODE": "32"}, 8, 4),
    ],
)
def test_cores_are_shared_by_those_that_may_use_the_same(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], processes: int, own: int
) -> None:
    monkeypatch.setattr(distributed, "cpu_count", lambda: 8)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert own_cores(processes) == own
