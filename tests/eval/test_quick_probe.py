"""The quick linear probe: scikit-learn's logistic regression on the same features, and labelled quick."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_runs import mmvicreg, picture_run, write_pictures
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mmvicreg.errors import UserError
from mmvicreg.eval import logistic

CPU = torch.device("cpu")


def _data(n: int, seed: int, classes: int = 4, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, d))
    y = rng.integers(0, classes, n)
    x = (centres[y] + 1.3 * rng.standard_normal((n, d))) * 10.0 ** np.arange(-3, d - 3) + 5
    return np.hstack([x, np.full((n, 1), 0.1)]).astype(np.float32), y  # the last feature is constant


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
@pytest.mark.parametrize("block", [7, 16_384])
def test_the_fit_is_scikit_learns(penalty: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "_BLOCK", block)
    x, y = _data(120, 0)
    test, _ = _data(50, 1)
    rows = np.arange(10, 120)
    data = logistic.Standardised.fit(x, CPU)
    weight, bias = logistic.fit(data, y, rows, classes=4, penalty=penalty)
    scaler = StandardScaler().fit(x.astype(float))
    model = LogisticRegression(C=1 / (len(rows) * penalty), tol=1e-10, max_iter=5000)
    model.fit(scaler.transform(x.astype(float))[rows], y[rows])
    np.testing.assert_allclose(weight.numpy(), model.coef_, atol=2e-4 * np.abs(model.coef_).max())
    found = logistic.scores(data.like(test), np.arange(50), weight, bias)
    share = np.exp(found - found.max(1, keepdims=True))
    np.testing.assert_allclose(
        share / share.sum(1, keepdims=True),
        model.predict_proba(scaler.transform(test.astype(float))),
        atol=1e-3,
    )


def test_the_penalty_comes_from_training_samples_alone() -> None:
    x, y = _data(200, 0)
    test, asked = _data(100, 1)
    first = logistic.probe(x, y, test, asked, classes=4, tops=(1,), device=CPU)
    shuffled = np.random.default_rng(0).permutation(asked)
    again = logistic.probe(x, y, test, shuffled, classes=4, tops=(1,), device=CPU)
    assert first.penalty == again.penalty
    assert first.penalty in logistic.GRID
    inner, held = logistic._inner_split(y)
    assert sorted([*inner, *held]) == list(range(200))
    for label in range(4):
        assert np.sum(y[held] == label) == max(1, np.sum(y == label) // 10)
    reached = [
        LogisticRegression(C=1 / (len(inner) * p), tol=1e-8, max_iter=5000)
        .fit((scaled := StandardScaler().fit_transform(x.astype(float)))[inner], y[inner])
        .score(scaled[held], y[held])
        for p in logistic.GRID
    ]
    assert first.penalty == logistic.GRID[int(np.argmax(reached))]


def test_a_constant_representation_scores_chance() -> None:
    y = np.arange(60) % 3
    found = logistic.probe(
        np.full((60, 4), 0.1, np.float32),
        y,
        np.full((30, 4), 0.1),
        y[:30],
        classes=3,
        tops=(1, 2),
        device=CPU,
    )
    assert (found.top1, found.top5) == (pytest.approx(100 / 3, abs=1e-6), pytest.approx(200 / 3, abs=1e-6))
    with pytest.raises(UserError, match="at least two classes"):
        logistic.probe(
            np.ones((3, 2)),
            np.zeros(3, int),
            np.ones((1, 2)),
            np.zeros(1, int),
            classes=2,
            tops=(1,),
            device=CPU,
        )


def test_the_command_says_quick_wherever_it_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = picture_run(tmp_path / "run", write_pictures(tmp_path / "data", classes=12, train=6, val=2))
    assert mmvicreg(monkeypatch, "eval", "linear", run.path, "--quick", "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "QUICK variant" in printed
    assert "trained (quick)" in printed
    assert "not comparable with the published protocol" in " ".join(printed.split())
    report = json.loads((run.path / "eval" / "linear-quick-val.json").read_text())
    assert (report["variant"], report["published"]) == ("quick", [])
    assert "--quick" in report["command"]
    assert report["chance"] < report["top1"] <= report["top5"] <= 100
    assert report["untrained_top1"] == report["top1"]
    assert len(list((run.path / "features").iterdir())) == 4
