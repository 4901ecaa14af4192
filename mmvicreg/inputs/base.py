"""What a loader worker does for one modality: read a sample into small integer tensors.

Decoding, cropping and tokenising happen here, one sample at a time; everything that can be done for a
whole batch on the device is a frontend's (``mmvicreg.branches``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmvicreg.errors import UserError
from mmvicreg.samples import Sample
from mmvicreg.strict import Strict

Item = dict[str, Tensor]

DRAWS = 16
"""Uniform numbers in [0, 1) that travel with every training view for the frontends on the device."""

FIRST_CROP = 16
"""Training views of this number and higher are the small crops of multi-crop (``crops`` of an edge)."""


class PartnerError(UserError):
    """A sample that another was to be mixed with cannot be read; the other is none the worse.

    Args:
        sample: the one that cannot be read.
        reason: its error's message.
    """

    def __init__(self, sample: Sample, reason: str) -> None:
        super().__init__(reason)
        self.sample = sample


class NotPreparedError(UserError):
    """There is no place or room for what :meth:`Input.prepare` would put aside; reading works without it."""


@dataclass(frozen=True)
class InputSpec:
    """What an encoder must know of its input before it is built.

    Attributes:
        kind: what it is: ``image``, ``text``, ``audio``; behind a frontend also ``waveform``, ``spectrogram``.
        channels: channels of a picture, spectrogram or waveform.
        size: side of a square picture, pixels.
        augmented: its colours were augmented in the loader already.
        vocabulary: number of token ids.
        model_config: a ``transformers`` configuration, for encoders that bring their own tokenizer.
        model: hub name or local folder of the ``transformers`` model whose tokenizer it is.
        longest: tokens of a caption at most.
    """

    kind: str = ""
    channels: int = 0
    size: int = 0
    augmented: bool = False
    vocabulary: int = 0
    model_config: Mapping[str, Any] | None = None
    model: str | None = None
    longest: int = 0


class Input(ABC):
    """One modality of a sample. Subclasses declare their options as ``Config``."""

    Config: ClassVar[type[Strict]]
    field: ClassVar[str] = ""
    """The part of a sample that it reads (``image``, ``audio``, ``captions``); empty: not said, and not checked."""

    @abstractmethod
    def load(self, sample: Sample, rng: np.random.Generator | None, *, caption: int | None = None) -> Item:
        """Read one view of ``sample``.

        Args:
            sample: what to read.
            rng: source of every random choice of this view; None reads it as evaluation does.
            caption: which caption, for text; None draws one (training) or takes the first.

        Raises:
            UserError: the file is missing, broken, or of the wrong kind; the message names it.
        """

    def load_views(
        self, sample: Sample, rngs: Mapping[int, np.random.Generator], *, caption: int | None = None
    ) -> dict[int, Item]:
        """Read several training views of ``sample``, by their numbers; what they share may be read once.

        Args:
            sample: what to read.
            rngs: view -> the source of every random choice of it.
            caption: which caption, for text; None draws one.

        Raises:
            UserError: as :meth:`load`.
        """
        return {view: self.load(sample, rng, caption=caption) for view, rng in rngs.items()}

    def collate(self, items: Sequence[Item]) -> Item:
        """Stack the items of a batch along a new first axis."""
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}

    def fit(self, samples: Sequence[Sample]) -> None:  # noqa: B027 - most inputs learn nothing
        """Learn from the training samples what the input needs (a vocabulary)."""

    def survey(self, samples: Sequence[Sample], *, skip: bool = False) -> list[str]:
        """What will be done to samples that are not as asked, in words to say once.

        Raises:
            UserError: one of the samples cannot be read, without ``skip``.
        """
        return []

    def prepare(self, samples: Sequence[Sample], *, skip: bool = False) -> list[str]:
        """Do once what would otherwise be done at every reading of ``samples``; nothing that is read changes.

        Called before samples are read, in every process, for these and no others. Says what was done. With ``skip``
        it is done for those alone that can be read.

        Raises:
            UserError: one of the samples cannot be read, without ``skip``.
            NotPreparedError: no place or room; whoever can do without may go on.
        """
        return []

    def train_on(self, samples: Sequence[Sample]) -> None:  # noqa: B027 - most views are of one sample
        """Be told, before training, which samples a training view may draw on besides its own (mixing)."""

    def state(self) -> dict[str, Any]:
        """What :meth:`fit` learned, as plain data and tensors for a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore :meth:`state`."""

    def spec(self) -> InputSpec:
        """What encoders must know of this input; valid after :meth:`fit` or :meth:`load_state`."""
        return InputSpec()


def draws(rng: np.random.Generator | None) -> Tensor:
    """``(DRAWS,)`` float32 uniforms for the device, or the middle of every range in evaluation."""
    if rng is None:
        return torch.full((DRAWS,), 0.5)
    return torch.from_numpy(rng.random(DRAWS, dtype=np.float32))
