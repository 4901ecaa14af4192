"""ViT-S in torchvision's, timm's and transformers' terms."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mmvicreg.branches.vit import ViTSmall

RENAMED = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
"""torchvision's names -> timm's; both keep query, key and value in one matrix, in this order."""
TRANSFORMERS = (
    (r"^class_token$", "embeddings.cls_token"),
    (r"^encoder\.pos_embedding$", "embeddings.position_embeddings"),
    (r"^conv_proj\.", "embeddings.patch_embeddings.projection."),
    (r"^encoder\.ln\.", "layernorm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"encoder.layer.\1."),
    (r"\.ln_1\.", ".layernorm_before."),
    (r"\.ln_2\.", ".layernorm_after."),
    (r"\.self_attention\.out_proj\.", ".attention.output.dense."),
    (r"\.mlp\.0\.", ".intermediate.dense."),
    (r"\.mlp\.3\.", ".output.dense."),
)
"""torchvision's names -> those in files of transformers, whatever its version calls them in memory."""


def torchvision_lines(encoder: ViTSmall) -> tuple[str, ...]:
    """Lines that make ``model``, without its classifier."""
    network, conv = encoder.network, encoder.network.conv_proj
    lines = (
        "import torchvision",
        f"model = torchvision.models.VisionTransformer(image_size={network.image_size}, "
        f"patch_size={network.patch_size}, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536)",
        "model.heads = torch.nn.Identity()",
    )
    if conv.in_channels == 3:
        return lines
    side = network.patch_size
    return (*lines, f"model.conv_proj = torch.nn.Conv2d({conv.in_channels}, 384, {side}, stride={side})")


def timm_lines(encoder: ViTSmall) -> tuple[str, ...]:
    """The same for timm."""
    network = encoder.network
    return (
        "import timm",
        f"model = timm.create_model('vit_small_patch16_224', num_classes=0, img_size={network.image_size}, "
        f"patch_size={network.patch_size}, in_chans={network.conv_proj.in_channels})",
    )


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's names under timm's."""
    return {_renamed(key, RENAMED): value for key, value in state.items()}


def transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's names under those of transformers, which keeps query, key and value apart."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, together, kind = _renamed(key, TRANSFORMERS).partition(".self_attention.in_proj_")
        if together:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{layer}.attention.attention.{name}.{kind}"] = part.contiguous()
        else:
            renamed[layer] = value
    return renamed


def _renamed(key: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in table:
        key = re.sub(pattern, name, key)
    return key
