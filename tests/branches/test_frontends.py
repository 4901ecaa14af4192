"""The log-mel against librosa and torchaudio, silence, masks, and the waveform's scaling."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
import torchaudio

from mmvicreg.branches.frontends import ImageFrontend, WaveformFrontend
from mmvicreg.branches.log_mel import LogMelFrontend, mask
from mmvicreg.inputs.base import DRAWS, InputSpec

RATE = 16000


def frontend(**options: object) -> LogMelFrontend:
    config = LogMelFrontend.Config(
        sample_rate=RATE, n_fft=1024, win_length=1024, hop_length=256, n_mels=64, **options
    )
    return LogMelFrontend(config, InputSpec(channels=1)).eval()


def clip() -> torch.Tensor:
    """One second of a decaying chirp over noise, int16."""
    t = np.arange(RATE) / RATE
    rng = np.random.default_rng(0)
    x = np.exp(-3 * t) * np.sin(2 * np.pi * (200 + 3000 * t) * t) + 0.01 * rng.standard_normal(RATE)
    return torch.from_numpy((x / np.abs(x).max() * 30000).astype(np.int16))


@pytest.mark.parametrize(("scale", "norm"), [("slaney", "slaney"), ("htk", None)])
def test_mel_agrees_with_librosa_and_torchaudio_over_the_top_80_db(scale: str, norm: str | None) -> None:
    wave = clip().float() / 32768
    ours = frontend(mel_scale=scale, mel_norm=norm).decibels(wave[None])[0]
    power = librosa.feature.melspectrogram(
        y=wave.double().numpy(), sr=RATE, n_fft=1024, hop_length=256, n_mels=64, power=2.0,
        center=True, pad_mode="constant", htk=scale == "htk", norm=norm, fmin=0, fmax=RATE / 2,
    )  # fmt: skip
    reference = torch.from_numpy(10 * np.log10(np.maximum(power, 1e-10)))
    loud = reference > reference.max() - 80
    assert loud.float().mean() > 0.9
    assert (ours.double() - reference)[loud].abs().max() < 1e-3
    transform = torchaudio.transforms.MelSpectrogram(
        RATE, 1024, hop_length=256, n_mels=64, pad_mode="constant", mel_scale=scale, norm=norm
    )
    theirs = 10 * torch.log10(transform(wave).clamp_min(1e-10))
    torch.testing.assert_close(ours[loud], theirs[loud], atol=1e-3, rtol=0)


def test_batch_and_clip_by_clip_are_the_same() -> None:
    waves = torch.stack([clip(), clip().flip(0), torch.zeros(RATE, dtype=torch.int16)])
    together = frontend()({"waveform": waves})
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], frontend()({"waveform": waves[i : i + 1]}))


@pytest.mark.parametrize("scaling", ["peak", "minmax"])
def test_scaled_to_0_1_and_silence_is_zeros(scaling: str) -> None:
    constant = torch.full((RATE,), 1000, dtype=torch.int16)
    faint = torch.zeros(RATE, dtype=torch.int16)
    faint[RATE // 2] = 1
    x = frontend(scaling=scaling)(
        {"waveform": torch.stack([clip(), faint, constant, torch.zeros_like(faint)])}
    )
    assert x.shape == (4, 1, 64, RATE // 256 + 1)
    assert bool(torch.isfinite(x).all())
    assert float(x.min()) == 0.0
    assert float(x[0].max()) == pytest.approx(1.0)
    assert bool((x[3] == 0).all())


def test_peak_scaling_is_80_db_below_the_peak() -> None:
    f = frontend()
    decibels = f.decibels(clip()[None].float() / 32768)
    expected = ((decibels - decibels.max() + 80) / 80).clamp_min(0)
    torch.testing.assert_close(f({"waveform": clip()[None]})[:, 0], expected)


def test_constants_of_the_mel_are_not_weights() -> None:
    assert not frontend().state_dict()


@pytest.mark.parametrize("dim", [1, 2])
def test_mask_hides_one_stretch_no_longer_than_asked(dim: int) -> None:
    draws = torch.rand(200, 2)
    x = mask(torch.ones(200, 20, 30), dim=dim, width=0.25, draws=draws)
    size = (20, 30)[dim - 1]
    lengths = set()
    for one in x:
        lines = (one == 0).all(dim=2 - dim)
        assert bool((one == 0).any(dim=2 - dim).eq(lines).all())  # whole lines
        hidden = lines.nonzero().flatten().tolist()
        lengths.add(len(hidden))
        assert hidden == list(range(hidden[0], hidden[-1] + 1)) if hidden else True
    assert max(lengths) == int(0.25 * size)
    assert 0 in lengths


def test_masks_only_in_training() -> None:
    f = frontend(time_mask=0.5, frequency_mask=0.5)
    item = {"waveform": clip()[None], "draws": torch.full((1, DRAWS), 0.9)}
    clean = f(item)
    assert bool((f.train()(item) != clean).any())


def test_waveform_is_normalised_and_silence_stays_zero() -> None:
    f = WaveformFrontend(WaveformFrontend.Config(), InputSpec(channels=1)).eval()
    x = f({"waveform": torch.stack([clip() + 500, torch.zeros(RATE, dtype=torch.int16)])})
    assert x.shape == (2, 1, RATE)
    assert float(x[0].mean()) == pytest.approx(0, abs=1e-4)
    assert float(x[0].std()) == pytest.approx(1, abs=1e-3)
    assert bool((x[1] == 0).all())


def test_gain_and_polarity_follow_the_draws() -> None:
    config = WaveformFrontend.Config(normalise=False, gain_db=20, polarity=True)
    f = WaveformFrontend(config, InputSpec(channels=1)).train()
    draws = torch.full((2, DRAWS), 0.5)
    draws[0, 0], draws[0, 1] = 1.0, 0.0  # +20 dB, flipped
    x = f({"waveform": clip().expand(2, -1), "draws": draws})
    torch.testing.assert_close(x[0], -10 * x[1])


def test_image_is_normalised() -> None:
    f = ImageFrontend(ImageFrontend.Config(), InputSpec(channels=3))
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = torch.stack(
        [
            (pixels[:, c] / 255 - m) / s
            for c, (m, s) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True))
        ],
        1,
    )
    torch.testing.assert_close(f({"pixels": pixels}), expected)
