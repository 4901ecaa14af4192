"""Recordings as clips of a fixed length, int16, and what training draws for each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from mmvicreg.errors import UserError
from mmvicreg.inputs import audio_cache
from mmvicreg.inputs.base import Input, InputSpec, Item, PartnerError, draws
from mmvicreg.inputs.decode import Waveform, read_header, read_recording
from mmvicreg.samples import Sample
from mmvicreg.strict import Strict

Unit = Annotated[float, Field(ge=0, le=1)]


class Mix(Strict):
    """Another training recording under the clip, brought to the same loudness (RMS)."""

    amplitude: tuple[Unit, Unit] = (0.05, 1.0)
    """Least and largest amplitude of the other, drawn between them, in units of the clip's own; one number is the
    largest, and 0 the least."""
    probability: Unit = 0.5
    share: bool = False
    """Draw once for all views of a sample whether to mix, with which recording and how loud, so that each view is
    of one and the same mixture; every view still has its own crop, speed and shift, of both recordings."""

    @field_validator("amplitude", mode="before")
    @classmethod
    def _largest(cls, value: Any) -> Any:
        return value if isinstance(value, bool) or not isinstance(value, int | float) else (0, value)

    @model_validator(mode="after")
    def _in_order(self) -> Mix:
        least, largest = self.amplitude
        if least > largest:
            raise ValueError(f"amplitude: the least, {least:g}, is above the largest, {largest:g}")
        return self


class AudioInput(Input):
    """A stretch of the recording: at a random place in training, the middle in evaluation.

    Branches that name the same ``view`` of it are given one and the same clip: one crop, shift, speed, mix and
    noise for both, and the same draws for their frontends (gain). With another ``view`` each draws its own, but for
    the recording mixed in where ``mix.share`` says so.
    """

    field = "audio"

    class Config(Strict):
        """Rate and length every recording is brought to, and what training draws, in the order it is done."""

        sample_rate: Annotated[int, Field(ge=1000)] = 44100
        """Hz."""
        seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0
        speed: Annotated[float, Field(ge=0, le=2)] = 0.0
        """Training: playback faster or slower by up to this many octaves; pitch and tempo change together."""
        shift: Annotated[float, Field(ge=0, le=1)] = 0.0
        """Training: largest circular shift, as a part of the length."""
        mix: Mix | None = None
        """Training: another recording mixed in; a number is the largest amplitude, and mixes always."""
        noise_db: Annotated[float, Field(ge=0)] | None = None
        """Training: white noise is added at least this far below the recording, up to 40 dB further, dB; null:
        none."""
        cache: bool = True
        """Decode recordings once, into the cache folder, instead of at every reading; the numbers are the same."""

        @field_validator("mix", mode="before")
        @classmethod
        def _largest(cls, value: Any) -> Any:
            if isinstance(value, bool) or not isinstance(value, int | float):
                return value
            return {"amplitude": (0, value), "probability": 1} if value else None

        @model_validator(mode="after")
        def _long_enough(self) -> AudioInput.Config:
            if self.length < 2:  # a deviation, by which waveforms are normalised, is of two samples or more
                raise ValueError(
                    f"seconds {self.seconds:g} are {self.length} samples at {self.sample_rate} Hz: give clips of 2 "
                    "samples or more"
                )
            return self

        @property
        def length(self) -> int:
            """Samples of a clip."""
            return round(self.sample_rate * self.seconds)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.length = config.length
        self._others: Sequence[Sample] = ()

    def load(self, sample: Sample, rng: np.random.Generator | None, *, caption: int | None = None) -> Item:
        """``waveform``: int16 ``(length,)``; ``draws``: float32 for the device."""
        return self._view(sample, rng, self._draw_other(rng))

    def load_views(
        self, sample: Sample, rngs: Mapping[int, np.random.Generator], *, caption: int | None = None
    ) -> dict[int, Item]:
        """Training views of one recording; with ``mix.share`` the first one's generator draws what all mix in."""
        if self.config.mix is None or not self.config.mix.share:
            return super().load_views(sample, rngs, caption=caption)
        other = self._draw_other(rngs[min(rngs)])
        return {view: self._view(sample, rng, other) for view, rng in rngs.items()}

    def _draw_other(self, rng: np.random.Generator | None) -> tuple[Sample, float] | None:
        """The recording to be mixed in, and its amplitude."""
        config = self.config.mix
        if rng is None or config is None or rng.random() >= config.probability:
            return None
        return self._others[int(rng.integers(len(self._others)))], rng.uniform(*config.amplitude)

    def _view(
        self, sample: Sample, rng: np.random.Generator | None, other: tuple[Sample, float] | None
    ) -> Item:
        wave = self._clip(sample, rng)
        if rng is not None and other is not None:
            try:
                partner = self._clip(other[0], rng)
            except UserError as error:
                raise PartnerError(other[0], str(error)) from error
            wave = mix(wave, partner, other[1])
        if rng is not None and self.config.noise_db is not None:
            wave = add_noise(wave, self.config.noise_db + rng.uniform(0, 40), rng)
        return {"waveform": torch.from_numpy(wave), "draws": draws(rng)}

    def _clip(self, sample: Sample, rng: np.random.Generator | None) -> Waveform:
        """The recording at some speed, cropped or padded at its end to the length, shifted: int16 ``(length,)``."""
        wave = self._read(sample)
        speed = None
        if rng is not None and self.config.speed > 0:
            speed = 2 ** rng.uniform(-self.config.speed, self.config.speed)
        number = len(wave) if speed is None else played_length(len(wave), speed)
        surplus = max(number - self.length, 0)
        start = surplus // 2 if rng is None else int(rng.integers(surplus + 1))
        part = slice(start, min(start + self.length, number))
        # only what is kept is played: a recording may last for hours
        wave = np.array(wave[part]) if speed is None else play(wave, speed, part)
        wave = np.pad(wave, (0, self.length - len(wave)))
        if rng is not None and self.config.shift > 0:
            reach = int(self.config.shift * self.length)
            wave = np.roll(wave, int(rng.integers(-reach, reach + 1)))
        return wave

    def _read(self, sample: Sample) -> Waveform:
        """The whole recording, int16 ``(samples,)``, perhaps read-only."""
        if sample.audio is None:
            raise UserError(f"sample '{sample.id}' has no recording; choose a --dataset that has recordings")
        rate = self.config.sample_rate
        mapped = audio_cache.read(sample.audio, sample_rate=rate) if self.config.cache else None
        return read_recording(sample.audio, sample_rate=rate) if mapped is None else mapped

    def prepare(self, samples: Sequence[Sample], *, skip: bool = False) -> list[str]:
        """Decode the recordings of ``samples`` into the cache, those that are not there yet."""
        if not self.config.cache:
            return []
        sources = [sample.audio for sample in samples if sample.audio is not None]
        built = audio_cache.build(sources, sample_rate=self.config.sample_rate, skip=skip)
        if not built.recordings:
            return []
        return [
            f"{built.recordings} recordings were decoded to {self.config.sample_rate} Hz, once, into {built.folder} "
            f"({built.size / 1e6:.0f} MB)"
        ]

    def train_on(self, samples: Sequence[Sample]) -> None:
        """Be told the recordings that may be mixed in."""
        self._others = tuple(samples)

    def survey(self, samples: Sequence[Sample], *, skip: bool = False) -> list[str]:
        """Count the recordings that will be resampled, mixed, padded or cropped, from their headers."""
        counts = {"resampled": 0, "mixed to one channel": 0, "padded": 0, "cropped": 0}
        for sample in samples:
            try:
                header = read_header(sample.audio) if sample.audio is not None else None
            except UserError:
                if not skip:
                    raise
                continue
            if header is None:
                continue
            seconds = header.frames / header.sample_rate
            counts["resampled"] += header.sample_rate != self.config.sample_rate
            counts["mixed to one channel"] += header.channels != 1
            counts["padded"] += seconds < self.config.seconds - 1e-3
            counts["cropped"] += seconds > self.config.seconds + 1e-3
        return [
            f"{n} of {len(samples)} recordings are {what}"
            f" ({self.config.sample_rate} Hz, mono, {self.config.seconds:g} s asked)"
            for what, n in counts.items()
            if n
        ]

    def spec(self) -> InputSpec:
        """One channel."""
        return InputSpec("audio", channels=1)


def decode_audio(path: Path, *, sample_rate: int) -> Tensor:
    """:func:`~mmvicreg.inputs.decode.read_recording` as a tensor: mono int16 ``(samples,)``."""
    return torch.from_numpy(read_recording(path, sample_rate=sample_rate))


def played_length(samples: int, speed: float) -> int:
    """Samples of a recording of so many, played ``speed`` times as fast."""
    return max(math.ceil((samples - 1) / speed), 0)


def play(wave: Waveform, speed: float, part: slice) -> Waveform:
    """Part of int16 ``(samples,)`` played ``speed`` times as fast, by linear interpolation between samples.

    Args:
        wave: the whole recording; what the part does not need of it is not read.
        speed: 2 plays an octave higher.
        part: which samples of the played recording, within :func:`played_length`.
    """
    moments = np.arange(part.start, part.stop) * speed
    if len(moments) == 0:
        return wave[:0]
    first, last = int(moments[0]), int(moments[-1]) + 2
    played = np.interp(moments, np.arange(first, last), wave[first:last])
    whole: Waveform = played.round().astype(np.int16)
    return whole


def mix(wave: Waveform, other: Waveform, amplitude: float) -> Waveform:
    """int16 ``(samples,)``: a clip and another, brought to the same RMS times ``amplitude``, over ``1 + amplitude``.

    Silence stays silent, and what would leave full scale is clipped. The other's offset, which is not heard, is left
    out, and no offset counts as loudness.
    """
    a, b = wave.astype(np.float32), other.astype(np.float32)
    theirs = loudness(b)
    if theirs == 0:
        return wave
    gain = np.float32(amplitude * loudness(a) / theirs)
    return _whole((a + gain * (b - b.mean(dtype=np.float64).astype(np.float32))) / np.float32(1 + amplitude))


def add_noise(wave: Waveform, below_db: float, rng: np.random.Generator) -> Waveform:
    """int16 ``(samples,)`` with white noise ``below_db`` decibels under its own level; silence stays silent."""
    x = wave.astype(np.float32)
    level = np.float32(loudness(x) * 10 ** (-below_db / 20))
    return _whole(x + level * rng.standard_normal(len(x), dtype=np.float32))


def loudness(x: npt.NDArray[np.float32]) -> float:
    """RMS about the mean: an offset is no sound."""
    return float(x.std(dtype=np.float64))  # exactly 0 of a constant


def _whole(x: np.ndarray) -> Waveform:
    """Rounded and clipped to int16."""
    return x.round().clip(-32768, 32767).astype(np.int16)
