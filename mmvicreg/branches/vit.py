"""The small vision transformer, ViT-S/16 (Table 5's different architecture), from torchvision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torchvision
from pydantic import Field
from torch import Tensor, nn

from mmvicreg.branches.frontends import check_kind
from mmvicreg.branches.weights import FROM_SCRATCH, load_strictly, read_weights
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import InputSpec
from mmvicreg.strict import Strict


class ViTSmall(nn.Module):
    """12 layers, 6 heads, 384 wide, inner width 1536: 21.7 M parameters at 224 pixels.

    The representation is the class token after the last normalisation. Its positions are learned for one size of
    picture, the input's; parameter names are torchvision's ``VisionTransformer``'s.
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)
    one_size: ClassVar[bool] = True
    """It reads pictures of the input's size alone, so no small crops."""

    class Config(Strict):
        """What to start from, and the patches."""

        weights: str = "none"
        """``none``: random; else the path or URL of a state dict of torchvision's names. (torchvision has no
        ImageNet weights for this size.)"""
        patch: Annotated[int, Field(ge=1)] = 16
        """Side of a patch, pixels; it must divide the picture's. For pictures of 32 pixels take 4."""

    def __init__(self, config: Config, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        check_kind(spec, self.reads, f"the encoder {type(self).__name__}")
        if spec.size < 1 or spec.size % config.patch:
            raise UserError(
                f"vit_small cuts pictures into patches of {config.patch} pixels, and these are of {spec.size}; set "
                "inputs.image.size to a multiple of encoder.patch, or encoder.patch to a divisor of it"
            )
        network = torchvision.models.VisionTransformer(
            image_size=spec.size,
            patch_size=config.patch,
            num_layers=12,
            num_heads=6,
            hidden_dim=384,
            mlp_dim=1536,
        )
        network.heads = nn.Identity()
        if spec.channels != network.conv_proj.in_channels:
            network.conv_proj = _patches(spec.channels, config.patch)
        self.network = network
        self.out_features = 384
        if pretrained and config.weights != "none":
            self.load_weights(read_weights(config.weights), what=f"the weights '{config.weights}'")

    def forward(self, x: Tensor) -> Tensor:
        """Representation ``(n, 384)`` of ``(n, channels, size, size)``."""
        out: Tensor = self.network(x)
        return out

    def load_weights(self, state: Mapping[str, Tensor], *, what: str) -> None:
        """Load a state dict of torchvision's names; its classifier, if any, is left out.

        Raises:
            UserError: the names or shapes differ; the differing ones are listed.
        """
        load_strictly(
            self.network,
            {key: value for key, value in state.items() if not key.startswith("heads.")},
            what=f"{what}, for vit_small,",
            way_out=f"choose the encoder and inputs.image.size they were trained with, {FROM_SCRATCH}",
        )


def _patches(channels: int, side: int) -> nn.Conv2d:
    """torchvision's patch projection, for other channels than three."""
    conv = nn.Conv2d(channels, 384, kernel_size=side, stride=side)
    nn.init.trunc_normal_(conv.weight, std=math.sqrt(1 / (channels * side**2)))
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
