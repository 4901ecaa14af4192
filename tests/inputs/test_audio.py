"""Recordings of any rate, channel count, width and length become one clip; what cannot be read is named."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch

from mmvicreg.errors import UserError
from mmvicreg.inputs.audio import AudioInput, add_noise, decode_audio, mix, play, played_length
from mmvicreg.inputs.decode import read_header
from mmvicreg.samples import Sample


def tone(rate: int, *, hertz: float = 440.0, seconds: float = 1.0, amplitude: float = 0.5) -> np.ndarray:
    """A sine, float64 ``(rate * seconds,)``."""
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def write(path: Path, wave: np.ndarray, rate: int, subtype: str | None = None) -> Path:
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


def load(path: Path, rng: np.random.Generator | None = None, **options: object) -> np.ndarray:
    config = AudioInput.Config.model_validate({"sample_rate": 8000, "seconds": 1.0, **options})
    waveform = AudioInput(config).load(Sample("s", audio=path), rng)["waveform"]
    assert waveform.dtype == torch.int16
    return waveform.numpy().astype(int)


def strongest(wave: np.ndarray, rate: int) -> float:
    """The frequency with the most power, Hz."""
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return float(np.fft.rfftfreq(len(wave), 1 / rate)[power.argmax()])


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("wanted", [8000, 44100])
def test_any_rate_keeps_pitch_loudness_and_length(tmp_path: Path, rate: int, wanted: int) -> None:
    path = write(tmp_path / "tone.wav", tone(rate, seconds=0.503), rate)
    ours = decode_audio(path, sample_rate=wanted).numpy().astype(float)
    assert abs(len(ours) - round(rate * 0.503) * wanted / rate) <= 1
    assert strongest(ours, wanted) == pytest.approx(440, abs=3)
    middle = slice(len(ours) // 4, -len(ours) // 4)  # away from the ends, where filters ring
    exact = 32767 * tone(wanted, seconds=len(ours) / wanted)[: len(ours)]
    assert np.abs(ours - exact)[middle].max() < 0.01 * 32767
    raw, _ = soundfile.read(path)
    theirs = 32767 * librosa.resample(raw, orig_sr=rate, target_sr=wanted, res_type="soxr_hq")
    n = min(len(ours), len(theirs))
    assert np.abs(ours[:n] - theirs[:n])[middle].max() < 0.01 * 32767


def test_what_the_lower_rate_cannot_hold_is_filtered_out(tmp_path: Path) -> None:
    path = write(tmp_path / "high.wav", tone(44100, hertz=7000), 44100)
    assert np.abs(decode_audio(path, sample_rate=8000).numpy()[200:-200]).max() < 100  # not aliased to 1 kHz


@pytest.mark.parametrize("channels", [2, 6])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_channels_are_averaged(tmp_path: Path, channels: int, subtype: str) -> None:
    each = np.stack([tone(8000, hertz=200 + 100 * c) for c in range(channels)], axis=1)
    ours = decode_audio(write(tmp_path / "many.wav", each, 8000, subtype), sample_rate=8000).numpy()
    assert np.abs(ours - 32767 * each.mean(axis=1)).max() <= 2


def test_opposite_channels_cancel_and_loud_ones_do_not_overflow(tmp_path: Path) -> None:
    left = tone(8000, amplitude=1.0)
    opposite = write(tmp_path / "opposite.wav", np.stack([left, -left], axis=1), 8000)
    assert np.abs(decode_audio(opposite, sample_rate=8000).numpy()).max() <= 1
    alike = write(tmp_path / "alike.wav", np.stack([left] * 6, axis=1), 8000)
    assert np.abs(decode_audio(alike, sample_rate=8000).numpy() - 32767 * left).max() <= 2


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        ("wav", "PCM_U8", 300),
        ("wav", "PCM_16", 2),
        ("wav", "PCM_24", 2),
        ("wav", "PCM_32", 2),
        ("wav", "FLOAT", 1),
        ("wav", "DOUBLE", 1),
        ("flac", "PCM_16", 2),
        ("flac", "PCM_24", 2),
        ("aiff", "PCM_16", 2),
        ("aifc", "FLOAT", 2),
        ("sph", "PCM_16", 2),
        ("voc", "PCM_16", 2),
        ("ogg", "VORBIS", 1500),
        ("mp3", "MPEG_LAYER_III", 1500),
    ],
)
def test_every_format_gives_the_same_numbers(
    tmp_path: Path, suffix: str, subtype: str, tolerance: int
) -> None:
    wave = tone(44100)
    path = tmp_path / f"tone.{suffix}"
    form = {"aifc": "AIFF", "sph": "NIST"}.get(suffix, suffix)
    soundfile.write(path, wave, 44100, subtype=subtype, format=form)
    ours = decode_audio(path, sample_rate=44100).numpy().astype(float)
    middle = slice(4000, 40000)
    assert np.abs(ours[middle] - 32767 * wave[middle]).max() <= tolerance
    assert abs(len(ours) - 44100) <= (2400 if suffix == "mp3" else 0)


def test_upper_case_names_are_read(tmp_path: Path) -> None:
    assert len(decode_audio(write(tmp_path / "TONE.WAV", tone(8000), 8000), sample_rate=8000)) == 8000


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_float_beyond_full_scale_is_clipped(tmp_path: Path, subtype: str, rate: int) -> None:
    path = write(tmp_path / "hot.wav", tone(rate, amplitude=3.0), rate, subtype)
    ours = decode_audio(path, sample_rate=8000).numpy()[100:-100]
    exact = 32767 * tone(8000, amplitude=3.0)[100:-100]
    loud = np.abs(exact) > 1.1 * 32767
    assert (ours[loud & (exact > 0)] == 32767).all()
    assert (ours[loud & (exact < 0)] == -32768).all()
    assert np.abs(ours - exact)[np.abs(exact) < 20000].max() < 700


@pytest.mark.parametrize(
    ("suffix", "subtype"), [("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III"), ("ogg", "OPUS")]
)
def test_loud_lossy_recordings_are_clipped_not_wrapped(tmp_path: Path, suffix: str, subtype: str) -> None:
    """A coder overshoots at full scale; libsndfile wraps that to the other sign when asked for int16."""
    path = write(tmp_path / f"square.{suffix}", np.sign(tone(48000)) * 0.999, 48000, subtype)
    ours = decode_audio(path, sample_rate=48000).numpy()
    exact, _ = soundfile.read(path, dtype="float64")
    assert np.abs(exact).max() > 1.05
    assert np.abs(ours - np.clip(32767 * exact, -32768, 32767)).max() <= 2


def test_short_clips_are_padded_at_their_end(tmp_path: Path) -> None:
    wave = np.arange(1, 3001, dtype=np.int16)
    path = write(tmp_path / "short.wav", wave, 8000)
    for rng in (None, np.random.default_rng(0)):
        ours = load(path, rng)
        assert len(ours) == 8000
        assert (ours[:3000] == wave).all()
        assert (ours[3000:] == 0).all()


def test_long_clips_are_cut_in_the_middle_or_anywhere(tmp_path: Path) -> None:
    wave = np.arange(1, 20002, dtype=np.int16)
    path = write(tmp_path / "long.wav", wave, 8000)
    assert (load(path) == wave[6000:14000]).all()  # 12 001 left over, 6 000 before
    starts = []
    for seed in range(200):
        ours = load(path, np.random.default_rng(seed))
        assert (ours == np.arange(ours[0], ours[0] + 8000)).all()
        starts.append(int(ours[0]) - 1)
    assert min(starts) >= 0
    assert max(starts) <= 12001
    assert min(starts) < 600
    assert max(starts) > 11400
    assert np.mean(starts) == pytest.approx(6000, abs=4 * 12001 / np.sqrt(12 * 200))


def test_both_ends_of_a_long_clip_can_be_drawn(tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", np.arange(1, 8003, dtype=np.int16), 8000)
    assert {int(load(path, np.random.default_rng(seed))[0]) for seed in range(40)} == {1, 2, 3}


def test_shift_is_circular_within_its_reach_and_for_training_only(tmp_path: Path) -> None:
    wave = np.arange(1, 8001, dtype=np.int16)
    path = write(tmp_path / "ramp.wav", wave, 8000)
    assert (load(path, shift=0.25) == wave).all()
    assert (load(path, np.random.default_rng(0), shift=0.0) == wave).all()
    shifts = []
    for seed in range(100):
        ours = load(path, np.random.default_rng(seed), shift=0.25)
        shift = (1 - int(ours[0]) + 4000) % 8000 - 4000
        assert (ours == np.roll(wave, shift)).all()
        shifts.append(shift)
    assert max(map(abs, shifts)) <= 2000
    assert min(shifts) < -1500
    assert max(shifts) > 1500


def test_a_generator_decides_everything(tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", tone(8000, seconds=3), 8000)
    source = AudioInput(AudioInput.Config(sample_rate=8000, seconds=1, shift=0.5))
    one, two, other = (
        source.load(Sample("s", audio=path), np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["waveform"], other["waveform"])


def test_silence_passes(tmp_path: Path) -> None:
    assert (load(write(tmp_path / "silent.wav", np.zeros(8000, np.int16), 8000)) == 0).all()
    assert (load(write(tmp_path / "silent2.wav", np.zeros((9000, 2)), 16000, "FLOAT")) == 0).all()


@pytest.fixture
def two_tones(tmp_path: Path) -> tuple[Path, Path]:
    """500 Hz, and a tenth as loud 1500 Hz, 8 kHz, 1 s."""
    return (
        write(tmp_path / "own.wav", tone(8000, hertz=500, amplitude=0.4), 8000),
        write(tmp_path / "other.wav", tone(8000, hertz=1500, amplitude=0.04), 8000),
    )


def amplitude_mixed_in(item: dict[str, torch.Tensor]) -> float:
    """Of the 1500 Hz, in units of the 500 Hz's; together they have the amplitude that 500 Hz alone had."""
    spectrum = np.abs(np.fft.rfft(item["waveform"].numpy())) / (8000 / 2 * 32767 * 0.4)
    assert spectrum[500] + spectrum[1500] == pytest.approx(1, abs=2e-3)
    return float(spectrum[1500] / spectrum[500])


def test_a_mix_holds_another_recording_at_an_amplitude_in_the_range(two_tones: tuple[Path, Path]) -> None:
    own, other = two_tones
    mixing = {"amplitude": (0.2, 0.5), "probability": 0.7}
    source = AudioInput(AudioInput.Config.model_validate({"sample_rate": 8000, "seconds": 1, "mix": mixing}))
    source.train_on([Sample("other", audio=other)])
    assert (source.load(Sample("s", audio=own), None)["waveform"].numpy() == load(own)).all()
    drawn = [source.load(Sample("s", audio=own), np.random.default_rng(seed)) for seed in range(200)]
    amplitudes = np.array([amplitude_mixed_in(item) for item in drawn])
    mixed = amplitudes > 0.01
    assert mixed.mean() == pytest.approx(0.7, abs=3 * np.sqrt(0.7 * 0.3 / 200))
    assert 0.198 < amplitudes[mixed].min() < 0.21
    assert 0.49 < amplitudes[mixed].max() < 0.502


def test_a_number_is_the_largest_amplitude_and_none_mixes_nothing() -> None:
    mixing = AudioInput.Config.model_validate({"mix": 0.3}).mix
    assert mixing is not None
    assert (mixing.amplitude, mixing.probability, mixing.share) == ((0, 0.3), 1, False)
    assert AudioInput.Config.model_validate({"mix": 0}).mix is None
    shared = AudioInput.Config.model_validate({"mix": {"amplitude": 0.3, "share": True}}).mix
    assert shared is not None
    assert (shared.amplitude, shared.probability) == ((0, 0.3), 0.5)
    for wrong in (1.5, True, {"share": "perhaps"}, {"amplitude": [0.5]}, {"amplitude": [0.5, 0.2]}):
        with pytest.raises(ValueError, match="mix"):
            AudioInput.Config.model_validate({"mix": wrong})


def test_views_share_what_is_mixed_in_or_draw_their_own(tmp_path: Path) -> None:
    """Recording i is 500 + 100 i Hz; each view's strongest frequency beside its own names its partner."""
    waves = {i: tone(8000, hertz=500 + 100 * i, amplitude=0.1) for i in range(20)}
    others = [Sample(str(i), audio=write(tmp_path / f"{i}.wav", wave, 8000)) for i, wave in waves.items()]
    own = Sample("own", audio=write(tmp_path / "own.wav", tone(8000, hertz=3001), 8000))

    def partners(share: bool, seed: int) -> list[tuple[float, float]]:
        """(frequency mixed in, its amplitude) of three views."""
        mixing = {"amplitude": (0.1, 0.9), "probability": 0.5, "share": share}
        options = {"sample_rate": 8000, "seconds": 1, "shift": 0.5, "mix": mixing}
        source = AudioInput(AudioInput.Config.model_validate(options))
        source.train_on(others)
        views = source.load_views(own, {v: np.random.default_rng([seed, v]) for v in (0, 1, 2)})
        found = []
        for item in views.values():
            spectrum = np.abs(np.fft.rfft(item["waveform"].numpy()))
            kept, spectrum[3001] = spectrum[3001], 0
            found.append((float(spectrum.argmax()), round(float(spectrum.max() / kept), 2)))
        starts = {tuple(item["waveform"][:5].tolist()) for item in views.values()}
        assert len(starts) == 3  # each its own shift, whatever is mixed in
        return [(hertz if loud > 0.05 else 0, loud if loud > 0.05 else 0) for hertz, loud in found]

    shared = [partners(True, seed) for seed in range(30)]
    assert all(len(set(views)) == 1 for views in shared)
    assert len({views[0][0] for views in shared}) > 6
    assert 5 < sum(views[0] == (0, 0) for views in shared) < 25
    assert sum(len(set(partners(False, seed))) > 1 for seed in range(30)) > 20


def test_mixing_keeps_silence_and_stays_in_range() -> None:
    silence, loud = np.zeros(100, np.int16), np.full(100, -32768, np.int16)
    assert (mix(silence, loud, 0.5) == 0).all()
    assert (mix(loud, silence, 0.5) == loud).all()
    square = np.where(np.arange(100) % 2, 32767, -32767).astype(np.int16)
    peaks = np.where(np.arange(100) % 50, 0, 32767).astype(np.int16)  # brought to the other's level: clipped
    mixed = mix(square, peaks, 0.9)
    assert mixed.max() == 32767
    assert mixed.min() >= -32768


@pytest.mark.parametrize("offset", [0, 12_000])
def test_an_offset_is_no_loudness(offset: int) -> None:
    """Amplitudes and decibels are those of the sounds, measured in float64, wherever either is centred."""
    sound = (3000 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000) + offset).round().astype(np.int16)
    other = (500 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000) - offset).round().astype(np.int16)
    mixed = 1.5 * mix(sound, other, 0.5).astype(float) - sound.astype(float)
    assert mixed.std() == pytest.approx(0.5 * sound.astype(float).std(), rel=1e-2)
    assert mixed.mean() == pytest.approx(0, abs=1)
    noise = add_noise(sound, 20, np.random.default_rng(0)).astype(float) - sound
    assert 20 * np.log10(sound.astype(float).std() / noise.std()) == pytest.approx(20, abs=0.2)
    constant = np.full(8000, offset, np.int16)
    assert (add_noise(constant, 0, np.random.default_rng(0)) == constant).all()
    assert (mix(sound, constant, 0.5) == sound).all()


def test_playing_a_part_is_a_part_of_playing_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        samples, speed = int(rng.integers(1, 300)), float(2 ** rng.uniform(-2, 2))
        wave = rng.integers(-32768, 32768, samples).astype(np.int16)
        moments = np.arange(0, samples - 1, speed)
        whole = np.interp(moments, np.arange(samples), wave).round().astype(np.int16)
        assert played_length(samples, speed) == len(whole)
        start, stop = sorted(rng.integers(0, len(whole) + 1, 2).tolist())
        assert np.array_equal(play(wave, speed, slice(start, stop)), whole[start:stop])


def test_speed_reads_of_a_recording_what_the_clip_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most two octaves up are four clips' length, wherever in the recording; every place is as likely."""
    lengths: list[int] = []
    whole = np.interp

    def interpolate(moments: np.ndarray, at: np.ndarray, wave: np.ndarray) -> np.ndarray:
        lengths.append(len(wave))
        return whole(moments, at, wave)

    monkeypatch.setattr(np, "interp", interpolate)
    ramp = (np.arange(80_000) * (65_000 / 80_000) - 32_500).round()  # the level tells the place
    path = write(tmp_path / "long.wav", ramp.astype(np.int16), 8000)
    clips = [load(path, np.random.default_rng(seed), speed=2.0) for seed in range(300)]
    assert max(lengths) <= 4 * 8000 + 2
    speeds = np.array([(clip[-1] - clip[0]) / 7999 / (65_000 / 80_000) for clip in clips])
    drawn = [np.random.default_rng(seed).uniform(-2, 2) for seed in range(300)]
    assert np.log2(speeds) == pytest.approx(drawn, abs=2e-3)
    ends = 80_000 - 1 - speeds * 7999
    starts = np.array([(clip[0] + 32_500) * (80_000 / 65_000) for clip in clips]) / ends
    assert starts.mean() == pytest.approx(0.5, abs=3 / np.sqrt(12 * 300))
    assert starts.std() == pytest.approx(1 / np.sqrt(12), abs=0.03)


BROKEN = (
    "nan",
    "infinity",
    "empty",
    "text",
    "truncated",
    "headless",
    "missing",
    "no samples",
    "folder",
    "m4a",
    "other unit",
    "slow",
    "too short",
)


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_not_a_recording_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "clip.wav"
    wave = tone(8000)
    if kind in ("nan", "infinity"):
        wave[77] = np.nan if kind == "nan" else np.inf
        write(path, wave, 8000, "FLOAT")
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("RIFFraff, but no recording at all, only words " * 9)
    elif kind == "truncated":  # the header promises 16 000 bytes
        write(path, wave, 8000)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "headless":
        write(path, wave, 8000)
        path.write_bytes(path.read_bytes()[:20])
    elif kind == "no samples":
        write(path, np.zeros(0), 8000)
    elif kind == "folder":
        path.mkdir()
    elif kind == "m4a":  # left to librosa, whose back ends raise anything
        path = tmp_path / "clip.m4a"
        path.write_bytes(b"\0\0\0\x20ftypM4A ")
    elif kind == "other unit":  # int16's numbers, kept as floats
        write(path, 20000 * wave, 8000, "FLOAT")
    elif kind == "slow":
        write(path, wave, 7)
    elif kind == "too short":
        write(path, wave[:2], 96000)
    said = {
        "truncated": "truncated",
        "missing": "not found",
        "no samples": "no samples",
        "nan": "NaN",
        "other unit": "times full scale",
        "slow": "rate is 7 Hz",
        "too short": "2 samples at 96000 Hz",
    }
    with pytest.raises(
        UserError, match=rf"(?s)clip\.(wav|m4a).*{said.get(kind, '')}|{said.get(kind, '')}.*clip\."
    ):
        decode_audio(path, sample_rate=8000)


@pytest.mark.parametrize(
    ("suffix", "form"),
    [
        ("wav", "WAV"), ("wav", "WAVEX"), ("wav", "RF64"), ("aiff", "AIFF"), ("au", "AU"),
        ("sph", "NIST"), ("voc", "VOC"),
    ],
)  # fmt: skip
def test_a_file_cut_anywhere_is_truncated(tmp_path: Path, suffix: str, form: str) -> None:
    """These have no frames that a decoder would miss: libsndfile reads what is there as the whole."""
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, tone(8000), 8000, format=form)
    content = path.read_bytes()
    assert len(decode_audio(path, sample_rate=8000)) == 8000
    end = 1 if form == "VOC" else 0  # a last byte after the samples
    for size in (len(content) - 2 - end, len(content) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=rf"clip.* is truncated: {size} of {len(content) - end} bytes"):
            decode_audio(path, sample_rate=8000)


@pytest.mark.parametrize(
    ("riff", "data"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),  # ffmpeg into a pipe
        (0x7FFFF024, 0x7FFFF000),  # sox into a pipe
        (0x80000023, 0x7FFFFFFF),
        (16036, 0xFFFFFFFF),
        (0, 16000),
        (16044, 16000),  # the size of the file in place of what follows it: 8 too many
    ],
)
def test_sizes_that_programs_leave_in_wav_headers_are_no_damage(tmp_path: Path, riff: int, data: int) -> None:
    path = write(tmp_path / "clip.wav", tone(8000), 8000)
    content = bytearray(path.read_bytes())
    assert (len(content), content[36:40]) == (16044, b"data")
    whole = decode_audio(path, sample_rate=8000)
    content[4:8], content[40:44] = riff.to_bytes(4, "little"), data.to_bytes(4, "little")
    path.write_bytes(content)
    assert torch.equal(decode_audio(path, sample_rate=8000), whole)
    header = read_header(path)
    assert header is not None
    assert header.frames == 8000
    if data == 16000:  # what the header knows is still missed
        path.write_bytes(content[:-8])
        with pytest.raises(UserError, match="is truncated: 16036 of 16044 bytes"):
            decode_audio(path, sample_rate=8000)


def test_a_sample_without_a_recording_is_named() -> None:
    with pytest.raises(UserError, match="'photo-3' has no recording"):
        AudioInput(AudioInput.Config()).load(Sample("photo-3"), None)


def test_survey_says_each_thing_once_with_its_count(tmp_path: Path) -> None:
    stereo = np.stack([tone(8000)] * 2, axis=1)
    paths = [
        write(tmp_path / "a.wav", tone(8000), 8000),
        write(tmp_path / "b.wav", tone(16000), 16000),
        write(tmp_path / "c.wav", tone(44100, seconds=2), 44100),
        write(tmp_path / "d.wav", stereo, 8000),
        write(tmp_path / "e.flac", tone(8000, seconds=0.5), 8000),
        write(tmp_path / "f.flac", tone(8000, seconds=0.7), 8000),
        write(tmp_path / "g.ogg", tone(22050, seconds=0.5), 22050),
    ]
    source = AudioInput(AudioInput.Config(sample_rate=8000, seconds=1))
    notes = source.survey([Sample(p.name, audio=p) for p in paths])
    said = {note.split(" are ")[1].split(" (")[0]: note for note in notes}
    assert len(notes) == len(said) == 4
    assert said["resampled"].startswith("3 of 7 ")
    assert said["mixed to one channel"].startswith("1 of 7 ")
    assert said["padded"].startswith("3 of 7 ")
    assert said["cropped"].startswith("1 of 7 ")
    assert all("8000 Hz, mono, 1 s" in note for note in notes)
    assert source.survey([Sample("a", audio=paths[0])]) == []


@pytest.mark.parametrize("kind", ["text", "truncated", "missing"])
def test_survey_names_a_broken_recording_before_training_starts(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "clip.wav"
    if kind == "text":
        path.write_text("words")
    elif kind == "truncated":
        write(path, tone(8000), 8000)
        path.write_bytes(path.read_bytes()[:5000])
    source = AudioInput(AudioInput.Config(sample_rate=8000, seconds=1))
    with pytest.raises(UserError, match=r"clip\.wav"):
        source.survey([Sample("s", audio=path)])
    good = write(tmp_path / "good.wav", tone(16000), 16000)
    both = [Sample("s", audio=path), Sample("t", audio=good)]
    assert [note[:6] for note in source.survey(both, skip=True)] == ["1 of 2"]
