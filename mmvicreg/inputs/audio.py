"""Recordings: decode, mix to one channel, resample, crop or pad to a fixed length, as int16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import soxr
import torch
from pydantic import Field
from torch import Tensor

from mmvicreg.config import Strict
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import Input, InputSpec, Item, draws
from mmvicreg.samples import Sample


class AudioInput(Input):
    """A stretch of the recording: at a random place in training, the middle in evaluation."""

    class Config(Strict):
        """Rate and length every recording is brought to."""

        sample_rate: Annotated[int, Field(ge=1000)] = 44100
        """Hz."""
        seconds: Annotated[float, Field(gt=0)] = 5.0
        shift: Annotated[float, Field(ge=0, le=1)] = 0.0
        """Training: largest circular shift, as a part of the length."""
        speed: Annotated[float, Field(ge=0, le=2)] = 0.0
        """Training: playback faster or slower by up to this many octaves; pitch and tempo change together."""

        noise_db: Annotated[float, Field(ge=0)] | None = None
        """Training: white noise is added at least this far below the recording, up to 40 dB further, dB; null:
        none."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.length = round(config.sample_rate * config.seconds)

    def load(self, sample: Sample, rng: np.random.Generator | None, *, caption: int | None = None) -> Item:
        """``waveform``: int16 ``(length,)``; ``draws``: float32 for the device."""
        if sample.audio is None:
            raise UserError(f"sample '{sample.id}' has no recording")
        waveform = decode_audio(sample.audio, sample_rate=self.config.sample_rate)
        if rng is not None and self.config.speed > 0:
            waveform = play(waveform, 2 ** rng.uniform(-self.config.speed, self.config.speed))
        surplus = len(waveform) - self.length
        if surplus > 0:
            start = surplus // 2 if rng is None else int(rng.integers(surplus + 1))
            waveform = waveform[start : start + self.length]
        elif surplus < 0:
            waveform = torch.nn.functional.pad(waveform, (0, -surplus))
        if rng is not None and self.config.shift > 0:
            reach = int(self.config.shift * self.length)
            waveform = torch.roll(waveform, int(rng.integers(-reach, reach + 1)))
        if rng is not None and self.config.noise_db is not None:
            waveform = add_noise(waveform, self.config.noise_db + rng.uniform(0, 40), rng)
        return {"waveform": waveform.clone(), "draws": draws(rng)}

    def survey(self, samples: Sequence[Sample]) -> list[str]:
        """Count the recordings that will be resampled, mixed, padded or cropped, from their headers."""
        counts = {"resampled": 0, "mixed to one channel": 0, "padded": 0, "cropped": 0}
        for sample in samples:
            if sample.audio is None or sample.audio.suffix.lower() not in _SOUNDFILE_SUFFIXES:
                continue
            try:
                header = soundfile.info(sample.audio)
                _check_whole(sample.audio)
            except (soundfile.LibsndfileError, OSError) as error:
                raise _unreadable(sample.audio, error) from error
            seconds = header.frames / header.samplerate
            counts["resampled"] += header.samplerate != self.config.sample_rate
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


_SOUNDFILE_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"}


def decode_audio(path: Path, *, sample_rate: int) -> Tensor:
    """Read a recording as mono int16 ``(samples,)`` at ``sample_rate``; the one place where this is done.

    soundfile reads integers directly (four times faster than float32); formats it does not know are left
    to librosa. Channels are averaged, and rates converted by soxr, which librosa uses too and which is quick
    whatever the two rates.

    Raises:
        UserError: the file is missing, empty, not a recording, or holds NaN or infinity.
    """
    try:
        if path.suffix.lower() in _SOUNDFILE_SUFFIXES:
            _check_whole(path)
            if soundfile.info(path).subtype in {"FLOAT", "DOUBLE", "VORBIS", "OPUS"}:
                # These may leave [-1, 1]. Reading as int16 would hide NaN, and libsndfile wraps loud Vorbis
                # and Opus around to the other sign instead of clipping it.
                raw, rate = soundfile.read(path, dtype="float32", always_2d=True)
            else:
                raw, rate = soundfile.read(path, dtype="int16", always_2d=True)
        else:
            import librosa

            loaded, rate = librosa.load(path, sr=None, mono=False)
            raw = np.atleast_2d(loaded).T
    except FileNotFoundError as error:
        raise UserError(f"recording not found: {path}") from error
    except UserError:
        raise
    except Exception as error:  # librosa's back ends raise many kinds
        raise _unreadable(path, error) from error
    if len(raw) == 0:
        raise UserError(f"the recording {path} has no samples; replace the file or leave it out")
    if not np.isfinite(raw).all():
        raise UserError(f"the recording {path} holds NaN or infinity; replace the file or leave it out")
    if raw.dtype == np.int16 and raw.shape[1] == 1 and rate == sample_rate:
        return torch.from_numpy(np.ascontiguousarray(raw[:, 0]))
    scale = 1.0 if raw.dtype == np.int16 else 32767.0
    mono = torch.from_numpy(raw.astype(np.float32).mean(axis=1) * scale)
    if rate != sample_rate:
        mono = torch.from_numpy(soxr.resample(mono.numpy(), rate, sample_rate))
    return mono.round().clamp(-32768, 32767).to(torch.int16)


def play(waveform: Tensor, speed: float) -> Tensor:
    """int16 ``(samples,)`` played ``speed`` times as fast, by linear interpolation between samples."""
    x = waveform.numpy()
    moments = np.arange(0, len(x) - 1, speed)
    return torch.from_numpy(np.interp(moments, np.arange(len(x)), x).round().astype(np.int16))


def add_noise(waveform: Tensor, below_db: float, rng: np.random.Generator) -> Tensor:
    """int16 ``(samples,)`` with white noise ``below_db`` decibels under its own level; silence stays silent."""
    x = waveform.numpy().astype(np.float32)
    level = np.sqrt(np.mean(x**2)) * 10 ** (-below_db / 20)
    noisy = x + level * rng.standard_normal(len(x), dtype=np.float32)
    return torch.from_numpy(noisy.round().clip(-32768, 32767).astype(np.int16))


def _check_whole(path: Path) -> None:
    """Refuse a WAV file that ends before its header says: libsndfile reads one without a word."""
    with path.open("rb") as file:
        head = file.read(8)
    if head[:4] != b"RIFF":
        return
    promised, present = int.from_bytes(head[4:8], "little"), path.stat().st_size
    if (
        promised not in (0, 0xFFFFFFFF) and present < promised + 8
    ):  # those two mean "a stream, length unknown"
        raise UserError(
            f"the recording {path} is truncated: {present} of {promised + 8} bytes; replace the file, or leave "
            "its row out of the data set"
        )


def _unreadable(path: Path, error: Exception) -> UserError:
    if not path.exists():
        return UserError(f"recording not found: {path}")
    return UserError(
        f"cannot decode the recording {path} ({error or type(error).__name__}); replace the file, or leave its "
        "row out of the data set"
    )
