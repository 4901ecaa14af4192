"""Multi-crop: small views beside the two whole ones, from the recipe to the gradient."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_resume import last_state, same
from tiny import tiny_recipe

from mmvicreg.branches.model import build_graph, build_inputs, view_key
from mmvicreg.config import Recipe
from mmvicreg.datasets import open_dataset, training_samples
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import FIRST_CROP
from mmvicreg.inputs.image import ImageInput
from mmvicreg.objectives import BYOL, VICReg
from mmvicreg.recipes import load_recipe, recipe_path
from mmvicreg.samples import Sample
from mmvicreg.training.launch import Launch, train
from mmvicreg.training.loader import TrainingLoader
from mmvicreg.training.log import read_lines
from mmvicreg.training.setup import build_model, restore_inputs

CROPS = ("edges.0.crops=3", "inputs.image.small_size=16", "inputs.image.small_area=[0.05, 0.2]")
SWAV = ("objective.name=swav", "objective.prototypes=8", "monitor.grace_steps=1000")
BYOL_SETTINGS = ("objective.name=byol", "objective.predictor=[8]", "monitor.grace_steps=1000")
SMALL = ["image/2", "image/3", "image/4"]


def multicrop(root: Path, *settings: str) -> Recipe:
    return tiny_recipe("image-image", root, *CROPS, *settings)


def test_every_small_crop_is_joined_to_both_whole_views(tiny_shapes: Path) -> None:
    recipe = multicrop(tiny_shapes)
    graph = build_graph(recipe)
    assert [node.name for node in graph.nodes] == ["image/0", "image/1", *SMALL]
    assert [node.name for node in graph.nodes if node.crop] == SMALL
    ends = [("image/0", "image/1"), *((whole, crop) for whole in ("image/0", "image/1") for crop in SMALL)]
    assert [(edge.a, edge.b) for edge in graph.edges] == ends
    # as much invariance per view as two views have: 25 for two, so 62.5 for five
    assert sum(edge.invariance for edge in graph.edges) == pytest.approx(62.5)
    assert len({edge.invariance for edge in graph.edges}) == 1
    keys = [view_key(recipe, node) for node in graph.nodes]
    assert keys == ["image/0", "image/1", *(f"image/{FIRST_CROP + k}" for k in range(3))]


def test_without_crops_the_graph_is_the_one_of_two_views(tiny_shapes: Path) -> None:
    graph = build_graph(tiny_recipe("image-image", tiny_shapes))
    assert [(edge.a, edge.b, edge.invariance) for edge in graph.edges] == [("image/0", "image/1", 25.0)]
    assert not any(node.crop for node in graph.nodes)


def test_small_crops_are_small_parts_of_the_same_picture(tiny_shapes: Path) -> None:
    source = build_inputs(multicrop(tiny_shapes))["image"]
    image = next(iter(sorted(tiny_shapes.rglob("*.jpg"))))
    views = source.load_views(
        Sample(id="one", image=image),
        {view: np.random.default_rng(view) for view in (0, 1, FIRST_CROP, FIRST_CROP + 1)},
    )
    sides = {view: tuple(item["pixels"].shape) for view, item in views.items()}
    assert sides == {0: (3, 32, 32), 1: (3, 32, 32), FIRST_CROP: (3, 16, 16), FIRST_CROP + 1: (3, 16, 16)}
    assert not torch.equal(views[FIRST_CROP]["pixels"], views[FIRST_CROP + 1]["pixels"])


def test_a_small_crop_covers_the_area_that_was_asked_for(tmp_path: Path) -> None:
    """On a ramp from left to right and another from top to bottom, a crop's range is its extent."""
    side = 256
    ramp = torch.arange(side, dtype=torch.uint8)
    picture = torch.stack(
        [
            ramp.expand(side, side),
            ramp[:, None].expand(side, side),
            torch.zeros(side, side, dtype=torch.uint8),
        ]
    )
    source = ImageInput(ImageInput.Config(size=64, small_size=32, small_area=(0.05, 0.14), flip=0))
    areas = []
    for seed in range(200):
        crop = source._view(picture, np.random.default_rng(seed), FIRST_CROP).pop("pixels").float()
        extent = [crop[c].amax() - crop[c].amin() for c in (0, 1)]
        areas.append(float(extent[0] * extent[1]) / side**2 * (32 / 31) ** 2)
    assert 0.04 < min(areas) < 0.06
    assert 0.12 < max(areas) < 0.15


def test_the_loss_is_that_of_the_graph_s_nodes_and_edges(tiny_shapes: Path) -> None:
    """VICReg over five views: every node's variance and covariance, every edge's invariance at its share."""
    graph = build_graph(multicrop(tiny_shapes))
    torch.manual_seed(0)
    z = {node.name: torch.randn(12, 32, dtype=torch.float64) for node in graph.nodes}
    objective = VICReg()
    objective.graph = graph
    expected = 0.0
    for x in z.values():
        centred = x - x.mean(dim=0)
        expected += 25 * float(torch.relu(1 - (x.var(dim=0) + 1e-4).sqrt()).mean())
        covariance = centred.T @ centred / 11
        expected += float((covariance.square().sum() - covariance.diagonal().square().sum()) / 32)
    for a, b in [
        ("image/0", "image/1"),
        *((whole, crop) for whole in ("image/0", "image/1") for crop in SMALL),
    ]:
        expected += 62.5 / 7 * float((z[a] - z[b]).square().mean())
    assert float(objective(z).loss) == pytest.approx(expected, rel=1e-10)


def test_targets_are_of_whole_views_alone(tiny_shapes: Path) -> None:
    graph = build_graph(multicrop(tiny_shapes))
    torch.manual_seed(0)
    z = {node.name: torch.randn(6, 32) for node in graph.nodes}
    objective = BYOL.from_config({"predictor": [8], "momentum": 0.9}, graph)
    terms = objective(z, targets={name: torch.randn(6, 32) for name in z}).terms
    aims = {name.rpartition("-")[2] for name in terms if name.startswith("distance/")}
    assert aims == {"image/0", "image/1"}
    assert len([name for name in terms if name.startswith("distance/")]) == 2 + 6


@pytest.mark.parametrize(
    "settings",
    [
        (),
        SWAV,
        ("objective.name=simclr",),
        ("objective.name=byol", "objective.predictor=[8]", "monitor.grace_steps=1000"),
    ],
    ids=["vicreg", "swav", "simclr", "byol"],
)
def test_a_run_trains_on_all_views(settings: tuple[str, ...], tiny_shapes: Path, tmp_path: Path) -> None:
    train(Launch(multicrop(tiny_shapes, *settings), tmp_path / "run", device="cpu", workers=0))
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert set(lines[-1]["branches"]) == {"image/0", "image/1", *SMALL}
    swaps = {name for name in lines[-1]["terms"] if name.startswith("swap/")}
    if settings == SWAV:  # codes from the whole views, predicted from every other
        assert swaps == {
            "swap/image/0-image/1",
            "swap/image/1-image/0",
            *(f"swap/{whole}-{crop}" for whole in ("image/0", "image/1") for crop in SMALL),
        }


def test_micro_batches_two_processes_and_a_resumed_run_follow_a_whole_one(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    fixed = (
        *SWAV,
        "branches.image.freeze=batchnorm",
        "branches.image.expander.norm=none",
    )  # no batch statistics
    recipe = multicrop(tiny_shapes, *fixed)
    train(Launch(recipe, tmp_path / "whole", device="cpu", workers=0))
    train(
        Launch(
            multicrop(tiny_shapes, *fixed, "training.micro_batch=4"),
            tmp_path / "micro",
            device="cpu",
            workers=0,
        )
    )
    train(Launch(recipe, tmp_path / "two", device="cpu", devices=2, workers=0))
    whole, *others = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "micro", "two"))
    for lines in others:
        assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in whole], rel=1e-4)
    newest = sorted((tmp_path / "whole" / "checkpoints").iterdir())[-1]
    before = last_state(tmp_path / "whole")
    newest.unlink()
    train(Launch(recipe, tmp_path / "whole", device="cpu", workers=0, resume=True))
    for part in ("model", "optimizer", "monitor"):
        assert same(before[part], last_state(tmp_path / "whole")[part]), part


def test_a_gradient_comes_through_small_crops_alone(tiny_shapes: Path) -> None:
    """With the whole views cut off, what is left of the loss still trains the encoder."""
    recipe = multicrop(tiny_shapes)
    inputs = restore_inputs(recipe, {"image": {}})
    model = build_model(recipe, inputs)
    samples = training_samples(open_dataset("shapes", root=tiny_shapes), split="train", fold=1)
    batch = next(iter(TrainingLoader(recipe, inputs, samples, workers=0).epoch(0)))
    embeddings, _ = model.embed(batch)
    cut = {name: z.detach() if name in ("image/0", "image/1") else z for name, z in embeddings.items()}
    model.objective(cut).loss.backward()
    assert all(bool(p.grad.any()) for p in model.branch("image").encoder.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in model.branch("image").encoder.parameters())


@pytest.mark.parametrize(
    ("pair", "name", "settings", "message"),
    [
        ("image-text", "shapes", ("edges.0.crops=2",), "the edge image-text has crops"),
        ("wave-mel", "tones", ("edges.0.b=wave", "edges.0.crops=2"), "the edge wave-wave has crops"),
        ("image-image", "shapes", ("inputs.image.small_area=[0.3, 0.1]",), "smallest, largest"),
        ("image-image", "shapes", ("branches.image.view=15",), "less than 15"),
    ],
)
def test_crops_where_there_can_be_none_are_refused(
    pair: str, name: str, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(recipe_path(pair, name, None), {}, list(settings))


def test_an_encoder_of_one_size_refuses_small_crops(tiny_shapes: Path, tmp_path: Path) -> None:
    recipe = multicrop(tiny_shapes, "branches.image.encoder={name: vit_small, patch: 8}")
    with pytest.raises(UserError, match="vit_small of branch 'image' reads pictures of one size"):
        train(Launch(recipe, tmp_path / "run", device="cpu", workers=0))
    assert not (tmp_path / "run").exists()
