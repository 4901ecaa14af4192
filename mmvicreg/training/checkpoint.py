"""Checkpoints: plain data, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmvicreg.errors import UserError, for_want_of_memory

FORMAT = 1
_NAME = re.compile(r"step-(\d{9})\.pt")


def save_checkpoint(
    folder: Path, step: int, content: dict[str, Any], *, keep: int, every: int | None = None
) -> Path:
    """Write ``content`` as the checkpoint of ``step`` and remove all but the newest ``keep``.

    Those of a multiple of ``every`` steps stay as well.

    The file is written under another name, flushed to the disk and then renamed, so that a checkpoint that
    is there is whole; older ones go only after that. What a killed process had not finished goes first.

    Raises:
        UserError: the disk is full or cannot be written; older checkpoints are kept.
    """
    path = folder / f"step-{step:09d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for cut_off in folder.glob(
            "step-*.tmp"
        ):  # by a SIGKILL; nobody else writes here while a run is trained
            cut_off.unlink(missing_ok=True)
        save_data(path, content)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        raise UserError(
            f"cannot write the checkpoint {path}: {error}. Earlier checkpoints are kept; free some space and "
            "continue with --resume"
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        if every is None or int(old.stem.removeprefix("step-")) % every:
            old.unlink(missing_ok=True)
    return path


def save_data(path: Path, content: dict[str, Any]) -> None:
    """Write plain data and tensors to ``path``, whole or not at all; :func:`load_checkpoint` reads it.

    Raises:
        OSError, RuntimeError: the disk is full or cannot be written; nothing of it is left behind.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError):
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, as data only: a file that holds code is refused.

    Raises:
        UserError: the file is missing, unreadable, truncated, of another kind, or holds code; or too little memory.
    """
    others = [other.name for other in list_checkpoints(path.parent) if other != path]
    way_out = (
        f"remove it to continue from {others[-1]}" if others else "there is no earlier one; start a new run"
    )
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"cannot read the checkpoint {path}: {error.strerror or error}; make it readable"
        ) from error
    except Exception as error:  # zip, pickle and torch errors share no base
        if (short := for_want_of_memory(error)) is not None:
            raise short from error
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it holds code or unknown objects, which are never run"
        else:
            reason = "it is truncated or not a checkpoint"
        raise UserError(f"cannot read the checkpoint {path}: {reason}; {way_out}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this program (format {FORMAT}); {way_out}")
    return content


def plain_state(model: nn.Module) -> dict[str, Any]:
    """The state dict as contiguous tensors on the CPU."""
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets a folder be synchronised."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
