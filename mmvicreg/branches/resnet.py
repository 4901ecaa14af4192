"""2-D residual networks from torchvision, for pictures and spectrograms."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
import torchvision
from torch import Tensor, nn

from mmvicreg.branches.frontends import check_kind
from mmvicreg.branches.weights import load_strictly
from mmvicreg.config import Strict
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import InputSpec


class ResNet(nn.Module):
    """A torchvision ResNet without its classifier, for any number of input channels.

    ``out_features`` is the width of its pooled representation (512 for 18 and 34 layers, 2048 above).
    Parameter names are torchvision's, so its files load.
    """

    architecture: ClassVar[str]

    reads: ClassVar[tuple[str, ...]] = ("image", "spectrogram")

    class Config(Strict):
        """What to start from and how the stem looks."""

        weights: str = "none"
        """``none``: random; ``imagenet``: torchvision's; else the path or URL of a state dict."""
        small_stem: bool = False
        """A 3 x 3 first convolution of stride 1 and no pooling, for pictures of about 32 pixels."""
        zero_init_residual: bool = False
        """Start every residual block as the identity."""

    def __init__(self, config: Config, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        check_kind(spec, self.reads, f"the encoder {type(self).__name__}")
        network = getattr(torchvision.models, self.architecture)(
            weights=None, zero_init_residual=config.zero_init_residual
        )
        self.out_features = int(network.fc.in_features)
        network.fc = nn.Identity()
        network.conv1 = _stem(spec.channels, small=config.small_stem)
        if config.small_stem:
            network.maxpool = nn.Identity()
        self.network = network
        if pretrained and config.weights != "none":
            self._start_from(config.weights)

    def forward(self, x: Tensor) -> Tensor:
        """Representation ``(n, out_features)`` of ``(n, channels, h, w)``."""
        out: Tensor = self.network(x)
        return out

    def _start_from(self, weights: str) -> None:
        state = _read_weights(weights, self.architecture)
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        stem, ours = state.get("conv1.weight"), self.network.conv1.weight
        if stem is not None and stem.shape[2:] == ours.shape[2:] and stem.shape[1] != ours.shape[1]:
            # the response to a grey picture stays the same whatever the number of channels
            state["conv1.weight"] = stem.mean(dim=1, keepdim=True).expand_as(ours) * (
                stem.shape[1] / ours.shape[1]
            )
        load_strictly(
            self.network,
            state,
            what=f"the weights '{weights}', for {self.architecture},",
            way_out="choose the encoder they were trained with, or weights: none",
        )


class ResNet18(ResNet):
    """18 layers, representation 512."""

    architecture = "resnet18"


class ResNet34(ResNet):
    """34 layers, representation 512."""

    architecture = "resnet34"


class ResNet50(ResNet):
    """50 layers, representation 2048."""

    architecture = "resnet50"


class ResNet101(ResNet):
    """101 layers, representation 2048."""

    architecture = "resnet101"


class ResNet152(ResNet):
    """152 layers, representation 2048; VSE++'s image encoder."""

    architecture = "resnet152"


def _stem(channels: int, *, small: bool) -> nn.Conv2d:
    if small:
        conv = nn.Conv2d(channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
    else:
        conv = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _read_weights(weights: str, architecture: str) -> dict[str, Tensor]:
    way_out = "give the path of a downloaded file, or train from scratch with weights: none"
    url = weights
    if weights == "imagenet":
        url = torchvision.models.get_model_weights(architecture).DEFAULT.url
    try:
        if url.startswith(("http://", "https://", "file://")):
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
        elif Path(url).is_file():
            state = torch.load(url, map_location="cpu", weights_only=True)
        else:
            raise UserError(
                f"no weights file '{weights}' (expected none, imagenet, a path or a URL); {way_out}"
            )
    except UserError:
        raise
    except Exception as error:  # network, disk and unpickling errors share no base
        raise UserError(f"cannot read the weights {url}: {error}; {way_out}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"the weights {url} are not a state dict of tensors; {way_out}")
    return state
