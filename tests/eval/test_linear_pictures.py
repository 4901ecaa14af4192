"""``eval linear`` on pictures: the schedules value by value, the training loop against numpy, what is frozen."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_runs import contents, mmvicreg, picture_run, write_pictures
from PIL import Image

from mmvicreg.errors import UserError
from mmvicreg.eval import classifier, finetune, linear_image
from mmvicreg.eval.classification import is_whole, published_rows, show
from mmvicreg.eval.classifier import Learner, Order, Reading, train_classifiers
from mmvicreg.eval.labelled import DataOptions, Labelled, labelled_data
from mmvicreg.eval.schedules import FINETUNE, LINEAR, Schedule, linear_schedule
from mmvicreg.eval.subsets import Choice
from mmvicreg.inputs.image import ImageInput
from mmvicreg.runs import Run, open_run
from mmvicreg.training.addressing import epoch_order, view_rng
from mmvicreg.training.distributed import World

ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """3 classes of 7 training pictures, which no batch below divides, and 4 for validation."""
    root = write_pictures(tmp_path_factory.mktemp("linear") / "data", train=7)
    # an augmentation of pretraining's, which the protocol must not use
    augmented = ("inputs.image.worker_augmentation=paper", "branches.image.frontend.augmentation=none")
    return picture_run(tmp_path_factory.mktemp("linear") / "run", root, *augmented)


def test_the_published_numbers() -> None:
    """C.2 and C.3, written out once more."""
    expected: dict[str, tuple[Any, ...]] = {
        "imagenet": (100, 256, 0.02, 1e-6, "cosine", ()),
        "places205": (28, 256, 0.003, 1e-4, "steps", (4, 8, 12)),
        "inat18": (84, 256, 0.005, 1e-4, "steps", (24, 48, 72)),
    }
    for name, schedule in LINEAR.items():
        found = (schedule.epochs, schedule.batch_size, schedule.head_lr, schedule.weight_decay)
        assert (*found, schedule.decay, schedule.milestones) == expected[name]
        assert (schedule.momentum, schedule.encoder_lr) == (0.9, None)
    assert LINEAR["imagenet"].smallest_crop == 0.2
    for name, rates in {"1%": (0.03, 0.08), "10%": (0.01, 0.1)}.items():
        schedule = FINETUNE[name]
        assert (schedule.encoder_lr, schedule.head_lr) == rates
        assert (schedule.epochs, schedule.batch_size, schedule.weight_decay) == (20, 256, 0.0)
        assert (schedule.decay, schedule.smallest_crop) == ("cosine", 0.2)


def test_rates_value_by_value() -> None:
    for epoch in range(100):
        assert LINEAR["imagenet"].factor(epoch) == pytest.approx((1 + math.cos(math.pi * epoch / 100)) / 2)
    assert [LINEAR["places205"].factor(epoch) for epoch in (0, 3, 4, 7, 8, 11, 12, 27)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    assert [LINEAR["inat18"].factor(epoch) for epoch in (23, 24, 47, 48, 71, 72)] == pytest.approx(
        [1, 0.1, 0.1, 0.01, 0.01, 0.001]
    )
    assert LINEAR["places205"].changed(epochs=14).milestones == (2, 4, 6)
    for name in ("places205", "inat18"):  # every rate for an epoch at least, the whole one first
        assert LINEAR[name].changed(epochs=3).milestones == (1, 2, 3)
    assert [LINEAR["places205"].changed(epochs=4).factor(epoch) for epoch in range(4)] == pytest.approx(
        [1, 0.1, 0.01, 0.001]
    )


def test_what_is_out_of_range_is_refused() -> None:
    for change in (
        {"epochs": 0},
        {"batch_size": 0},
        {"head_lr": 0.0},
        {"encoder_lr": float("nan")},
        {"smallest_crop": 1.5},
    ):
        with pytest.raises(UserError, match="--"):
            LINEAR["imagenet"].changed(**change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean 'places205'"):
        linear_schedule("places")


@pytest.mark.parametrize(("rows", "batch", "processes"), [(21, 8, 1), (21, 8, 3), (17, 8, 2), (5, 256, 2)])
def test_every_sample_once_an_epoch_whatever_the_number_of_processes(
    rows: int, batch: int, processes: int
) -> None:
    parts = [
        Order(rows, batch, seed=3, world=World(rank, processes, rank, torch.device("cpu")))
        for rank in range(processes)
    ]
    alone = Order(rows, batch, seed=3, world=ALONE)
    for order in (*parts, alone):
        order.current = 4
    together = [[row for part in step for row in part] for step in zip(*parts, strict=True)]
    left = rows % batch if 0 < rows % batch < max(2, processes) else 0
    assert together == list(alone)[: len(together)]
    assert len({row for step in together for _, row in step}) == rows - left
    assert {epoch for step in together for epoch, _ in step} == {4}


@pytest.mark.parametrize("decay", ["cosine", "steps"])
def test_the_classifier_is_that_of_a_loop_in_numpy(run: Run, decay: Any) -> None:
    """Same crops, features by the frozen encoder, softmax regression by SGD with momentum written out."""
    found = labelled_data(run, DataOptions())
    schedule = Schedule("test", "", 3, 8, 0.5, None, 0.01, decay=decay, milestones=(1, 2), smallest_crop=0.3)
    model = run.model(device="cpu")
    before = copy.deepcopy(model.state_dict())
    learner = Learner(model.branch("image"), 3, schedule, device=ALONE.device, seed=5)
    weight, bias = (p.detach().double().numpy().copy() for p in learner.head.parameters())
    tested = train_classifiers(
        ALONE, [learner], model.inputs["image"], found, schedule, tops=(1,), reading=Reading(5, 0, 4)
    )[0]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)  # BatchNorm's statistics too

    crops = ImageInput(ImageInput.Config(size=32, crop_area=(0.3, 1.0)))
    moving_w, moving_b = np.zeros_like(weight), np.zeros_like(bias)
    for epoch in range(3):
        rate = 0.5 * ((1 + math.cos(math.pi * epoch / 3)) / 2 if decay == "cosine" else 10.0**-epoch)
        order = epoch_order(5, epoch, 21)
        for start in (0, 8, 16):
            rows = order[start : start + 8]
            item = crops.collate([crops.load(found.train[i], view_rng(5, epoch, int(i), 0)) for i in rows])
            with torch.no_grad():
                x = model.branch("image").represent(item).double().numpy()
            logits = x @ weight.T + bias
            share = np.exp(logits - logits.max(1, keepdims=True))
            share /= share.sum(1, keepdims=True)
            wrong = (share - np.eye(3)[found.train_labels[rows]]) / len(rows)
            moving_w = 0.9 * moving_w + wrong.T @ x + 0.01 * weight
            moving_b = 0.9 * moving_b + wrong.sum(0) + 0.01 * bias
            weight, bias = weight - rate * moving_w, bias - rate * moving_b
    trained_w, trained_b = (p.detach().double().numpy() for p in learner.head.parameters())
    np.testing.assert_allclose(trained_w, weight, rtol=0, atol=1e-4 * np.abs(weight).max())
    np.testing.assert_allclose(trained_b, bias, rtol=0, atol=1e-4 * np.abs(weight).max())

    centre = model.inputs["image"]
    item = centre.collate([centre.load(sample, None) for sample in found.test])
    with torch.no_grad():
        scores = model.branch("image").represent(item).double().numpy() @ weight.T + bias
    assert tested.top1 == pytest.approx(100 * (scores.argmax(1) == found.test_labels).mean())
    assert (tested.top5, tested.loss > 0) == (None, True)


def test_the_command_reports_every_number_and_leaves_the_run_as_it_is(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run.path, besides="eval/")
    words = ("--epochs", 2, "--batch-size", 8, "--lr", 0.3, "--workers", 0, "--device", "cpu")
    assert mmvicreg(monkeypatch, "eval", "linear", run.path, *words) == 0
    assert contents(run.path, besides="eval/") == before
    file = run.path / "eval" / "linear-val-epochs=2-batch-size=8-lr=0.3.json"
    report = json.loads(file.read_text())
    assert report["top1"] == report["untrained_top1"]  # the weights of this run are its initial ones
    assert report["chance"] == pytest.approx(100 / 3)
    assert report["changed"] == {"epochs": 2, "batch_size": 8, "head_lr": 0.3}
    assert report["schedule"]["weight_decay"] == 1e-6
    assert (report["variant"], report["top5"], report["train"], report["test"]) == ("whole", None, 21, 12)
    printed = " ".join(capsys.readouterr().out.split())
    for said in ("untrained", "chance", "SGD 0.3", "batch 8, 2 epochs", "Not as published: epochs"):
        assert said in printed
    again = [*report["command"].split()[1:], "--workers", "0", "--device", "cpu"]
    assert mmvicreg(monkeypatch, *again) == 0
    assert json.loads(file.read_text()) == report


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "data", train=3, val=2)
    broken = root / "train" / "c01" / "train1-2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    made = picture_run(tmp_path / "run", root)
    with pytest.raises(UserError, match=r"train1-2\.png.*--on-bad-sample skip"):
        linear_image.run(made, epochs=1, batch_size=4, workers=0, device="cpu", baseline=False)
    assert not (made.path / "eval").exists()


def test_a_test_picture_that_cannot_be_read_is_named_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pictures(tmp_path / "data", train=3, val=2)
    for name in ("c01/val1-1.png", "c02/val2-0.png"):
        (root / "val" / name).write_bytes(b"")
    made = picture_run(tmp_path / "run", root)
    monkeypatch.setattr(classifier, "_train_epoch", None)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 4, "workers": 0, "device": "cpu"}
    told = r"2 of the 6 samples of 'val'.*the first: .*val1-1\.png.*--on-bad-sample skip"
    for judge, more in ((linear_image.run, {}), (finetune.run, {"labels": "100%"})):
        with pytest.raises(UserError, match=told):
            judge(made, **options, **more)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fold", "1"), "--fold is for recordings"),
        (("--quick", "--lr", "1"), "--lr would do nothing"),
        (("--quick", "--schedule", "imagenet"), "--schedule would do nothing"),
        (("--quick", "--seed", "0", "--workers", "2"), "--seed, --workers would do nothing"),
        (("--schedule", "imagnet"), "did you mean 'imagenet'"),
        (("--branch", "text"), "no branch 'text'"),
        (("--batch-size", "1"), "raise --batch-size"),
        (("--lr", "1e38", "--epochs", "3", "--workers", "0", "--no-baseline"), "lower the rate (--lr)\n"),
    ],
)
def test_linear_mistakes(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    assert mmvicreg(monkeypatch, "eval", "linear", run.path, "--device", "cpu", *words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_weights_that_are_not_finite_are_not_put_down_to_the_rates(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("features", "eval"))
    checkpoint = next((folder / "checkpoints").iterdir())
    content = torch.load(checkpoint, weights_only=True)
    name = next(name for name in content["model"] if ".encoder." in name and name.endswith("weight"))
    content["model"][name][:] = float("nan")
    torch.save(content, checkpoint)
    options: dict[str, Any] = {"epochs": 1, "workers": 0, "device": "cpu"}
    for judge, more in ((linear_image.run, {}), (finetune.run, {"labels": "100%"})):
        with pytest.raises(UserError, match=r"branch 'image' .* NaN or infinity.*earlier checkpoint"):
            judge(open_run(folder), **options, **more)


def test_a_run_that_is_not_there_is_said_whatever_else_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (("--quick",), ("--epochs", "1"), ()):
        assert mmvicreg(monkeypatch, "eval", "linear", tmp_path / "nope", *flags) == 2
        assert f"no run folder at {tmp_path / 'nope'}" in capsys.readouterr().err


def test_the_schedule_is_the_data_sets_own_unless_another_is_asked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """C.3's for Places205, without a word: C.2's rates and epochs are ImageNet's."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        lines = [f"{name}/{split}{i}.jpg {label}" for label, name in enumerate("ab") for i in range(count)]
        (tmp_path / f"{split}_places205.csv").write_text("\n".join(lines))
        for line in lines:
            file = tmp_path / line.partition(" ")[0]
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    words = ("eval", "linear", run.path, "--dataset", "places205", "--data-root", tmp_path)
    words = (*words, "--epochs", 1, "--batch-size", 4, "--workers", 0, "--no-baseline", "--device", "cpu")
    results = run.path / "eval"

    assert mmvicreg(monkeypatch, *words) == 0
    short = "epochs=1-batch-size=4-no-baseline"
    report = json.loads((results / f"linear-places205-val-{short}.json").read_text())
    assert {key: report["schedule"][key] for key in ("name", "source", "head_lr", "weight_decay")} == {
        "name": "places205", "source": "C.3", "head_lr": 0.003, "weight_decay": 1e-4,
    }  # fmt: skip
    assert report["changed"].keys() == {"epochs", "batch_size", "milestones"}
    assert "is its own" not in capsys.readouterr().out

    assert mmvicreg(monkeypatch, *words, "--schedule", "imagenet") == 0
    other = results / f"linear-places205-val-schedule=imagenet-{short}.json"
    assert json.loads(other.read_text())["schedule"]["name"] == "imagenet"
    printed = " ".join(capsys.readouterr().out.split())
    assert "Not as published for places205: --schedule places205 is its own." in printed


def test_published_rows_stand_beside_whole_published_data_only(run: Run) -> None:
    rows = {row["method"]: row for row in published_rows(1, {"top1": "linear top-1", "top5": "linear top-5"})}
    assert (rows["VICReg"]["top1"], rows["VICReg"]["top5"]) == (73.2, 91.1)
    few = {row["method"] for row in published_rows(1, {"top1": "top-1, 1 % of labels"})}
    assert "VICReg" in few
    assert "MoCo" not in few  # it has no such number
    assert not is_whole(labelled_data(run, DataOptions()))
    branch, own = run.recipe.branches["image"], LINEAR["imagenet"]

    class Whole:
        name, classes = "imagenet", tuple(map(str, range(1000)))

    train, test = range(1_281_167), range(50_000)
    empty = np.zeros(0, np.int64)
    whole = Labelled(Whole(), True, "train", "val", train, empty, test, empty)  # type: ignore[arg-type]
    assert is_whole(whole)
    assert {row["method"] for row in linear_image._published(whole, branch, own)} >= {"VICReg", "Supervised"}
    wide = branch.model_copy(update={"encoder": {"name": "resnet50x2"}})
    (x2,) = (row for row in linear_image._published(whole, wide, own) if row["method"] == "VICReg R50 (x2)")
    assert (x2["table"], x2["top1"], x2["top5"]) == (9, 75.5, 92.1)
    few_labels = finetune._published(whole, Choice(empty, "", 1.0), wide, FINETUNE["1%"])
    assert {row["method"]: row["top1"] for row in few_labels}["VICReg R200 (x2)"] == 68.8  # Table 10
    assert finetune._published(whole, Choice(empty, ""), wide, FINETUNE["other"]) == []
    # nor beside another schedule than theirs
    shorter = FINETUNE["1%"].changed(epochs=3)
    assert finetune._published(whole, Choice(empty, "", 1.0), wide, shorter) == []
    for other in (own.changed(head_lr=0.3), LINEAR["places205"]):
        assert linear_image._published(whole, branch, other) == []
    part = Labelled(Whole(), True, "train", "val", range(9), empty, test, empty)  # type: ignore[arg-type]
    assert not is_whole(part)
    assert linear_image._published(part, branch, own) == []

    for name, (classes, trained, tested), vicreg in (
        ("places205", (205, 2_448_873, 20_500), 54.3),
        ("inat18", (8_142, 437_513, 24_426), 47.0),
    ):

        class Other:
            pass

        Other.name, Other.classes = name, tuple(map(str, range(classes)))  # type: ignore[attr-defined]
        other = Labelled(Other(), False, "train", "val", range(trained), empty, range(tested), empty)  # type: ignore[arg-type]
        found = {row["method"]: row for row in linear_image._published(other, branch, LINEAR[name])}
        assert (found["VICReg"]["top1"], found["VICReg"]["table"]) == (vicreg, 2)  # Table 2 of the paper


def test_published_rows_say_whose_encoder_they_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    for encoder, said in (("resnet50", "(paper, Table 1)"), ("vit_small", "(paper, Table 1, resnet50)")):
        report = {"branch": "image", "encoder": encoder, "dataset": "imagenet", "run": "r", "epoch": 1}
        rows = published_rows(1, {"top1": "linear top-1"})
        show("title", {"top1": "top-1"}, {}, {**report, "published": rows}, [])
        assert said in capsys.readouterr().out
    rows = published_rows(9, {"top1": "top-1"})  # name theirs
    show("title", {"top1": "top-1"}, {}, {**report, "published": rows}, [])
    assert "VICReg R50 (x2) (paper, Table 9)" in capsys.readouterr().out
