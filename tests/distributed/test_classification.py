"""Classifiers and neighbours on two processes: what one process gives, no sample left out or counted twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_runs import picture_run, write_pictures
from processes import run_processes

from mmvicreg.eval.classifier import Learner, Reading, train_classifiers
from mmvicreg.eval.labelled import DataOptions, labelled_data
from mmvicreg.eval.schedules import Schedule
from mmvicreg.runs import open_run
from mmvicreg.training.distributed import World


def classifiers(run: str, encoder_lr: float | None) -> dict[str, Any]:
    """A classifier in float64, trained by the processes that are there; 17 samples in batches of 7."""
    there = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if there else 0
    size = torch.distributed.get_world_size() if there else 1
    world = World(rank, size, rank, torch.device("cpu"))
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


def both(run: str) -> list[dict[str, Any]]:
    """Frozen and fine-tuned, in one start of processes."""
    return [classifiers(run, None), classifiers(run, 0.01)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classification")
    root = write_pictures(folder / "data", train=6, val=3)
    (root / "train" / "c00" / "train0-0.png").unlink()
    return picture_run(folder / "run", root).path


def test_two_processes_train_what_one_does(run: Path) -> None:
    alone = both(str(run))
    for results in run_processes(2, both, str(run)):
        for found, expected in zip(results, alone, strict=True):
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_neighbours_on_two_processes_are_the_same_report(run: Path) -> None:
    reports = []
    for more in ((), ("--devices", "2")):
        words = ["eval", "knn", str(run), "--k", "3,5", "--device", "cpu", *more]
        done = subprocess.run([sys.executable, "-m", "mmvicreg", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Written") == 1
        reports.append((run / "eval" / "knn-val.json").read_bytes())
        features = {path.name: path.read_bytes() for path in (run / "features").iterdir()}
        for path in (run / "features").iterdir():
            path.unlink()  # the second time they are computed by two
        reports.append(repr(sorted(features.items())).encode())
    assert reports[:2] == reports[2:]
