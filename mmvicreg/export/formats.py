"""What writes each format, and the lines of Python that read it back."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmvicreg.branches.resnet import ResNet
from mmvicreg.branches.transformers_text import TransformersText
from mmvicreg.branches.vit import ViTSmall
from mmvicreg.errors import UserError
from mmvicreg.export import hugging, programs, resnets, transformer
from mmvicreg.export.subject import Subject


@dataclass(frozen=True)
class Loading:
    """How an exported file is read back.

    Attributes:
        lines: Python that makes ``model`` of the path ``FILE``, to be called with the inputs in order.
        inputs: what is to be fed to it: name -> example.
        tolerance: largest difference allowed, as a part of the largest value; 0 where the same arithmetic is done.
        tensors: the file holds tensors and no model: ``model`` is the mapping of them, which is compared instead.
    """

    lines: tuple[str, ...]
    inputs: Mapping[str, Tensor]
    tolerance: float = 0.0
    tensors: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        write: writes a subject to a path.
        suffixes: what the path may end in; empty: it is a folder.
        packages: what must be installed to write it.
        reading: what must be installed besides to check it.
    """

    write: Callable[[Subject, Path], Loading]
    suffixes: tuple[str, ...]
    packages: tuple[str, ...] = ()
    reading: tuple[str, ...] = ()


def missing(packages: tuple[str, ...]) -> list[str]:
    """Those that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def encoder_state(subject: Subject) -> dict[str, Tensor]:
    """The encoder's tensors by name: a torchvision network's own names, where it is one."""
    encoder = subject.branch.encoder
    module = encoder.network if isinstance(encoder, ResNet | ViTSmall) else encoder
    assert isinstance(module, nn.Module)
    return {key: value.detach().contiguous() for key, value in module.state_dict().items()}


def save_state(state: Mapping[str, Tensor], path: Path) -> str:
    """Write a state dict by the path's suffix; the Python expression that reads ``FILE`` back."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        # clones: tensors that share memory are refused
        save_file({key: value.clone() for key, value in state.items()}, path, metadata={"format": "pt"})
        return "safetensors.torch.load_file(FILE)"
    torch.save(dict(state), path)
    return "torch.load(FILE, weights_only=True)"


def torchvision_file(subject: Subject, path: Path) -> Loading:
    """torchvision's names; its classifier is not in it."""
    make = _torchvision_lines(subject)
    if make is None:
        raise _refused(
            subject, "torchvision", "torchvision has no option for it", ["safetensors", "pt2", "onnx"]
        )
    return _load_state(subject, path, encoder_state(subject), make)


def timm_file(subject: Subject, path: Path) -> Loading:
    """timm's names; its classifier is not in it."""
    encoder = subject.branch.encoder
    state = encoder_state(subject)
    if isinstance(encoder, ViTSmall):
        lines, state = transformer.timm_lines(encoder), transformer.timm_names(state)
        return _load_state(subject, path, state, lines, tolerance=1e-5)
    lines_ = resnets.timm_lines(subject.encoder, encoder) if isinstance(encoder, ResNet) else None
    if lines_ is None:
        raise _refused(subject, "timm", "timm has no model of it", ["safetensors", "pt2", "onnx"])
    return _load_state(subject, path, state, lines_)


def safetensors_file(subject: Subject, path: Path) -> Loading:
    """The encoder's tensors; loaded into torchvision's model where it has one."""
    state = encoder_state(subject)
    make = _torchvision_lines(subject)
    if make is not None:
        return _load_state(subject, path, state, make)
    read = save_state(state, path)
    lines = ("import safetensors.torch", f"model = {read}")
    return Loading(lines, {}, tensors=state)


def transformers_folder(subject: Subject, path: Path) -> Loading:
    """A folder of the transformers library: a residual network, a ViT, or the text model with its tokenizer."""
    encoder = subject.branch.encoder
    if isinstance(encoder, TransformersText):
        lines, inputs = hugging.write_text(subject, encoder, path)
    elif isinstance(encoder, ResNet) and hugging.fits(subject.encoder, encoder):
        lines, inputs = hugging.write_resnet(subject, encoder, encoder_state(subject), path), subject.inputs
    elif isinstance(encoder, ViTSmall):
        lines, inputs = hugging.write_vit(subject, encoder, encoder_state(subject), path), subject.inputs
    else:
        why = (
            "transformers' ResNet has no small_stem: it begins with a 7 x 7 convolution and pooling"
            if subject.encoder in hugging.DEPTHS
            else "transformers has no model of it"
        )
        raise _refused(subject, "transformers", why, ["safetensors", "pt2", "onnx"])
    return Loading(lines, inputs, tolerance=1e-5)


def pt2_file(subject: Subject, path: Path) -> Loading:
    """A program of torch.export."""
    _not_text_model(subject, "pt2")
    programs.write_pt2(subject, path)
    lines = ("import torch", "model = torch.export.load(FILE).module()")
    return Loading(lines, programs.program_inputs(subject), tolerance=1e-5)


def onnx_file(subject: Subject, path: Path) -> Loading:
    """An ONNX graph."""
    _not_text_model(subject, "onnx")
    programs.write_onnx(subject, path)
    lines = (
        "import numpy, onnxruntime, torch",
        "session = onnxruntime.InferenceSession(FILE, providers=['CPUExecutionProvider'])",
        "names = [entry.name for entry in session.get_inputs()]",
        "def model(*inputs):",
        "    found = session.run(None, dict(zip(names, (numpy.asarray(x) for x in inputs))))",
        "    return torch.from_numpy(found[0])",
    )
    return Loading(lines, subject.inputs, tolerance=1e-5)


STATE = (".pth", ".pt", ".safetensors")
FORMATS: Mapping[str, Format] = {
    "torchvision": Format(torchvision_file, STATE),
    "timm": Format(timm_file, STATE, reading=("timm",)),
    "safetensors": Format(safetensors_file, (".safetensors",)),
    "transformers": Format(transformers_folder, ()),
    "pt2": Format(pt2_file, (".pt2",)),
    "onnx": Format(onnx_file, (".onnx",), packages=("onnx", "onnxscript"), reading=("onnxruntime",)),
}


def _torchvision_lines(subject: Subject) -> tuple[str, ...] | None:
    encoder = subject.branch.encoder
    if isinstance(encoder, ViTSmall):
        return transformer.torchvision_lines(encoder)
    if isinstance(encoder, ResNet):
        return resnets.torchvision_lines(subject.encoder, encoder)
    return None


def _load_state(
    subject: Subject,
    path: Path,
    state: Mapping[str, Tensor],
    make: tuple[str, ...],
    *,
    tolerance: float = 0.0,
) -> Loading:
    read = save_state(state, path)
    library = ("import safetensors.torch",) if path.suffix == ".safetensors" else ()
    lines = ("import torch", *library, *make, f"model.load_state_dict({read})", "model.eval()")
    return Loading(lines, subject.inputs, tolerance)


def _not_text_model(subject: Subject, format: str) -> None:
    if isinstance(subject.branch.encoder, TransformersText):
        raise _refused(
            subject,
            format,
            "the transformers library's own exporters know its models",
            ["transformers", "safetensors"],
        )


def _refused(subject: Subject, format: str, why: str, others: list[str]) -> UserError:
    encoder = subject.branch.encoder
    known = [name for name in others if name != format]
    if isinstance(encoder, ResNet) and format != "transformers" and hugging.fits(subject.encoder, encoder):
        known = ["transformers", *known]
    if format != "torchvision" and _torchvision_lines(subject) is not None:
        known = ["torchvision", *known]
    return UserError(
        f"the branch '{subject.name}' cannot be exported as {format}: its encoder is {subject.encoder}, and {why}; "
        f"choose {', '.join(known[:-1])} or {known[-1]}"
    )
