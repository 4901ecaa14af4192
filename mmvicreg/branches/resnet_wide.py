"""The larger residual networks of Table 9: wider, wider inside the bottlenecks only, aggregated, deeper.

The paper widens ResNet-50 in two ways (appendix D.1). ``x2`` and ``x4`` have so many times the filters in every
convolution, hence a representation so many times as wide. ``narrow`` ones have them in the bottlenecks' inner
convolutions alone, so that the representation stays at 2048: torchvision's ``wide_resnet50_2`` is the first.

| encoder | Table 9 | parameters | representation |
|---|---|---|---|
| ``narrow_resnet50x2`` | N-R50 (x2) | 66 834 240 | 2048 |
| ``narrow_resnet50x4`` | N-R50 (x4) | 221 390 144 | 2048 |
| ``resnet50x2`` | R50 (x2) | 93 907 072 | 4096 |
| ``resnet50x4`` | R50 (x4) | 375 378 176 | 8192 |
| ``resnext101_32x16d`` | RNXT101-32-16 | 191 977 792 | 2048 |
| ``resnet200x2`` | R200 (x2) | 250 128 512 | 4096 |

Parameters are those of the encoder, for three channels; the paper gives them in millions, cut off.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from mmvicreg.branches.resnet import ResNet


class _Widened(torchvision.models.ResNet):  # type: ignore[misc]
    """torchvision's ResNet with a multiple of the filters in every convolution, which it has no option for."""

    widen: ClassVar[int]

    def __init__(self, layers: list[int], *, zero_init_residual: bool) -> None:
        super().__init__(Bottleneck, layers, zero_init_residual=zero_init_residual)
        width = 64 * self.widen
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(8 * width * Bottleneck.expansion, 1000)

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:  # the first stage follows the stem
            self.inplanes *= self.widen
        layers: nn.Sequential = super()._make_layer(block, planes * self.widen, *args, **kwargs)
        return layers


class _Widened2(_Widened):
    widen = 2


class _Widened4(_Widened):
    widen = 4


class ResNet50x2(ResNet):
    """50 layers of twice the filters, representation 4096; the authors' ``resnet50x2.pth`` loads."""

    architecture = "resnet50x2"

    @classmethod
    def build(cls, *, zero_init_residual: bool = False) -> torchvision.models.ResNet:
        """See :meth:`ResNet.build`."""
        return _Widened2([3, 4, 6, 3], zero_init_residual=zero_init_residual)


class ResNet50x4(ResNet):
    """50 layers of four times the filters, representation 8192."""

    architecture = "resnet50x4"

    @classmethod
    def build(cls, *, zero_init_residual: bool = False) -> torchvision.models.ResNet:
        """See :meth:`ResNet.build`."""
        return _Widened4([3, 4, 6, 3], zero_init_residual=zero_init_residual)


class ResNet200x2(ResNet):
    """200 layers of twice the filters, representation 4096; the authors' ``resnet200x2.pth`` loads."""

    architecture = "resnet200x2"

    @classmethod
    def build(cls, *, zero_init_residual: bool = False) -> torchvision.models.ResNet:
        """See :meth:`ResNet.build`."""
        return _Widened2([3, 24, 36, 3], zero_init_residual=zero_init_residual)


class NarrowResNet50x2(ResNet):
    """50 layers, the bottlenecks' inner convolutions twice as wide, representation 2048."""

    architecture = "wide_resnet50_2"


class NarrowResNet50x4(ResNet):
    """50 layers, the bottlenecks' inner convolutions four times as wide, representation 2048."""

    architecture = "narrow_resnet50x4"

    @classmethod
    def build(cls, *, zero_init_residual: bool = False) -> torchvision.models.ResNet:
        """See :meth:`ResNet.build`."""
        return torchvision.models.resnet50(
            weights=None, width_per_group=256, zero_init_residual=zero_init_residual
        )


class ResNeXt101(ResNet):
    """ResNeXt-101 32x16d: 32 groups of 16 filters in the first stage, representation 2048."""

    architecture = "resnext101_32x16d"

    @classmethod
    def build(cls, *, zero_init_residual: bool = False) -> torchvision.models.ResNet:
        """See :meth:`ResNet.build`."""
        return torchvision.models.resnet101(
            weights=None, groups=32, width_per_group=16, zero_init_residual=zero_init_residual
        )
