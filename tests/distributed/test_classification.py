"""Classifiers and neighbours on two processes: what one process gives, no sample left out or counted twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from picture_runs import picture_run, write_pictures
from processes import run_processes

from mmvicreg.eval import knn
from mmvicreg.eval.classifier import Learner, Reading, train_classifiers
from mmvicreg.eval.labelled import DataOptions, labelled_data
from mmvicreg.eval.schedules import Schedule
from mmvicreg.runs import open_run
from mmvicreg.training.distributed import World


def this_world() -> World:
    """This process among those of a test, or alone."""
    there = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if there else 0
    return World(rank, torch.distributed.get_world_size() if there else 1, rank, torch.device("cpu"))


def classifiers(run: str, encoder_lr: float | None) -> dict[str, Any]:
    """A classifier in float64, trained by the processes that are there; 17 samples in batches of 7."""
    world = this_world()
    opened = open_run(Path(run))
    found = labelled_data(opened, DataOptions())
    model = opened.model(device="cpu").double()
    schedule = Schedule("test", "", 2, 7, 0.1, encoder_lr, 1e-3)
    learner = Learner(model.branch("image"), 3, schedule, device=world.device, seed=0)
    learner.head.double()
    groups = learner.optimizer.param_groups
    groups[0]["params"] = list(learner.head.parameters())
    tested = train_classifiers(
        world, [learner], model.inputs["image"], found, schedule, tops=(1,), reading=Reading(0, 0, 4)
    )[0]
    return {
        "head": learner.head.weight.detach(),
        "encoder": next(learner.branch.encoder.parameters()).detach(),
        "statistics": next(b for n, b in learner.branch.encoder.named_buffers() if n.endswith("running_var")),
        "top1": torch.tensor(tested.top1),
        "loss": torch.tensor(tested.loss),
    }


def neighbours(run: str) -> dict[str, Any]:
    """The figures of ``eval knn``, by the processes that are there; 3 queries a batch."""
    settings = knn.Settings("image", (3, 5), 0.07, "exp", "representation", False, DataOptions())
    report = knn._judge(this_world(), open_run(Path(run)), settings)
    return {k: torch.tensor(values["top1"]) for k, values in report["k"].items()}


def everything(run: str) -> list[dict[str, Any]]:
    """Frozen, fine-tuned, neighbours: in one start of processes."""
    return [classifiers(run, None), classifiers(run, 0.01), neighbours(run)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classification")
    root = write_pictures(folder / "data", train=6, val=3)
    (root / "train" / "c00" / "train0-0.png").unlink()
    return picture_run(folder / "run", root, "evaluation.batch_size=3").path


def test_two_processes_judge_as_one_does(run: Path) -> None:
    alone = everything(str(run))
    written = {path.name: path.read_bytes() for path in run.rglob("*") if path.suffix in (".npy", ".json")}
    assert len(written) == 3
    for path in (run / "features").iterdir():
        path.unlink()  # else the two would read what one has computed
    for results in run_processes(2, everything, str(run)):
        for found, expected in zip(results, alone, strict=True):
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7, msg=name)
    for path in run.rglob("*"):
        if path.suffix in (".npy", ".json"):
            assert path.read_bytes() == written.pop(path.name)
    assert not written
