"""The held-out fold stays closed: what pretraining opens, file by file, and with that fold's files destroyed."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_recipe

from mmvicreg.config import Recipe
from mmvicreg.datasets import open_dataset, training_samples
from mmvicreg.eval.supervised_training import fit, supervised_recipe
from mmvicreg.inputs import audio_cache
from mmvicreg.training.launch import Launch, train

RATE = 4000
EVERYTHING_THAT_READS = (
    "inputs.audio.mix={share: true, probability: 1}",
    "inputs.audio.shift=0.5",
    "branches.mel.frontend.scaling=training",
    "training.epochs=1",
    "training.batch_size=32",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own; the folder that recordings of RATE come into."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = audio_cache.folder_of(RATE)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def clips(tmp_path: Path, tiny_tones: Path) -> Path:
    """80 clips, 16 a fold, that a test may destroy."""
    return shutil.copytree(tiny_tones, tmp_path / "tones")


def recipe_of(root: Path, fold: int, *settings: str) -> Recipe:
    return tiny_recipe("wave-mel", root, *EVERYTHING_THAT_READS, f"dataset.fold={fold}", *settings)


def names(root: Path, fold: int) -> tuple[set[str], set[str]]:
    """File names of the training clips, and of those held out."""
    data = open_dataset("tones", root=root)
    return (
        {s.audio.name for s in training_samples(data, split="train", fold=fold) if s.audio},
        {s.audio.name for s in data.samples(f"fold{fold}") if s.audio},
    )


def destroy(root: Path, held_out: set[str]) -> None:
    for name in held_out:
        (root / "audio" / name).write_text("nothing that could be decoded")


@contextmanager
def opened(*folders: Path) -> Iterator[list[set[str]]]:
    """The names of the files in each folder that any process opens meanwhile, as the kernel tells them."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    watches = {libc.inotify_add_watch(descriptor, os.fsencode(f), 0x20): i for i, f in enumerate(folders)}
    found: list[set[str]] = [set() for _ in folders]
    try:
        assert descriptor >= 0
        assert -1 not in watches
        yield found
        while True:
            try:
                events = os.read(descriptor, 1 << 20)
            except BlockingIOError:
                break
            while events:
                watch, mask, _, size = struct.unpack_from("iIII", events)
                assert not mask & 0x4000, "events were lost"
                name = events[16 : 16 + size].rstrip(b"\0").decode()
                found[watches[watch]] |= {name} if name else set()
                events = events[16 + size :]
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify is Linux's")
@pytest.mark.parametrize("cached", [True, False])
def test_every_training_clip_is_opened_and_no_other(
    tmp_path: Path, clips: Path, cache: Path, cached: bool
) -> None:
    """Fold after fold: with the cache, the second run finds clips there that it must not read either."""
    origin = {audio_cache._origin(path): path.name for path in (clips / "audio").iterdir()}
    for fold in (1, 2):
        training, held_out = names(clips, fold)
        assert (len(training), len(held_out)) == (64, 16)
        recipe = recipe_of(clips, fold, f"inputs.audio.cache={str(cached).lower()}")
        with opened(clips / "audio", cache) as (sources, decoded):
            train(Launch(recipe, tmp_path / f"run{fold}", device="cpu", workers=2 if cached else 0))
        read = {origin[name.partition("-")[0]] for name in decoded if name.endswith(".npy")}
        assert sources | read == training
        assert sources <= training
        assert read == (training if cached else set())
        if cached and fold == 2:
            assert read & names(clips, 1)[1], "fold 1's clips are trained on now"
            assert len(list(cache.glob("*.npy"))) == 80  # fold 2's are there, and were not read


@pytest.mark.parametrize("cached", [True, False])
def test_pretraining_and_baseline_do_without_the_held_out_files(
    tmp_path: Path, clips: Path, cached: bool
) -> None:
    _, held_out = names(clips, 3)
    destroy(clips, held_out)
    recipe = recipe_of(clips, 3, f"inputs.audio.cache={str(cached).lower()}")
    train(Launch(recipe, tmp_path / "run", device="cpu", workers=0))
    samples = training_samples(open_dataset("tones", root=clips), split="train", fold=3)
    labels = np.array([sample.label for sample in samples])
    fit(supervised_recipe(recipe, 4), samples, labels, device="cpu", workers=0)


def test_a_destroyed_training_file_is_noticed(tmp_path: Path, clips: Path) -> None:
    """What the test above relies on."""
    from mmvicreg.errors import UserError

    training, _ = names(clips, 3)
    destroy(clips, {min(training)})
    with pytest.raises(UserError, match=min(training)):
        train(Launch(recipe_of(clips, 3), tmp_path / "run", device="cpu", workers=0))
