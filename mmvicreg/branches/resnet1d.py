"""A 1-D residual network for raw waveforms (appendix D.2: ResNet-18, output 384).

Inside, signals are pictures of height 1, ``(n, channels, 1, length)``, with the channels last in memory. torch
makes the input of a three-dimensional convolution contiguous (``aten/src/ATen/native/Convolution.cpp``), and oneDNN
then reorders every activation there and back: a step took 1.7 times as long in bfloat16, 1.4 times in float32, on one
core.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmvicreg.branches.frontends import check_kind
from mmvicreg.inputs.base import InputSpec
from mmvicreg.strict import Strict


class ResNet18Wave(nn.Module):
    """ResNet-18's plan (stem, four stages of two basic blocks, average pooling) with 1-D convolutions.

    The paper gives the output width and nothing else; the strides, which decide how the hundred thousand
    samples of a clip are reduced, are assumptions of ours.
    """

    reads: ClassVar[tuple[str, ...]] = ("waveform",)

    class Config(Strict):
        """Widths, kernels and strides; in samples and channels."""

        widths: tuple[int, int, int, int] = (64, 128, 256, 384)
        """Channels of the four stages; the last is the representation's width. 384: appendix D.2."""
        stem_kernel: Annotated[int, Field(ge=1)] = 80
        stem_stride: Annotated[int, Field(ge=1)] = 8
        stem_init: Literal["random", "filterbank"] = "random"
        """What the first convolution starts as: ``random`` (He et al. 2015), or a bank of band-pass filters
        (:func:`filterbank`), which is trained like any other weights."""
        stem_pool: Annotated[int, Field(ge=1)] = 4
        kernel: Annotated[int, Field(ge=1)] = 3
        strides: tuple[int, int, int, int] = (1, 4, 4, 4)
        """Stride of each stage's first block."""
        zero_init_residual: bool = False
        """Start every residual block as the identity."""

    def __init__(self, config: Config, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        check_kind(spec, self.reads, f"the encoder {type(self).__name__}")
        width = config.widths[0]
        first = Conv1dAsPicture(
            spec.channels,
            width,
            config.stem_kernel,
            stride=config.stem_stride,
            padding=config.stem_kernel // 2,
            bias=False,
        )
        self.stem = nn.Sequential(
            first, nn.BatchNorm2d(width), nn.MaxPool2d((1, config.stem_pool)), nn.ReLU(inplace=True)
        )  # pooled first: the same numbers, and ReLU has fewer of them to go through
        stages: list[nn.Module] = []
        for out, stride in zip(config.widths, config.strides, strict=True):
            stages += [
                BasicBlock1d(width, out, config.kernel, stride),
                BasicBlock1d(out, out, config.kernel, 1),
            ]
            width = out
        self.stages = nn.Sequential(*stages)
        self.out_features = width
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock1d) and config.zero_init_residual:
                nn.init.zeros_(module.bn2.weight)
        if config.stem_init == "filterbank":
            with torch.no_grad():
                first.weight.copy_(filterbank(config.widths[0], config.stem_kernel).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        """Representation ``(n, out_features)`` of waveforms ``(n, channels, samples)``."""
        n, channels, samples = x.shape
        # By view, as with one channel every layout is contiguous to torch, which would then keep the channels first.
        flat = x.transpose(1, 2).reshape(-1)
        picture = flat.view(n, 1, samples, channels).permute(0, 3, 1, 2)
        out: Tensor = self.stages(self.stem(picture)).mean(dim=(2, 3))
        return out


def filterbank(filters: int, kernel: int) -> Tensor:
    """Band-pass filters ``(filters, kernel)`` to start a first convolution on waveforms with.

    Cosines of random phase under a Hann window, their frequencies spread geometrically from one period a kernel to
    just below half the sample rate, each of the norm that random weights have on average. A network on waveforms
    that starts from such a bank need not find it first (Sainath et al. 2015 start from gammatones, SincNet is
    made of it).
    """
    cycles = torch.logspace(math.log10(1 / kernel), math.log10(0.47), filters)
    phase = 2 * math.pi * (torch.arange(kernel) * cycles[:, None] + torch.rand(filters, 1))
    bank = torch.hann_window(kernel) * phase.cos()
    scaled: Tensor = bank * (2 / filters) ** 0.5 / bank.norm(dim=1, keepdim=True)
    return scaled


class Conv1dAsPicture(nn.Conv1d):
    """A 1-D convolution, its weights ``(out, channels, kernel)``, of pictures of height 1.

    What it gives has the layout of what it is given, which is why the weights may stay as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, 1, length)`` to ``(n, out, 1, length after stride)``."""
        stride, padding = (1, self.stride[0]), (0, int(self.padding[0]))
        return nn.functional.conv2d(x, self.weight.unsqueeze(2), self.bias, stride, padding)


class BasicBlock1d(nn.Module):
    """Two convolutions with batch normalisation and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.shortest = stride if kernel % 2 else 1
        self.conv1 = Conv1dAsPicture(channels, out, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = Conv1dAsPicture(out, out, kernel, padding=kernel // 2, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                Conv1dAsPicture(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, 1, length)`` to ``(n, out, 1, ceil(length / stride))``."""
        if x.shape[3] < self.shortest:
            # More of the zeros that the convolutions see anyway. Without them oneDNN's weight gradient of an input
            # shorter than the stride is uninitialised memory, in bfloat16 (seen with torch 2.14).
            x = nn.functional.pad(x, (0, self.shortest - x.shape[3]))
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + self.shortcut(x))
