"""2-D residual networks from torchvision, for pictures and spectrograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torchvision
from torch import Tensor, nn

from mmvicreg import registry
from mmvicreg.branches.convolution import train_small_maps
from mmvicreg.branches.frontends import check_kind
from mmvicreg.branches.weights import FROM_SCRATCH, imagenet_url, load_strictly, read_weights
from mmvicreg.inputs.base import InputSpec
from mmvicreg.strict import Strict


class ResNet(nn.Module):
    """A torchvision ResNet without its classifier, for any number of input channels.

    ``out_features`` is the width of its pooled representation (512 for 18 and 34 layers, 2048 above).
    Parameter names are torchvision's, so its files load, and so do those that the authors of VICReg published
    (their networks pad by one pixel and then by two, which is torchvision's padding of three).
    """

    architecture: ClassVar[str]
    """What torchvision calls it, and its ImageNet weights."""

    reads: ClassVar[tuple[str, ...]] = ("image", "spectrogram")

    class Config(Strict):
        """What to start from and how the stem looks."""

        weights: str = "none"
        """``none``: random; ``imagenet``: torchvision's; else the path or URL of a state dict (``.pth``, ``.pt``,
        ``.safetensors``), or of the authors' full checkpoint, of which the encoder is taken."""
        small_stem: bool = False
        """A 3 x 3 first convolution of stride 1 and no pooling, for pictures of about 32 pixels."""
        zero_init_residual: bool = False
        """Start every residual block as the identity."""

    def __init__(self, config: Config, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        check_kind(spec, self.reads, f"the encoder {type(self).__name__}")
        network = self.build(zero_init_residual=config.zero_init_residual)
        self.out_features = int(network.fc.in_features)
        network.fc = nn.Identity()
        network.conv1 = _stem(spec.channels, network.bn1.num_features, small=config.small_stem)
        if config.small_stem:
            network.maxpool = nn.Identity()
        train_small_maps(network)
        self.network = network
        if pretrained and config.weights != "none":
            source = config.weights
            if source == "imagenet":
                source = imagenet_url(self.architecture)
            self.load_weights(read_weights(source), what=f"the weights '{config.weights}'")

    @classmethod
    def build(cls, *, zero_init_residual: bool = False) -> torchvision.models.ResNet:
        """The torchvision network, its classifier included, with random weights."""
        return getattr(torchvision.models, cls.architecture)(
            weights=None, zero_init_residual=zero_init_residual
        )

    def forward(self, x: Tensor) -> Tensor:
        """Representation ``(n, out_features)`` of ``(n, channels, h, w)``."""
        out: Tensor = self.network(x)
        return out

    def load_weights(self, state: Mapping[str, Tensor], *, what: str) -> None:
        """Load a state dict of torchvision's names; its classifier, if any, is left out.

        Args:
            state: names to tensors; a first convolution of other channels is adapted.
            what: the weights, in words for the message.

        Raises:
            UserError: the names or shapes differ; the differing ones are listed.
        """
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        stem, ours = state.get("conv1.weight"), self.network.conv1.weight
        if (
            stem is not None
            and stem.ndim == 4
            and stem.shape[2:] == ours.shape[2:]
            and stem.shape[1] != ours.shape[1]
        ):
            # the response to a grey picture stays the same whatever the number of channels
            state["conv1.weight"] = stem.mean(dim=1, keepdim=True).expand(-1, ours.shape[1], -1, -1) * (
                stem.shape[1] / ours.shape[1]
            )
        load_strictly(
            self.network,
            state,
            what=f"{what}, for {_name(type(self))},",
            way_out=lambda: self._way_out(state),
        )

    def _way_out(self, state: Mapping[str, Tensor]) -> str:
        """What to do about weights that do not fit."""
        own = {key: value.shape for key, value in self.network.state_dict().items()}
        given = {key: value.shape for key, value in state.items()}
        differing = {key for key in own.keys() | given.keys() if own.get(key) != given.get(key)}
        if differing == {"conv1.weight"} and differing <= given.keys():
            stems: dict[tuple[int, ...], str] = {(3, 3): "true", (7, 7): "false"}
            small = stems.get(tuple(given["conv1.weight"][2:]))
            if small is not None:
                return f"set the encoder's small_stem to {small}, as they were trained, {FROM_SCRATCH}"
        return f"{_belonging(state)}choose the encoder they were trained with, {FROM_SCRATCH}"


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


def _stem(channels: int, width: int, *, small: bool) -> nn.Conv2d:
    if small:
        conv = nn.Conv2d(channels, width, kernel_size=3, stride=1, padding=1, bias=False)
    else:
        conv = nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _residual_encoders() -> dict[str, type[ResNet]]:
    """Name -> class of the residual networks that the library brings."""
    classes = {name: registry.ENCODERS.load(name) for name in registry.ENCODERS.builtin if "resne" in name}
    return {name: cls for name, cls in classes.items() if issubclass(cls, ResNet)}


def _name(cls: type[ResNet]) -> str:
    return next((name for name, known in _residual_encoders().items() if known is cls), cls.__name__)


def _belonging(state: Mapping[str, Tensor]) -> str:
    """``"they are resnet18's: "`` where the names and shapes tell, else nothing."""
    shapes = {key: value.shape for key, value in state.items() if not key.startswith("conv1.")}
    for name, cls in _residual_encoders().items():
        with torch.device("meta"):
            network = cls.build()
        own = {key: value.shape for key, value in network.state_dict().items()}
        if shapes == {key: shape for key, shape in own.items() if not key.startswith(("conv1.", "fc."))}:
            return f"they are {name}'s: "
    return ""
