"""Frontends: no parameters, a whole batch at a time, on the device.

A frontend turns what the loader hands over (small integer tensors) into what an encoder reads. In training
mode it augments; what it draws comes from the ``draws`` that travel with each sample, so the same sample
is augmented alike whatever the batch, the device or the number of processes. The number of the ``view``
travels along, for augmentations that are not the same for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from mmvicreg.errors import UserError
from mmvicreg.inputs.augment import Augmentation, augment_, draw_changes
from mmvicreg.inputs.base import InputSpec
from mmvicreg.strict import Strict


class TextBatch(NamedTuple):
    """Token ids ``(n, longest)`` int64 and lengths ``(n,)`` int64, the latter on the CPU."""

    ids: Tensor
    length: Tensor


class Frontend(nn.Module):
    """Base of all frontends. ``spec`` says what the encoder will be given.

    Args:
        config: the frontend's options.
        spec: what the input gives.

    Raises:
        UserError: the input is not of the kind this frontend reads.
    """

    Config: ClassVar[type[Strict]]
    reads: ClassVar[str]
    """The kind of input it is for."""
    gives: ClassVar[str]
    """The kind of tensor it makes of that."""
    learns: bool = False
    """Whether :meth:`fit` must be called before training; what it learns is saved with the weights."""

    def __init__(self, config: Any, spec: InputSpec) -> None:
        super().__init__()
        check_kind(spec, (self.reads,), f"the frontend {type(self).__name__}")
        self.config = config
        self.spec = replace(spec, kind=self.gives)

    def fit(self, items: Iterable[Mapping[str, Tensor]]) -> None:
        """Learn from collated training samples, read as evaluation reads them, what is to be known of all."""


class ImageFrontend(Frontend):
    """uint8 ``(n, 3, h, w)`` to normalised float32, augmented in training."""

    reads, gives = "image", "image"

    class Config(Strict):
        """Augmentation; normalisation, in units of full scale."""

        augmentation: Augmentation = Augmentation()
        """Training, on the device: ``none``, ``paper``, ``official``, or options of its own."""
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
        std: tuple[float, float, float] = (0.229, 0.224, 0.225)
        """ImageNet's, as torchvision's weights expect."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__(config, spec)
        if config.augmentation.active and spec.augmented:
            raise UserError(
                "pictures would be augmented twice: set inputs.image.worker_augmentation (in the loader's workers) "
                "or the frontend's augmentation (on the device) to none"
            )
        self.register_buffer("mean", 255 * torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, item: Mapping[str, Tensor]) -> Tensor:
        """Pixels of ``item`` as float32 ``(n, 3, h, w)``."""
        # from channels last, as the loader hands them over, to planes, as the augmentations read them
        x = item["pixels"].to(torch.float32, memory_format=torch.contiguous_format)
        augmentation = self.config.augmentation
        if self.training and augmentation.active:
            augment_(x, draw_changes(augmentation, item["draws"], item["view"]))
        return (x - self.mean) / self.std


class TextFrontend(Frontend):
    """Token ids pass through."""

    reads, gives = "text", "text"

    class Config(Strict):
        """Nothing to set."""

    def forward(self, item: Mapping[str, Tensor]) -> TextBatch:
        """Ids where they are; lengths on the CPU, where packing wants them."""
        return TextBatch(item["ids"], item["length"].cpu())


class WaveformFrontend(Frontend):
    """int16 ``(n, samples)`` to float32 ``(n, 1, samples)``, with gain and polarity drawn in training."""

    reads, gives = "audio", "waveform"

    class Config(Strict):
        """Scaling and augmentation."""

        normalise: bool = True
        """Bring each clip to zero mean and unit standard deviation; a silent clip stays zero."""
        gain_db: Annotated[float, Field(ge=0)] = 0.0
        """Training: gain drawn from plus or minus this, dB."""
        polarity: bool = False
        """Training: flip the sign of half of the clips."""

    def forward(self, item: Mapping[str, Tensor]) -> Tensor:
        """The waveform of ``item`` as float32 ``(n, 1, samples)``, full scale 1 unless normalised."""
        x = item["waveform"].float() / 32768
        if self.config.normalise:
            # the floor (-80 dB of full scale) keeps a clip of digital silence at zero instead of 0 / 0
            x = x - x.mean(dim=1, keepdim=True)
            # torch.std of what has no mean; Tensor.std takes ten times as long on a CPU
            std = torch.linalg.vector_norm(x, dim=1, keepdim=True) / max(x.shape[1] - 1, 1) ** 0.5
            x = x / std.clamp_min(1e-4)
        if self.training:
            u = item["draws"].to(x.device, non_blocking=True)
            if self.config.gain_db > 0:
                x = x * 10 ** ((2 * u[:, :1] - 1) * self.config.gain_db / 20)
            if self.config.polarity:
                x = torch.where(u[:, 1:2] < 0.5, -x, x)
        return x.unsqueeze(1)


def check_kind(spec: InputSpec, reads: Sequence[str], what: str) -> None:
    """Refuse an input or a frontend's output of another kind than ``what`` reads."""
    if spec.kind and spec.kind not in reads:
        raise UserError(
            f"{what} reads {' or '.join(reads)}, and was given {spec.kind}; choose another for this branch"
        )
