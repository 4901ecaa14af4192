"""Proof that an export needs nothing of this library: it is loaded where the library cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from mmvicreg.errors import UserError
from mmvicreg.export.formats import Loading
from mmvicreg.export.subject import Subject

ALONE = Path(__file__).with_name("alone.py")


@dataclass(frozen=True)
class Verdict:
    """How near the loaded file's outputs are to ours.

    Attributes:
        difference: largest absolute difference.
        scale: largest absolute value of ours.
        library: what loaded it, with its version.
        what: what was compared, in words.
    """

    difference: float
    scale: float
    library: str
    what: str


@torch.inference_mode()
def check(subject: Subject, loading: Loading, file: Path, *, format: str) -> Verdict:
    """Load ``file`` in a process of its own and compare, for all samples at once and for one alone.

    Raises:
        UserError: it cannot be loaded, or what it gives differs by more than the format's tolerance.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if loading.tensors is not None:
            expected = {key: value.clone() for key, value in loading.tensors.items()}
            what = f"{len(expected)} tensors"
        else:
            rows, features = subject.expected.shape
            first = subject.branch.encoder(_first(subject))
            expected = {"all": subject.expected.clone(), "first": first.clone()}
            what = f"{rows} x {features} outputs"
        save_file(expected, place / "expected.safetensors")
        save_file(
            {name: value.contiguous().clone() for name, value in loading.inputs.items()},
            place / "inputs.safetensors",
        )
        order = {
            "file": str(file.resolve()),  # the other process works elsewhere
            "load": loading.lines,
            "tensors": loading.tensors is not None,
            "expected": str(place / "expected.safetensors"),
            "inputs": str(place / "inputs.safetensors"),
            "names": list(loading.inputs),
            "threads": torch.get_num_threads(),
            "library": {"pt2": "torch", "onnx": "onnxruntime"}.get(format, format),
        }
        (place / "order.json").write_text(json.dumps(order), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(ALONE), str(place / "order.json")],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"the check failed: the {format} file cannot be loaded ({last}); nothing was written")
    verdict = Verdict(**json.loads(done.stdout.strip().splitlines()[-1]), what=what)
    if not verdict.difference <= loading.tolerance * max(verdict.scale, 1e-30):
        raise UserError(
            f"the check failed: what {verdict.library} makes of the file differs from ours by "
            f"{verdict.difference:.3g} (largest value {verdict.scale:.3g}, allowed {loading.tolerance:g} of it); "
            "nothing was written"
        )
    return verdict


def _first(subject: Subject) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The encoder's input for the first sample alone."""
    from mmvicreg.branches.frontends import TextBatch

    if "x" in subject.inputs:
        return subject.inputs["x"][:1]
    return TextBatch(subject.inputs["ids"][:1], subject.inputs["length"][:1])
