"""Shared weights, different weights, different architectures (SW, DW, DA of Table 5) on two views of a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from picture_runs import write_pictures

from mmvicreg.config import Recipe
from mmvicreg.recipes import load_recipe, recipe_path
from mmvicreg.registry import PROTOCOLS
from mmvicreg.runs import Run, create_run, open_run
from mmvicreg.training.distributed import World
from mmvicreg.training.loop import Trainer

ALONE = World(0, 1, 0, torch.device("cpu"))
SMALL = (
    "inputs.image.size=32",
    "training.precision=fp32",
    "training.batch_size=8",
    "training.epochs=1",
    "training.log_every=1",
)
TOWERS = {"shapes": ("image",), "shapes-dw": ("a", "b"), "shapes-da": ("a", "b"), "shapes-da-vit": ("a", "b")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


def tower_recipe(name: str, root: Path) -> Recipe:
    widths = [f"branches.{branch}.expander.widths=[32, 32]" for branch in TOWERS[name]]
    names = {"dataset.name": "image-folder", "dataset.root": str(root)}
    return load_recipe(recipe_path("image-image", "shapes", name), names, [*SMALL, *widths])


def test_the_towers_are_what_table_5_calls_them(pictures: Path) -> None:
    encoders = {
        name: [branch.encoder["name"] for branch in tower_recipe(name, pictures).branches.values()]
        for name in TOWERS
    }
    assert encoders == {
        "shapes": ["resnet18"],
        "shapes-dw": ["resnet18", "resnet18"],
        "shapes-da": ["resnet18", "resnet34"],
        "shapes-da-vit": ["resnet18", "vit_small"],
    }


@pytest.mark.parametrize("name", TOWERS)
def test_every_tower_is_trained_and_judged(name: str, pictures: Path, tmp_path: Path) -> None:
    recipe = tower_recipe(name, pictures)
    trainer = Trainer(Run(tmp_path / "run", recipe), ALONE, resume=False, workers=0)
    create_run(tmp_path / "run", recipe)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    nodes = [node.name for node in trainer.model.graph.nodes]
    assert len(nodes) == 2
    views = next(iter(trainer._batches(0, start=0))).views
    assert set(views) == {"image/0", "image/1"}  # two crops of a picture, one for each tower
    assert not torch.equal(views["image/0"]["pixels"], views["image/1"]["pixels"])
    trainer.train()
    for tower in TOWERS[name]:
        after = trainer.model.branch(tower).state_dict()
        weights = [key for key, value in after.items() if value.is_floating_point() and value.ndim > 1]
        assert weights
        for key in weights:
            assert not torch.equal(after[key], before[f"branches.{tower}.{key}"]), f"{tower}.{key}"
    run = open_run(tmp_path / "run")
    for tower in TOWERS[name]:
        near = PROTOCOLS.load("knn")(run, branch=tower, k=[5], baseline=False)
        assert near["branch"] == tower
        probe = PROTOCOLS.load("linear-image")(run, branch=tower, quick=True, baseline=False)
        assert probe["branch"] == tower
        assert 0 <= probe["top1"] <= 100
