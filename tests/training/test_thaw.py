"""VSE++'s schedule: the image encoder is frozen first, then fine-tuned with BatchNorm in evaluation mode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_recipe

from mmvicreg.errors import UserError
from mmvicreg.recipes import load_recipe, recipe_path
from mmvicreg.runs import create_run
from mmvicreg.training.distributed import World
from mmvicreg.training.loop import Trainer


@pytest.mark.parametrize("thaw_to", ["batchnorm", "none"])
def test_after_the_thaw_weights_move_and_frozen_statistics_do_not(
    tiny_shapes: Path, tmp_path: Path, thaw_to: str
) -> None:
    recipe = tiny_recipe(
        "image-text",
        tiny_shapes,
        "branches.image.freeze=encoder",
        "branches.image.freeze_epochs=1",
        f"branches.image.thaw_to={thaw_to}",
        "optimizer.lr=1e-3",
        "schedule={name: step, milestones: [1], gamma: 0.1}",
        "training.batch_size=40",
    )
    trainer = Trainer(
        create_run(tmp_path / "run", recipe), World(0, 1, 0, torch.device("cpu")), resume=False, workers=0
    )
    encoder = trainer.model.branch("image").encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    rates: list[float] = []
    changed: list[set[str]] = []
    step = trainer._step

    def watch(*arguments):  # type: ignore[no-untyped-def]
        output = step(*arguments)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        state = encoder.state_dict()
        changed.append({name for name, value in state.items() if not torch.equal(value, before[name])})
        return output

    trainer._step = watch  # type: ignore[method-assign]
    trainer.train()
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    assert changed[1] == set()
    moved = {name for name, _ in encoder.named_parameters()}
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    assert moved <= changed[3]
    assert bool(statistics & changed[3]) == (thaw_to == "none")


def test_a_thaw_that_never_comes_is_refused() -> None:
    path = recipe_path("image-text", "shapes", None)
    with pytest.raises(UserError, match="thaw_to says what stays frozen after freeze_epochs"):
        load_recipe(path, {}, ["branches.image.freeze=encoder", "branches.image.thaw_to=batchnorm"])


def test_the_coco_recipe_is_the_published_schedule() -> None:
    recipe = load_recipe(recipe_path("image-text", "coco", None))
    image = recipe.branches["image"]
    assert (image.freeze, image.freeze_epochs, image.thaw_to) == ("encoder", 30, "batchnorm")
    assert (recipe.optimizer.lr, recipe.schedule.milestones, recipe.schedule.gamma) == (2e-4, [15], 0.1)
    assert (recipe.training.epochs, recipe.training.batch_size) == (45, 128)
    assert recipe.dataset.train_split == "train+restval"
    scratch = load_recipe(recipe_path("image-text", "coco", "coco-scratch"))
    assert scratch.branches["image"].freeze == "none"
    assert scratch.branches["image"].encoder["weights"] == "none"
