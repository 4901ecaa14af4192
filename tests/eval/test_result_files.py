"""The files of the protocols for pictures: refused before the work where they cannot be written, shown before it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eval_stubs import StubData, StubRun, recipe
from picture_runs import mmvicreg, picture_run, write_pictures
from voc_layout import write_voc

from mmvicreg.errors import UserError
from mmvicreg.eval import classification, finetune, knn, linear_image, output
from mmvicreg.eval import features as keeping
from mmvicreg.eval.retrieval_report import file_name
from mmvicreg.runs import Run
from mmvicreg.samples import Sample

SHORT = ("--epochs", 1, "--batch-size", 8, "--workers", 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = write_pictures(tmp_path_factory.mktemp("files") / "data", train=3, val=2)
    return picture_run(tmp_path_factory.mktemp("files") / "run", root)


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc")
    write_voc(root)
    return root


def _must_not(*_: Any, **__: Any) -> Any:
    raise AssertionError("the work was begun")


@pytest.mark.parametrize(
    "words",
    [
        ("knn", "--k", 3),
        ("curve", "--k", 3),
        ("linear", "--quick"),
        ("linear", *SHORT),
        ("finetune", *SHORT),
        ("svm", "--data-root"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    run: Run,
    voc: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[Any, ...],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("features", "eval"))
    (folder / "eval").write_text("a file where the folder should be")
    monkeypatch.setattr(keeping, "encode", _must_not)
    monkeypatch.setattr(linear_image, "train_run", _must_not)
    monkeypatch.setattr(finetune, "train_run", _must_not)
    more = (voc,) if words[0] == "svm" else ()
    assert mmvicreg(monkeypatch, "eval", words[0], folder, *words[1:], *more, "--device", "cpu") == 2
    assert f"cannot write {folder / 'eval'}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("knn",), ("curve",), ("linear", "--quick"), ("linear",), ("finetune",)])
def test_one_class_alone_is_refused_before_the_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: Any
) -> None:
    root = write_pictures(tmp_path / "data", classes=1, train=3, val=2)
    monkeypatch.setattr(keeping, "encode", _must_not)
    monkeypatch.setattr(linear_image, "train_run", _must_not)
    monkeypatch.setattr(finetune, "train_run", _must_not)
    assert mmvicreg(monkeypatch, "eval", words[0], run.path, *words[1:], "--data-root", root) == 2
    message = f"all 3 samples of the training split 'train' of image-folder at {root} are of one class, 'c00'"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [("knn", "--k", 3), ("linear", "--quick")])
def test_figures_are_shown_before_they_are_written(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[Any, ...]
) -> None:
    def full(path: Path, _: object) -> None:
        raise UserError(f"cannot write {path}: no space left on device")

    monkeypatch.setattr(output, "write_report", full)
    assert mmvicreg(monkeypatch, "eval", words[0], run.path, *words[1:], "--device", "cpu") == 2
    told = capsys.readouterr()
    assert "no space left" in told.err
    assert "untrained" in told.out
    assert "Written" not in told.out


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (("knn", "--k", "20,5"), "knn-val-k=5,20"),
        (("knn", "--k", "3", "--space", "embedding"), "knn-val-k=3-space=embedding"),
        (
            ("knn", "--k", "3", "--temperature", "0.1", "--no-baseline"),
            "knn-val-k=3-temperature=0.1-no-baseline",
        ),
        (("knn", "--k", "3", "--weighting", "uniform"), "knn-val-k=3-weighting=uniform"),
        (("curve",), "curve-val"),
        (("curve", "--k", "3"), "curve-val-k=3"),
        (("linear", "--quick"), "linear-quick-val"),
        (("linear", "--quick", "--no-baseline"), "linear-quick-val-no-baseline"),
        (("linear",), "linear-val"),
        (("linear", "--schedule", "imagenet", "--epochs", "100", "--seed", "0"), "linear-val"),
        (("linear", "--epochs", "1", "--no-baseline"), "linear-val-epochs=1-no-baseline"),
        (("linear", "--schedule", "inat18", "--seed", "2"), "linear-val-schedule=inat18-seed=2"),
        (("linear", "--train-split", "train"), "linear-val"),
        (("linear", "--train-split", "val", "--split", "train"), "linear-train-train-split=val"),
        (("finetune",), "finetune-10percent-val"),
        (("finetune", "--encoder-lr", "0.2", "--baseline"), "finetune-10percent-val-encoder-lr=0.2-baseline"),
        (("svm",), "svm-voc07-test"),
        (("svm", "--costs", "0.01,1", "--no-baseline"), "svm-voc07-test-costs=0.01,1-no-baseline"),
        (("svm", "--costs", "0.001,0.01,0.1,1,10,100,1000"), "svm-voc07-test-costs=0.001,0.01,0~a7feb63c"),
    ],
)
def test_what_is_not_the_protocols_default_is_in_the_name(
    run: Run, voc: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[Any, ...], file: str
) -> None:
    asked: list[Path] = []

    def noted(path: Path) -> None:
        asked.append(path)
        raise UserError("enough")

    monkeypatch.setattr(classification, "check_writable", noted)  # it is asked before the work
    more = ("--data-root", voc) if words[0] == "svm" else ()
    assert mmvicreg(monkeypatch, "eval", words[0], run.path, *words[1:], *more, "--device", "cpu") == 2
    assert asked == [run.path / "eval" / f"{file}.json"]


def test_pictures_in_another_folder_do_not_take_the_place_of_the_runs_own(tmp_path: Path) -> None:
    """What the run's own folder gave must stay; a copy of it is the same data."""
    root = write_pictures(tmp_path / "A", train=3, val=2)
    run = picture_run(tmp_path / "run", root)
    for name in ("B", "C"):
        write_pictures(tmp_path / name, train=4, val=2)
    (tmp_path / "link").symlink_to(root)
    shutil.copytree(root, tmp_path / "copy")
    options: dict[str, Any] = {"k": (3,), "device": "cpu", "baseline": False}
    for name in ("A", "B", "C", "link", "copy"):
        knn.run(run, data_root=tmp_path / name, **options)
    found = sorted(path.name.split("~")[0] for path in (run.path / "eval").iterdir())
    name = "knn-val-k=3-no-baseline"
    assert found == [f"{name}-data-root=B", f"{name}-data-root=C", f"{name}.json"]


def test_results_of_other_data_under_the_name_of_the_runs_have_their_folder_in_theirs(tmp_path: Path) -> None:
    samples = [Sample(id=str(i)) for i in range(9)]
    report = {"protocol": "all", "space": "embedding", "similarity": "cosine"}

    def name_of(run: Run, data: StubData) -> str:
        return file_name(run, data, {**report, "dataset": data.name}, "test", search="exact").split("~")[0]

    own = StubData({"train": samples, "test": []}, root=tmp_path / "here")
    keys = {"dataset__root": str(own.root), "evaluation__space": "embedding"}
    run = StubRun(tmp_path, recipe("image-text", "shapes", **keys, evaluation__similarity="cosine"), own)
    moved, other = replace(own, root=tmp_path / "there"), replace(own, parts={"train": samples[1:]})
    assert name_of(run, own) == name_of(run, moved) == name_of(run, other) == "retrieval-test.json"
    assert name_of(run, replace(other, root=tmp_path / "there")) == "retrieval-test-data-root=there"
    mine = replace(own, name="manifest")
    assert name_of(run, mine) == "retrieval-manifest-test.json"
