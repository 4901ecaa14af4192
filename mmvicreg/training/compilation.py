"""``training.compile``: encoders of pictures through torch.compile."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import torch

from mmvicreg.branches.model import JointModel
from mmvicreg.errors import UserError

WAY_OUT = "or train without: --set training.compile=false"


def compile_image_encoders(model: JointModel, device: torch.device) -> list[str]:
    """Have every encoder that reads pictures compiled when it is first called, in place; return their branches.

    Only those: the text tower packs sequences, which breaks the graph, and recordings differ in length. Names of
    parameters stay, so checkpoints do not tell. Outputs are those of the plain encoder to rounding.

    Raises:
        UserError: no branch reads pictures, or there is nothing to compile with.
    """
    names = [name for name in model.branches if model.branch(name).frontend.spec.kind == "image"]
    if not names:
        raise UserError(
            "training.compile is for encoders of pictures, and no branch of this recipe has one; leave it false"
        )
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError(
            f"training.compile needs a C++ compiler on a CPU, and there is no g++ (nor CXX); install one, {WAY_OUT}"
        )
    if device.type == "cuda" and find_spec("triton") is None:
        raise UserError(
            f"training.compile needs triton on a GPU; install it with torch's CUDA build, {WAY_OUT}"
        )
    for name in names:
        model.branch(name).encoder.compile()
    return names
