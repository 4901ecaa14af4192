"""Tiny data sets and recipes: the real code on a second's worth of work."""

from __future__ import annotations

from pathlib import Path

from mmvicreg.config import Recipe, load_recipe, recipe_path

IMAGE_TEXT = (
    "inputs.image.size=32",
    "inputs.text.vocabulary=60",
    "branches.image.encoder.small_stem=false",
    "branches.image.expander.widths=[32, 32]",
    "branches.text.encoder.word_features=16",
    "branches.text.encoder.hidden=24",
    "branches.text.expander.widths=[32, 32]",
    "training.precision=fp32",
    "training.log_every=1",
    "training.batch_size=16",
    "training.epochs=2",
    "schedule.warmup_epochs=0",
)
WAVE_MEL = (
    "inputs.audio.sample_rate=4000",
    "inputs.audio.seconds=0.5",
    "branches.wave.encoder.widths=[8, 8, 16, 24]",
    "branches.wave.encoder.stem_stride=2",
    "branches.wave.encoder.stem_pool=2",
    "branches.wave.encoder.strides=[1, 2, 2, 2]",
    "branches.wave.expander.widths=[32, 32]",
    "branches.mel.frontend.sample_rate=4000",
    "branches.mel.frontend.n_fft=256",
    "branches.mel.frontend.win_length=256",
    "branches.mel.frontend.hop_length=128",
    "branches.mel.frontend.n_mels=32",
    "branches.mel.expander.widths=[32, 32]",
    "training.precision=fp32",
    "training.log_every=1",
    "training.batch_size=16",
    "training.epochs=2",
    "schedule.warmup_epochs=0",
)

IMAGE_IMAGE = (
    "inputs.image.size=32",
    "branches.image.expander.widths=[32, 32]",
    "training.precision=fp32",
    "training.log_every=1",
    "training.batch_size=16",
    "training.epochs=2",
    "schedule.warmup_epochs=0",
)
TINY = {
    "image-text": ("shapes", IMAGE_TEXT),
    "wave-mel": ("tones", WAVE_MEL),
    "image-image": ("shapes", IMAGE_IMAGE),
}


def tiny_recipe(pair: str, root: Path, *settings: str) -> Recipe:
    """The shapes or tones recipe, shrunk, on the data at ``root``."""
    name, shrink = TINY[pair]
    return load_recipe(recipe_path(pair, name, None), {"dataset.root": str(root)}, [*shrink, *settings])


def as_flags(pair: str, root: Path, *settings: str) -> list[str]:
    """The same as command-line arguments of ``mmvicreg train``."""
    name, shrink = TINY[pair]
    flags = ["--pair", pair, "--dataset", name, "--data-root", str(root)]
    return flags + [part for setting in (*shrink, *settings) for part in ("--set", setting)]
