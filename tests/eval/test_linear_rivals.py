"""Other runs beside one in the linear protocol: probed alike, refused where data or folds differ."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_stubs import StubData, StubEncode, StubRun, recipe

from mmvicreg.errors import UserError
from mmvicreg.eval import linear as protocol
from mmvicreg.eval import linear_rivals
from mmvicreg.eval import probe as arithmetic
from mmvicreg.eval.probe import probe
from mmvicreg.eval.tasks import groups_of
from mmvicreg.runs import RECIPE
from mmvicreg.samples import Sample

Table = dict[tuple[str, str], dict[str, Any]]


class Shelf:
    """Run folders whose model is their own name, so that representations can be told apart."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        samples = [Sample(id=f"f{f}-{i}", label=i % 3, fold=f) for f in (1, 2, 3) for i in range(12)]
        self.data = StubData(
            {f"fold{f}": [s for s in samples if s.fold == f] for f in (1, 2, 3)},
            name="tones",
            classes=("a", "b", "c"),
        )
        centres = 3 * rng.standard_normal((3, 4))
        self.table: Table = {}
        for model, noise in (("good", 0.1), ("poor", 9.0), ("untrained", 99.0)):
            for branch in ("wave", "mel"):
                self.table[model, branch] = {
                    s.id: centres[s.label or 0] + noise * rng.standard_normal(4) for s in samples
                }
        self.runs: dict[Path, StubRun] = {}
        self.encode = StubEncode(self.table)
        for module in (protocol, linear_rivals):
            monkeypatch.setattr(module, "open_run", self.runs.__getitem__)
        monkeypatch.setattr(protocol, "encode", self.encode)
        monkeypatch.setattr(arithmetic, "GRID", (1e-2, 1.0))

    def add(self, path: Path, *, model: str, seen: dict[str, Any] | None = None, **changes: Any) -> Path:
        class Named(StubRun):
            def model(self, *, untrained: bool = False, device: str | None = None) -> Any:
                return "untrained" if untrained else model

        path.mkdir(parents=True)
        (path / RECIPE).touch()
        run = Named(path, recipe("wave-mel", "tones", **changes), self.data)
        if seen is not None:
            vars(run)["content"] = {"data": seen}
        self.runs[path] = run
        return path

    def folds(self, folder: Path, *, model: str, **changes: Any) -> Path:
        for number in (1, 2, 3):
            self.add(folder / f"fold{number}", model=model, dataset__fold=number, **changes)
        return folder


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    return Shelf(monkeypatch)


def test_every_method_has_its_mean_its_deviation_and_its_folds(
    tmp_path: Path, shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = shelf.folds(tmp_path / "ours", model="good")
    theirs = shelf.folds(tmp_path / "theirs", model="poor", objective="barlow_twins")
    report = protocol.run(ours, compare=[theirs])
    assert [method["method"] for method in report["methods"]] == ["vicreg", "untrained", "barlow_twins"]
    own, untrained, other = (method["branches"] for method in report["methods"])
    assert {name: branch["top1"] for name, branch in own.items()} == {
        name: branch["top1"] for name, branch in report["branches"].items()
    }
    assert untrained["mel"]["top1"] == report["branches"]["mel"]["untrained_top1"]
    alone = protocol.run(theirs)["branches"]  # the very figures that the other run has by itself
    for name in ("wave", "mel", "wave+mel"):
        assert list(other[name]["folds"]) == ["1", "2", "3"]
        assert other[name]["top1"] == alone[name]["top1"] < own[name]["top1"]
        assert other[name]["std"] == alone[name]["std"]
    assert report["methods"][2]["run"] == str(theirs)
    assert any(line.startswith("objective") for line in report["methods"][2]["differs"])
    assert report["command"] == shlex.join(
        ["mmvicreg", "eval", "linear", str(ours), "--compare", str(theirs)]
    )
    printed = capsys.readouterr().out
    for words in ("vicreg, this run", "barlow_twins", "untrained", "chance", "fold 3"):
        assert words in printed
    assert "ransductive" not in printed


def test_one_fold_is_compared_with_the_same_of_a_run_per_fold(tmp_path: Path, shelf: Shelf) -> None:
    ours = shelf.add(tmp_path / "run", model="good", dataset__fold=2)
    theirs = shelf.folds(tmp_path / "theirs", model="poor")
    report = protocol.run(ours, compare=[theirs])
    assert list(report["methods"][2]["branches"]["mel"]["folds"]) == ["2"]


def test_transductive_is_said_of_each(
    tmp_path: Path, shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = shelf.add(tmp_path / "ours", model="good", dataset__fold="none")
    theirs = shelf.add(tmp_path / "theirs", model="poor", dataset__fold="none")
    report = protocol.run(ours, compare=[theirs])
    assert [method["transductive"] for method in report["methods"]] == [True, False, True]
    printed = capsys.readouterr().out
    assert "vicreg, this run (transductive)" in printed
    assert "vicreg (transductive)" in printed
    assert "Transductive: pretraining saw the test samples" in printed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset__fold": 2}, "the held-out fold is 2, and 1 for"),
        ({"dataset__fold": "none"}, "the held-out fold is none, and 1 for"),
        ({"dataset__name": "esc10"}, "the data set is esc10, and tones for"),
        ({"seen": {"samples": 23, "names": "abc"}}, "pretrained on 23 samples and .* on 24"),
        ({"seen": {"samples": 24, "names": "abd"}}, "or on others by name"),
    ],
)
def test_what_does_not_compare_is_refused_before_anything_is_encoded(
    tmp_path: Path, shelf: Shelf, changes: dict[str, Any], said: str
) -> None:
    ours = shelf.add(tmp_path / "ours", model="good", dataset__fold=1)
    theirs = shelf.add(tmp_path / "theirs", model="poor", **{"dataset__fold": 1, **changes})
    with pytest.raises(UserError, match=rf"--compare .*theirs: .*{said}"):
        protocol.run(ours, compare=[theirs])
    assert not shelf.encode.spaces
    assert not (ours / "eval").exists()


def test_folds_are_compared_with_folds(tmp_path: Path, shelf: Shelf) -> None:
    ours = shelf.folds(tmp_path / "ours", model="good")
    single = shelf.add(tmp_path / "single", model="poor", dataset__fold=1)
    with pytest.raises(UserError, match="not a folder of runs by fold"):
        protocol.run(ours, compare=[single])
    part = tmp_path / "part"
    shelf.add(part / "fold1", model="poor", dataset__fold=1)
    with pytest.raises(UserError, match="has no run fold2; it has fold1"):
        protocol.run(ours, compare=[part])
    seen_all = shelf.add(tmp_path / "all", model="good", dataset__fold="none")
    with pytest.raises(UserError, match="held out none"):
        protocol.run(seen_all, compare=[ours])


def test_a_supervised_baseline_is_of_the_runs_own_fold(tmp_path: Path, shelf: Shelf) -> None:
    ours = shelf.add(tmp_path / "ours", model="good", dataset__fold=1)
    with pytest.raises(UserError, match="of the fold it held out"):
        protocol.run(ours, fold=2, supervised=True)


def test_test_samples_have_no_say_in_the_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search runs over the training samples' groups alone: whatever is tested, the choice is the same."""
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((60, 8)), np.arange(60) % 3
    x[:, 0] += 2 * labels
    groups = [f"fold {i % 4}" for i in range(60)]
    fitted: list[np.ndarray] = []
    fit = arithmetic._fit

    def watched(samples: Any, targets: Any, alpha: float) -> Any:
        fitted.append(samples)
        return fit(samples, targets, alpha)

    monkeypatch.setattr(arithmetic, "_fit", watched)
    chosen = set()
    for seed in range(4):
        other = np.random.default_rng(seed + 10)
        test, answers = 1000 + other.standard_normal((9, 8)), other.integers(0, 3, 9)
        chosen.add(probe(x, labels, test, answers, groups=groups, classes=3).alpha)
    assert len(chosen) == 1
    assert max(float(np.abs(samples).max()) for samples in fitted) < 100  # no test sample was ever fitted on
    assert {len(samples) for samples in fitted} == {45, 60}


def test_of_two_folds_the_search_leaves_sources_out() -> None:
    """One fold is left to train on; whole sources of it are, and without sources single samples."""
    samples = [Sample(id=f"{i}", label=i % 2, fold=1, group=f"s{i // 3}") for i in range(6)]
    assert groups_of(samples) == ["group s0"] * 3 + ["group s1"] * 3
    assert groups_of([*samples, Sample(id="6", label=0, fold=2, group="s9")]) == ["fold 1"] * 6 + ["fold 2"]
    assert groups_of([Sample(id="a"), Sample(id="b")]) == ["sample a", "sample b"]
