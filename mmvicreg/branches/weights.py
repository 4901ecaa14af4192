"""Weights from elsewhere: read as data alone, checked, and loaded strictly.

A file that is fetched is kept in the cache folder, by its whole address: the authors' ``resnet50.pth`` and anybody
else's are two files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmvicreg import registry
from mmvicreg.datasets import cache_folder
from mmvicreg.errors import UserError, for_want_of_memory

FROM_SCRATCH = "or train from scratch (weights: none, no --init)"
WAY_OUT = f"give the path of a downloaded file, {FROM_SCRATCH}"
PLAIN = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool}
)
"""Types whose numbers are the weights themselves, as those of quantised files are not."""
AUTHORS_PREFIX = "module.backbone."
"""Of the encoder's names in the checkpoints that the authors' training writes."""


def read_weights(source: str) -> dict[str, Tensor]:
    """The state dict in a file: ``.safetensors``, or what ``torch.save`` wrote, of which no code is ever run.

    A state dict may lie under the key ``state_dict``. Of the authors' full checkpoints (``*_fullckpt.pth``) the
    encoder's part is taken.

    Args:
        source: a path, or a URL that is fetched once and kept in the cache.

    Raises:
        UserError: no such file, a server that refuses, a file that is truncated, holds code or is no state dict,
            or a tensor that is quantised, sparse, complex, without its numbers, or not finite.
    """
    path = _local(source)
    state = _read(path, source)
    if isinstance(state, dict) and isinstance(state.get("model"), dict) and "conv1.weight" not in state:
        inner = {
            key.removeprefix(AUTHORS_PREFIX): value
            for key, value in state["model"].items()
            if str(key).startswith(AUTHORS_PREFIX)
        }
        state = inner or state["model"]
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    ):
        raise UserError(f"the weights {source} are not a state dict of tensors by name; {WAY_OUT}")
    if odd := [f"{key}: {kind}" for key, value in state.items() if (kind := _odd(value))]:
        raise UserError(
            f"the weights {source} are not plain numbers ({_some(odd)}), so "
            f"that they cannot be trained on; {WAY_OUT}"
        )
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(f"the weights {source} hold NaN or infinity in {_some(bad)}; {WAY_OUT}")
    return state


def imagenet_url(architecture: str) -> str:
    """Where torchvision's newest ImageNet weights of an architecture are.

    Raises:
        UserError: it has none.
    """
    try:
        return str(torchvision.models.get_model_weights(architecture).DEFAULT.url)
    except ValueError as error:
        raise UserError(
            f"torchvision has no ImageNet weights for {architecture}; give the path or URL of a state dict, or "
            "weights: none"
        ) from error


def fetch(url: str) -> Path:
    """The file at a URL, from the cache folder where it is there already; a broken transfer is continued.

    A name that ends in a part of its checksum (``resnet50-0676ba61.pth``, as torchvision's do) is checked by it. Digits
    alone are none: they may be a date or a number of steps.

    Raises:
        UserError: the server refuses or keeps failing, there is no room, or the checksum is wrong.
    """
    try:
        name = Path(unquote(urlsplit(url).path)).name or "weights"
    except ValueError as error:
        raise _no_address(url, error) from error
    folder = cache_folder() / "weights" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / name
    if path.is_file():
        return path
    downloader = registry.DOWNLOADERS.load("http")
    try:
        downloader(moved=WAY_OUT).fetch(url, path)
    except ValueError as error:  # letters that no request may hold, a host that is none
        raise _no_address(url, error) from error
    told = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    if told is not None and not told[1].isdigit():
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if not found.startswith(told[1]):
            path.unlink()
            raise UserError(
                f"{url} came with the sha256 {found[: len(told[1])]}..., and its name says {told[1]}; it was "
                f"removed: try again, or {WAY_OUT}"
            )
    return path


def _no_address(url: str, error: ValueError) -> UserError:
    return UserError(
        f"{url} is not an address that can be asked ({error}); write letters beyond ASCII as %XX, or {WAY_OUT}"
    )


def _local(source: str) -> Path:
    if source.startswith(("http://", "https://")):
        return fetch(source)
    path = Path(unquote(urlsplit(source).path) if source.startswith("file://") else source).expanduser()
    if not path.is_file():
        raise UserError(f"no weights file '{source}' (expected none, imagenet, a path or a URL); {WAY_OUT}")
    return path


def _read(path: Path, source: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # disk, zip, pickle, torch and safetensors errors share no base
        if (short := for_want_of_memory(error)) is not None:
            raise short from error
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it holds code or unknown objects, which are never run"
        else:
            reason = "it is truncated or not a file of weights"
        where = f" (fetched to {path}; remove that file to fetch it anew)" if "://" in source else ""
        raise UserError(f"cannot read the weights {source}{where}: {reason}; {WAY_OUT}") from error


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], *, what: str, way_out: str | Callable[[], str]
) -> None:
    """Load ``state`` into ``module``; every key must be there, in its shape, and no other; no integers for weights.

    BatchNorm's count of batches may lack, as in files from before torch 0.4.1: it is 0 then, as torch has it.

    Args:
        module: what to load into.
        state: parameter and buffer names to tensors.
        what: the weights, in words for the message.
        way_out: what to do when they do not fit, or what finds that out (asked only then).

    Raises:
        UserError: they do not fit; the differing keys are listed, a few of each kind.
    """
    own = module.state_dict()
    state = {**_counts(module, state), **state}
    problems = [
        f"{len(keys)} {kind}: {_some(keys)}"
        for kind, keys in (
            ("missing", [key for key in own if key not in state]),
            ("unknown", [key for key in state if key not in own]),
            (
                "of another shape",
                [
                    f"{key} {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
                    for key in own
                    if key in state and state[key].shape != own[key].shape
                ],
            ),
            (
                "of whole numbers",
                [
                    key
                    for key, value in own.items()
                    if value.is_floating_point() and key in state and not state[key].is_floating_point()
                ],
            ),
        )
        if keys
    ]
    if problems:
        advice = way_out() if callable(way_out) else way_out
        raise UserError(f"{what} do not fit ({'; '.join(problems)}); {advice}")
    module.load_state_dict(state)


def _counts(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Counts of batches, none yet, for every BatchNorm whose other statistics are in ``state``."""
    found: dict[str, Tensor] = {}
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        counts = isinstance(part, _BatchNorm) and part.num_batches_tracked is not None
        if counts and f"{prefix}running_var" in state:
            found[f"{prefix}num_batches_tracked"] = torch.tensor(0)
    return found


def _odd(value: Tensor) -> str | None:
    """What of a tensor keeps it from being weights; None where nothing does."""
    if value.layout is not torch.strided:
        return str(value.layout).removeprefix("torch.")
    if value.is_meta:
        return "without numbers"
    return None if value.dtype in PLAIN else str(value.dtype).removeprefix("torch.")


def _some(keys: Sequence[str], most: int = 4) -> str:
    rest = len(keys) - most
    return ", ".join(keys[:most]) + (f" and {rest} more" if rest > 0 else "")
