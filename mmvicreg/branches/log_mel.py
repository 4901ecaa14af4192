"""Waveform to log-mel spectrogram scaled to 0..1, batched on the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import numpy as np
import torch
import torchaudio
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from mmvicreg.branches.frontends import Frontend
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import InputSpec
from mmvicreg.strict import Strict

FULL_SCALE = 32768
"""Of int16."""
BAND = 16
"""Mels that are filtered together; fewer cost more calls, more reach over more bins."""


class LogMelFrontend(Frontend):
    """int16 ``(n, samples)`` to float32 ``(n, 1, mels, frames)`` in 0..1.

    librosa and torchaudio differ in their defaults (slaney scale and norm against htk and none), so every
    parameter is explicit here and saved with the run. The filters are librosa's, in float64: torchaudio's, in
    float32, are off by up to 2e-3 dB on recordings, and by 0.1 dB at odd sample rates (it rounds half the rate).
    """

    reads, gives = "audio", "spectrogram"
    filters: Tensor
    level: Tensor
    """Mean and standard deviation of the training samples, dB; there with ``scaling: training`` alone."""

    class Config(Strict):
        """The spectrogram, its scaling and its masking."""

        sample_rate: Annotated[int, Field(ge=1000)]
        """Hz; must be the input's."""
        n_fft: Annotated[int, Field(ge=16)] = 1024
        win_length: Annotated[int, Field(ge=16)] = 1024
        hop_length: Annotated[int, Field(ge=1)] = 512
        n_mels: Annotated[int, Field(ge=4)] = 128
        f_min: Annotated[float, Field(ge=0)] = 0.0
        f_max: float | None = None
        """Hz; null: half the sample rate."""
        mel_scale: Literal["slaney", "htk"] = "slaney"
        mel_norm: Literal["slaney"] | None = "slaney"
        power: Annotated[float, Field(gt=0)] = 2.0
        top_db: Annotated[float, Field(gt=0)] = 80.0
        """Range kept below the clip's peak, dB."""
        silence_db: float = -100.0
        """A clip whose peak is below this counts as silent and becomes all zeros, dB of mel power."""
        scaling: Literal["peak", "minmax", "training"] = "peak"
        """By clip: with ``peak`` 1 is the clip's peak and 0 is ``top_db`` below, with ``minmax`` they are the clip's
        own extremes. By ``training`` statistics: 0 and 1 are three standard deviations of the training samples'
        dB below and above their mean; what is beyond is clipped. They are saved with the weights."""
        gain_db: Annotated[float, Field(ge=0)] = 0.0
        """Training: gain drawn from plus or minus this, dB, the same as the waveform's in one view."""
        equalise_db: Annotated[float, Field(ge=0)] = 0.0
        """Training: a random equaliser, its gain over the mels a line through two to four points drawn from plus or
        minus this, dB (the linear FilterAugment of Nam et al. 2022, in its idea)."""
        resize_time: Annotated[float, Field(ge=0, le=3)] = 0.0
        """Training: time runs slower or faster by up to this many octaves, at a random place: with
        ``resize_frequency`` the random resize crop of BYOL-A (Niizumi et al. 2021)."""
        resize_frequency: Annotated[float, Field(ge=0, le=3)] = 0.0
        """Training: the axis of the mels is stretched or squeezed by up to this many octaves, likewise."""
        time_mask: Annotated[float, Field(ge=0, le=1)] = 0.0
        """Training: longest stretch set to zero, as a part of the frames."""
        frequency_mask: Annotated[float, Field(ge=0, le=1)] = 0.0
        """Training: widest band set to zero, as a part of the mels."""

        @model_validator(mode="after")
        def _band(self) -> LogMelFrontend.Config:
            highest = self.sample_rate / 2 if self.f_max is None else self.f_max
            if not self.f_min < highest <= self.sample_rate / 2:
                raise ValueError(
                    f"f_min {self.f_min:g} and f_max {highest:g} must satisfy f_min < f_max <= half of the sample "
                    f"rate ({self.sample_rate / 2:g} Hz)"
                )
            if self.win_length > self.n_fft:
                raise ValueError(f"win_length {self.win_length} is longer than n_fft {self.n_fft}")
            if self.gain_db > 0 and self.scaling != "training":
                raise ValueError(f"gain_db changes nothing with scaling: {self.scaling}, which is by clip")
            return self

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__(config, spec)
        self.spectrogram = torchaudio.transforms.Spectrogram(
            n_fft=config.n_fft,
            win_length=config.win_length,
            hop_length=config.hop_length,
            power=None,
            center=True,
            pad_mode="constant",
        )
        # constants of the transform, rebuilt from the recipe: not weights to be saved
        self.spectrogram._non_persistent_buffers_set.add("window")
        filters = mel_filters(config)
        self.register_buffer("filters", filters.float(), persistent=False)
        self.bands = bands(filters)
        self.augments = (
            max(config.gain_db, config.equalise_db, config.time_mask, config.frequency_mask) > 0
            or max(config.resize_time, config.resize_frequency) > 0
        )
        self.learns = config.scaling == "training"
        if self.learns:
            # until it is learned everything is NaN, which the objective refuses
            self.register_buffer("level", torch.full((2,), torch.nan))

    def forward(self, item: Mapping[str, Tensor]) -> Tensor:
        """The spectrogram of ``item``, in 0..1; augmented in training mode."""
        decibels = self.decibels(item["waveform"])
        if not (self.training and self.augments):
            return self.scale(decibels).unsqueeze(1)
        draws = item["draws"].to(decibels.device, non_blocking=True)
        if self.config.gain_db > 0:
            decibels = decibels + (2 * draws[:, :1, None] - 1) * self.config.gain_db
        if self.config.equalise_db > 0:
            gain = equaliser(draws[:, 6:11], self.config.n_mels) * self.config.equalise_db
            # what is silent has nothing to be made louder, and must go on counting as silent
            decibels = torch.where(decibels > self.config.silence_db, decibels + gain.unsqueeze(2), decibels)
        x = self.scale(decibels)
        octaves = (self.config.resize_time, self.config.resize_frequency)
        if any(octaves):
            x = resize_crop(x, octaves=octaves, draws=draws[:, 11:15])
        if self.config.time_mask > 0:
            x = mask(x, dim=2, width=self.config.time_mask, draws=draws[:, 2:4])
        if self.config.frequency_mask > 0:
            x = mask(x, dim=1, width=self.config.frequency_mask, draws=draws[:, 4:6])
        return x.unsqueeze(1)

    def decibels(self, waveform: Tensor) -> Tensor:
        """Mel power of ``(n, samples)`` in dB, ``(n, mels, frames)``, without any range limit.

        Args:
            waveform: int16, or floating point of full scale 1.
        """
        with torch.autocast(waveform.device.type, enabled=False):
            on_cpu = waveform.device.type == "cpu"
            mel = self._mel_clip_by_clip(waveform) if on_cpu else self._mel_batched(waveform)
        return mel.clamp_min_(1e-10).log10_().mul_(20 / self.config.power)

    def _mel_batched(self, waveform: Tensor) -> Tensor:
        """Mel power (amplitude with ``power: 1``) of ``(n, samples)``: ``(n, mels, frames)``."""
        bins = self.spectrogram(waveform if waveform.is_floating_point() else waveform.float() / FULL_SCALE)
        power = bins.real.square().addcmul_(
            bins.imag, bins.imag
        )  # abs() would take a root, to be squared again
        if self.config.power != 2:
            power = power ** (self.config.power / 2)
        mel: Tensor = self.filters @ power
        return mel

    def _mel_clip_by_clip(self, waveform: Tensor) -> Tensor:
        """The same on a CPU, where what one clip needs stays in the caches and is used again for the next.

        Integers become floats on the way there, never a whole batch of them, and the window brings them to full
        scale (a power of two, so that no digit changes). Every band of mels meets the few bins it has weights for:
        of all products of mels and bins 98 in 100 are with zero.
        """
        config, window = self.config, self.spectrogram.window
        before = (config.n_fft - len(window)) // 2
        window = functional.pad(window, (before, config.n_fft - len(window) - before))
        if not waveform.is_floating_point():
            window = window / FULL_SCALE
        half, samples = config.n_fft // 2, waveform.shape[1]
        padded = window.new_zeros(samples + 2 * half)
        windows = padded.unfold(0, config.n_fft, config.hop_length)
        framed = torch.empty_like(windows, memory_format=torch.contiguous_format)
        power = framed.new_empty(len(windows), half + 1)
        mel = framed.new_empty(len(waveform), config.n_mels, len(windows))
        for clip, out in zip(waveform, mel, strict=True):
            padded[half : half + samples] = clip
            torch.mul(windows, window, out=framed)
            bins = torch.fft.rfft(framed)  # with out= it would be copied there
            torch.mul(bins.real, bins.real, out=power).addcmul_(bins.imag, bins.imag)
            if config.power != 2:
                power.pow_(config.power / 2)
            for mels, of_power in self.bands:
                torch.mm(self.filters[mels, of_power], power[:, of_power].T, out=out[mels])
        return mel

    @torch.no_grad()
    def fit(self, items: Iterable[Mapping[str, Tensor]]) -> None:
        """Learn mean and standard deviation of the training samples' dB, over all mels and frames alike.

        Raises:
            UserError: every sample is silent, or the same constant.
        """
        count, total, squares = 0, 0.0, 0.0
        for item in items:
            decibels = self.decibels(item["waveform"].to(self.level.device)).double()
            count += decibels.numel()
            total, squares = total + float(decibels.sum()), squares + float(decibels.square().sum())
        mean = total / max(count, 1)
        variance = squares / max(count, 1) - mean**2
        if variance < 1e-6:
            raise UserError(
                "the training recordings are all silent: there is nothing to scale spectrograms by"
            )
        self.level.copy_(torch.tensor([mean, variance**0.5]))

    def scale(self, decibels: Tensor) -> Tensor:
        """dB to 0..1; a constant or silent clip becomes zeros or another constant, never NaN."""
        if self.learns:
            mean, deviation = self.level
            clipped: Tensor = (0.5 + (decibels - mean) / (6 * deviation)).clamp(0, 1)
            return clipped
        peak = decibels.amax(dim=(1, 2), keepdim=True)
        floor = peak - self.config.top_db
        x = decibels.maximum(floor)
        if self.config.scaling == "minmax":
            floor = x.amin(dim=(1, 2), keepdim=True)
        span = peak - floor
        scaled = (x - floor) / span.clamp_min(1e-6)
        return torch.where((peak > self.config.silence_db + 1e-3) & (span > 1e-6), scaled, 0.0)


def equaliser(draws: Tensor, mels: int) -> Tensor:
    """Gain of every band in -1..1, ``(n, mels)``: a line through two, three or four points spread evenly.

    Args:
        draws: ``(n, 5)`` uniforms: how many points, and their heights.
        mels: number of bands.
    """
    heights = (2 * draws[:, 1:] - 1).unsqueeze(1)
    lines = torch.cat(
        [
            functional.interpolate(heights[:, :, :points], mels, mode="linear", align_corners=True)
            for points in (2, 3, 4)
        ],
        dim=1,
    )
    chosen = (draws[:, 0] * 3).long().view(-1, 1, 1).expand(-1, 1, mels)
    return lines.gather(1, chosen).squeeze(1)


def resize_crop(x: Tensor, *, octaves: tuple[float, float], draws: Tensor) -> Tensor:
    """A window of each spectrogram, brought to the size of the whole by linear interpolation.

    A window that is smaller than the whole lies somewhere within it; a larger one has the whole somewhere within,
    and shows zeros around it.

    Args:
        x: ``(n, mels, frames)``.
        octaves: the window's frames, and its mels, are those of ``x`` times 2 to the power of plus or minus this.
        draws: ``(n, 4)`` uniforms: how many frames, how many mels, and where along either axis.
    """
    draws = draws.to(x.dtype)
    size = 2 ** ((2 * draws[:, :2] - 1) * draws.new_tensor(octaves))
    centre = (2 * draws[:, 2:] - 1) * (1 - size).abs()
    # affine_grid's first coordinate is the last axis
    windows = torch.cat([torch.diag_embed(size), centre.unsqueeze(2)], dim=2)
    # affine_grid is a matrix product: autocast would round places to bfloat16, 256 of them from edge to edge
    with torch.autocast(x.device.type, enabled=False):
        places = functional.affine_grid(windows, [len(x), 1, *x.shape[1:]], align_corners=False)
        return functional.grid_sample(x.unsqueeze(1), places, align_corners=False).squeeze(1)


def mask(x: Tensor, *, dim: int, width: float, draws: Tensor) -> Tensor:
    """Set one stretch of each spectrogram along ``dim`` to zero (SpecAugment's masking, batched).

    Args:
        x: ``(n, mels, frames)``.
        dim: 1 masks frequencies, 2 masks time.
        width: longest stretch, as a part of the axis.
        draws: ``(n, 2)`` uniforms: how long, and where.
    """
    size = x.shape[dim]
    length = (draws[:, 0] * (int(width * size) + 1)).floor()
    start = (draws[:, 1] * (size - length + 1)).floor()
    position = torch.arange(size, device=x.device)
    hidden = (position >= start[:, None]) & (position < (start + length)[:, None])
    return x.masked_fill(hidden.unsqueeze(3 - dim), 0.0)


def mel_filters(config: LogMelFrontend.Config) -> Tensor:
    """Weights ``(n_mels, n_fft // 2 + 1)``, float64, from bins of the spectrum to bands: librosa's triangles."""
    from librosa.filters import mel  # its import takes a second, for a run that has such a branch

    weights = mel(
        sr=config.sample_rate,
        n_fft=config.n_fft,
        n_mels=config.n_mels,
        fmin=config.f_min,
        fmax=config.f_max,
        htk=config.mel_scale == "htk",
        norm=config.mel_norm,
        dtype=np.float64,
    )
    return torch.from_numpy(weights)


def bands(filters: Tensor) -> list[tuple[slice, slice]]:
    """Runs of :data:`BAND` mels and the bins that have a weight in any of them.

    Args:
        filters: ``(n_mels, bins)``.
    """
    found = []
    for start in range(0, len(filters), BAND):
        mels = slice(start, start + BAND)
        weighted = filters[mels].any(dim=0).nonzero().flatten().tolist() or [0]
        found.append((mels, slice(weighted[0], weighted[-1] + 1)))
    return found
