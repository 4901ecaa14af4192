"""Work on several processes of this machine, and how each of them ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from mmvicreg.errors import UserError, for_want_of_memory
from mmvicreg.training.distributed import (
    World,
    check_devices,
    join_world,
    leave_world,
    started_by_others,
)

P = ParamSpec("P")
T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - no error
    """A signal asked to stop, and was obeyed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


def on_processes(
    devices: int,
    device: str,
    work: Callable[Concatenate[World, P], T],
    *arguments: P.args,
    **options: P.kwargs,
) -> T:
    """Do ``work(world, ...)`` on ``devices`` new processes, or on those that torchrun or srun started.

    One process is this one. What the work prints or writes, the main process (``world.is_main``) must.

    Args:
        devices: how many processes; ignored where torchrun or srun decided that.
        device: ``auto``, ``cpu`` or ``cuda``.
        work: an importable function; its arguments and result must pickle.
        arguments: passed on.
        options: passed on.

    Returns:
        What the work returned on this process, else on the main one of the new processes.

    Raises:
        UserError: more devices than there are; anything of the user's that is wrong, in any process.
        SystemExit: 128 + signal, when one asked new processes to stop.
    """
    if devices == 1 or started_by_others():
        return _joined(device, work, *arguments, **options)
    check_devices(devices, device)
    return on_new_processes(devices, device, work, *arguments, **options)


def on_new_processes(
    devices: int,
    device: str,
    work: Callable[Concatenate[World, P], T],
    *arguments: P.args,
    **options: P.kwargs,
) -> T:
    """Do ``work(world, ...)`` on exactly ``devices`` new processes, even where they have to share cores.

    Arguments, result and errors are those of :func:`on_processes`, the check of what is there aside.
    """
    try:
        result: T = start_processes(devices, _joined, device, work, *arguments, **options)
    except Stopped as stopped:
        raise SystemExit(128 + stopped.signal) from None
    return result


def _joined(
    device: str, work: Callable[Concatenate[World, P], T], *arguments: P.args, **options: P.kwargs
) -> T:
    world = join_world(device)
    try:
        return work(world, *arguments, **options)
    finally:
        leave_world()


def start_processes(processes: int, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Run ``function(...)`` on so many new processes under torchrun's elastic agent.

    Returns:
        What the main one returned.

    Raises:
        UserError: raised by any of them, or one died.
        Stopped: raised by any of them, or a signal reached the agent.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
        run_id=uuid.uuid4().hex,
    )
    # what went wrong is told in one message below; the agent would add pages of its own
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.launcher").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as notes:
        try:
            results = elastic_launch(config, _enter)(notes, function, arguments, options)
        except ChildFailedError as error:
            if told := sorted(Path(notes).glob("error-*")):
                raise UserError(told[0].read_text(encoding="utf-8")) from None
            _raise_stopped(notes)
            if any(failure.exitcode == -signal.SIGKILL for failure in error.failures.values()):
                raise UserError(
                    f"one of {processes} processes was killed, probably for want of memory; give it less to do at "
                    "once, or start fewer"
                ) from error
            raise UserError(f"a process died: {error}") from error
        except SignalException as error:
            raise Stopped(int(error.sigval)) from None
        _raise_stopped(notes)
        return results[0]


def _enter(notes: str, function: Callable[..., Any], arguments: Any, options: Any) -> Any:
    """A process of the agent: leave a note of how it ended, since exceptions do not cross over whole."""
    rank = os.environ["RANK"]
    try:
        return function(*arguments, **options)
    except UserError as error:
        (Path(notes) / f"error-{rank}").write_text(str(error), encoding="utf-8")
        _leave(2)
    except (MemoryError, RuntimeError) as error:
        if (short := for_want_of_memory(error)) is None:
            raise
        (Path(notes) / f"error-{rank}").write_text(str(short), encoding="utf-8")
        _leave(2)
    except Stopped as stopped:
        (Path(notes) / f"signal-{rank}").write_text(str(stopped.signal), encoding="utf-8")
        _leave(128 + stopped.signal)


def _raise_stopped(notes: str) -> None:
    if stopped := sorted(Path(notes).glob("signal-*")):
        raise Stopped(int(stopped[0].read_text())) from None


def _leave(status: int) -> None:
    """End this process at once: returning would wait for an agent that may be shutting down itself."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
