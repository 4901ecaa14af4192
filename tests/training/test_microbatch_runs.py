"""Runs in micro-batches: resumed to the bit, stopped at NaN with a checkpoint left, told of once, refused early."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_recipe

from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.runs import Run, create_run
from mmvicreg.training.checkpoint import list_checkpoints, load_checkpoint
from mmvicreg.training.distributed import World
from mmvicreg.training.log import read_lines
from mmvicreg.training.loop import Trainer

ALONE = World(0, 1, 0, torch.device("cpu"))
DROPOUT = "branches.text.encoder.dropout=0.3"
UNIMPORTANT = ("seconds", "samples_per_second", "memory_mb")


def start(out: Path, recipe: Recipe, *, resume: bool = False) -> Trainer:
    trainer = Trainer(Run(out, recipe), ALONE, resume=resume, workers=0)
    if not resume:
        create_run(out, recipe)
    return trainer


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    else:
        assert found == expected


def last_checkpoint(out: Path) -> dict[str, Any]:
    content = load_checkpoint(list_checkpoints(out / "checkpoints")[-1])
    content["position"].pop("seconds")
    del content["recipe"]["training"]["micro_batch"]  # the one difference that is asked for
    return content


def lines(out: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in UNIMPORTANT}
        for line in read_lines(out / "metrics.jsonl")
    ]


def test_resumed_in_the_middle_of_an_epoch_ends_in_the_same_bits(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe("image-text", tiny_shapes, DROPOUT, "training.micro_batch=7")
    start(tmp_path / "whole", recipe).train()
    trainer = start(tmp_path / "run", recipe)
    measure = trainer._measure

    def interrupt(*arguments: Any) -> None:
        measure(*arguments)
        if trainer.step == 7:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(trainer, "_measure", interrupt)
    outcome = trainer.train()
    assert (outcome.step, outcome.stopped_by) == (7, signal.SIGTERM)
    assert start(tmp_path / "run", recipe, resume=True).train().step == 10
    assert_same(last_checkpoint(tmp_path / "run"), last_checkpoint(tmp_path / "whole"))
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_one_that_holds_the_whole_batch_changes_no_bit(
    tiny_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, micro_batch in (("whole", "null"), ("as large", "16"), ("larger", "9999")):
        recipe = tiny_recipe(
            "image-text", tiny_shapes, DROPOUT, "training.epochs=1", f"training.micro_batch={micro_batch}"
        )
        start(tmp_path / name, recipe).train()
        assert_same(last_checkpoint(tmp_path / name), last_checkpoint(tmp_path / "whole"))
    assert "BatchNorm" not in capsys.readouterr().err


def test_batchnorm_is_warned_of_once(
    tiny_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe("image-text", tiny_shapes, "training.micro_batch=6")
    start(tmp_path / "run", recipe).train()
    said = capsys.readouterr().err
    assert said.count("warning: BatchNorm") == 1
    assert "21 in branch image and 1 in branch text) sees micro-batches of 5 or more samples" in said


def test_nan_in_an_embedding_names_the_samples_and_keeps_the_checkpoint(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe("image-text", tiny_shapes, "training.epochs=3", "training.micro_batch=5")
    trainer = start(tmp_path / "run", recipe)
    embed = trainer.model.embed

    def poisoned(batch: Any, *source: str) -> Any:
        embeddings, representations = embed(batch, *source)
        if trainer.step == 7:
            embeddings["text"][batch.index == order[9]] = torch.inf
        return embeddings, representations

    order = [batch.index.tolist() for batch in trainer.loader.epoch(1)][7 - 5]
    monkeypatch.setattr(trainer.model, "embed", poisoned)
    with pytest.raises(UserError) as caught:
        trainer.train()
    message = str(caught.value)
    assert message.startswith(
        "step 8: NaN or infinity in the embedding of branch 'text', rows 9 of the batch of 16"
    )
    assert f"Samples: {trainer.samples[order[9]].id}." in message
    assert "Checkpoints up to the last epoch are kept" in message
    left = last_checkpoint(tmp_path / "run")
    assert left["position"]["step"] == 5
    assert all(torch.isfinite(value).all() for value in left["model"].values())


def test_a_micro_batch_of_one_sample_is_refused_before_anything_is_written(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe("image-text", tiny_shapes, "training.micro_batch=1")
    with pytest.raises(UserError, match=r"leaves BatchNorm .* with a single sample"):
        start(tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()
