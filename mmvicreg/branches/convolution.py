"""Convolutions of small maps on a CPU, as one product of matrices.

The last stages of a residual network on pictures of 32 to 96 pixels, or on a few seconds of spectrogram, convolve maps
of 1 to 16 places with hundreds of channels. oneDNN is slow there, its weight gradient most of all: on two cores with
AMX a training step of 512 channels on 4 x 4 places takes 1.9 times as long as the product in bfloat16 and as long in
float32, on 2 x 2 places 3 to 4 times and twice, in batches of 32 to 256. And its weight gradient of a strided
convolution of an input one place wide is uninitialised memory in bfloat16 (seen with torch 2.14).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = {torch.bfloat16: 5, torch.float32: 24}
"""Input channels for each place of the output from which on the product is faster, in batches of 4 to 256; with fewer,
copying every place's neighbours costs more than it saves."""


class SmallMapConv2d(nn.Conv2d):
    """A convolution that trains small maps on a CPU as a product with every place's neighbours; else torch's own.

    Results differ from torch's by rounding alone. In evaluation and under ``torch.compile`` it is torch's.
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> SmallMapConv2d:
        """The same convolution with the same weights."""
        with torch.device("meta"):
            new = cls(
                conv.in_channels,
                conv.out_channels,
                kernel_size=(conv.kernel_size[0], conv.kernel_size[1]),
                stride=(conv.stride[0], conv.stride[1]),
                padding=conv.padding if isinstance(conv.padding, str) else (conv.padding[0], conv.padding[1]),
                bias=conv.bias is not None,
            )
        new.weight, new.bias = conv.weight, conv.bias
        return new

    def forward(self, input: Tensor) -> Tensor:
        """``(n, in, h, w)`` to ``(n, out, h', w')``, in channels_last where the map is small."""
        if not self.training or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        (down, across), (high, wide) = self.stride, self.kernel_size
        left, right, top, bottom = self._reversed_padding_repeated_twice
        height = (input.shape[2] + top + bottom - high) // down + 1
        width = (input.shape[3] + left + right - wide) // across + 1
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        enough = height * width * CHANNELS.get(dtype, CHANNELS[torch.float32])
        if min(input.shape[2:]) > 1 and self.in_channels < enough:
            return super().forward(input)
        x = functional.pad(input.permute(0, 2, 3, 1), (0, 0, left, right, top, bottom))
        neighbours = [
            x[:, row : row + down * height : down, column : column + across * width : across]
            for row in range(high)
            for column in range(wide)
        ]
        columns = torch.cat(neighbours, dim=3)
        weight = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, -1)
        return functional.linear(columns, weight, self.bias).permute(0, 3, 1, 2)


def train_small_maps(network: nn.Module) -> None:
    """Put :class:`SmallMapConv2d` in the place of every convolution over several places, with its weights and name."""
    for name, part in list(network.named_modules()):
        plain = type(part) is nn.Conv2d and part.groups == 1 and part.padding_mode == "zeros"
        if plain and max(part.kernel_size) > 1 and max(part.dilation) == 1:
            network.set_submodule(name, SmallMapConv2d.of(part))
