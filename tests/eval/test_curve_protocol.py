"""``eval curve``: every checkpoint is judged as the protocols judge a run that ended there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from picture_runs import mmvicreg, write_pictures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import IMAGE_IMAGE

from mmvicreg.eval import curve, knn, linear_image
from mmvicreg.runs import CHECKPOINTS, open_run
from mmvicreg.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four epochs, every second with its checkpoint."""
    folder = tmp_path_factory.mktemp("curve")
    data = write_pictures(folder / "data", classes=4, train=10, val=6)
    settings = (*IMAGE_IMAGE, "training.epochs=4", "training.batch_size=16", "training.keep_checkpoints=1")
    settings = (*settings, "training.keep_every=2")
    words = [
        "train", "--pair", "image-image", "--dataset", "image-folder", "--recipe", "shapes", "--data-root", data,
        "--device", "cpu", "--workers", 0, "--out", folder / "run",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        assert mmvicreg(patch, *words, *(part for one in settings for part in ("--set", one))) == 0
    return folder / "run"


def test_a_point_is_what_the_protocols_say_of_a_run_that_ended_there(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = curve.run(open_run(trained), k=(3, 5), device="cpu")
    points = report["points"]
    assert [(point["epoch"], point["step"]) for point in points] == [(0, 0), (2, 4), (4, 8)]
    assert json.loads((trained / "eval" / "curve-val-k=3,5.json").read_text()) == report
    shown = capsys.readouterr().out
    assert "epoch 4" in shown
    assert "linear (quick)" in shown

    for point, kept in zip(points[1:], sorted((trained / CHECKPOINTS).iterdir()), strict=True):
        ended = tmp_path / kept.stem
        shutil.copytree(trained, ended, ignore=shutil.ignore_patterns("features", "eval", CHECKPOINTS))
        (ended / CHECKPOINTS).mkdir()
        shutil.copy(kept, ended / CHECKPOINTS)
        near = knn.run(open_run(ended), k=(3, 5), device="cpu")
        probe = linear_image.run(open_run(ended), quick=True, device="cpu")
        for k in (3, 5):
            assert point[f"{k}-NN"] == near["k"][str(k)]["top1"]
            assert points[0][f"{k}-NN"] == near["k"][str(k)]["untrained_top1"]
        assert (point["linear"], points[0]["linear"]) == (probe["top1"], probe["untrained_top1"])

    assert (
        mmvicreg(monkeypatch, *report["command"].split()[1:], "--device", "cpu") == 0
    )  # the command repeats it
    events = EventAccumulator(str(trained / "tensorboard" / "curve-val-k=3,5"))
    events.Reload()
    drawn = events.Scalars("top1/image/linear")
    assert [(event.step, event.value) for event in drawn] == [
        (point["step"], pytest.approx(point["linear"])) for point in points
    ]


def test_checkpoints_of_one_epoch_have_rows_of_their_own(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is stopped within an epoch leaves one of the epochs before, as the weights before training are."""
    stopped = tmp_path / "stopped"
    shutil.copytree(trained, stopped, ignore=shutil.ignore_patterns("eval", "step-*8.pt"))
    content = load_checkpoint(stopped / CHECKPOINTS / "step-000000004.pt")
    for step, epoch in ((1, 0), (5, 2)):
        position = {"step": step, "epoch": epoch, "seconds": 1.0}
        save_checkpoint(stopped / CHECKPOINTS, step, {**content, "position": position}, keep=9)
    report = curve.run(open_run(stopped), k=(3,), device="cpu")
    assert [(p["epoch"], p["step"]) for p in report["points"]] == [(0, 0), (0, 1), (2, 4), (2, 5)]
    shown = capsys.readouterr().out
    for row in ("epoch 0, step 0", "epoch 0, step 1", "epoch 2, step 4", "epoch 2, step 5"):
        assert row in shown


def test_what_cannot_be_judged_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mmvicreg(monkeypatch, "eval", "curve", trained, "--k", 41, "--device", "cpu") == 2
    assert "41 neighbours were asked for, and image-folder has only 40" in capsys.readouterr().err
    empty = tmp_path / "empty"
    shutil.copytree(trained, empty, ignore=shutil.ignore_patterns("features", "eval", CHECKPOINTS))
    assert mmvicreg(monkeypatch, "eval", "curve", empty, "--device", "cpu") == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
