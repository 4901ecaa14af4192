"""Features of a branch, computed once: kept in the run folder, in ``features/``.

A file is named by what decided its contents: the weights of the branch, its frontend and encoder, how its input
is read in evaluation, and every picture's id, path, size and time of change. When any of these changes the
features are computed again, and the file that they replace is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch

import mmvicreg
from mmvicreg.branches.model import JointModel
from mmvicreg.encode import encode
from mmvicreg.errors import UserError
from mmvicreg.registry import nearest
from mmvicreg.runs import Run
from mmvicreg.samples import Sample
from mmvicreg.training.distributed import World, any_process
from mmvicreg.training.log import say

Space: TypeAlias = Literal["representation", "embedding"]
Features: TypeAlias = npt.NDArray[np.float32]

FOLDER = "features"
_FORMAT = 1


def features(
    world: World,
    run: Run,
    model: JointModel,
    branch: str,
    samples: Sequence[Sample],
    *,
    of: str,
    space: Space = "representation",
) -> Features:
    """Features of ``samples``, read from the run folder or computed and put there; all rows in every process.

    Args:
        world: this process among those that share the work.
        run: the run whose folder keeps them.
        model: the run's model, trained or not, in evaluation mode.
        branch: a branch that gives one vector a sample.
        samples: what to encode, read as evaluation reads it (a centre crop).
        of: what the samples are, in a few words for the file's name ("cifar10-train").
        space: the encoder's ``representation`` or the expander's ``embedding``.

    Returns:
        float32 ``(n, d)``, possibly a read-only map of the file.

    Raises:
        UserError: a sample that cannot be read, a vector that is not finite.
    """
    key = _key(run, model, branch, samples, space)
    stem = f"{branch}-{space}-{of}".replace(os.sep, "_")
    path = run.path / FOLDER / f"{stem}-{key}.npy"
    found = _read(path, len(samples))
    if not any_process(found is None, world.device) and found is not None:
        if world.is_main:
            say(f"features of {len(samples):,} samples read from {path}")
        return found
    found = encode(
        model,
        branch,
        samples,
        space=space,
        batch_size=run.recipe.evaluation.batch_size,
        description=f"encoding {of} with {branch}",
        world=world,
    ).vectors
    if world.is_main:
        _write(path, stem, found)
    return found


def check_space(space: str) -> None:
    """Raise :class:`UserError` naming the nearest space unless ``space`` is one."""
    known = get_args(Space)
    if space not in known:
        raise UserError(f"unknown space '{space}'{nearest(space, known)} Known: {', '.join(known)}.")


def _key(run: Run, model: JointModel, branch: str, samples: Sequence[Sample], space: Space) -> str:
    config = run.recipe.branches[branch]
    part = model.branch(branch)
    parts = {"frontend": part.frontend, "encoder": part.encoder}
    if space == "embedding":
        parts["expander"] = part.expander
    weights = hashlib.sha256()
    for name, module in parts.items():
        for key, value in module.state_dict().items():
            weights.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}\n".encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            weights.update(plain.view(torch.uint8).numpy().tobytes())
    description = {
        "format": _FORMAT,
        "version": mmvicreg.__version__,
        "space": space,
        "branch": config.model_dump(mode="json", include=set(parts)),
        "input": run.recipe.inputs[config.input],
        "weights": weights.hexdigest(),
        "samples": _fingerprint(samples),
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def _fingerprint(samples: Sequence[Sample]) -> str:
    """Of the samples' ids and files, in order; what is in the files is not read."""
    state = hashlib.sha256()
    for sample in samples:
        size, changed = -1, -1
        if sample.image is not None:
            with contextlib.suppress(OSError):  # a missing picture is named by whoever reads it
                status = (sample.image if isinstance(sample.image, Path) else sample.image.archive).stat()
                size, changed = status.st_size, status.st_mtime_ns
        state.update(f"{sample.id}\0{sample.image}\0{size}\0{changed}\n".encode())
    return state.hexdigest()


def _read(path: Path, rows: int) -> Features | None:
    """What is there, or None where nothing whole is."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # absent, cut short, or overwritten, over which numpy raises many kinds
        return None
    # of a zip archive numpy makes no array, whatever its name
    whole = (
        isinstance(found, np.ndarray) and found.ndim == 2 and len(found) == rows and found.dtype == np.float32
    )
    return found if whole else None


def _write(path: Path, stem: str, found: Features) -> None:
    """Put features aside, whole or not at all, and remove what they replace; only slower where there is no room."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, found)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        for old in path.parent.glob("*.npy"):
            if old != path and old.name.rpartition("-")[0] == stem:
                old.unlink()
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        say(
            f"note: the features are not kept for the next protocol: cannot write {path}: {error.strerror or error}"
        )
