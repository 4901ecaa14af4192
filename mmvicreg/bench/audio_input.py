"""Recordings to log-mel batches on one core: decoded once and mapped, against librosa for every clip.

The other side is the data set that most code has: ``librosa.load`` at the wanted rate, ``melspectrogram``,
``power_to_db`` and a scaling to 0..1 in ``__getitem__``. Both sides compute the same spectrogram, which is
checked before anything is timed. Both run on one thread, in turns; the processor time of this process counts, not the
clock, so that what else the machine does tells on neither.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile
import torch
from rich.table import Table
from threadpoolctl import threadpool_limits

from mmvicreg.branches.log_mel import LogMelFrontend
from mmvicreg.errors import UserError
from mmvicreg.inputs import audio_cache
from mmvicreg.inputs.audio import AudioInput
from mmvicreg.samples import Sample

RATES = (44100, 22050)
SOURCE_RATE = 44100
"""Hz, of the recordings that are made: mono, 16 bit, as ESC-50's are."""


@dataclass(frozen=True)
class AudioInputResult:
    """One rate.

    Attributes:
        sample_rate: Hz that clips are brought to.
        clips: in a pass.
        ours: clips a second from the cache, best pass.
        librosa: clips a second, best pass.
        ratio: median over passes of librosa's time over ours, the two run one after the other.
        ratios: of every pass, lowest and highest.
        decode: processor seconds it took, once, to decode all clips into the cache in one process.
        difference: largest difference of the two spectrograms, dB.
    """

    sample_rate: int
    clips: int
    ours: float
    librosa: float
    ratio: float
    ratios: tuple[float, float]
    decode: float
    difference: float


def run(
    *,
    rates: Sequence[int] = RATES,
    clips: int = 64,
    seconds: float = 5.0,
    batch_size: int = 32,
    passes: int = 5,
    recordings: Sequence[Path] | None = None,
) -> list[AudioInputResult]:
    """Time both sides at every rate, on one thread.

    Args:
        rates: Hz.
        clips: recordings in a pass.
        seconds: their length.
        batch_size: clips in a batch.
        passes: of each side, taken in turns; one more of each comes first and is not timed.
        recordings: files to read instead of made ones; all but the first ``clips`` are left out.

    Raises:
        UserError: a recording that cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder, one_thread(), cache_in(Path(folder)):
        paths = [*recordings][:clips] if recordings else make_recordings(Path(folder), clips, seconds)
        return [
            _compare(paths, rate, seconds=seconds, batch_size=batch_size, passes=passes) for rate in rates
        ]


def rows(results: Sequence[AudioInputResult]) -> list[dict[str, str]]:
    """The results as rows of a table, a column a key."""
    return [
        {
            "rate": f"{result.sample_rate} Hz",
            "ours": f"{result.ours:.0f} clips/s",
            "librosa per clip": f"{result.librosa:.0f} clips/s",
            "times": f"{result.ratio:.1f} ({result.ratios[0]:.1f} to {result.ratios[1]:.1f})",
            "decoded once in": f"{result.decode:.2f} s for {result.clips} clips",
            "largest difference": f"{result.difference:.1e} dB",
        }
        for result in results
    ]


def table(results: Sequence[AudioInputResult]) -> Table:
    """The same, laid out."""
    laid_out = Table(
        title="Waveform and mel of a clip on one core: from the cache against librosa at every reading",
        title_justify="left",
    )
    lines = rows(results)
    for heading in lines[0]:
        laid_out.add_column(heading, justify="right")
    for line in lines:
        laid_out.add_row(*line.values())
    return laid_out


def mel_options(rate: int) -> dict[str, Any]:
    """The spectrogram of ``configs/wave-mel/esc50.yaml``; windows half as long at rates below 32 kHz."""
    n_fft = 2048 if rate >= 32000 else 1024
    return {"n_fft": n_fft, "win_length": n_fft, "hop_length": 512, "n_mels": 128}


def make_recordings(folder: Path, clips: int, seconds: float) -> list[Path]:
    """Chirps over noise: WAV files at :data:`SOURCE_RATE`, mono, 16 bit."""
    t = np.arange(round(seconds * SOURCE_RATE)) / SOURCE_RATE
    paths = [folder / f"{number}.wav" for number in range(clips)]
    for number, path in enumerate(paths):
        rng = np.random.default_rng(number)
        wave = 0.3 * np.sin(2 * np.pi * (100 + 40 * number + 900 * t) * t) + 0.02 * rng.standard_normal(
            len(t)
        )
        soundfile.write(path, wave, SOURCE_RATE, subtype="PCM_16")
    return paths


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, and for the BLAS that librosa's filters run on: what is compared is the work of a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """A cache of its own while the block runs: empty, and gone with the folder."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def _compare(
    paths: Sequence[Path], rate: int, *, seconds: float, batch_size: int, passes: int
) -> AudioInputResult:
    options = mel_options(rate)
    source = AudioInput(AudioInput.Config(sample_rate=rate, seconds=seconds))
    frontend = LogMelFrontend(LogMelFrontend.Config(sample_rate=rate, **options), source.spec()).eval()
    samples = [Sample(str(path), audio=path) for path in paths]
    decode = _seconds(lambda: audio_cache.build(paths, sample_rate=rate, workers=0))

    def ours() -> list[torch.Tensor]:
        batches = (samples[i : i + batch_size] for i in range(0, len(samples), batch_size))
        with torch.inference_mode():
            return [frontend(source.collate([source.load(s, None) for s in batch])) for batch in batches]

    def theirs() -> list[torch.Tensor]:
        batches = (paths[i : i + batch_size] for i in range(0, len(paths), batch_size))
        return [
            torch.stack([librosa_mel(path, rate, source.length, **options) for path in batch])
            for batch in batches
        ]

    difference = 80 * float((torch.cat(ours()) - torch.cat(theirs())).abs().max())  # and both are warm now
    times = [(_seconds(ours), _seconds(theirs)) for _ in range(passes)]
    ratios = sorted(b / a for a, b in times)
    return AudioInputResult(
        sample_rate=rate,
        clips=len(paths),
        ours=len(paths) / min(a for a, _ in times),
        librosa=len(paths) / min(b for _, b in times),
        ratio=statistics.median(ratios),
        ratios=(ratios[0], ratios[-1]),
        decode=decode,
        difference=difference,
    )


def librosa_mel(
    path: Path, rate: int, length: int, *, n_fft: int, win_length: int, hop_length: int, n_mels: int
) -> torch.Tensor:
    """One clip as a plain data set reads it: float32 ``(1, mels, frames)`` in 0..1, 80 dB below its peak at 0."""
    try:
        wave, _ = librosa.load(path, sr=rate)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot decode the recording {path} ({error})") from error
    surplus = len(wave) - length
    wave = wave[surplus // 2 :][:length] if surplus > 0 else np.pad(wave, (0, -surplus))
    power = librosa.feature.melspectrogram(
        y=wave, sr=rate, n_fft=n_fft, win_length=win_length, hop_length=hop_length, n_mels=n_mels
    )
    decibels = librosa.power_to_db(power, ref=np.max, top_db=80)
    return torch.from_numpy((decibels + 80) / 80)[None].float()


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
