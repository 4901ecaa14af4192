"""The schedule value by value, and what each parameter is given."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny import tiny_recipe

from mmvicreg.branches.model import build_graph
from mmvicreg.branches.norm import GlobalBatchNorm
from mmvicreg.config import Recipe, ScheduleConfig
from mmvicreg.inputs.tokenizers import WordTokenizer
from mmvicreg.runs import create_run
from mmvicreg.training.distributed import World
from mmvicreg.training.loop import Trainer
from mmvicreg.training.optim import build_optimizer, rate_factor
from mmvicreg.training.setup import build_model, restore_inputs


def model(recipe: Recipe) -> torch.nn.Module:
    words = {**recipe.inputs, "text": {"name": "text", "tokenizer": "words"}}
    recipe = recipe.model_copy(update={"inputs": words})
    states = {"image": {}, "text": {"tokenizer": WordTokenizer(["a", "b"]).state()}}
    return build_model(recipe, restore_inputs(recipe, states))


def test_initial_weights_are_drawn_on_the_cpu_and_leave_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """To keep the state of every GPU makes a context on each, in every process of a run."""

    def touched(*_: object) -> None:
        raise AssertionError("a GPU was asked")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("get_rng_state", "set_rng_state", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, touched)
    before = torch.get_rng_state()
    weights = [model(tiny_recipe("image-text", Path("unused"))).state_dict() for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_warm_up_then_cosine() -> None:
    schedule = ScheduleConfig(warmup_epochs=2, final_lr_factor=0.1)
    factors = [rate_factor(s, steps_per_epoch=10, epochs=12, schedule=schedule) for s in range(120)]
    for step in range(20):
        assert factors[step] == pytest.approx((step + 1) / 21)
    for step in range(20, 120):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 20) / 100))
        assert factors[step] == pytest.approx(0.1 + 0.9 * cosine)
    assert factors[20] == 1.0
    assert min(factors[20:]) == factors[-1] < 0.101


def test_steps_fall_at_the_milestones() -> None:
    """VSE++: 2e-4 for 15 epochs, a tenth of it afterwards."""
    schedule = ScheduleConfig(name="step", milestones=[15, 40], gamma=0.1)
    factors = [rate_factor(s, steps_per_epoch=7, epochs=45, schedule=schedule) for s in range(45 * 7)]
    for epoch in range(45):
        for step in range(7 * epoch, 7 * epoch + 7):
            assert factors[step] == pytest.approx(0.1 ** ((epoch >= 15) + (epoch >= 40)))
    warm = schedule.model_copy(update={"warmup_epochs": 1.0})
    assert rate_factor(0, steps_per_epoch=7, epochs=45, schedule=warm) == pytest.approx(1 / 8)
    assert rate_factor(7, steps_per_epoch=7, epochs=45, schedule=warm) == 1.0


@pytest.mark.parametrize("keys", [{"name": "step"}, {"milestones": [3]}, {"name": "step", "milestones": [0]}])
def test_a_schedule_that_means_nothing_is_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="milestones"):
        ScheduleConfig.model_validate(keys)


def test_rate_decay_and_freezing_are_each_branchs_own() -> None:
    recipe = tiny_recipe(
        "image-text",
        Path("unused"),
        "branches.image.lr_factor=0.1",
        "branches.text.weight_decay=0.3",
        "optimizer.lr=0.01",
        "optimizer.weight_decay=0.05",
    )
    network = model(recipe)
    optimizer = build_optimizer(network, recipe.optimizer)
    seen: dict[int, dict[str, object]] = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    named = dict(network.named_parameters())
    assert len(seen) == len(named) == sum(len(g["params"]) for g in optimizer.param_groups)
    for name, parameter in named.items():
        group = seen[id(parameter)]
        image = name.startswith("branches.image")
        assert group["lr"] == pytest.approx(0.001 if image else 0.01)
        decay = 0.0 if parameter.ndim == 1 else (0.05 if image else 0.3)
        assert group["weight_decay"] == decay, name


def test_frozen_encoder_keeps_weights_and_statistics_and_the_rest_learns() -> None:
    recipe = tiny_recipe("image-text", Path("unused"), "branches.image.freeze=encoder")
    network = model(recipe)
    branch = network.branch("image")
    branch.freeze("encoder")
    network.train()
    before = {k: v.clone() for k, v in branch.state_dict().items()}
    optimizer = build_optimizer(network, recipe.optimizer)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    _, z = branch({"pixels": pixels})
    z.square().sum().backward()
    optimizer.step()
    for key, value in branch.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("encoder."), key
    branch.freeze("none")
    assert all(p.requires_grad for p in branch.parameters())
    assert branch.encoder.training


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_prototypes_that_are_held_do_not_decay_either(name: str) -> None:
    """Adam divides the decay by its own size: a small one turned them as fast as a large gradient would."""
    recipe = tiny_recipe(
        "image-text",
        Path("unused"),
        "objective={name: swav, prototypes: 8, freeze_steps: 2}",
        f"optimizer={{name: {name}, lr: 0.1, weight_decay: 0.1}}",
    )
    network = model(recipe)
    optimizer = build_optimizer(network, recipe.optimizer)
    (prototypes,) = network.objective.parameters()
    before = prototypes.detach().clone()
    z = {node.name: torch.randn(8, node.width) for node in network.graph.nodes}
    for step in range(3):
        assert torch.equal(prototypes, before), step
        optimizer.zero_grad()
        network.objective(z).loss.backward()
        optimizer.step()
    assert not torch.equal(prototypes, before)


@pytest.mark.parametrize("swap", [False, True])
def test_frozen_batchnorm_keeps_statistics_but_learns(swap: bool) -> None:
    network = model(tiny_recipe("image-text", Path("unused")))
    branch = network.branch("image")
    if swap:  # what several processes on a CPU train with
        for name, module in list(branch.encoder.named_modules()):
            if isinstance(module, torch.nn.BatchNorm2d):
                parent = branch.encoder.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], GlobalBatchNorm(module.num_features))
    branch.freeze("batchnorm")
    network.train()
    statistics = {k: v.clone() for k, v in branch.encoder.state_dict().items() if "running" in k}
    _, z = branch({"pixels": torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)})
    z.square().sum().backward()
    assert statistics
    assert all(torch.equal(branch.encoder.state_dict()[k], v) for k, v in statistics.items())
    assert all(p.grad is not None for p in branch.encoder.parameters())


def test_an_edge_to_itself_shares_the_weights_between_two_views() -> None:
    recipe = tiny_recipe("image-text", Path("unused"), "edges=[{a: image, b: image}, {a: image, b: text}]")
    graph = build_graph(recipe)
    assert [n.name for n in graph.nodes] == ["image/0", "image/1", "text"]
    assert [(e.a, e.b) for e in graph.edges] == [("image/0", "image/1"), ("image/0", "text")]
    network = model(recipe)
    assert set(network.branches) == {"image", "text"}
    from mmvicreg.branches.model import Batch

    pixels = torch.randint(0, 256, (2, 8, 3, 32, 32), dtype=torch.uint8)
    ids = torch.randint(1, 6, (8, 5))
    batch = Batch(
        torch.arange(8),
        {
            "image/0": {"pixels": pixels[0]},
            "image/1": {"pixels": pixels[1]},
            "text/0": {"ids": ids, "length": torch.full((8,), 5)},
        },
    )
    output = network.train()(batch)
    output.loss.backward()
    assert set(output.embeddings) == {"image/0", "image/1", "text"}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name


def test_a_warm_up_as_long_as_the_run_is_told(
    tiny_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for epochs in (1, 2):
        recipe = tiny_recipe(
            "image-text", tiny_shapes, f"training.epochs={epochs}", "schedule.warmup_epochs=1"
        )
        run = create_run(tmp_path / str(epochs), recipe)
        Trainer(run, World(0, 1, 0, torch.device("cpu")), resume=False, workers=0)
        told.append("warm-up (schedule.warmup_epochs 1)" in capsys.readouterr().err.replace("\n", " "))
    assert told == [True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("branches.image.freeze=encoder", "branches.image.freeze_epochs=2"),
            "branches.image.freeze_epochs 2 is not less than training.epochs 2: what is frozen (encoder) stays so",
        ),
        (
            ("schedule.name=step", "schedule.milestones=[1, 2]"),
            "(schedule.milestones) after 2 epochs are beyond the run's 2",
        ),
    ],
)
def test_what_would_only_happen_after_the_run_is_told(
    tiny_shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: tuple[str, ...],
    message: str,
) -> None:
    for epochs, told in ((2, True), (3, False)):
        recipe = tiny_recipe("image-text", tiny_shapes, f"training.epochs={epochs}", *settings)
        run = create_run(tmp_path / str(epochs), recipe)
        Trainer(run, World(0, 1, 0, torch.device("cpu")), resume=False, workers=0)
        assert (message in " ".join(capsys.readouterr().err.split())) == told
