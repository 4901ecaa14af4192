"""Folders that the transformers library loads: its ResNet and ViT, and the text model a branch was made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmvicreg.branches.frontends import ImageFrontend
from mmvicreg.branches.resnet import ResNet
from mmvicreg.branches.transformers_text import TransformersText
from mmvicreg.branches.vit import ViTSmall
from mmvicreg.export.subject import Subject
from mmvicreg.export.transformer import transformers_names
from mmvicreg.inputs.image import ImageInput

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnet50x2": (3, 4, 6, 3),
    "resnet50x4": (3, 4, 6, 3),
    "resnet200x2": (3, 24, 36, 3),
}
"""Of the residual networks that ``ResNetModel`` can be: its bottlenecks are a quarter of the stage's width."""

RENAMED = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"downsample\.0\.", "shortcut.convolution."),
    (r"downsample\.1\.", "shortcut.normalization."),
)


def fits(name: str, encoder: ResNet) -> bool:
    """Whether transformers' ResNet can be this network."""
    return name in DEPTHS and tuple(encoder.network.conv1.kernel_size) == (7, 7)


def write_resnet(
    subject: Subject, encoder: ResNet, state: Mapping[str, Tensor], path: Path
) -> tuple[str, ...]:
    """Write a network (and, for pictures, its processor); the lines that read it back."""
    from transformers import ResNetConfig, ResNetModel

    width = encoder.network.conv1.out_channels
    basic = encoder.out_features == 8 * width
    config = ResNetConfig(
        num_channels=encoder.network.conv1.in_channels,
        embedding_size=width,
        hidden_sizes=[width * 2**stage * (1 if basic else 4) for stage in range(4)],
        depths=list(DEPTHS[subject.encoder]),
        layer_type="basic" if basic else "bottleneck",
        hidden_act="relu",
        downsample_in_first_stage=False,
        downsample_in_bottleneck=False,
    )
    model = ResNetModel(config)
    model.load_state_dict({_resnet_name(key): value for key, value in state.items()})
    _save(model, path)
    _write_processor(subject, path)
    return (
        "import transformers",
        "network = transformers.AutoModel.from_pretrained(FILE).eval()",
        "def model(x):",
        "    return network(pixel_values=x).pooler_output.flatten(1)",
    )


def write_vit(
    subject: Subject, encoder: ViTSmall, state: Mapping[str, Tensor], path: Path
) -> tuple[str, ...]:
    """Write a vision transformer (and, for pictures, its processor); the lines that read it back."""
    from safetensors.torch import save_file
    from transformers import ViTConfig

    network = encoder.network
    config = ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        layer_norm_eps=network.encoder.ln.eps,
        image_size=network.image_size,
        patch_size=network.patch_size,
        num_channels=network.conv_proj.in_channels,
    )
    config.architectures = ["ViTModel"]
    config.save_pretrained(path)
    # clones: tensors that share memory are refused
    tensors = {key: value.clone() for key, value in transformers_names(state).items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    _write_processor(subject, path)
    return (
        "import transformers",
        "network = transformers.AutoModel.from_pretrained(FILE, add_pooling_layer=False).eval()",
        "def model(x):",
        "    return network(pixel_values=x).last_hidden_state[:, 0]",
    )


def write_text(
    subject: Subject, encoder: TransformersText, path: Path
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Write a text model and its tokenizer; the lines that read it back, and what to feed it."""
    _save(encoder.network, path)
    for name, content in subject.source.state()["tokenizer"]["files"].items():
        if not (path / name).exists():  # the configuration that was just written stays
            (path / name).write_bytes(content.numpy().tobytes())
    ids, length = subject.inputs["ids"], subject.inputs["length"]
    mask = (torch.arange(ids.shape[1]) < length[:, None]).long()
    lines = (
        "import transformers",
        "network = transformers.AutoModel.from_pretrained(FILE).eval()",
        "def model(input_ids, attention_mask):",
        "    states = network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state",
        "    return states[:, 0]"
        if encoder.config.pooling == "first"
        else "    return (states * attention_mask[:, :, None]).sum(1) / attention_mask.sum(1, keepdim=True)",
    )
    # ours are shifted by one, so that 0 is padding whatever the model's own padding is
    return lines, {"input_ids": (ids - 1).clamp_min(0), "attention_mask": mask}


def _save(model: Any, path: Path) -> None:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model.save_pretrained(path)
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _resnet_name(key: str) -> str:
    """torchvision's name of a tensor -> transformers'."""
    key = re.sub(r"^layer(\d)\.", lambda found: f"encoder.stages.{int(found[1]) - 1}.layers.", key)
    for pattern, name in RENAMED:
        key = re.sub(pattern, name, key)
    key = re.sub(r"\.conv(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.convolution.", key)
    return re.sub(r"\.bn(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.normalization.", key)


def _write_processor(subject: Subject, path: Path) -> None:
    """For pictures, transformers' own preprocessing, which crops whole pixels after resizing: the same to rounding."""
    from transformers import BitImageProcessor

    source = subject.source
    if not (isinstance(source, ImageInput) and isinstance(subject.branch.frontend, ImageFrontend)):
        return
    size, frontend = source.config.size, subject.branch.config.frontend
    resize = max(source.config.eval_resize or round(size * 256 / 224), size)
    BitImageProcessor(
        size={"shortest_edge": resize},
        crop_size={"height": size, "width": size},
        resample={"bilinear": 2, "bicubic": 3}[source.config.interpolation],
        image_mean=list(frontend["mean"]),
        image_std=list(frontend["std"]),
    ).save_pretrained(path)
