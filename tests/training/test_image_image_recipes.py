"""The published numbers of the image-image recipes, and a run on a folder of pictures, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mmvicreg.branches.model import build_inputs
from mmvicreg.cli import main
from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.recipes import dump_recipe, load_recipe, parse_recipe, recipe_path
from mmvicreg.training.checkpoint import list_checkpoints, load_checkpoint
from mmvicreg.training.setup import build_model


def recipe(name: str, *settings: str) -> Recipe:
    return load_recipe(recipe_path("image-image", name, None), {}, settings)


@pytest.mark.parametrize(("name", "epochs", "rate"), [("imagenet", 1000, 0.2), ("imagenet-100ep", 100, 0.3)])
def test_imagenet_is_the_paper_s(name: str, epochs: int, rate: float) -> None:
    """Sections 4.2, C.1 and C.4."""
    found = recipe(name)
    branch, (edge,) = found.branches["image"], found.edges
    assert (found.dataset.name, list(found.branches), edge.a, edge.b) == (
        "imagenet",
        ["image"],
        "image",
        "image",
    )
    assert (edge.invariance, branch.variance, branch.covariance) == (25, 25, 1)
    assert found.objective["convention"] == "paper"
    assert found.objective["epsilon"] == 1e-4
    assert found.objective["gamma"] is None  # 1 of embeddings that are not normalised
    assert (branch.encoder["name"], branch.encoder["weights"]) == ("resnet50", "none")
    assert branch.expander.widths == [8192, 8192, 8192]
    assert (branch.expander.norm, branch.expander.last_bias) == ("batchnorm", False)
    optimizer = found.optimizer
    assert (optimizer.name, optimizer.weight_decay) == ("lars", 1e-6)
    assert (optimizer.momentum, optimizer.eta, optimizer.clip_norm) == (0.9, 0.001, None)
    assert (found.training.epochs, found.training.batch_size) == (epochs, 2048)
    assert found.rate == pytest.approx(rate * 8)
    assert (found.schedule.warmup_epochs, found.schedule.final_lr) == (10, 0.002)
    picture, frontend = found.inputs["image"], branch.frontend
    assert (picture["size"], picture["crop_area"], picture["flip"]) == (224, [0.08, 1.0], 0.5)
    changes = frontend["augmentation"]
    assert (changes["jitter"], changes["grayscale"]) == (0.8, 0.2)
    assert [changes[key] for key in ("brightness", "contrast", "saturation", "hue")] == [0.4, 0.4, 0.2, 0.1]
    assert (changes["blur"], changes["solarise"]) == ([0.5], [0.1])
    assert (frontend["mean"], frontend["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_the_large_embeddings_of_imagenet_are_measured_seldom() -> None:
    """Their spectrum is 2 048 x 8 192 numbers in float64, after every tenth step by default."""
    for name in ("imagenet", "imagenet-100ep", "imagenet-dw", "imagenet-da", "imagenet-da-vit"):
        assert recipe(name).training.log_every == 100


def test_the_code_s_variant_of_imagenet_can_be_asked_for() -> None:
    """As the comments of the recipe say."""
    found = recipe(
        "imagenet",
        "branches.image.frontend.augmentation=official",
        "inputs.image.interpolation=bicubic",
        "objective.convention=official",
        "schedule.final_lr=null",
        "schedule.final_lr_factor=0.001",
    )
    changes = found.branches["image"].frontend["augmentation"]
    assert (changes["blur"], changes["solarise"]) == ([1.0, 0.1], [0.0, 0.2])
    assert found.schedule.final_factor(found.rate) == 0.001


@pytest.mark.parametrize(("batch", "base"), [(128, 0.8), (256, 0.5), (512, 0.4), (1024, 0.3), (4096, 0.3)])
def test_the_rates_of_the_batch_size_study_are_in_the_recipe(batch: int, base: float) -> None:
    """C.4, Table 13."""
    for name in ("imagenet-100ep", "image-folder"):
        found = recipe(name, f"training.batch_size={batch}")
        assert found.rate == pytest.approx(base * batch / 256)
        again = parse_recipe(yaml.safe_load(dump_recipe(found)), source="dumped")
        assert (again, again.rate) == (found, found.rate)
        assert recipe(name, f"training.batch_size={batch}", "optimizer.base_lr=0.1").rate == 0.1 * batch / 256


@pytest.mark.parametrize(
    ("name", "second"),
    [("imagenet-dw", "resnet50"), ("imagenet-da", "resnet101"), ("imagenet-da-vit", "vit_small")],
)
def test_the_rows_of_table_5_are_the_100_epochs_with_two_branches(name: str, second: str) -> None:
    found, shared = recipe(name), recipe("imagenet-100ep")
    same = ("dataset", "inputs", "objective", "optimizer", "schedule", "training", "monitor", "evaluation")
    assert all(getattr(found, part) == getattr(shared, part) for part in same)
    a, b = found.branches.values()
    assert a == shared.branches["image"]
    assert (b.encoder["name"], b.view) == (second, 1)
    assert b.model_copy(update={"encoder": a.encoder, "view": 0}) == a
    assert [(edge.a, edge.b, edge.invariance) for edge in found.edges] == [("a", "b", 25)]
    with torch.device("meta"):
        model = build_model(found, build_inputs(found))
    assert [model.branch(one).encoder.out_features for one in "ab"] == [
        2048,
        384 if "vit" in second else 2048,
    ]
    assert model.branch("a").encoder is not model.branch("b").encoder


def test_cifar10_is_the_walk_through_s() -> None:
    found = recipe("cifar10")
    branch, (edge,) = found.branches["image"], found.edges
    assert (branch.encoder["name"], branch.encoder["small_stem"]) == ("resnet18", True)
    assert branch.expander.widths == [1024] * 4
    assert branch.expander.last_bias
    assert (edge.invariance, branch.variance, branch.covariance) == (25, 25, 1)
    assert found.objective["convention"] == "paper"
    optimizer = found.optimizer
    assert (optimizer.name, found.rate, optimizer.weight_decay) == ("adam", 2e-4, 1e-6)
    assert optimizer.betas == (0.9, 0.999)
    assert found.schedule.final_lr_factor == 1.0
    assert found.schedule.warmup_epochs == 0
    assert (found.training.epochs, found.training.batch_size) == (500, 256)
    assert (found.inputs["image"]["size"], found.inputs["image"]["crop_area"]) == (32, [0.2, 1.0])
    changes = branch.frontend["augmentation"]
    assert (changes["jitter"], changes["blur"], changes["blur_radius"], changes["solarise"]) == (
        0.8,
        [0.5],
        1,
        [0.2],
    )
    assert branch.frontend["mean"] == [0.4914, 0.4822, 0.4465]
    assert branch.frontend["std"] == [0.247, 0.243, 0.261]


def test_a_last_rate_above_that_of_a_small_batch_is_refused() -> None:
    said = r"final_lr is 0\.002, above the rate of 0\.0015625 .* at a batch of 2: .* or raise training\.batch_size"
    with pytest.raises(UserError, match=said):
        recipe("imagenet", "training.batch_size=2")


TOY = (
    "inputs.image.size=32",
    "branches.image.encoder.name=resnet18",
    "branches.image.encoder.small_stem=false",
    "branches.image.expander.widths=[32, 32]",
    "training.batch_size=16",
    "training.epochs=3",
    "training.log_every=1",
    "training.precision=fp32",
    "schedule.warmup_epochs=1",
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures in 2 classes, in ImageNet's layout."""
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for split, each in (("train", 16), ("val", 2)):
        for label, name in enumerate(("blue", "red")):
            (root / split / name).mkdir(parents=True)
            for number in range(each):
                pixels = rng.integers(0, 128, (24 + number, 30, 3), dtype=np.uint8)
                pixels[:, :, 2 * (1 - label)] += 120
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def run(*arguments: str | Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mmvicreg", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def test_a_folder_of_pictures_trains_with_lars_and_resumes_in_the_same_bits(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings = [part for setting in TOY for part in ("--set", setting)]
    asked = ["train", "--pair", "image-image", "--dataset", "image-folder", "--data-root", pictures]
    assert run(*asked, *settings, "--device", "cpu", "--workers", "0", "--out", out) == 0
    assert "training on 32 samples of image-folder" in capsys.readouterr().err
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(line["loss"]) for line in lines)
    highest = 0.3 * 16 / 256  # the rate rule, and C.4's rate for other batches than it names
    assert lines[0]["lr"] == pytest.approx(highest / 3)
    assert lines[2]["lr"] == pytest.approx(highest)
    assert lines[-1]["lr"] == pytest.approx(0.002 + (highest - 0.002) * 0.5 * (1 + np.cos(np.pi * 3 / 4)))

    *_, before, last = list_checkpoints(out / "checkpoints")
    whole = load_checkpoint(last)
    assert {"momentum"} == {key for state in whole["optimizer"]["state"].values() for key in state}
    last.unlink()
    assert load_checkpoint(before)["position"]["step"] == 4
    assert run("train", "--resume", "--out", out, "--device", "cpu", "--workers", "0") == 0
    again = load_checkpoint(list_checkpoints(out / "checkpoints")[-1])
    assert again["position"]["step"] == 6
    assert whole["model"].keys() == again["model"].keys()
    assert all(torch.equal(value, again["model"][key]) for key, value in whole["model"].items())
    for key, state in whole["optimizer"]["state"].items():
        assert torch.equal(state["momentum"], again["optimizer"]["state"][key]["momentum"])


def test_a_corrupt_picture_ends_a_run_with_its_path(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    for file in pictures.rglob("*.png"):
        target = root / file.relative_to(pictures)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    bad = root / "train" / "red" / "7.png"
    bad.write_bytes(bad.read_bytes()[:200])
    settings = [part for setting in TOY for part in ("--set", setting)]
    asked = ["train", "--pair", "image-image", "--dataset", "image-folder", "--data-root", root]
    assert run(*asked, *settings, "--device", "cpu", "--workers", "0", "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert f"cannot decode the picture {bad}" in said
    assert "Traceback" not in said
