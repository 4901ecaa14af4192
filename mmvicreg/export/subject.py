"""What is exported: one trained branch, with inputs to try it on and what it makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmvicreg.branches.frontends import TextBatch
from mmvicreg.branches.model import Branch
from mmvicreg.errors import UserError
from mmvicreg.inputs.audio import AudioInput
from mmvicreg.inputs.base import Input, Item, draws
from mmvicreg.inputs.image import ImageInput
from mmvicreg.inputs.text import TextInput
from mmvicreg.registry import nearest
from mmvicreg.runs import Run

ROWS = 3
"""Samples that an export is tried on."""


@dataclass(frozen=True)
class Subject:
    """A branch to be exported.

    Attributes:
        run: the run it is of.
        name: its name there.
        branch: the trained branch, in evaluation mode, on the CPU.
        source: the input it reads, as the run left it.
        inputs: argument of the encoder -> example, ``ROWS`` rows each: what the frontend gives.
        expected: the representation of them, float32 ``(ROWS, features)``.
    """

    run: Run
    name: str
    branch: Branch
    source: Input
    inputs: dict[str, Tensor]
    expected: Tensor

    @property
    def encoder(self) -> str:
        """The encoder's name."""
        return str(self.branch.config.encoder["name"])


@torch.no_grad()  # tensors of inference mode cannot be traced
def open_subject(run: Run, name: str) -> Subject:
    """Load a run's branch and try it on made-up input.

    Raises:
        UserError: no such branch, or a representation that is not finite.
    """
    branches = run.recipe.branches
    if name not in branches:
        raise UserError(
            f"the run {run.path} has no branch '{name}'{nearest(name, branches)} It has {', '.join(branches)}."
        )
    model = run.model(device="cpu")
    branch = model.branch(name)
    source = model.inputs[branch.config.input]
    x = branch.frontend(_example(source, np.random.default_rng(0)))
    expected = branch.encoder(x)
    if not expected.isfinite().all():
        raise UserError(
            f"branch '{name}' of the run {run.path} gives NaN or infinity: its weights are not usable; export an "
            "earlier run"
        )
    inputs = {"ids": x.ids, "length": x.length} if isinstance(x, TextBatch) else {"x": x}
    return Subject(run, name, branch, source, inputs, expected)


def _example(source: Input, rng: np.random.Generator) -> Item:
    """``ROWS`` samples, as the loader hands them over: noise, and captions of random tokens."""
    drawn = draws(None).expand(ROWS, -1)
    if isinstance(source, ImageInput):
        size = source.config.size
        pixels = torch.from_numpy(rng.integers(0, 256, (ROWS, 3, size, size), dtype=np.uint8))
        return {"pixels": pixels, "draws": drawn, "view": torch.zeros(ROWS, dtype=torch.int64)}
    if isinstance(source, AudioInput):
        waveform = torch.from_numpy(rng.normal(0, 3000, (ROWS, source.length)).astype(np.int16))
        return {"waveform": waveform, "draws": drawn}
    if isinstance(source, TextInput):
        most = source.config.max_length
        lengths = np.array([most, 1, (most + 1) // 2])
        ids = rng.integers(1, source.spec().vocabulary, (ROWS, most))
        ids[np.arange(most) >= lengths[:, None]] = 0
        return {"ids": torch.from_numpy(ids), "length": torch.from_numpy(lengths)}
    raise UserError(
        f"the input '{type(source).__name__}' is not one this command knows how to try an encoder on; read the "
        "checkpoint with torch.load instead"
    )
