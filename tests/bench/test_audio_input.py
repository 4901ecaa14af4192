"""The recordings' benchmark compares like with like and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from mmvicreg.bench.audio_input import rows, run
from mmvicreg.datasets import cache_folder


def test_both_sides_give_one_spectrogram(tmp_path: Path) -> None:
    before, threads = os.environ["XDG_CACHE_HOME"], torch.get_num_threads()
    kept = {*cache_folder().rglob("*")}
    results = run(rates=(44100, 22050), clips=3, seconds=0.5, batch_size=2, passes=1)
    assert [result.sample_rate for result in results] == [44100, 22050]
    for result in results:
        # librosa computes in float32 from floats, we from int16: near 80 dB below the peak they part a little
        assert result.difference < 0.5
        assert result.clips == 3
        assert result.ratios[0] <= result.ratio <= result.ratios[1]
    assert os.environ["XDG_CACHE_HOME"] == before
    assert torch.get_num_threads() == threads
    assert {*cache_folder().rglob("*")} == kept
    assert [row["rate"] for row in rows(results)] == ["44100 Hz", "22050 Hz"]
