"""MP3: a recording that ends before its header says is refused, where the header has a count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmvicreg.errors import UserError
from mmvicreg.inputs.decode import read_recording

SAMPLES = 44_100


def mp3(path: Path, *, rate: int = 44_100, channels: int = 1) -> bytes:
    """A second of noise by libsndfile, whose LAME writes a Xing header."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (SAMPLES, channels))
    soundfile.write(path, noise, rate, format="MP3")
    return path.read_bytes()


def header(content: bytes) -> int:
    return max(content.find(b"Xing"), content.find(b"Info"))


@pytest.mark.parametrize("tag", [b"", b"ID3\x04\0\0\0\0\x40\0" + bytes(8192)])  # a picture's worth of ID3
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 1), (44_100, 2), (16_000, 1)])
def test_half_an_mp3_is_refused(tmp_path: Path, tag: bytes, rate: int, channels: int) -> None:
    path = tmp_path / "clip.mp3"
    content = mp3(path, rate=rate, channels=channels)
    path.write_bytes(tag + content)
    assert len(read_recording(path, sample_rate=rate)) == SAMPLES
    path.write_bytes(tag + content[: len(content) // 2])
    with pytest.raises(
        UserError, match=rf"clip\.mp3 is truncated: \d+ of {SAMPLES} samples; replace the file"
    ):
        read_recording(path, sample_rate=rate)


def test_a_count_with_the_frame_of_the_header_is_no_truncation(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp3"
    content = mp3(path)
    at = header(content) + 8
    frames = int.from_bytes(content[at : at + 4], "big") + 1
    path.write_bytes(content[:at] + frames.to_bytes(4, "big") + content[at + 4 :])
    assert len(read_recording(path, sample_rate=44_100)) >= SAMPLES


def test_without_a_count_an_mp3_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp3"
    content = mp3(path)
    at = header(content) + 7  # the last byte of the flags, whose lowest bit says that frames are counted
    for rest in (content[:at] + b"\0" + content[at + 1 :], content[content.index(b"\xff\xfb", 4) :]):
        path.write_bytes(rest[: len(rest) // 2])
        assert 0 < len(read_recording(path, sample_rate=44_100)) < SAMPLES
