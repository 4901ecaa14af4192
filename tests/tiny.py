"""Tiny data sets and recipes: the real code on a second's worth of work."""

from __future__ import annotations

from pathlib import Path

from mmvicreg.branches.model import build_inputs
from mmvicreg.config import Recipe
from mmvicreg.datasets import open_dataset, training_samples
from mmvicreg.recipes import load_recipe, recipe_path
from mmvicreg.runs import Run, create_run
from mmvicreg.samples import fingerprint
from mmvicreg.trained_ids import hash_ids
from mmvicreg.training.checkpoint import save_checkpoint
from mmvicreg.training.setup import build_model

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


def untrained_run(path: Path, recipe: Recipe) -> Run:
    """A run folder as training leaves it, with the initial weights for trained ones."""
    assert recipe.dataset.root is not None
    data = open_dataset(recipe.dataset.name, root=Path(recipe.dataset.root))
    inputs = build_inputs(recipe)
    for source in inputs.values():
        source.fit(data.samples(data.splits()[0]))
    model = build_model(recipe, inputs)
    seen = training_samples(data, split=recipe.dataset.train_split, fold=recipe.dataset.fold)
    run = create_run(path, recipe)
    content = {
        "model": model.state_dict(),
        "inputs": {name: source.state() for name, source in inputs.items()},
        "optimizer": {},
        "monitor": {},
        "data": fingerprint(seen),
        "trained_on": {data.name: hash_ids(seen)},
        "position": {"step": 3, "epoch": 2, "seconds": 1.0},
    }
    save_checkpoint(run.checkpoints, 3, content, keep=1)
    return run


def tiny_bert(folder: Path) -> Path:
    """A BERT of 2 layers with a 12-word vocabulary, in transformers' folder layout."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "blue",
        "circle",
        "square",
        "above",
        ".",
    ]
    # transformers 5 ignores vocab_file without a word, and 4 knows nothing else: build what both wrap
    pieces = BertWordPieceTokenizer(vocab={word: i for i, word in enumerate(words)})
    marks = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer, **{f"{name}_token": mark for name, mark in marks.items()}
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=12, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder
