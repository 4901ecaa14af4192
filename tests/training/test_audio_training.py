"""wave-mel through the real loop: awful recordings give finite losses, statistics travel with the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_recipe

from mmvicreg.branches.log_mel import LogMelFrontend
from mmvicreg.config import Recipe
from mmvicreg.datasets import open_dataset, training_samples
from mmvicreg.errors import UserError
from mmvicreg.recipes import parse_recipe
from mmvicreg.runs import RECIPE, Run, open_run
from mmvicreg.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from mmvicreg.training.launch import Launch, train
from mmvicreg.training.log import read_lines

SCALING = ("branches.mel.frontend.scaling=training", "branches.mel.frontend.gain_db=6")


def awful(root: Path) -> Path:
    """A table of recordings that are allowed and unpleasant, two of a kind."""
    t = np.arange(8000) / 8000
    good = 0.5 * np.sin(2 * np.pi * 440 * t)
    kinds = {
        "silent": (np.zeros(8000), 8000, "PCM_16"),
        "one sample": (np.eye(1, 8000)[0] / 32768, 8000, "PCM_16"),
        "clipped": (np.sign(good), 8000, "PCM_16"),
        "offset": (0.9 + 0.01 * good, 8000, "PCM_16"),
        "constant": (np.full(8000, 0.5), 8000, "PCM_16"),
        "hot": (5 * good, 8000, "FLOAT"),
        "high rate": (good, 96000, "PCM_24"),
        "low rate": (good, 1000, "PCM_U8"),
        "stereo": (np.stack([good, -good], 1), 44100, "PCM_16"),  # cancels to silence
        "5.1": (np.stack([good] * 6, 1), 48000, "DOUBLE"),
        "short": (good[:3], 8000, "PCM_16"),
        "denormal": (good * 1e-40, 8000, "DOUBLE"),
    }
    rows = ["filename,label,split"]
    for number, (kind, (wave, rate, subtype)) in enumerate(kinds.items()):
        for take in "AB":
            name = f"{kind}/{take}{number}.wav"
            (root / kind).mkdir(parents=True, exist_ok=True)
            soundfile.write(root / name, wave, rate, subtype=subtype)
            rows.append(f"{name},{number % 2},train")
    (root / "clips.csv").write_text("\n".join(rows) + "\n")
    return root


def recipe_for(root: Path, *settings: str) -> Recipe:
    recipe = tiny_recipe("wave-mel", root, "training.epochs=1", "training.batch_size=8", *settings)
    dataset = recipe.dataset.model_copy(update={"name": "audio-folder"})
    return recipe.model_copy(update={"dataset": dataset})


@pytest.mark.parametrize("scaling", ["peak", "minmax", "training"])
def test_awful_recordings_never_make_nan(tmp_path: Path, scaling: str) -> None:
    drawn = ("speed=0.5", "shift=0.5", "mix=0.5", "noise_db=0")
    recipe = recipe_for(
        awful(tmp_path / "clips"),
        f"branches.mel.frontend.scaling={scaling}",
        *(f"inputs.audio.{option}" for option in drawn),
    )
    out = train(Launch(recipe, tmp_path / "run", device="cpu", workers=0))
    lines = read_lines(out / "metrics.jsonl")
    assert len(lines) == 3
    for line in lines:
        assert np.isfinite([line["loss"], *line["terms"].values()]).all()
    for value in open_run(out).content["model"].values():
        assert bool(torch.isfinite(value).all())


def test_a_recording_of_nan_is_named_before_the_first_step(tmp_path: Path) -> None:
    root = awful(tmp_path / "clips")
    soundfile.write(root / "hot" / "A5.wav", np.full(8000, np.nan), 8000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"A5\.wav holds NaN"):
        train(Launch(recipe_for(root), tmp_path / "run", device="cpu", workers=0))
    assert not (tmp_path / "run").exists()


def test_statistics_are_those_of_the_training_folds_and_travel_with_the_run(
    tmp_path: Path, tiny_tones: Path
) -> None:
    recipe = tiny_recipe("wave-mel", tiny_tones, *SCALING, "training.epochs=1")
    out = train(Launch(recipe, tmp_path / "run", device="cpu", workers=0))
    run: Run = open_run(out)
    trained, untrained = run.model(device="cpu"), run.model(untrained=True, device="cpu")
    data = open_dataset("tones", root=tiny_tones)
    seen = training_samples(data, split="train", fold=1)
    frontend = trained.branch("mel").frontend
    source = trained.inputs["audio"]
    waves = torch.stack([source.load(sample, None)["waveform"] for sample in seen])
    decibels = frontend.decibels(waves.float() / 32768).double()
    expected = torch.stack([decibels.mean(), decibels.std(correction=0)])
    torch.testing.assert_close(frontend.level.double(), expected, atol=1e-3, rtol=1e-5)
    assert torch.equal(untrained.branch("mel").frontend.level, frontend.level)
    a, b = (dict(model.branch("mel").encoder.named_parameters()) for model in (trained, untrained))
    assert any(not torch.equal(a[name], b[name]) for name in a)  # and is untrained otherwise


def test_a_checkpoint_holds_the_resolved_recipe_and_its_spectrogram_cannot_be_exchanged(
    tmp_path: Path, tiny_tones: Path
) -> None:
    recipe = tiny_recipe("wave-mel", tiny_tones, "training.epochs=1")
    out = train(Launch(recipe, tmp_path / "run", device="cpu", workers=0))
    run = open_run(out)
    saved = run.content["recipe"]
    assert parse_recipe(saved, source="checkpoint") == run.recipe
    assert set(saved["branches"]["mel"]["frontend"]) == {"name", *LogMelFrontend.Config.model_fields}
    written = (out / RECIPE).read_text()
    (out / RECIPE).write_text(written.replace("top_db: 80.0", "top_db: 60.0"))
    with pytest.raises(
        UserError, match=r"branches\.mel\.frontend\.top_db: 80\.0 -> 60\.0\): its recipe\.yaml or its"
    ):
        open_run(out).model(device="cpu")
    content = load_checkpoint(list_checkpoints(run.checkpoints)[-1])
    del content["recipe"]  # as earlier versions wrote them
    save_checkpoint(run.checkpoints, content["position"]["step"], content, keep=1)
    assert open_run(out).epochs_done == 1
