"""Recordings to numbers: decode, mix to one channel, resample. Without torch, for data sets and tools too."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from mmvicreg.errors import UserError

Waveform = npt.NDArray[np.int16]

SOUNDFILE_SUFFIXES = frozenset(
    (
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
        ".w64",
        ".rf64",
        ".sph",
        ".voc",
    )
)
SUFFIXES = SOUNDFILE_SUFFIXES | {".m4a", ".mp4", ".aac", ".wma", ".webm", ".mka", ".3gp", ".amr"}
"""File names that are taken for recordings; those soundfile does not know are left to librosa (FFmpeg)."""

_MAY_LEAVE_FULL_SCALE = frozenset(("FLOAT", "DOUBLE", "VORBIS", "OPUS"))
_LOUDEST = 100.0
"""Full scales (+40 dB) that no recording reaches: beyond it numbers are in another unit."""
_RATES = range(1000, 1_000_001)
"""Hz. Any other rate is a damaged header; resampling from it would fill the memory."""
_STREAM = 0x7F000000
"""Bytes from which a size says that its writer could not go back to write it (sox -t wav -, ffmpeg -f wav -)."""
_MPEG_SLACK = 2 * 1152
"""Samples that an MP3 may lack of those its header counts: some writers count the frame of the header too."""
_CHUNKS = 64
"""Chunks of a WAV file among which its samples are looked for."""


@dataclass(frozen=True)
class Header:
    """What a recording says of itself: samples per channel, Hz, channels."""

    frames: int
    sample_rate: int
    channels: int


def read_header(path: Path) -> Header | None:
    """The header of a recording, or None where only decoding tells (what soundfile does not read).

    Raises:
        UserError: the file is missing, truncated or not a recording.
    """
    if path.suffix.lower() not in SOUNDFILE_SUFFIXES:
        return None
    with _named(path):
        _check_whole(path)
        info = soundfile.info(path)
        _check_rate(path, info.samplerate)
        return Header(info.frames, info.samplerate, info.channels)


def read_recording(path: Path, *, sample_rate: int) -> Waveform:
    """Read a recording as mono int16 ``(samples,)`` at ``sample_rate``; the one place where this is done.

    soundfile reads integers directly (four times faster than float32); formats it does not know are left
    to librosa. Channels are averaged, and rates converted by soxr, which librosa uses too and which is quick
    whatever the two rates. What goes beyond full scale is clipped.

    Raises:
        UserError: the file is missing, empty, truncated, not a recording, or holds NaN, infinity or numbers
            in another unit than full scale.
    """
    with _named(path):
        raw, rate = _read(path)
    _check_rate(path, rate)
    if len(raw) == 0:
        raise UserError(f"the recording {path} has no samples; replace the file or leave it out")
    if raw.dtype == np.int16 and raw.shape[1] == 1 and rate == sample_rate:
        return np.ascontiguousarray(raw[:, 0])
    scale = 1.0
    if raw.dtype != np.int16:
        _check_numbers(path, raw)
        scale = 32767.0
    mono = raw.astype(np.float32).mean(axis=1) * scale
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
    if len(mono) == 0:
        raise UserError(
            f"the recording {path} ({len(raw)} samples at {rate} Hz) has none at {sample_rate} Hz; replace the "
            "file or leave it out"
        )
    whole: Waveform = mono.round().clip(-32768, 32767).astype(np.int16)
    return whole


def _read(path: Path) -> tuple[npt.NDArray[Any], int]:
    """``(samples, channels)`` as int16, or float32 of full scale, and the rate, Hz."""
    if path.suffix.lower() not in SOUNDFILE_SUFFIXES:
        import librosa

        loaded, rate = librosa.load(path, sr=None, mono=False)
        return np.atleast_2d(loaded).T, int(rate)
    _check_whole(path)
    with soundfile.SoundFile(path) as file:
        # Some may leave [-1, 1]. Reading those as int16 would hide NaN, and libsndfile wraps loud Vorbis and
        # Opus around to the other sign instead of clipping it.
        raw = file.read(dtype="float32" if file.subtype in _MAY_LEAVE_FULL_SCALE else "int16", always_2d=True)
        if len(raw) < file.frames - _slack(path, file.subtype):
            raise UserError(
                f"the recording {path} is truncated: {len(raw)} of {file.frames} samples; replace the file, or "
                "leave its row out of the data set"
            )
        return raw, file.samplerate


def _slack(path: Path, subtype: str) -> float:
    """How many samples of a recording's length may be absent; MP3 without a count of its frames only estimates it."""
    if not subtype.startswith("MPEG"):
        return 0
    with path.open("rb") as file:
        return _MPEG_SLACK if _counts_frames(file) else math.inf


def _counts_frames(file: BinaryIO) -> bool:
    """Whether an MP3's first frame is a Xing header with the number of frames, from which its length is exact."""
    tag = file.read(10)
    after = 0
    if tag[:3] == b"ID3":
        after = 10 + sum((byte & 127) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=False))
    file.seek(after)
    head = file.read(4096)
    at = max(head.find(name) for name in (b"Xing", b"Info"))  # "Info" where the rate is constant
    flags = int.from_bytes(head[at + 4 : at + 8], "big")
    return at >= 0 and flags < 16 and bool(flags & 1) and any(head[at + 8 : at + 12])


def _check_numbers(path: Path, raw: npt.NDArray[Any]) -> None:
    """Refuse what is not a sound, or not in units of full scale."""
    peak = float(np.abs(raw).max())
    if not np.isfinite(peak):
        raise UserError(f"the recording {path} holds NaN or infinity; replace the file or leave it out")
    if peak > _LOUDEST:
        raise UserError(
            f"the recording {path} reaches {peak:.3g} times full scale: samples in floating point run from -1 to 1; "
            "divide them by their full scale, or leave the file out"
        )


def _check_rate(path: Path, rate: int) -> None:
    if rate not in _RATES:
        raise UserError(
            f"the recording {path} says that its rate is {rate} Hz; mend its header, or leave its row out of the "
            "data set"
        )


def _check_whole(path: Path) -> None:
    """Refuse a file that ends before its header says: libsndfile reads those of the plain formats without a word."""
    with path.open("rb") as file:
        promised = _promised(file)
    present = path.stat().st_size
    if promised is not None and present < promised:
        raise UserError(
            f"the recording {path} is truncated: {present} of {promised} bytes; replace the file, or leave its row out "
            "of the data set"
        )


def _promised(file: BinaryIO) -> int | None:
    """The size, bytes, that a file of a format without frames should at least have by its header, where that tells."""
    head = file.read(28)
    little, big = int.from_bytes(head[4:8], "little"), int.from_bytes(head[4:8], "big")
    if head[:4] == b"RIFF":
        # by the samples where they begin: some programs write the size of the file in place of what follows it
        start, size = _samples_of(file) or (8, little)
        return start + size if 0 < size < _STREAM else None
    if head[:4] == b"RF64" and head[12:16] == b"ds64":
        return int.from_bytes(head[20:28], "little") + 8
    if head[:4] == b"FORM":
        return big + 8 if big < _STREAM else None
    if head[:4] == b".snd":
        size = int.from_bytes(head[8:12], "big")
        return big + size if size != 0xFFFFFFFF else None
    if head[:7] == b"NIST_1A":
        return _promised_by_sphere(head + file.read(1024))
    if head[:19] == b"Creative Voice File":
        start = int.from_bytes(head[20:22], "little")
        file.seek(start + 1)
        return start + 4 + int.from_bytes(file.read(3), "little")  # its first block, mostly its only one
    return None


def _promised_by_sphere(head: bytes) -> int | None:
    """Of a NIST SPHERE file, whose header is text: a field a line, and its own length in the second."""
    length, *lines = head.decode("latin-1").split("\n")[1:]
    fields = {line.split(" ")[0]: line.split(" ")[-1] for line in lines}
    sizes = [fields.get(name, "1") for name in ("sample_count", "sample_n_bytes", "channel_count")]
    packed = "," in fields.get("sample_coding", "")  # "pcm,embedded-shorten-v2.00": not read here
    if packed or "sample_count" not in fields or not all(s.isdecimal() for s in (length.strip(), *sizes)):
        return None
    return int(length) + math.prod(map(int, sizes))


def _samples_of(file: BinaryIO) -> tuple[int, int] | None:
    """Where the samples of a WAV file begin, and how many bytes of them its header tells; None: no such chunk."""
    at = 12
    for _ in range(_CHUNKS):
        file.seek(at)
        chunk = file.read(8)
        size = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data" and len(chunk) == 8:
            return at + 8, size
        at += 8 + size + size % 2
    return None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into an error that names the file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"recording not found: {path}") from error
    except Exception as error:  # librosa's back ends raise many kinds
        if not path.exists():
            raise UserError(f"recording not found: {path}") from error
        ffmpeg = (
            "" if path.suffix.lower() in SOUNDFILE_SUFFIXES else f"; {path.suffix} needs FFmpeg on the PATH"
        )
        raise UserError(
            f"cannot decode the recording {path} ({str(error) or type(error).__name__}){ffmpeg}; replace the file, "
            "or leave its row out of the data set"
        ) from error
