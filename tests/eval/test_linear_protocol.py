"""The linear protocol on runs in memory: folds, splits, leaks, labels, the untrained encoder, the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_stubs import StubData, StubEncode, StubRun, recipe

from mmvicreg.errors import UserError
from mmvicreg.eval import linear as protocol
from mmvicreg.eval import probe as arithmetic
from mmvicreg.eval.probe import ProbeResult
from mmvicreg.runs import RECIPE, Run
from mmvicreg.samples import Sample

CLASSES = ("rain", "dog", "clock")
PER_FOLD = 12
Table = dict[tuple[str, str], dict[str, Any]]


def _folds(folds: int = 5, *, name: str = "tones") -> tuple[StubData, Table]:
    """Trained representations tell the class; untrained ones are noise; mel tells more than wave."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(id=f"f{f}-{i}", audio=Path("x.wav"), label=i % 3, fold=f, group=f"{f}-{i // 3}")
        for f in range(1, folds + 1)
        for i in range(PER_FOLD)
    ]
    centres = 4 * rng.standard_normal((3, 6))

    def vectors(noise: float, width: int, *, blind: bool = False) -> dict[str, Any]:
        return {
            s.id: (0 if blind else 1) * centres[s.label or 0][:width] + noise * rng.standard_normal(width)
            for s in samples
        }

    table: Table = {
        ("trained", "wave"): vectors(6, 4),
        ("trained", "mel"): vectors(0.1, 6),
        ("untrained", "wave"): vectors(1, 4, blind=True),
        ("untrained", "mel"): vectors(1, 6, blind=True),
    }
    parts = {f"fold{f}": [s for s in samples if s.fold == f] for f in range(1, folds + 1)}
    return StubData(parts, name=name, classes=CLASSES), table


def _run(tmp_path: Path, data: StubData, **changes: Any) -> StubRun:
    return StubRun(tmp_path / "run", recipe("wave-mel", "tones", **changes), data)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(arithmetic, "GRID", (1e-2, 1.0))  # two penalties are enough here, and faster

    def call(run: Run | Path, table: Table, **options: Any) -> dict[str, Any]:
        encode = StubEncode(table)
        monkeypatch.setattr(protocol, "encode", encode)
        report = protocol.run(run, **options)
        assert encode.spaces == {"representation"}
        return report

    return call


def test_the_held_out_fold_is_tested_and_the_others_are_trained_on(
    tmp_path: Path, judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data, table = _folds()
    run = _run(tmp_path, data, dataset__fold=2)
    report = judge(run, table)
    assert json.loads((run.path / "eval" / "linear.json").read_text()) == report
    assert report["branch"] == "mel"
    assert report["top1"] == 100
    assert report["untrained_top1"] < 80
    assert report["chance"] == pytest.approx(100 / 3)
    assert report["folds"] == {"2": 100.0}
    assert (report["transductive"], report["setting"], report["std"]) == (False, "inductive", None)
    assert (report["classes"], report["train"], report["test"]) == (3, 48, 12)
    assert list(report["branches"]) == ["wave", "mel", "wave+mel"]
    assert [branch["width"] for branch in report["branches"].values()] == [4, 6, 10]
    assert report["branches"]["wave"]["top1"] < 100
    assert report["branches"]["mel"]["folds"]["2"]["top1"] == 100
    assert report["branches"]["mel"]["folds"]["2"]["alpha"] in (1e-2, 1.0)
    printed = capsys.readouterr().out
    for words in (
        "tones, fold 2, inductive",
        "One fold alone",
        "wave+mel",
        "untrained",
        "chance",
        "33.3",
        "No published row",
    ):
        assert words in printed
    assert "Transductive" not in printed


def test_the_test_fold_is_never_trained_on(tmp_path: Path, judge: Any) -> None:
    """Fold 1's labels are shifted: a probe that had seen it would remember them, one that had not fails."""
    data, table = _folds()
    wrong = [
        Sample(id=s.id, audio=s.audio, label=((s.label or 0) + 1) % 3, fold=1) for s in data.parts["fold1"]
    ]
    data = StubData({**data.parts, "fold1": wrong}, name="tones", classes=CLASSES)
    assert judge(_run(tmp_path, data), table)["branches"]["mel"]["top1"] == 0


def test_another_fold_than_the_held_out_one_is_labelled_transductive(
    tmp_path: Path, judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data, table = _folds()
    run = _run(tmp_path, data, dataset__fold=2)
    held_out = judge(run, table, fold=2)
    report = judge(run, table, fold=4)
    assert json.loads((run.path / "eval" / "linear.json").read_text()) == held_out
    assert json.loads((run.path / "eval" / "linear-fold4.json").read_text()) == report
    assert (report["transductive"], report["setting"], list(report["folds"])) == (True, "transductive", ["4"])
    assert report["branches"]["mel"]["folds"]["4"]["transductive"]
    assert "fold 4, transductive" in capsys.readouterr().out
    assert report["command"] == f"mmvicreg eval linear {run.path} --fold 4"


def test_a_run_that_held_out_nothing_is_judged_on_every_fold_and_labelled(tmp_path: Path, judge: Any) -> None:
    data, table = _folds()
    report = judge(_run(tmp_path, data, dataset__fold="none"), table)
    assert list(report["folds"]) == ["1", "2", "3", "4", "5"]
    assert report["transductive"]
    wave = report["branches"]["wave"]
    each = [fold["top1"] for fold in wave["folds"].values()]
    assert wave["top1"] == pytest.approx(np.mean(each))
    assert wave["std"] == pytest.approx(np.std(each, ddof=1))
    assert len(set(each)) > 1
    assert report["test"] == 5 * PER_FOLD


def test_esc10_is_judged_as_the_part_of_esc50_that_it_is(
    tmp_path: Path, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on ESC-50 with fold 3 held out saw ESC-10's other folds too, and not its fold 3."""
    data, table = _folds(name="esc10")
    monkeypatch.setattr(protocol, "open_dataset", lambda name, root: data)
    run = _run(tmp_path, StubData({}, name="esc50"), dataset__name="esc50", dataset__fold=3)
    report = judge(run, table, dataset="esc10")
    assert (list(report["folds"]), report["transductive"]) == (["3"], False)
    assert (run.path / "eval" / "linear-esc10.json").is_file()
    assert judge(run, table, dataset="esc10", fold=1)["transductive"]
    assert {file.name for file in (run.path / "eval").iterdir()} == {
        "linear-esc10.json",
        "linear-esc10-fold1.json",
    }


def test_a_data_set_that_pretraining_never_saw_is_judged_on_all_its_folds(
    tmp_path: Path, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, table = _folds(name="esc50")
    monkeypatch.setattr(protocol, "open_dataset", lambda name, root: data)
    report = judge(_run(tmp_path, StubData({}, name="tones"), dataset__fold=3), table, dataset="esc50")
    assert (len(report["folds"]), report["transductive"]) == (5, False)
    assert report["published"] == []  # 60 clips of three classes are not the ESC-50 of Table 6


def _fold_folder(
    tmp_path: Path, data: StubData, monkeypatch: pytest.MonkeyPatch, folds: list[int], **changes: Any
) -> Path:
    folder = tmp_path / "folds"
    runs = {}
    for number in folds:
        path = folder / f"fold{number}"
        path.mkdir(parents=True)
        (path / RECIPE).touch()
        runs[path] = StubRun(path, recipe("wave-mel", "tones", dataset__fold=number, **changes), data)
    monkeypatch.setattr(protocol, "open_run", runs.__getitem__)
    return folder


def test_a_run_per_fold_gives_mean_and_deviation_and_a_file_each(
    tmp_path: Path, judge: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, table = _folds()
    folder = _fold_folder(tmp_path, data, monkeypatch, [1, 2, 3, 4, 5])
    report = judge(folder, table)
    assert json.loads((folder / "eval" / "linear.json").read_text()) == report
    assert not report["transductive"]
    assert (report["train"], report["test"], report["epoch"]) == (48, 60, [7] * 5)
    for name, branch in report["branches"].items():
        own = [
            json.loads((folder / f"fold{n}" / "eval" / "linear.json").read_text())["branches"][name]["top1"]
            for n in range(1, 6)
        ]
        assert [fold["top1"] for fold in branch["folds"].values()] == own
        assert branch["top1"] == pytest.approx(np.mean(own))
        assert branch["std"] == pytest.approx(np.std(own, ddof=1))
    printed = capsys.readouterr().out
    assert "5 folds, inductive" in printed
    assert "One fold alone" not in printed
    assert "100.0 ± 0.0" in printed
    assert "fold 5" in printed


def test_one_fold_of_a_run_per_fold(tmp_path: Path, judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, table = _folds()
    folder = _fold_folder(tmp_path, data, monkeypatch, [1, 3])
    report = judge(folder, table, fold=3)
    assert (list(report["folds"]), report["run"]) == (["3"], str(folder / "fold3"))
    assert not report["transductive"]
    with pytest.raises(UserError, match="has no run fold2; it has fold1, fold3"):
        judge(folder, table, fold=2)


def test_runs_that_do_not_make_up_the_folds_are_refused(
    tmp_path: Path, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, table = _folds()
    folder = _fold_folder(tmp_path, data, monkeypatch, [1, 2, 4])
    with pytest.raises(UserError, match=r"no run of fold3, fold5 of tones's 5 folds.*--fold all"):
        judge(folder, table)
    assert not (folder / "eval").exists()

    other = _fold_folder(tmp_path / "other", data, monkeypatch, [1, 2, 3, 4, 5])
    opened = vars(protocol)["open_run"]
    monkeypatch.setattr(
        protocol,
        "open_run",
        lambda path: _run(tmp_path, data, dataset__fold=2) if path.name == "fold3" else opened(path),
    )
    with pytest.raises(UserError, match="held out fold 2, not fold 3"):
        judge(other, table)
    monkeypatch.setattr(
        protocol,
        "open_run",
        lambda path: _run(tmp_path, data, dataset__fold=3, seed=5) if path.name == "fold3" else opened(path),
    )
    with pytest.raises(UserError, match="trained by another recipe than the other folds"):
        judge(other, table)


def _splits() -> tuple[StubData, Table]:
    folds, table = _folds()
    parts = {"train": folds.parts["fold1"] + folds.parts["fold2"], "val": folds.parts["fold3"]}
    return StubData(parts, name="manifest", classes=CLASSES), table


def test_data_in_splits_trains_on_one_and_tests_on_the_other(tmp_path: Path, judge: Any) -> None:
    data, table = _splits()
    run = _run(tmp_path, data, dataset__name="manifest")
    report = judge(run, table)
    assert (report["train"], report["test"], list(report["folds"])) == (24, 12, ["val"])
    assert (report["top1"], report["setting"]) == (100, "inductive")
    with pytest.raises(UserError, match="--fold 1: manifest at somewhere is not in folds"):
        judge(run, table, fold=1)
    folds, table = _folds()
    with pytest.raises(UserError, match="--split val: tones at somewhere is in folds; name one with --fold"):
        judge(_run(tmp_path, folds), table, split="val")


def test_a_split_that_initial_weights_were_trained_on_is_labelled_transductive(
    tmp_path: Path, judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data, table = _splits()
    seen = {"dataset": "manifest", "fold": 1, "split": "train+val"}
    init = {"source": "elsewhere.pth", "seen": [seen]}
    run = _run(tmp_path, data, dataset__name="manifest", branches__wave__init=init)
    assert judge(run, table)["setting"] == "transductive"
    assert "Transductive: pretraining saw the test samples" in capsys.readouterr().out


def test_samples_on_both_sides_are_refused(tmp_path: Path, judge: Any) -> None:
    folds, table = _folds()
    data = StubData(
        {"train": folds.samples("all"), "val": folds.parts["fold3"]}, name="manifest", classes=CLASSES
    )
    with pytest.raises(UserError, match=r"12 samples of manifest .* both in the training split and in 'val'"):
        judge(_run(tmp_path, data, dataset__name="manifest"), table)


def test_data_without_labels_are_refused(tmp_path: Path, judge: Any) -> None:
    plain = [Sample(id=f"s{i}", captions=("a",)) for i in range(4)]
    data = StubData({"train": plain[:2], "test": plain[2:]}, name="shapes")
    run = StubRun(tmp_path / "run", recipe("image-text", "shapes"), data)
    with pytest.raises(UserError, match=r"shapes at somewhere has no labels.*eval retrieval"):
        judge(run, {})
    folds, table = _folds()
    first = folds.parts["fold1"][0]
    folds.parts["fold1"][0] = Sample(id=first.id, audio=first.audio, fold=1)
    with pytest.raises(UserError, match="1 samples of tones at somewhere have no label, first 'f1-0'"):
        judge(_run(tmp_path, folds), table)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("class", "of at least two classes"),
        ("group", "all training samples are of one group"),
        ("test", "no sample is left to test on"),
    ],
)
def test_what_no_probe_can_be_trained_or_tested_on_is_refused_before_encoding(
    tmp_path: Path, judge: Any, what: str, message: str
) -> None:
    data, _ = _folds(2)
    for part in data.parts.values():
        part[:] = [
            replace(
                sample,
                label=0 if what == "class" else sample.label,
                group="one" if what == "group" else sample.group,
            )
            for sample in part
        ]
    run = _run(tmp_path, data)
    if what == "test":
        data.parts["fold1"].clear()
    with pytest.raises(UserError, match=f"tones at somewhere, tested on fold 1: .*{message}"):
        judge(run, {})  # a table without any vectors: encoding would be a KeyError
    assert not (run.path / "eval").exists()


def test_text_is_not_probed(tmp_path: Path, judge: Any) -> None:
    """A labelled image-text manifest: the image branch alone."""
    folds, table = _folds()
    data = StubData(
        {"train": folds.parts["fold1"] + folds.parts["fold2"], "test": folds.parts["fold3"]},
        name="manifest",
        classes=CLASSES,
    )
    images: Table = {(model, "image"): table[model, "mel"] for model in ("trained", "untrained")}
    run = StubRun(tmp_path / "run", recipe("image-text", "shapes", dataset__name="manifest"), data)
    assert list(judge(run, images)["branches"]) == ["image"]


def test_an_unknown_fold_is_refused(tmp_path: Path, judge: Any) -> None:
    data, table = _folds()
    with pytest.raises(UserError, match="no fold 6 in tones at somewhere; it has 1, 2, 3, 4, 5"):
        judge(_run(tmp_path, data), table, fold=6)


def test_the_papers_rows_stand_beside_the_whole_of_esc50_only(
    tmp_path: Path, judge: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(protocol, "probe", lambda *_, **__: ProbeResult(80.0, 95.0, 1.0, 4))
    classes = tuple(f"c{i}" for i in range(50))
    vector = np.zeros(4)

    def result(clips: int, name: str) -> dict[str, Any]:
        samples = [Sample(id=str(i), label=i % 50, fold=i * 5 // clips + 1) for i in range(clips)]
        parts = {f"fold{f}": [s for s in samples if s.fold == f] for f in range(1, 6)}
        table = {
            (m, b): {s.id: vector for s in samples} for m in ("trained", "untrained") for b in ("wave", "mel")
        }
        data = StubData(parts, name=name, classes=classes)
        return judge(_run(tmp_path, data, dataset__name=name), table)  # type: ignore[no-any-return]

    assert [row["top1"] for row in result(2000, "esc50")["published"]] == [72.7, 75.4, 78.4]
    printed = capsys.readouterr().out
    assert "VICReg, paper" in printed
    assert "which fold is not published" in printed
    assert "95.0" in printed  # top-5, with more than ten classes
    assert result(1900, "esc50")["published"] == []
    assert result(2000, "tones")["published"] == []
    assert "No published row for tones" in capsys.readouterr().out


def test_a_path_that_is_no_run_is_refused(tmp_path: Path, judge: Any) -> None:
    with pytest.raises(UserError, match="no run folder at"):
        judge(tmp_path / "nothing", {})
    with pytest.raises(UserError, match="is not a run folder"):
        judge(tmp_path, {})
