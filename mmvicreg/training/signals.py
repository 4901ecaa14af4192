"""Asking a run to stop without losing what it has done."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """The first SIGINT or SIGTERM received while a block runs, and when."""

    signal: int | None = None
    at: float = 0.0


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop honours after its step.

    Another one that comes more than three seconds later is obeyed at once. Sooner it may be the same one
    again: Ctrl-C reaches every process of a terminal, and torchrun's agent then passes it on.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return

    def note(number: int, _: FrameType | None) -> None:
        if request.signal is None:
            request.signal, request.at = number, time.monotonic()
        elif time.monotonic() - request.at > 3:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {kind: signal.signal(kind, note) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
