"""The log-mel against librosa and torchaudio, silence, masks, and the waveform's scaling."""

from __future__ import annotations

from functools import partial
from typing import Any

import librosa
import numpy as np
import pytest
import torch
import torchaudio

from mmvicreg.branches.frontends import ImageFrontend, WaveformFrontend
from mmvicreg.branches.log_mel import BAND, LogMelFrontend, bands, equaliser, mask, mel_filters, resize_crop
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import DRAWS, InputSpec

RATE = 16000


def frontend(**options: object) -> LogMelFrontend:
    config = LogMelFrontend.Config(
        sample_rate=RATE, n_fft=1024, win_length=1024, hop_length=256, n_mels=64, **options
    )
    return LogMelFrontend(config, InputSpec(channels=1)).eval()


def clip(rate: int = RATE) -> torch.Tensor:
    """One second of a decaying chirp over noise, int16."""
    t = np.arange(rate) / rate
    rng = np.random.default_rng(0)
    x = np.exp(-3 * t) * np.sin(2 * np.pi * (200 + 3000 * t) * t) + 0.01 * rng.standard_normal(rate)
    return torch.from_numpy((x / np.abs(x).max() * 30000).astype(np.int16))


@pytest.mark.parametrize(
    ("rate", "n_fft", "win", "hop", "mels", "band"),
    [
        (16000, 1024, 1024, 256, 64, (0.0, None)),
        (16000, 1024, 1024, 640, 64, (0.0, None)),  # configs/wave-mel/esc10.yaml
        (22050, 1024, 1024, 512, 128, (0.0, 11025.0)),  # manifest.yaml
        (44100, 2048, 2048, 512, 128, (0.0, 22050.0)),  # esc50.yaml
        (
            12000,
            512,
            400,
            160,
            40,
            (50.0, 5000.0),
        ),
    ],
)
@pytest.mark.parametrize(("scale", "norm"), [("slaney", "slaney"), ("htk", None)])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_mel_agrees_with_librosa_and_torchaudio_over_the_top_80_db(
    rate: int, n_fft: int, win: int, hop: int, mels: int, band: tuple[float, float | None],
    scale: str, norm: str | None, power: float,
) -> None:  # fmt: skip
    wave = clip(rate).float() / 32768
    shared: dict[str, Any] = {"n_fft": n_fft, "win_length": win, "hop_length": hop, "n_mels": mels}
    config = LogMelFrontend.Config(
        sample_rate=rate, **shared, mel_scale=scale, mel_norm=norm, f_min=band[0], f_max=band[1], power=power
    )
    ours = LogMelFrontend(config, InputSpec(channels=1)).eval().decibels(wave[None])[0]
    mel = librosa.feature.melspectrogram(
        y=wave.double().numpy(), sr=rate, **shared, power=power, center=True, pad_mode="constant",
        htk=scale == "htk", norm=norm, fmin=band[0], fmax=band[1],
    )  # fmt: skip
    reference = torch.from_numpy(20 / power * np.log10(np.maximum(mel, 1e-10)))
    loud = reference > reference.max() - 80
    assert loud.float().mean() > 0.8
    assert (ours.double() - reference)[loud].abs().max() < 1e-3
    transform = torchaudio.transforms.MelSpectrogram(
        rate,
        **shared,
        pad_mode="constant",
        mel_scale=scale,
        norm=norm,
        f_min=band[0],
        f_max=band[1],
        power=power,
    )
    theirs = 20 / power * torch.log10(transform(wave).clamp_min(1e-10))
    torch.testing.assert_close(ours[loud], theirs[loud], atol=1e-3, rtol=0)


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize(("scale", "norm"), [("slaney", "slaney"), ("htk", None), ("htk", "slaney")])
def test_filters_are_torchaudios_too(rate: int, scale: str, norm: str | None) -> None:
    config = LogMelFrontend.Config(
        sample_rate=rate, n_fft=1024, n_mels=80, f_min=20, f_max=3900, mel_scale=scale, mel_norm=norm
    )
    theirs = torchaudio.functional.melscale_fbanks(
        513, f_min=20, f_max=3900, n_mels=80, sample_rate=rate, norm=norm, mel_scale=scale
    ).T.double()
    torch.testing.assert_close(mel_filters(config), theirs, rtol=0, atol=2e-4 * float(theirs.max()))


@pytest.mark.parametrize(("n_fft", "win", "power"), [(1024, 1024, 2.0), (512, 301, 2.0), (255, 200, 1.0)])
def test_the_two_ways_to_compute_it_agree(n_fft: int, win: int, power: float) -> None:
    """One of them, torchaudio's transform over the whole batch, runs on other devices than a CPU."""
    config = LogMelFrontend.Config(
        sample_rate=RATE, n_fft=n_fft, win_length=win, hop_length=100, n_mels=20, power=power
    )
    f = LogMelFrontend(config, InputSpec()).double()
    waves = torch.stack([clip(), clip().flip(0)])[:, :7777].double() / 32768
    torch.testing.assert_close(f._mel_clip_by_clip(waves), f._mel_batched(waves), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_bits_depend_neither_on_the_batch_nor_on_threads_nor_on_who_scales(power: float) -> None:
    f = frontend(power=power)
    waves = torch.stack([clip(), clip().flip(0), clip() // 100])
    expected, threads = f.decibels(waves), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(f.decibels(waves), expected)
            assert torch.equal(torch.cat([f.decibels(wave[None]) for wave in waves]), expected)
            assert torch.equal(f.decibels(waves.float() / 32768), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("mels", [4, 16, 40, 128])
def test_bands_hold_every_weight_and_each_mel_once(mels: int) -> None:
    filters = mel_filters(LogMelFrontend.Config(sample_rate=RATE, n_fft=256, win_length=256, n_mels=mels))
    assert mels < 128 or bool((filters == 0).all(1).any()), "a mel between two bins has no weights"
    outside, covered = filters.clone(), torch.zeros(mels)
    for rows, columns in bands(filters):
        outside[rows, columns] = 0
        covered[rows] += 1
        assert len(filters[rows]) <= BAND
    assert not outside.any()
    assert bool((covered == 1).all())
    assert bands(torch.zeros(3, 5)) == [(slice(0, BAND), slice(0, 1))]


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


def test_training_scaling_is_by_the_statistics_of_what_it_was_fitted_on() -> None:
    f = frontend(scaling="training")
    rng = np.random.default_rng(1)
    waves = (
        torch.from_numpy(rng.integers(-3000, 3000, (7, RATE)).astype(np.int16)) // torch.arange(1, 8)[:, None]
    )
    waves = waves.to(torch.int16)
    assert bool(torch.isnan(f({"waveform": waves})).any())  # nothing is made up before it is fitted
    f.fit([{"waveform": waves[:4]}, {"waveform": waves[4:]}])
    decibels = f.decibels(waves.float() / 32768).double()
    mean, deviation = decibels.mean(), decibels.std(correction=0)
    expected = ((decibels - mean) / (6 * deviation) + 0.5).clamp(0, 1)
    torch.testing.assert_close(f({"waveform": waves})[:, 0].double(), expected, atol=1e-5, rtol=0)
    again = frontend(scaling="training")
    again.load_state_dict(f.state_dict())  # as a checkpoint brings it back
    torch.testing.assert_close(again({"waveform": waves}), f({"waveform": waves}), atol=0, rtol=0)
    half = {"waveform": waves[:1] // 2}
    assert float((f(half) - f({"waveform": waves[:1]})).mean()) < -0.01  # loudness is kept, not scaled away
    assert bool((frontend()(half) - frontend()({"waveform": waves[:1]})).abs().max() < 0.2)
    silent = f({"waveform": torch.zeros_like(waves)})
    assert bool(torch.isfinite(silent).all())
    assert float(silent.min()) >= 0


def test_nothing_can_be_learned_from_silence() -> None:
    with pytest.raises(UserError, match="all silent"):
        frontend(scaling="training").fit([{"waveform": torch.zeros(3, RATE, dtype=torch.int16)}])
    with pytest.raises(UserError, match="all silent"):
        frontend(scaling="training").fit([])


def test_gain_in_decibels_is_the_waveforms_and_needs_a_scaling_that_keeps_it() -> None:
    f = frontend(scaling="training", gain_db=12)
    item = {"waveform": clip()[None].expand(3, -1), "draws": torch.full((3, DRAWS), 0.5)}
    item["draws"][:, 0] = torch.tensor([0.0, 0.5, 1.0])
    f.fit([item])
    quiet, plain, loud = f.train()(item)
    step = 12 / (6 * float(f.level[1]))
    inner = (plain > step) & (plain < 1 - step)
    torch.testing.assert_close(
        (loud - plain)[inner], torch.full((int(inner.sum()),), step), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        (plain - quiet)[inner], torch.full((int(inner.sum()),), step), atol=1e-5, rtol=0
    )
    assert torch.equal(f.eval()(item)[0], plain)
    with pytest.raises(ValueError, match="gain_db changes nothing with scaling: peak"):
        frontend(gain_db=6)


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


def test_equaliser_is_a_line_through_two_to_four_points() -> None:
    draws = torch.rand(60, 5)
    gains = equaliser(draws, 23)
    for (many, *heights), gain in zip(draws.double().tolist(), gains, strict=True):
        points = 2 + int(3 * many)
        line = np.interp(
            np.linspace(0, 1, 23), np.linspace(0, 1, points), [2 * h - 1 for h in heights[:points]]
        )
        np.testing.assert_allclose(gain.numpy(), line, atol=1e-5)
    assert {2 + int(3 * many) for many in draws[:, 0].tolist()} == {2, 3, 4}


def test_equaliser_changes_the_decibels_in_training_and_leaves_silence_alone() -> None:
    plain, f = frontend(), frontend(equalise_db=12).train()
    draws = torch.full((2, DRAWS), 0.5)
    draws[0, 6], draws[0, 7:9] = (
        0.0,
        torch.tensor([0.0, 1.0]),
    )  # two points: -12 dB at the lowest band, 12 at the top
    waves = torch.stack([clip(), torch.zeros(RATE, dtype=torch.int16)])
    x = f({"waveform": waves, "draws": draws})[:, 0]
    decibels = plain.decibels(waves[:1].float() / 32768)
    gain = torch.linspace(-12, 12, decibels.shape[1])[:, None]
    torch.testing.assert_close(x[0], plain.scale(decibels + gain)[0], atol=1e-5, rtol=0)
    assert bool((x[1] == 0).all())
    assert torch.equal(
        f.eval()({"waveform": waves, "draws": draws})[:, 0], plain.eval()({"waveform": waves})[:, 0]
    )


def test_resize_crop_reads_a_window_between_its_points() -> None:
    """Against numpy's interpolation, along one axis and then the other, with zeros around the spectrogram."""
    x, draws = torch.rand(40, 23, 31), torch.rand(40, 4)
    octaves = (1.0, 0.6)
    shown = resize_crop(x, octaves=octaves, draws=draws)
    wider, within = 0, 0
    for one, drawn, found in zip(x.double().numpy(), draws.double().tolist(), shown, strict=True):
        expected = np.pad(one, 1)
        for axis, (octave, size, where) in enumerate(zip(octaves, drawn[:2], drawn[2:], strict=True)):
            cells = one.shape[1 - axis]
            part = 2 ** ((2 * size - 1) * octave)
            # the first cell that is not the window's, left of it: inside the whole, or the whole inside the window
            start = where * (1 - part) * cells if part <= 1 else (1 - where) * (1 - part) * cells
            wider, within = wider + (part > 1), within + (part < 1)
            middles = start + (np.arange(cells) + 0.5) * part - 0.5
            cut = partial(np.interp, middles, np.arange(-1, cells + 1))
            expected = np.apply_along_axis(cut, 1 - axis, expected)
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
    assert min(wider, within) > 20


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_resize_crop_is_as_exact_in_every_precision_of_training(precision: str) -> None:
    x, draws = torch.rand(4, 23, 400), torch.rand(4, 4)
    expected = resize_crop(x, octaves=(1.0, 0.6), draws=draws)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        given = x.double() if precision == "fp64" else x
        shown = resize_crop(given, octaves=(1.0, 0.6), draws=draws)
    assert shown.dtype == given.dtype
    torch.testing.assert_close(shown.float(), expected, atol=1e-3, rtol=0)


def test_resize_crop_is_for_training_and_keeps_range_and_silence() -> None:
    f = frontend(resize_time=1.0, resize_frequency=0.5).train()
    waves = torch.stack([clip(), torch.zeros(RATE, dtype=torch.int16)] * 8)
    draws = torch.rand(16, DRAWS)
    x = f({"waveform": waves, "draws": draws})[:, 0]
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    assert len({tuple(one.flatten().tolist()) for one in x[::2]}) == 8
    assert bool((x[1::2] == 0).all())
    alone = f({"waveform": waves[2:3], "draws": draws[2:3]})[:, 0]
    assert torch.equal(alone[0], x[2])  # whatever else is in the batch
    middle = {"waveform": waves, "draws": torch.full((16, DRAWS), 0.5)}
    torch.testing.assert_close(f(middle), f.eval()(middle), atol=1e-5, rtol=0)


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


def test_draws_that_stayed_on_the_cpu_are_brought_to_where_the_waveform_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a batch on a GPU has them; the meta device stands for one."""
    item = {"waveform": torch.zeros(2, 2000, dtype=torch.int16, device="meta"), "draws": torch.rand(2, DRAWS)}
    config = WaveformFrontend.Config(gain_db=6, polarity=True)
    x = WaveformFrontend(config, InputSpec(channels=1)).train()(item)
    assert x.is_meta
    assert x.shape == (2, 1, 2000)
    f = frontend(equalise_db=6, time_mask=0.1, frequency_mask=0.1).train().to("meta")
    decibels = torch.zeros(2, f.config.n_mels, 20, device="meta")
    monkeypatch.setattr(f, "decibels", lambda _: decibels)  # autocast does not know the meta device
    assert f(item).is_meta
