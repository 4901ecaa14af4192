"""Recordings decoded once: the same bits, whole files only, no more opened than asked for."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_recipe

from mmvicreg.branches.model import build_inputs
from mmvicreg.config import Recipe
from mmvicreg.datasets import open_dataset, training_samples
from mmvicreg.encode import encode
from mmvicreg.errors import UserError
from mmvicreg.inputs import audio, audio_cache
from mmvicreg.inputs.base import NotPreparedError
from mmvicreg.inputs.decode import read_recording
from mmvicreg.samples import Sample
from mmvicreg.training.loader import TrainingLoader
from mmvicreg.training.setup import build_model

DRAWN = tuple(
    f"inputs.audio.{option}" for option in ("shift=0.5", "speed=0.3", "mix=0.4", "noise_db=10", "seconds=0.7")
)
RATE = 4000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own; the folder that recordings of RATE come into."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return audio_cache.folder_of(RATE)


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.wav" for i in range(6)]
    for path in paths:
        soundfile.write(path, rng.integers(-9000, 9000, (8000, 2)).astype(np.int16), 8000)
    return paths


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.npy"))


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.suffix not in (".npy",) and path.name != ".lock"]


def whole(paths: list[Path]) -> bool:
    """Every recording is there, and is what decoding gives."""
    maps = [audio_cache.read(path, sample_rate=RATE) for path in paths]
    return all(
        found is not None and np.array_equal(found, read_recording(path, sample_rate=RATE))
        for path, found in zip(paths, maps, strict=True)
    )


def loader(recipe: Recipe, *, workers: int = 0, rank: int = 0, world_size: int = 1) -> TrainingLoader:
    dataset = open_dataset(recipe.dataset.name, root=Path(str(recipe.dataset.root)))
    samples = training_samples(dataset, split="train", fold=recipe.dataset.fold)
    return TrainingLoader(
        recipe, build_inputs(recipe), samples, workers=workers, rank=rank, world_size=world_size
    )


def views(batches: TrainingLoader, epoch: int) -> list[dict[str, torch.Tensor]]:
    return [
        {f"{view}.{name}": value for view, item in batch.views.items() for name, value in item.items()}
        for batch in batches.epoch(epoch)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_bit_for_bit_those_of_decoding_each_time(
    tiny_tones: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    decoded = loader(tiny_recipe("wave-mel", tiny_tones, *DRAWN, "inputs.audio.cache=false"))
    expected = views(decoded, 3)
    assert not cache.exists()
    mapped = loader(tiny_recipe("wave-mel", tiny_tones, *DRAWN), workers=workers)
    assert len(kept(cache)) == 64
    monkeypatch.setattr(audio, "read_recording", None)  # nothing is decoded any more
    found = views(mapped, 3)
    assert len(found) == len(expected) == 4
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    mapped.close()


def test_the_held_out_fold_is_not_opened_and_folds_share_the_rest(
    tiny_tones: Path, tmp_path: Path, cache: Path
) -> None:
    root = tmp_path / "tones"
    shutil.copytree(tiny_tones, root)
    data = open_dataset("tones", root=root)
    for sample in data.samples("fold1"):
        assert sample.audio is not None
        sample.audio.write_bytes(b"opening this is an error")
    views(loader(tiny_recipe("wave-mel", root, *DRAWN)), 0)
    assert len(kept(cache)) == 64  # 16 of 80 are fold 1's
    for sample in data.samples("fold1"):
        assert sample.audio is not None
        shutil.copy2(tiny_tones / "audio" / sample.audio.name, sample.audio)
    every = [sample.audio for sample in data.samples("all") if sample.audio]
    assert audio_cache.build(every, sample_rate=RATE).recordings == 16
    assert audio_cache.build(every, sample_rate=RATE).recordings == 0
    assert whole(every)


def test_mixing_draws_on_training_recordings_and_not_on_the_number_of_processes(
    tiny_tones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe("wave-mel", tiny_tones, "inputs.audio.mix=0.5")
    opened: set[str] = set()
    read = audio.AudioInput._read

    def watched(self: audio.AudioInput, sample: Sample) -> Any:
        opened.add(sample.id)
        return read(self, sample)

    monkeypatch.setattr(audio.AudioInput, "_read", watched)
    one = views(loader(recipe), 0)
    training = training_samples(open_dataset("tones", root=tiny_tones), split="train", fold=1)
    assert opened <= {sample.id for sample in training}
    halves = [views(loader(recipe, rank=rank, world_size=2), 0) for rank in (0, 1)]
    for batch, first, second in zip(one, *halves, strict=True):
        for key, value in batch.items():
            assert torch.equal(value, torch.cat([first[key], second[key]])), key
    plain = views(loader(tiny_recipe("wave-mel", tiny_tones)), 0)
    assert not torch.equal(one[0]["audio/0.waveform"], plain[0]["audio/0.waveform"])


def test_a_map_is_read_only(recordings: list[Path]) -> None:
    assert audio_cache.build(recordings, sample_rate=RATE).recordings == 6
    found = audio_cache.read(recordings[0], sample_rate=RATE)
    assert isinstance(found, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


@pytest.mark.parametrize("change", ["content", "time", "size"])
def test_a_changed_recording_is_decoded_again_and_its_old_file_goes(
    recordings: list[Path], cache: Path, change: str
) -> None:
    audio_cache.build(recordings, sample_rate=RATE)
    before, state = set(kept(cache)), recordings[2].stat()
    if change == "time":
        os.utime(recordings[2], ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))
    else:
        length = 8000 if change == "content" else 9000
        soundfile.write(recordings[2], np.full((length, 2), 55, np.int16), 8000)
        os.utime(recordings[2], ns=(state.st_atime_ns, state.st_mtime_ns + 5_000_000))
    assert audio_cache.read(recordings[2], sample_rate=RATE) is None
    assert audio_cache.build(recordings, sample_rate=RATE).recordings == 1
    assert whole(recordings)
    after = set(kept(cache))
    assert len(after) == 6
    assert len(before & after) == 5


def test_another_rate_is_another_folder(recordings: list[Path], cache: Path) -> None:
    audio_cache.build(recordings, sample_rate=RATE)
    assert audio_cache.read(recordings[0], sample_rate=8000) is None
    assert audio_cache.build(recordings, sample_rate=8000).recordings == 6
    assert whole(recordings)


def test_nothing_is_written_beside_the_recordings(recordings: list[Path]) -> None:
    folder = recordings[0].parent
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    audio_cache.build(recordings, sample_rate=RATE)
    assert before == {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}


@pytest.mark.parametrize("damage", ["half", "zeros", "empty", "gone"])
def test_a_damaged_file_of_the_cache_is_decoded_around(
    recordings: list[Path], cache: Path, damage: str
) -> None:
    source = audio.AudioInput(audio.AudioInput.Config(sample_rate=RATE, seconds=1))
    sample = Sample("s", audio=recordings[0])
    expected = source.load(sample, None)["waveform"]
    source.prepare([sample])
    (file,) = kept(cache)
    content = file.read_bytes()
    file.write_bytes({"half": content[: len(content) // 2], "zeros": bytes(len(content))}.get(damage, b""))
    if damage == "gone":
        file.unlink()
    assert torch.equal(source.load(sample, None)["waveform"], expected)


def build_and_tell(paths: list[Path], start: Any, results: Any) -> None:
    start.wait()
    results.put(audio_cache.build(paths, sample_rate=RATE, workers=0).recordings)


def test_processes_that_start_together_do_the_work_once(recordings: list[Path], cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=build_and_tell, args=(recordings, start, results)) for _ in range(3)]
    for process in processes:
        process.start()
    counts = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(counts) == [0, 0, 6]
    assert whole(recordings)
    assert leftovers(cache) == []


def stop_half_way(paths: list[Path], reached: Any) -> None:
    """Build, and hang with half of the third file written."""
    save, written = np.save, []

    def slow(file: Any, array: np.ndarray) -> None:
        written.append(array)
        if len(written) < 3:
            save(file, array)
            return
        file.write(array.tobytes()[: array.nbytes // 2])
        file.flush()
        reached.set()
        time.sleep(600)

    audio_cache.np.save = slow  # type: ignore[attr-defined]
    audio_cache.build(paths, sample_rate=RATE, workers=0)


def test_a_killed_process_leaves_whole_files_alone(recordings: list[Path], cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    reached = context.Event()
    process = context.Process(target=stop_half_way, args=(recordings, reached))
    process.start()
    assert reached.wait(60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(kept(cache)) == 2
    assert len(leftovers(cache)) == 1  # the half, under a name that nobody reads
    assert whole(recordings[:2])
    assert audio_cache.read(recordings[2], sample_rate=RATE) is None
    assert audio_cache.build(recordings, sample_rate=RATE).recordings == 4  # the lock died with its holder
    assert whole(recordings)
    assert leftovers(cache) == []


def test_a_disk_that_fills_up_is_told_and_leaves_no_part(
    recordings: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(audio_cache.os, "fsync", full)
        with pytest.raises(NotPreparedError, match=r"No space left.*inputs\.audio\.cache=false"):
            audio_cache.build(recordings, sample_rate=RATE)
    assert kept(cache) == []
    assert leftovers(cache) == []
    assert audio_cache.build(recordings, sample_rate=RATE).recordings == 6


def test_room_is_asked_for_before_anything_is_decoded(
    recordings: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 6 * (2 * RATE + 128)
    usage = shutil.disk_usage(recordings[0])
    with monkeypatch.context() as patch:
        patch.setattr(audio_cache, "read_recording", None)
        patch.setattr(audio_cache.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
        with pytest.raises(NotPreparedError, match=r"4000 Hz need 4.*e-05 GB .* free; free some, point XDG_"):
            audio_cache.build(recordings, sample_rate=RATE)
    monkeypatch.setattr(audio_cache.shutil, "disk_usage", lambda _: usage._replace(free=needed))
    built = audio_cache.build(recordings, sample_rate=RATE)
    assert built.recordings == 6
    assert built.size == sum(path.stat().st_size for path in kept(cache)) == needed


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_recording_is_named_and_the_others_stay(
    recordings: list[Path], cache: Path, workers: int
) -> None:
    recordings[4].write_text("words")
    with pytest.raises(UserError, match=r"4\.wav") as caught:
        audio_cache.build(recordings, sample_rate=RATE, workers=workers)
    assert not isinstance(caught.value, NotPreparedError)
    soundfile.write(recordings[4], np.array([0.5, np.nan]), 8000, subtype="FLOAT")  # the header is in order
    with pytest.raises(UserError, match=r"4\.wav.*NaN"):
        audio_cache.build(recordings, sample_rate=RATE, workers=workers)
    assert whole(recordings[:4])
    recordings[5].unlink()
    with pytest.raises(UserError, match=r"recording not found: .*5\.wav"):
        audio_cache.build(recordings, sample_rate=RATE, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_recordings_that_are_skipped_keep_no_other_from_the_cache(
    recordings: list[Path], cache: Path, workers: int
) -> None:
    recordings[0].write_text("words")
    soundfile.write(recordings[2], np.array([0.5, np.nan]), 8000, subtype="FLOAT")  # the header is in order
    recordings[3].unlink()
    for expected in (3, 0):  # at the second start all is there that can be
        built = audio_cache.build(recordings, sample_rate=RATE, workers=workers, skip=True)
        assert built.recordings == expected
        assert whole([recordings[1], recordings[4], recordings[5]])
        assert len(kept(cache)) == 3
    assert leftovers(cache) == []
    samples = [Sample(id=path.stem, audio=path) for path in recordings]
    source = build_inputs(tiny_recipe("wave-mel", cache))["audio"]
    assert source.prepare(samples, skip=True) == []
    with pytest.raises(UserError, match=r"recording not found: .*3\.wav"):
        source.prepare(samples)


def test_without_a_place_training_is_refused_and_evaluation_goes_on(
    tiny_tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file where the cache folder should be")
    recipe = tiny_recipe("wave-mel", tiny_tones)
    with pytest.raises(NotPreparedError, match=r"cannot keep decoded recordings .*XDG_CACHE_HOME"):
        loader(recipe)
    model = build_model(recipe, build_inputs(recipe)).eval()
    samples = open_dataset("tones", root=tiny_tones).samples("fold1")[:3]
    found = encode(model, "wave", samples, space="representation", workers=0)
    assert np.isfinite(found.vectors).all()
    assert "warning: cannot keep decoded recordings" in capsys.readouterr().err


def test_evaluation_adds_what_it_reads_and_gives_the_same_vectors(tiny_tones: Path, cache: Path) -> None:
    samples = open_dataset("tones", root=tiny_tones).samples("fold1")[:5]

    def vectors(*settings: str) -> np.ndarray:
        recipe = tiny_recipe("wave-mel", tiny_tones, *settings)
        model = build_model(recipe, build_inputs(recipe)).eval()
        return encode(model, "mel", samples, space="embedding", workers=0).vectors

    decoded = vectors("inputs.audio.cache=false")
    assert not cache.exists()
    assert np.array_equal(vectors(), decoded)
    assert len(kept(cache)) == 5
