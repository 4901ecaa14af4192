"""Runs of BYOL and SimSiam on two views of one branch: they train, stop, resume, spread over processes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_resume import last_state, same
from tiny import tiny_recipe

from mmvicreg.branches.model import Batch, build_graph, view_key
from mmvicreg.config import Recipe
from mmvicreg.encode import encode
from mmvicreg.errors import UserError
from mmvicreg.recipes import parse_recipe
from mmvicreg.runs import open_run
from mmvicreg.training.launch import Launch, train
from mmvicreg.training.log import read_lines
from mmvicreg.training.loop import Trainer
from mmvicreg.training.optim import build_optimizer, set_rate
from mmvicreg.training.setup import build_model, restore_inputs

BYOL: dict[str, Any] = {"name": "byol", "predictor": [24], "momentum": 0.9}
SIMSIAM: dict[str, Any] = {"name": "simsiam", "predictor": [16]}


def two_views(root: Path, objective: dict[str, Any], *settings: str, **training: Any) -> Recipe:
    """The tiny shapes recipe without its text: two crops of a picture through one branch."""
    tree = tiny_recipe("image-text", root, *settings).model_dump(mode="json")
    tree["inputs"] = {"image": tree["inputs"]["image"]}
    tree["branches"] = {"image": tree["branches"]["image"]}
    tree["edges"] = [{"a": "image", "b": "image"}]
    tree["objective"] = objective
    tree["training"] |= {"log_every": 1, **training}
    tree["monitor"]["grace_steps"] = 1000
    return parse_recipe(tree, source="two views")


def pictures(recipe: Recipe, n: int = 8) -> Batch:
    size = recipe.inputs["image"]["size"]
    views = {
        view_key(recipe, node): {"pixels": torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)}
        for node in build_graph(recipe).nodes
    }
    return Batch(torch.arange(n), views)


@pytest.mark.parametrize("objective", [BYOL, SIMSIAM], ids=lambda o: str(o["name"]))
def test_it_trains(objective: dict[str, Any], tiny_shapes: Path, tmp_path: Path) -> None:
    recipe = two_views(tiny_shapes, objective, epochs=8)
    train(Launch(recipe, tmp_path / "run", device="cpu", workers=0))
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    losses = [line["loss"] for line in lines]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5
    assert all(math.isfinite(loss) for loss in losses)
    assert lines[-1]["branches"]["image/0"]["effective_rank"] > 2
    # evaluation reads the branch that was trained, not its average
    run = open_run(tmp_path / "run")
    model = run.model(device="cpu")
    assert bool(model.targets) == (objective["name"] == "byol")
    samples = run.dataset().samples("val")[:4]
    found = encode(model, "image", samples, space="embedding", workers=0)
    model.targets.clear()
    again = encode(model, "image", samples, space="embedding", workers=0)
    assert (found.vectors == again.vectors).all()


def test_a_stopped_run_with_an_average_ends_in_the_same_bits(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = two_views(tiny_shapes, BYOL, epochs=3)
    train(Launch(recipe, tmp_path / "whole", device="cpu", workers=0))
    step = Trainer._step

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        output = step(self, *arguments)
        if self.step == 7:  # epochs are 5 steps: in the middle of one
            signal.raise_signal(signal.SIGTERM)
        return output

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(SystemExit):
            train(Launch(recipe, tmp_path / "run", device="cpu", workers=0))
    stopped = last_state(tmp_path / "run")
    assert stopped["position"]["step"] == 7  # type: ignore[index]
    train(Launch(None, tmp_path / "run", resume=True, device="cpu", workers=0))
    whole, resumed = last_state(tmp_path / "whole"), last_state(tmp_path / "run")
    assert any(name.startswith("targets.image.") for name in whole["model"])  # type: ignore[attr-defined]
    assert any(name.startswith("objective.predictors.") for name in whole["model"])  # type: ignore[attr-defined]
    assert not same(whole["model"], stopped["model"])
    for part in ("model", "optimizer", "monitor"):
        assert same(whole[part], resumed[part]), part


def test_two_processes_follow_one(tiny_shapes: Path, tmp_path: Path) -> None:
    losses, states = [], []
    objective = {**BYOL, "regularise": "variance"}
    for devices in (1, 2):
        out = tmp_path / str(devices)
        recipe = two_views(tiny_shapes, objective, epochs=1, precision="fp64")
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "mmvicreg",
                "train",
                "--pair",
                "image-text",
                "--recipe",
                str(tmp_path / "recipe.yaml"),
                "--device",
                "cpu",
                "--workers",
                "1",
                "--devices",
                str(devices),
                "--out",
                str(out),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},
        )
        assert done.returncode == 0, done.stderr
        losses.append([line["loss"] for line in read_lines(out / "metrics.jsonl")])
        states.append(last_state(out)["model"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)
    for name, value in states[0].items():  # type: ignore[attr-defined]
        torch.testing.assert_close(states[1][name], value, rtol=1e-5, atol=1e-7)  # type: ignore[index]


@pytest.mark.parametrize("freeze", ["none", "encoder", "batchnorm"])
def test_one_step_of_a_model_moves_the_average_by_the_formula(freeze: str) -> None:
    recipe = two_views(Path("unused"), BYOL, f"branches.image.freeze={freeze}")
    model = build_model(recipe, restore_inputs(recipe, {"image": {}}))
    branch = model.branch("image")
    branch.freeze(freeze)
    model.train()
    optimizer = build_optimizer(model, recipe.optimizer)
    before = {name: p.detach().clone() for name, p in model.targets.named_parameters()}
    buffers = {name: b.clone() for name, b in model.targets.named_buffers()}
    model(pictures(recipe)).loss.backward()
    assert all(p.grad is None for p in model.targets.parameters())
    optimizer.step()
    model.move_targets(3, steps=12)
    momentum = 1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2
    online = dict(branch.named_parameters())
    for name, moved in model.targets.named_parameters():
        expected = momentum * before[name] + (1 - momentum) * online[name.removeprefix("image.")].detach()
        torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-8)
    changed = {name for name, b in model.targets.named_buffers() if not torch.equal(b, buffers[name])}
    expander = {name for name in buffers if name.startswith("image.expander") and "running" in name}
    assert expander <= changed  # normalised by the batch, with statistics of its own
    encoder = {name for name in changed if name.startswith("image.encoder")}
    assert bool(encoder) == (freeze == "none")


def test_the_predictor_is_decayed_like_any_weight_and_simsiams_rate_is_fixed() -> None:
    for objective, rate in ((SIMSIAM, 1.0), (BYOL, 0.25)):
        recipe = two_views(Path("unused"), objective, "optimizer.lr=1", "optimizer.weight_decay=0.3")
        model = build_model(recipe, restore_inputs(recipe, {"image": {}}))
        optimizer = build_optimizer(model, recipe.optimizer)
        set_rate(optimizer, 0.25)
        groups = {group["name"]: group for group in optimizer.param_groups}
        assert groups["objective.weights"]["lr"] == groups["objective.biases"]["lr"] == rate
        assert groups["image.weights"]["lr"] == 0.25
        assert (groups["objective.weights"]["weight_decay"], groups["objective.biases"]["weight_decay"]) == (
            0.3,
            0,
        )
        trained = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(trained) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", ["byol", "simsiam"])
def test_a_pair_of_two_branches_is_refused_before_anything_is_written(
    method: str, tiny_shapes: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe("image-text", tiny_shapes, f"objective={method}")
    with pytest.raises(UserError, match=r"two views of one branch.*the edge image-text joins two branches"):
        train(Launch(recipe, tmp_path / "run", device="cpu", workers=0))
    assert not (tmp_path / "run").exists()


def test_a_switch_that_excludes_another_is_named() -> None:
    with pytest.raises(UserError, match=r"stop_gradient: false needs momentum: null"):
        tiny_recipe("image-text", Path("unused"), "objective={name: byol, stop_gradient: false}")
