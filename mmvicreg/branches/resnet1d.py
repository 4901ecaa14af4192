"""A 1-D residual network for raw waveforms (appendix D.2: ResNet-18, output 384)."""

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
        first = nn.Conv1d(
            spec.channels,
            width,
            config.stem_kernel,
            stride=config.stem_stride,
            padding=config.stem_kernel // 2,
            bias=False,
        )
        self.stem = nn.Sequential(
            first, nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.MaxPool1d(config.stem_pool)
        )
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
        out: Tensor = self.stages(self.stem(x)).mean(dim=2)
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


class BasicBlock1d(nn.Module):
    """Two convolutions with batch normalisation and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.shortest = stride if kernel % 2 else 1
        self.conv1 = nn.Conv1d(channels, out, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm1d(out)
        self.conv2 = nn.Conv1d(out, out, kernel, padding=kernel // 2, bias=False)
        self.bn2 = nn.BatchNorm1d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv1d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm1d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, length)`` to ``(n, out, ceil(length / stride))``."""
        if x.shape[2] < self.shortest:
            # More of the zeros that the convolutions see anyway. Without them oneDNN's weight gradient of an input
            # shorter than the stride is uninitialised memory, in bfloat16 (seen with torch 2.14).
            x = nn.functional.pad(x, (0, self.shortest - x.shape[2]))
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + self.shortcut(x))
