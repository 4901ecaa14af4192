"""``eval svm``: support vector machines and their C against scikit-learn's own search, difficult pictures, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from picture_runs import mmvicreg, picture_run, write_pictures
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC
from voc_layout import write_voc

from mmvicreg.data.voc import CLASSES
from mmvicreg.errors import UserError
from mmvicreg.eval import svm
from mmvicreg.eval.labelled import DataOptions, labelled_data
from mmvicreg.metrics import average_precision_11_point, interpolated_average_precision

COSTS = (0.01, 0.1, 1.0, 10.0)


def _data(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((3, 8))
    shown = rng.random((n, 3)) < 0.4
    targets = np.where(shown, 1, -1)
    targets[rng.random((n, 3)) < 0.1] = 0
    return ((shown @ centres + rng.standard_normal((n, 8))) * 30).astype(np.float32), targets


def test_equals_scikit_learns_search_over_the_same_grid() -> None:
    (x, train), (y, test) = _data(90, 0), _data(80, 1)
    found = svm.judge_classes(x, y, train, test, ("a", "b", "c"), grid=COSTS)
    for place, name in enumerate(("a", "b", "c")):
        search = GridSearchCV(
            LinearSVC(class_weight={1: 2, -1: 1}, max_iter=2000, dual=True, random_state=0),
            {"C": list(COSTS)},
            scoring="average_precision",
            cv=3,
        ).fit(normalize(x.astype(float)), np.where(train[:, place] == 1, 1, 0) * 2 - 1)
        counted = test[:, place] != 0  # difficult pictures are left out of the test
        scores = search.decision_function(normalize(y.astype(float)))[counted]
        positive = test[counted, place] == 1
        result = found[name]
        assert result.cost == search.best_params_["C"]
        assert result.measures["uninterpolated"] == pytest.approx(
            100 * average_precision_score(positive, scores)
        )
        assert result.measures["area"] == pytest.approx(
            100 * interpolated_average_precision(scores, positive)
        )
        assert result.measures["eleven_point"] == pytest.approx(
            100 * average_precision_11_point(scores, positive)
        )


def test_the_published_grid() -> None:
    assert len(svm.GRID) == 26
    assert set(svm.GRID) == {2.0**-i for i in range(4, 20)} | {10.0**i for i in range(-7, 3)}


def test_a_class_that_nobody_shows_is_named() -> None:
    (x, train), (y, test) = _data(40, 0), _data(40, 1)
    none = np.where(test == 1, -1, test)
    with pytest.raises(UserError, match="the class a has 0 pictures among the test samples"):
        svm.judge_classes(x, y, train, none, ("a", "b", "c"), grid=COSTS)
    few = np.full_like(train, -1)
    few[:2] = 1
    with pytest.raises(UserError, match="the class a has 2 pictures among the training samples; 3"):
        svm.judge_classes(x, y, few, test, ("a", "b", "c"), grid=COSTS)


def test_a_class_that_every_picture_shows_is_named() -> None:
    (x, train), (y, test) = _data(40, 0), _data(40, 1)
    train[:, 1] = 1
    train[0, 1] = 0  # a difficult one counts as a negative in training
    with pytest.raises(UserError, match="the class b has 1 training samples that do not show it; 3"):
        svm.judge_classes(x, y, train, test, ("a", "b", "c"), grid=COSTS)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_voc(tmp_path / "voc")
    run = picture_run(tmp_path / "run", write_pictures(tmp_path / "data", train=3, val=2))
    # all of the data, but not the published values of C: no published row
    monkeypatch.setattr(svm, "_WHOLE", {"trainval": 30, "test": 16})
    words = ("eval", "svm", run.path, "--data-root", tmp_path / "voc", "--costs", "0.01,1", "--device", "cpu")
    assert mmvicreg(monkeypatch, *words) == 0
    report = json.loads((run.path / "eval" / "svm-voc07-test-costs=0.01,1.json").read_text())
    assert list(report["per_class"]) == list(CLASSES)
    areas = [values["AP"]["area"] for values in report["per_class"].values()]
    assert report["mAP"] == pytest.approx(np.mean(areas))
    assert report["mAP"] == pytest.approx(
        report["untrained_mAP"]
    )  # the weights of this run are its initial ones
    assert {values["C"] for values in report["per_class"].values()} <= {0.01, 1.0}
    assert report["mAP"] > report["chance"]
    assert (report["train"], report["test"], report["published"]) == (30, 16, [])
    assert (report["seen_in_pretraining"], report["doubt"]) == (False, None)
    printed = capsys.readouterr().out
    assert "mAP (VOC07's 11 points)" in printed
    assert "Pretraining saw" not in printed
    assert mmvicreg(monkeypatch, "eval", "svm", run.path, "--dataset", "image-folder") == 2
    assert "does not say which of several classes" in capsys.readouterr().err
    assert mmvicreg(monkeypatch, "eval", "svm", run.path, "--costs", "0,1") == 2
    assert "above 0" in capsys.readouterr().err


def test_a_run_that_was_pretrained_on_the_test_pictures_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_voc(tmp_path / "voc")
    split = "dataset.train_split=trainval+test"
    run = picture_run(tmp_path / "run", tmp_path / "voc", split, dataset="voc07")
    report = svm.run(run, costs=(1.0,), baseline=False, device="cpu")
    assert (report["seen_in_pretraining"], report["doubt"]) == (True, None)
    assert "Pretraining saw the pictures of 'test'" in " ".join(capsys.readouterr().out.split())


def test_a_class_without_pictures_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_voc(tmp_path / "voc")
    file = tmp_path / "voc" / "ImageSets" / "Main" / "cat_test.txt"
    file.write_text(file.read_text().replace("  1\n", " -1\n"))
    run = picture_run(tmp_path / "run", write_pictures(tmp_path / "data", train=3, val=2))
    monkeypatch.setattr(svm, "features", None)  # what encodes
    with pytest.raises(UserError, match="the class cat has 0 pictures among the test samples"):
        svm.run(run, data_root=tmp_path / "voc", device="cpu")


def test_the_other_protocols_send_its_pictures_here(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    run = picture_run(tmp_path / "run", write_pictures(tmp_path / "data", train=3, val=2))
    where = DataOptions(tmp_path / "voc", "voc07", split="test", train_split="trainval")
    with pytest.raises(UserError, match=r"several classes each.*mmvicreg eval svm"):
        labelled_data(run, where)
