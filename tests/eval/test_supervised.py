"""The supervised baseline: what it is trained on, that branches do not touch, and that done folds are kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_recipe, untrained_run
from torch.nn import functional

from mmvicreg.branches.model import build_inputs
from mmvicreg.cli import main
from mmvicreg.config import Recipe
from mmvicreg.datasets import open_dataset, training_samples
from mmvicreg.errors import UserError
from mmvicreg.eval import linear, supervised
from mmvicreg.eval.supervised_training import fit, supervised_recipe
from mmvicreg.runs import Run, create_run
from mmvicreg.samples import Sample
from mmvicreg.training.loader import TrainingLoader
from mmvicreg.training.setup import build_model

DRAWN = ("inputs.audio.shift=0.2", "inputs.audio.speed=0", "inputs.audio.noise_db=null", "seed=3")


def tones(root: Path, *, fold: int | str = 1) -> tuple[list[Sample], np.ndarray]:
    samples = training_samples(open_dataset("tones", root=root), split="train", fold=fold)
    return samples, np.array([sample.label for sample in samples], dtype=np.int64)


def run_of(path: Path, root: Path, *settings: str, fold: int | str = 1) -> Run:
    return create_run(path, tiny_recipe("wave-mel", root, *DRAWN, f"dataset.fold={fold}", *settings))


def test_a_branch_ends_where_a_plain_loop_over_it_alone_ends(tiny_tones: Path) -> None:
    """AdamW, cross-entropy, warm-up and cosine written out; the mel network without the waveform's beside it."""
    settings = (
        "schedule.warmup_epochs=1",
        "optimizer.clip_norm=0.5",
        "training.precision=fp64",
        "training.batch_size=32",
    )
    recipe = supervised_recipe(tiny_recipe("wave-mel", tiny_tones, *DRAWN, *settings), 4)
    samples, labels = tones(tiny_tones)
    model, epochs = fit(recipe, samples, labels, device="cpu", workers=0)
    assert not model.training
    assert [set(epoch.loss) for epoch in epochs] == [{"wave", "mel"}] * 2

    inputs = build_inputs(recipe)
    branch = build_model(recipe, inputs).branch("mel").double().train()
    loader = TrainingLoader(recipe, inputs, samples, workers=0)
    heavy = [p for p in branch.parameters() if p.ndim > 1]
    light = [p for p in branch.parameters() if p.ndim <= 1]
    groups = [{"params": heavy, "weight_decay": 0.01}, {"params": light, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    steps, losses = len(loader), []
    for epoch in (0, 1):
        for i, batch in enumerate(loader.epoch(epoch)):
            factor = (i + 1) / (steps + 1) if epoch == 0 else 0.5 * (1 + np.cos(np.pi * i / steps))
            for group in optimizer.param_groups:
                group["lr"] = recipe.optimizer.lr * factor
            optimizer.zero_grad()
            _, scores = branch(batch.views["audio/1"])
            loss = functional.cross_entropy(scores, torch.from_numpy(labels)[batch.index])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(branch.parameters(), 0.5)
            optimizer.step()
            losses.append(float(loss.detach()))
    means = np.mean(np.reshape(losses, (2, steps)), axis=1)
    assert [epoch.loss["mel"] for epoch in epochs] == pytest.approx(means.tolist(), rel=1e-5)
    ours, theirs = model.branch("mel").state_dict(), branch.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-9, rtol=1e-6, msg=name)


def test_it_learns_what_labels_tell(tmp_path: Path, tiny_tones: Path) -> None:
    """Three pitches."""
    rng, samples = np.random.default_rng(0), []
    for i in range(48):
        wave = 0.3 * np.sin(2 * np.pi * 150 * 3 ** (i % 3) * np.arange(2000) / 4000 + rng.uniform(0, 6))
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, wave + 0.02 * rng.standard_normal(2000), 4000)
        samples.append(Sample(path.name, audio=path, label=i % 3))
    settings = ("training.epochs=6", "optimizer.lr=0.002", "branches.mel.frontend.equalise_db=0")
    recipe = supervised_recipe(tiny_recipe("wave-mel", tiny_tones, *DRAWN, *settings), 3)
    _, epochs = fit(recipe, samples, np.arange(48) % 3, device="cpu", workers=0)
    assert epochs[-1].top1["mel"] > 80
    assert epochs[-1].loss["mel"] < 0.5 * epochs[0].loss["mel"]


def test_micro_batches_give_the_gradient_of_the_whole(
    tiny_tones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without BatchNorm's batch statistics, which see micro-batches."""
    from mmvicreg.eval import supervised_training as training

    samples, labels = tones(tiny_tones)
    gradients = []
    for setting in ("training.micro_batch=null", "training.micro_batch=5"):
        recipe = supervised_recipe(tiny_recipe("wave-mel", tiny_tones, *DRAWN, setting), 4)
        inputs = build_inputs(recipe)
        model = build_model(recipe, inputs).double().eval()
        batch = next(TrainingLoader(recipe, inputs, samples, workers=0).epoch(0))
        found = training._differentiate(model, batch, torch.from_numpy(labels))
        gradients.append([found, *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[list[Sample]]:
    """What each training is given; the networks stay as they start."""
    seen: list[list[Sample]] = []

    def start(recipe: Recipe, samples: list[Sample], labels: np.ndarray, *, device: str) -> Any:
        assert [sample.label for sample in samples] == labels.tolist()
        seen.append(list(samples))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return build_model(recipe, build_inputs(recipe)).eval(), []

    monkeypatch.setattr(supervised, "fit", start)
    return seen


def test_done_folds_are_kept_and_the_rest_is_trained(
    tmp_path: Path, tiny_tones: Path, fitted: list[list[Sample]]
) -> None:
    folder = tmp_path / "folds"
    for fold in range(1, 6):
        run_of(folder / f"fold{fold}", tiny_tones, fold=fold)
    with pytest.raises(KeyboardInterrupt):
        supervised.run(folder)
    kept = [folder / f"fold{fold}" / "eval" / "supervised.json" for fold in (1, 2)]
    before = [file.read_bytes() for file in kept]
    assert not (folder / "fold3" / "eval" / "supervised.json").exists()
    report = supervised.run(folder)  # three more, of which none is the first or second
    assert [sorted({sample.fold for sample in part}) for part in fitted] == [
        [f for f in range(1, 6) if f != held] for held in (1, 2, 3, 3, 4, 5)
    ]
    assert [file.read_bytes() for file in kept] == before
    assert json.loads((folder / "eval" / "supervised.json").read_text()) == report
    assert list(report["branches"]) == ["wave", "mel", "wave+mel"]
    for found in report["branches"].values():
        each = [value["top1"] for value in found["folds"].values()]
        assert list(found["folds"]) == ["1", "2", "3", "4", "5"]
        assert found["top1"] == pytest.approx(np.mean(each))
        assert found["std"] == pytest.approx(np.std(each, ddof=1))
    assert (report["test"], report["train"], report["classes"]) == (80, 64, 4)
    assert list((folder / "fold2" / "eval" / "supervised").glob("step-*.pt"))


def test_a_result_of_something_else_is_not_taken_for_it(
    tmp_path: Path, tiny_tones: Path, fitted: list[list[Sample]]
) -> None:
    run = run_of(tmp_path / "run", tiny_tones)
    first = supervised.run(run)
    assert supervised.run(run)["branches"] == first["branches"]
    assert len(fitted) == 1
    file = run.path / "eval" / "supervised.json"
    other = Run(run.path, tiny_recipe("wave-mel", tiny_tones, *DRAWN, "training.epochs=5"))
    with pytest.raises(UserError, match=r"supervised\.json is of another recipe .* move it away"):
        supervised.run(other)
    file.write_text("{}")
    with pytest.raises(UserError, match=r"supervised\.json is not a result of this protocol"):
        supervised.run(run)
    assert file.read_text() == "{}"


def test_a_run_that_held_nothing_out_has_no_baseline(tmp_path: Path, tiny_tones: Path) -> None:
    with pytest.raises(UserError, match="held out no fold"):
        supervised.run(run_of(tmp_path / "run", tiny_tones, fold="none"))
    with pytest.raises(UserError, match="held out fold 1, not fold 2"):
        supervised.run(run_of(tmp_path / "other", tiny_tones), fold=2)


def test_text_has_none(tmp_path: Path, tiny_shapes: Path) -> None:
    with pytest.raises(UserError, match="not for text"):
        supervised_recipe(tiny_recipe("image-text", tiny_shapes), 4)


def test_the_command_and_its_row_in_the_linear_table(
    tmp_path: Path, tiny_tones: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = untrained_run(tmp_path / "run", tiny_recipe("wave-mel", tiny_tones, *DRAWN, "training.epochs=1"))
    monkeypatch.setattr(sys, "argv", ["mmvicreg", "eval", "supervised", str(run.path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "Supervised baseline, tones, 4 classes, 1 epochs, 64 training and 16 test samples" in printed
    assert "wave+mel" in printed
    shown = linear.run(run)["methods"][-1]
    assert "supervised: encoder and linear layer" in capsys.readouterr().out
    own = json.loads((run.path / "eval" / "supervised.json").read_text())["branches"]
    assert shown["method"] == "supervised"
    assert {name: found["folds"] for name, found in shown["branches"].items()} == {
        name: found["folds"] for name, found in own.items()
    }


def test_recordings_of_two_classes_are_not_mixed_under_one_label(tiny_tones: Path) -> None:
    mixing = tiny_recipe("wave-mel", tiny_tones, "inputs.audio.mix={probability: 1.0}")
    assert mixing.inputs["audio"]["mix"]
    assert supervised_recipe(mixing, 4).inputs["audio"].get("mix") is None
