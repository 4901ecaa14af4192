"""Small runs over several edges and several data sets, and what they are held against."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import IMAGE_TEXT
from torch import Tensor

from mmvicreg.branches.model import Batch
from mmvicreg.config import Recipe
from mmvicreg.recipes import dump_recipe, load_recipe, recipe_path
from mmvicreg.runs import Run, create_run
from mmvicreg.training.checkpoint import list_checkpoints, load_checkpoint
from mmvicreg.training.distributed import World
from mmvicreg.training.log import read_lines
from mmvicreg.training.loop import Trainer
from mmvicreg.training.microbatch import differentiate

ALONE = World(0, 1, 0, torch.device("cpu"))
ROWS = ("training.epochs=1", "monitor.grace_steps=1000")
UNIMPORTANT = ("seconds", "samples_per_second", "memory_mb")


def joint_recipe(shapes: Path, *settings: str) -> Recipe:
    path = recipe_path("image-text", "shapes", "shapes-joint")
    return load_recipe(path, {"dataset.root": str(shapes)}, [*IMAGE_TEXT, *ROWS, *settings])


def start(out: Path, recipe: Recipe, *, resume: bool = False, workers: int = 0) -> Trainer:
    trainer = Trainer(Run(out, recipe), ALONE, resume=resume, workers=workers)
    if not resume:
        create_run(out, recipe)
    return trainer


def terms(z: Tensor) -> tuple[Tensor, Tensor]:
    """v and c of Algorithm 1, written out in float64."""
    z = z.double() - z.double().mean(dim=0)
    n, d = z.shape
    covariance = z.T @ z / (n - 1)
    v = torch.relu(1 - torch.sqrt(covariance.diagonal() + 1e-4)).mean()
    return v, (covariance - torch.diag(covariance.diagonal())).square().sum() / d


def loss_of(
    embeddings: dict[str, Tensor], edges: list[tuple[str, str, float]], mu: dict[str, float], nu: float
) -> float:
    """Eq. 6 over a graph: a mean squared error per edge, v and c once for every node."""
    loss = torch.zeros((), dtype=torch.float64)
    for a, b, weight in edges:
        loss += weight * (embeddings[a].double() - embeddings[b].double()).square().mean()
    for name, weight in mu.items():
        v, c = terms(embeddings[name])
        loss += weight * v + nu * c
    return float(loss)


def first_batch(trainer: Trainer) -> Batch:
    trainer.model.train()
    return next(iter(trainer._batches(0, start=0)))


def assert_micro_batches_are_exact(trainer: Trainer) -> None:
    trainer._wrap(0)
    model, batch = trainer.model, first_batch(trainer)
    model.branch("image").freeze("batchnorm")
    output = model(batch)
    output.loss.backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    again = differentiate(model, batch, 5)
    assert float(again.loss) == pytest.approx(float(output.loss.detach()), rel=1e-10)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == whole.keys()
    for name, expected in whole.items():
        assert torch.allclose(found[name], expected, rtol=1e-6, atol=1e-9), name


def assert_same_state(found: Any, expected: Any) -> None:
    assert found["model"].keys() == expected["model"].keys()
    for key, value in expected["model"].items():
        assert torch.equal(found["model"][key], value), key
    for key, state in expected["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(found["optimizer"]["state"][key][name], value)


def stop_and_resume(recipe: Recipe, tmp_path: Path, *, at: int, workers: int = 0) -> tuple[Any, Any]:
    """Last checkpoints of a run that was stopped after step ``at`` and of one that was not."""
    start(tmp_path / "whole", recipe).train()
    trainer = start(tmp_path / "run", recipe)
    step = trainer._step

    def stop_after(*arguments: Any) -> Any:
        output = step(*arguments)
        if trainer.step == at:
            signal.raise_signal(signal.SIGTERM)
        return output

    trainer._step = stop_after  # type: ignore[method-assign]
    assert trainer.train().step == at
    resumed = start(tmp_path / "run", recipe, resume=True, workers=workers)
    resumed.train()
    resumed.loader.close()
    lines = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("run", "whole")]
    for a, b in zip(*lines, strict=True):
        assert {k: v for k, v in a.items() if k not in UNIMPORTANT} == {
            k: v for k, v in b.items() if k not in UNIMPORTANT
        }
    found, expected = (
        load_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("run", "whole")
    )
    return found, expected


def losses(recipe: Recipe, out: Path, *more: str) -> list[float]:
    """Of every step of a run through the command line; the recipe travels as a file."""
    file = out.with_suffix(".yaml")
    file.write_text(dump_recipe(recipe))
    command = [sys.executable, "-m", "mmvicreg", "train", "--pair", recipe.pair, "--recipe", str(file)]
    done = subprocess.run(
        [*command, "--device", "cpu", "--workers", "0", "--out", str(out), *more],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [line["loss"] for line in read_lines(out / "metrics.jsonl")]
