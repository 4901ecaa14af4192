"""Joint training: image-image and image-text on one ResNet, from one data set and from several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_runs import write_pictures
from tiny import IMAGE_TEXT
from torch import Tensor

from mmvicreg.branches.model import Batch
from mmvicreg.config import Recipe, load_recipe, recipe_path
from mmvicreg.errors import UserError
from mmvicreg.registry import PROTOCOLS
from mmvicreg.runs import Run, create_run, open_run
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


def test_the_loss_is_the_formula_over_three_nodes_and_two_edges(tiny_shapes: Path, tmp_path: Path) -> None:
    settings = ("training.precision=fp64", "branches.image.variance=10", "edges.1.invariance=7")
    trainer = start(tmp_path / "run", joint_recipe(tiny_shapes, *settings))
    output = trainer.model(first_batch(trainer))
    assert list(output.embeddings) == ["image/0", "image/1", "text"]
    assert not torch.equal(output.embeddings["image/0"], output.embeddings["image/1"])
    expected = loss_of(
        output.embeddings,
        [("image/0", "text", 25), ("image/0", "image/1", 7)],
        {"image/0": 10, "image/1": 10, "text": 25},
        nu=1,
    )
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-10)
    assert {"invariance/image/0-text", "invariance/image/0-image/1"} <= output.terms.keys()


def test_an_edge_given_twice_is_refused(tiny_shapes: Path) -> None:
    with pytest.raises(UserError, match="text-image is there twice"):
        joint_recipe(tiny_shapes, "edges=[{a: image, b: text}, {a: text, b: image}]")


def test_micro_batches_have_the_whole_batch_s_gradient(tiny_shapes: Path, tmp_path: Path) -> None:
    frozen = [f"branches.{name}.expander.norm=none" for name in ("image", "text")]
    frozen += ["training.precision=fp64", "branches.image.freeze=batchnorm"]
    trainer = start(tmp_path / "run", joint_recipe(tiny_shapes, *frozen))
    assert_micro_batches_are_exact(trainer)


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
            import signal

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


def test_a_joint_run_resumes_in_the_same_bits_and_its_branches_are_judged(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    recipe = joint_recipe(tiny_shapes, "training.epochs=2")
    found, expected = stop_and_resume(recipe, tmp_path, at=7)
    assert_same_state(found, expected)
    run = open_run(tmp_path / "run")
    report = PROTOCOLS.load("retrieval")(run)
    assert report["captions"] == 150
    pictures = write_pictures(tmp_path / "pictures")
    judged = PROTOCOLS.load("knn")(run, dataset="image-folder", data_root=pictures, k=[5])
    assert judged["branch"] == "image"
    assert 0 <= judged["k"]["5"]["top1"] <= 100


@pytest.mark.parametrize(
    "method", ["barlow_twins", "vse", "simclr", "{name: wmse, shrinkage: 0.5}", "{name: swav, prototypes: 8}"]
)
def test_other_methods_take_both_edges(tiny_shapes: Path, tmp_path: Path, method: str) -> None:
    trainer = start(tmp_path / "run", joint_recipe(tiny_shapes, f"objective={method}"))
    output = trainer.model(first_batch(trainer))
    output.loss.backward()
    shown = " ".join(output.terms)
    assert "image/0-image/1" in shown
    assert "image/0-text" in shown
    for name in ("image", "text"):
        gradient = trainer.model.branch(name).expander[-1].weight.grad
        assert gradient is not None
        assert float(gradient.norm()) > 0


def test_byol_refuses_the_edge_between_branches_by_name(tiny_shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the edge image/0-text joins two branches"):
        start(tmp_path / "run", joint_recipe(tiny_shapes, "objective=byol"))


def losses(recipe: Recipe, out: Path, *more: str) -> list[float]:
    """Of every step of a run through the command line; the recipe travels as a file."""
    from mmvicreg.config import dump_recipe

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


def test_two_processes_follow_one_jointly(tiny_shapes: Path, tmp_path: Path) -> None:
    recipe = joint_recipe(tiny_shapes, "training.precision=fp64", "training.epochs=2")
    one = losses(recipe, tmp_path / "one")
    two = losses(recipe, tmp_path / "two", "--devices", "2")
    assert len(one) == 10
    assert one == pytest.approx(two, rel=1e-7)
    assert np.isfinite(one).all()
