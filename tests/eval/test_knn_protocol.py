"""``eval knn`` and the features it keeps: against scikit-learn, what makes features stale, mistakes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_runs import captioned_run, mmvicreg, picture_run, write_pictures
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from mmvicreg.encode import encode
from mmvicreg.eval import features as keeping
from mmvicreg.eval import knn
from mmvicreg.eval.features import features
from mmvicreg.eval.labelled import DataOptions
from mmvicreg.runs import RECIPE, Run, open_run
from mmvicreg.samples import Sample
from mmvicreg.training.distributed import World

ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("knn") / "data", classes=12, train=5, val=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Run:
    return picture_run(tmp_path_factory.mktemp("knn") / "run", pictures)


def test_the_protocol_is_scikit_learns_on_the_same_features(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = knn.run(run, k=(1, 7), device="cpu")
    file = run.path / "eval" / "knn-val-k=1,7.json"
    assert json.loads(file.read_text()) == report
    data, model = run.dataset(), run.model(device="cpu")
    train, test = (
        encode(model, "image", data.samples(split), space="representation") for split in ("train", "val")
    )
    labels, asked = ([s.label for s in data.samples(split)] for split in ("train", "val"))
    for k in (1, 7):
        classifier = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(train.vectors.astype(float), labels)
        expected = 100 * classifier.score(test.vectors.astype(float), asked)
        assert report["k"][str(k)]["top1"] == pytest.approx(expected)
        assert report["k"][str(k)]["untrained_top1"] == pytest.approx(
            expected
        )  # these weights are the initial ones
        assert report["k"][str(k)]["top5"] >= report["k"][str(k)]["top1"]
    assert report["k"]["1"]["top1"] > 3 * report["chance"] > 0
    assert (report["train"], report["test"], report["classes"], report["published"]) == (60, 24, 12, [])
    assert "7-NN" in capsys.readouterr().out

    monkeypatch.setattr(keeping, "encode", _must_not)  # the command again reads what was kept
    assert mmvicreg(monkeypatch, *report["command"].split()[1:]) == 0
    assert json.loads(file.read_text()) == report


def test_table_11_stands_beside_its_own_votes_alone() -> None:
    own = knn.Settings("image", (20,), 0.07, "exp", "representation", True, DataOptions())
    assert own.as_published
    for other in ({"temperature": 0.1}, {"weighting": "uniform"}, {"space": "embedding"}):
        assert not replace(own, **other).as_published  # type: ignore[arg-type]


def _must_not(*_: Any, **__: Any) -> Any:
    raise AssertionError("features were computed again")


def test_what_changes_features_makes_them_anew(
    tmp_path: Path, run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures, data)
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("features", "eval"))
    calls: list[int] = []

    def counted(model: Any, branch: str, samples: Any, **options: Any) -> Any:
        calls.append(len(samples))
        return encode(model, branch, samples, **options)

    monkeypatch.setattr(keeping, "encode", counted)

    def look(*, untrained: bool = False) -> np.ndarray:
        opened = open_run(folder)
        samples = opened.dataset(root=data).samples("val")
        return np.array(
            features(
                ALONE,
                opened,
                opened.model(untrained=untrained, device="cpu"),
                "image",
                samples,
                of="untrained" if untrained else "val",
            )
        )

    def kept() -> list[Path]:
        return sorted((folder / "features").iterdir())

    first = look()
    np.testing.assert_array_equal(look(), first)
    assert len(calls) == 1
    look(untrained=True)
    assert (len(calls), len(kept())) == (2, 2)

    picture = next((data / "val").rglob("*.png"))
    Image.new("RGB", (32, 32), "white").save(picture)
    os.utime(picture, (1, 1))
    second = look()
    assert (len(calls), len(kept())) == (3, 2)  # the stale file is gone
    assert (np.abs(second - first).max(1) > 0).sum() == 1

    recipe = (folder / RECIPE).read_text()
    (folder / RECIPE).write_text(recipe.replace("eval_resize: null", "eval_resize: 64"))
    assert np.abs(look() - second).max() > 0
    assert len(calls) == 4
    (folder / RECIPE).write_text(recipe)
    look()

    checkpoint = next((folder / "checkpoints").iterdir())
    content = torch.load(checkpoint, weights_only=True)
    content["model"][_some_weight(content)] += 0.1
    torch.save(content, checkpoint)
    assert np.abs(look() - second).max() > 0
    assert len(calls) == 6

    whole = next(path for path in kept() if "untrained" not in path.name)
    content = whole.read_bytes()
    # cut short, and overwritten by something else
    for number, damaged in enumerate(
        (content[:-100], b"", b"PK\x03\x04" + content, content[:10] + b"{" * 99), 7
    ):
        whole.write_bytes(damaged)
        look()
        assert len(calls) == number
        look()
        assert len(calls) == number


def _some_weight(content: dict[str, Any]) -> str:
    return next(name for name in content["model"] if ".encoder." in name and name.endswith("weight"))


def test_a_folder_that_cannot_be_written_only_costs_time(
    tmp_path: Path, run: Run, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("features", "eval"))
    (folder / "features").write_text("a file where the folder should be")
    report = knn.run(open_run(folder), k=(3,), device="cpu", baseline=False)
    assert report["k"]["3"]["top1"] > report["chance"]
    assert "untrained_top1" not in report["k"]["3"]
    told = capsys.readouterr()
    assert "features are not kept" in told.out + told.err


def test_pictures_of_an_image_text_run_and_another_data_set(
    tmp_path: Path, tiny_shapes: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = captioned_run(tmp_path / "run", tiny_shapes)
    where = ("--dataset", "image-folder", "--data-root", pictures, "--k", "3", "--no-baseline")
    assert mmvicreg(monkeypatch, "eval", "knn", other.path, "--branch", "image", *where) == 0
    report = json.loads((other.path / "eval" / "knn-image-folder-val-k=3-no-baseline.json").read_text())
    assert (report["branch"], report["dataset"], report["test"]) == ("image", "image-folder", 24)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--branch", "imgae"), "no branch 'imgae'; did you mean 'image'"),
        (("--branch", "text"), "reads text, and this protocol is for pictures: choose image"),
        ((), "has no labels"),
        (("--k", "20,x"), "--k expects"),
        (("--k", "2.5"), "whole numbers"),
        (("--k", "nan"), "whole numbers"),
        (("--k", "inf"), "whole numbers"),
        (("--dataset", "image-folder", "--k", "61"), "only 60 training samples"),
        (("--dataset", "image-folder", "--k", "3", "--split", "train"), "both in the training split"),
        (("--dataset", "image-folder", "--k", "3", "--split", "vla"), "did you mean 'val'"),
        (("--dataset", "image-folder", "--k", "3", "--weighting", "unifrom"), "did you mean 'uniform'"),
        (("--dataset", "image-folder", "--k", "3", "--temperature", "0"), "above 0"),
        (("--dataset", "image-folder", "--k", "3", "--space", "embeding"), "did you mean 'embedding'"),
    ],
)
def test_mistakes_are_one_message(
    tmp_path: Path,
    captioned: Run,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    root = ("--data-root", pictures) if "--dataset" in words else ()
    assert mmvicreg(monkeypatch, "eval", "knn", captioned.path, "--no-baseline", *words, *root) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not {"eval", "features"} & {entry.name for entry in captioned.path.iterdir()}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory, tiny_shapes: Path) -> Run:
    return captioned_run(tmp_path_factory.mktemp("captioned") / "run", tiny_shapes)


def test_samples_without_a_class_are_named(tmp_path: Path, run: Run) -> None:
    from mmvicreg.errors import UserError
    from mmvicreg.eval.tasks import labels_of

    data = run.dataset()
    with pytest.raises(UserError, match=r"1 samples of image-folder .* have no label, first 'lost'"):
        labels_of([*data.samples("val"), Sample(id="lost")], data)
