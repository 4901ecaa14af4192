"""Every image protocol on CIFAR-10's real pictures, as anyone has them: class folders, nothing held out yet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from picture_runs import contents, mmvicreg, picture_run
from voc_layout import write_voc

from mmvicreg.runs import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, unpacked: Callable[[str], Path]) -> Run:
    """A run over 10 classes of 10 pictures, of which the reader holds out the last of each."""
    folder = tmp_path_factory.mktemp("real")
    for source in sorted((unpacked("cifar10") / "train").iterdir()):
        target = folder / "data" / "train" / source.name
        target.mkdir(parents=True)
        for picture in sorted(source.iterdir())[:10]:
            shutil.copy(picture, target)
    return picture_run(folder / "run", folder / "data", dataset="cifar10")


SHORT = ("--epochs", 1, "--batch-size", 32, "--workers", 0)
TRIAL = "-epochs=1-batch-size=32"


@pytest.mark.parametrize(
    ("words", "file", "figure"),
    [
        (("knn", "--k", "1,5"), "knn-val-k=1,5.json", lambda r: r["k"]["5"]["top1"]),
        (("linear", "--quick"), "linear-quick-val.json", lambda r: r["top1"]),
        (("linear", *SHORT), f"linear-val{TRIAL}.json", lambda r: r["top1"]),
        (("finetune", "--labels", "10%", *SHORT), f"finetune-10percent-val{TRIAL}.json", lambda r: r["top1"]),
    ],
)
def test_the_protocol_runs_and_leaves_the_run_as_it_is(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[Any, ...],
    file: str,
    figure: Callable[[Any], float],
) -> None:
    before = {
        name: value for name, value in contents(run.path).items() if name.startswith(("check", "recipe"))
    }
    assert mmvicreg(monkeypatch, "eval", words[0], run.path, *words[1:], "--device", "cpu") == 0
    report = json.loads((run.path / "eval" / file).read_text())
    assert 0 <= figure(report) <= 100
    assert (report["dataset"], report["classes"], report["test"]) == ("cifar10", 10, 10)
    assert report["train"] == (10 if words[0] == "finetune" else 90)
    assert report["chance"] == pytest.approx(10)
    assert not report["seen_in_pretraining"]
    assert before.items() <= contents(run.path).items()


def test_support_vector_machines_on_real_pictures_of_several_classes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIFAR's ten classes in VOC's layout, for the first ten of its classes."""
    classes = [sorted(folder.iterdir()) for folder in sorted((run.path.parent / "data" / "train").iterdir())]
    write_voc(tmp_path, pictures=classes)
    before = contents(run.path, besides="features/")
    words = ("--data-root", tmp_path, "--costs", "0.1,1", "--device", "cpu")
    assert mmvicreg(monkeypatch, "eval", "svm", run.path, *words) == 0
    file = "eval/svm-voc07-test-costs=0.1,1.json"
    report = json.loads((run.path / file).read_text())
    assert (report["dataset"], report["train"], report["test"], len(report["per_class"])) == (
        "voc07",
        30,
        16,
        20,
    )
    assert report["chance"] < report["mAP"] <= 100  # even by the initial weights, which tell colours
    assert report["untrained_mAP"] == pytest.approx(report["mAP"])
    after = contents(run.path, besides="features/")
    assert after.keys() - before.keys() == {file}
    assert before.items() <= after.items()
