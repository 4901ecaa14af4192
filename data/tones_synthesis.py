"""How a clip of tones sounds: ten timbres, five envelopes, and everything that varies inside a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]

RATE = 11_025
"""Samples a second."""
SECONDS = 1.5
LENGTH = round(RATE * SECONDS)
"""Samples a clip."""

TIMBRES = (
    "pure", "hollow", "bright", "metallic", "bell", "breath", "rising", "falling", "wobbling", "buzzing",
)  # fmt: skip
ENVELOPES = ("steady", "fading", "swelling", "pulsing", "stuttering")


@dataclass(frozen=True)
class Source:
    """What the clips of one source share.

    Attributes:
        timbre, envelope: the class.
        pitch: fundamental, Hz.
        colour: 0..1, how the timbre is set (brightness, modulation index, bandwidth).
        pace: events a second, for the envelopes that repeat.
        tilt: spectral tilt of the equaliser, dB an octave.
        echo: seconds of delay and gain of a single reflection.
    """

    timbre: str
    envelope: str
    pitch: float
    colour: float
    pace: float
    tilt: float
    echo: tuple[float, float]


def draw_source(timbre: str, envelope: str, random: np.random.Generator) -> Source:
    """The parameters of one source."""
    return Source(
        timbre=timbre,
        envelope=envelope,
        pitch=float(150.0 * 2 ** random.uniform(0.0, 2.5)),
        colour=float(random.uniform()),
        pace=float(random.uniform(4.0, 8.0)),
        tilt=float(random.uniform(-4.0, 4.0)),
        echo=(float(random.uniform(0.02, 0.15)), float(random.uniform(0.0, 0.5))),
    )


def synthesise(source: Source, random: np.random.Generator) -> NDArray[np.int16]:
    """One take of a source.

    Args:
        source: what the take shares with the other takes.
        random: decides onset, length, loudness, detuning and noise.

    Returns:
        ``(LENGTH,)`` samples, 16 bit.
    """
    length = int(random.uniform(0.65, 1.0) * LENGTH)
    onset = int(random.uniform(0.0, 1.0) * (LENGTH - length))
    time = np.arange(length) / RATE
    sound = _timbre(source, time, source.pitch * 2 ** random.normal(0.0, 0.04), random)
    sound = sound * _envelope(source, time, random)
    clip = np.zeros(LENGTH)
    clip[onset : onset + length] = sound
    clip = _room(clip, source)
    clip = clip / (np.sqrt(np.mean(clip**2)) + 1e-9)
    clip = clip + _background(random) * 10 ** (-random.uniform(2.0, 25.0) / 20)
    loudness = 10 ** (-random.uniform(0.0, 20.0) / 20)
    peak = np.abs(clip).max()
    return np.asarray(np.round(clip / peak * loudness * 0.9 * 32767), dtype=np.int16)


def _timbre(source: Source, time: Signal, pitch: float, random: np.random.Generator) -> Signal:
    """The sound before its envelope, about unit amplitude."""
    colour = source.colour
    if source.timbre == "pure":
        return _harmonics(_phase(np.full_like(time, pitch)), [1.0, 0.15 * colour], random)
    if source.timbre == "hollow":
        weights = [1.0 / k if k % 2 else 0.0 for k in range(1, _top(pitch))]
        return _harmonics(_phase(np.full_like(time, pitch)), weights, random)
    if source.timbre == "bright":
        weights = [k ** -(0.4 + 0.5 * colour) for k in range(1, _top(pitch))]
        return _harmonics(_phase(np.full_like(time, pitch)), weights, random)
    if source.timbre == "metallic":
        turn = _phase(np.full_like(time, pitch))
        return np.asarray(np.sin(turn + (2.0 + 3.0 * colour) * np.sin(turn * (1.41 + 0.1 * colour))))
    if source.timbre == "bell":
        ratios = (0.56, 0.92, 1.19, 1.71, 2.0, 2.74, 3.0, 3.76, 4.07)
        parts = [
            np.sin(2 * np.pi * pitch * r * time + random.uniform(0, 2 * np.pi)) / (1 + 0.5 * i)
            for i, r in enumerate(ratios)
            if pitch * r < RATE / 2.2
        ]
        return np.asarray(np.sum(parts, axis=0))
    if source.timbre == "breath":
        return _band(random.normal(size=len(time)), pitch * 1.5, 0.25 + 0.35 * colour)
    if source.timbre in {"rising", "falling"}:
        octaves = (0.8 + 0.8 * colour) * time / SECONDS
        course = octaves if source.timbre == "rising" else (octaves[-1] - octaves)
        return _harmonics(_phase(pitch * 2**course), [1.0, 0.4, 0.2], random)
    if source.timbre == "wobbling":
        sway = np.sin(2 * np.pi * (5.0 + 3.0 * colour) * time + random.uniform(0, 2 * np.pi))
        return _harmonics(_phase(pitch * 2 ** (0.12 * sway)), [1.0, 0.4, 0.2], random)
    if source.timbre == "buzzing":
        beat = 0.5 + 0.5 * np.sin(2 * np.pi * (35.0 + 35.0 * colour) * time)
        return beat**2 * _harmonics(_phase(np.full_like(time, pitch)), [1.0, 0.4, 0.2], random)
    raise ValueError(f"no timbre '{source.timbre}'")


def _envelope(source: Source, time: Signal, random: np.random.Generator) -> Signal:
    """Loudness over the length of the sound, 0 to 1."""
    part = time / time[-1]
    edge = np.clip(np.minimum(time, time[-1] - time) / 0.008, 0.0, 1.0)  # no clicks
    if source.envelope == "steady":
        return np.asarray(edge)
    if source.envelope == "fading":
        return np.asarray(edge * np.exp(-random.uniform(4.0, 7.0) * part))
    if source.envelope == "swelling":
        return np.asarray(edge * np.exp(-random.uniform(4.0, 7.0) * (1.0 - part)))
    if source.envelope == "pulsing":
        beat = (time * source.pace + random.uniform()) % 1.0
        return np.asarray(edge * np.clip(np.minimum(beat, 0.5 - beat) / 0.06, 0.0, 1.0))
    if source.envelope == "stuttering":
        starts = np.cumsum(random.exponential(1.0 / source.pace, 64) + 0.05)
        since = time[:, None] - starts[None, :]
        hits = np.where(since >= 0, np.exp(-np.maximum(since, 0.0) * 25.0), 0.0)
        return np.asarray(edge * hits.max(axis=1))
    raise ValueError(f"no envelope '{source.envelope}'")


def _harmonics(phase: Signal, weights: list[float], random: np.random.Generator) -> Signal:
    sound = np.zeros_like(phase)
    for number, weight in enumerate(weights, start=1):
        if weight:
            sound += weight * np.sin(number * phase + random.uniform(0, 2 * np.pi))
    return sound


def _top(pitch: float) -> int:
    """One more than the number of harmonics that fit below the Nyquist frequency, twenty at most."""
    return min(20, int(RATE / 2.2 / pitch)) + 1


def _phase(frequency: Signal) -> Signal:
    return 2 * np.pi * np.cumsum(frequency) / RATE


def _band(noise: Signal, centre: float, octaves: float) -> Signal:
    """Noise in a band around ``centre`` Hz, with a Gaussian flank of ``octaves``."""
    frequency = np.fft.rfftfreq(len(noise), 1 / RATE)
    distance = np.log2(np.maximum(frequency, 1.0) / min(centre, RATE / 3))
    return np.fft.irfft(np.fft.rfft(noise) * np.exp(-0.5 * (distance / octaves) ** 2), len(noise))


def _room(clip: Signal, source: Source) -> Signal:
    """The source's equaliser and its reflection."""
    frequency = np.fft.rfftfreq(len(clip), 1 / RATE)
    tilt = 10 ** (source.tilt * np.log2(np.maximum(frequency, 50.0) / 800.0) / 20)
    clip = np.fft.irfft(np.fft.rfft(clip) * tilt, len(clip))
    delay, gain = int(source.echo[0] * RATE), source.echo[1]
    clip[delay:] += gain * clip[:-delay].copy()
    return clip


def _background(random: np.random.Generator) -> Signal:
    """Noise of unit power, its spectrum between white and brown."""
    frequency = np.fft.rfftfreq(LENGTH, 1 / RATE)
    slope = np.maximum(frequency, 40.0) ** -random.uniform(0.0, 1.0)
    noise = np.fft.irfft(np.fft.rfft(random.normal(size=LENGTH)) * slope, LENGTH)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)))
