"""What a run writes while it trains: metrics.jsonl, TensorBoard events, and lines for people."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mmvicreg.errors import UserError
from mmvicreg.runs import write_whole


class RunLog:
    """Append-only metrics of one run, cut back to the step a resumed run starts from.

    Args:
        folder: the run folder.
        step: steps already behind the run; later lines, of a part that is repeated, are removed.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_lines(self._path) if line.get("step", 0) <= step]
        try:
            write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = self._path.open("a", encoding="utf-8")
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            raise UserError(
                f"cannot write {error.filename or self._path}: {error.strerror or error}"
            ) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one measurement; nested numbers become TensorBoard scalars ``a/b``."""
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for name, value in flatten(line).items():
                if name not in ("step", "epoch"):
                    self._events.add_scalar(name, value, int(line["step"]))
        except OSError as error:  # TensorBoard's thread hands on what stopped it
            raise self._full(error) from error

    def close(self) -> None:
        """Flush everything."""
        try:
            self._file.close()
            self._events.close()
        except OSError as error:
            raise self._full(error) from error

    def _full(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self._path} or TensorBoard's events beside it: {error.strerror or error}. Free some space "
            "and continue with --resume"
        )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that a killed process left half-written is dropped."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested mapping under joined names."""
    flat: dict[str, float] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[f"{prefix}{name}"] = value
    return flat


def say(message: str) -> None:
    """A line for people, on stderr, above a running progress bar."""
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(message)


def shorten(terms: Mapping[str, float]) -> str:
    """``s image-text 0.31  v image 0.59 ...``: Eq. 6's terms by their letters, others by their names."""
    letters = {"invariance": "s", "variance": "v", "covariance": "c"}
    shown = []
    for name, value in terms.items():
        kind, _, where = name.partition("/")
        if kind != "cancellation":
            shown.append(f"{letters.get(kind, kind)} {where} {value:.3f}")
    return "  ".join(shown)


def memory_mb(device: torch.device) -> float:
    """Memory this process holds, MB: allocated on the GPU at most so far, or resident on the CPU now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
