"""Retrieval between clips and their spectrograms, each run by fold on the fold it held out."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from eval_stubs import StubData, StubEncode, StubRun, recipe
from tiny import tiny_recipe, untrained_run

from mmvicreg.cli import main
from mmvicreg.datasets import open_dataset
from mmvicreg.encode import encode
from mmvicreg.errors import UserError
from mmvicreg.eval import retrieval, retrieval_folds
from mmvicreg.recipes import parse_recipe
from mmvicreg.runs import RECIPE
from mmvicreg.samples import Sample


def _mmvicreg(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mmvicreg", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_clip_finds_its_spectrogram_among_the_held_out_fold(
    tmp_path: Path, tiny_tones: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command on a run folder, against cosines and sorting written out."""
    run = untrained_run(tmp_path / "run", tiny_recipe("wave-mel", tiny_tones, "dataset.fold=2"))
    assert _mmvicreg(monkeypatch, "eval", "retrieval", run.path) == 0
    printed = capsys.readouterr().out
    assert "wave to mel" in printed
    assert "chance" in printed
    report = json.loads((run.path / "eval" / "retrieval-fold2.json").read_text())
    held_out = open_dataset("tones", root=tiny_tones).samples("fold2")
    model = run.model(device="cpu")
    vectors = {}
    for name in ("wave", "mel"):
        z = encode(model, name, held_out, space="embedding", workers=0).vectors.astype(np.float64)
        vectors[name] = z / np.linalg.norm(z, axis=1, keepdims=True)
    for a, b in (("wave", "mel"), ("mel", "wave")):
        scores = vectors[a] @ vectors[b].T
        rank = (scores > scores.diagonal()[:, None]).sum(axis=1)
        found = report[f"{a}_to_{b}"]
        assert (found["queries"], found["gallery"]) == (16, 16)
        for k in (1, 5, 10):
            assert found[f"R@{k}"] == pytest.approx(100 * (rank < k).mean(), abs=1e-9)
            assert found["chance"][f"R@{k}"] == pytest.approx(100 * k / 16)
    assert not report["seen_in_pretraining"]


@pytest.fixture
def folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs whose embeddings agree but for so many clips: none, one, two."""
    rng = np.random.default_rng(0)
    samples = [Sample(id=f"f{f}-{i}", audio=Path("x.wav"), fold=f) for f in (1, 2, 3) for i in range(12)]
    parts = {f"fold{f}": [s for s in samples if s.fold == f] for f in (1, 2, 3)}
    data = StubData(parts, name="tones")
    table: dict[tuple[str, str], dict[str, Any]] = {("trained", "wave"): {}, ("trained", "mel"): {}}
    for s in samples:
        vector = rng.standard_normal(30)
        swapped = int(s.id.partition("-")[2]) < (s.fold or 0) - 1
        table["trained", "wave"][s.id] = vector
        table["trained", "mel"][s.id] = -vector if swapped else vector
    monkeypatch.setattr(retrieval, "encode", StubEncode(table))
    folder, runs = tmp_path / "folds", {}
    for number in (1, 2, 3):
        path = folder / f"fold{number}"
        path.mkdir(parents=True)
        (path / RECIPE).touch()
        runs[path] = StubRun(path, recipe("wave-mel", "tones", dataset__fold=number), data)
    monkeypatch.setattr(retrieval_folds, "open_run", runs.__getitem__)
    return folder


def test_a_run_per_fold_gives_mean_and_deviation(folds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = retrieval_folds.run(folds)
    assert json.loads((folds / "eval" / "retrieval-folds.json").read_text()) == report
    right = [100.0, 100 * 11 / 12, 100 * 10 / 12]
    found = report["wave_to_mel"]["R@1"]
    assert list(found["folds"].values()) == pytest.approx(right)
    assert found["mean"] == pytest.approx(np.mean(right))
    assert found["std"] == pytest.approx(np.std(right, ddof=1))
    assert report["wave_to_mel"]["chance"]["R@5"] == pytest.approx(100 * 5 / 12)
    assert (report["samples"], report["mel_to_wave"]["queries"], report["mel_to_wave"]["gallery"]) == (
        36,
        36,
        12,
    )
    for number in (1, 2, 3):
        own = json.loads((folds / f"fold{number}" / "eval" / f"retrieval-fold{number}.json").read_text())
        assert own["wave_to_mel"]["R@1"] == found["folds"][str(number)]
    assert report["command"] == f"mmvicreg eval retrieval {folds}"
    printed = capsys.readouterr().out
    assert "3 folds, each held out: 36 samples" in printed
    assert f"{np.mean(right):.1f} ± {np.std(right, ddof=1):.1f}" in printed
    assert "transductive" not in printed
    again = retrieval_folds.run(folds, similarity="dot", protocol="all", devices=1)
    assert again["command"] == f"mmvicreg eval retrieval {folds} --similarity dot"
    assert json.loads((folds / "eval" / "retrieval-folds-embedding-dot.json").read_text()) == again
    assert json.loads((folds / "eval" / "retrieval-folds.json").read_text()) == report


def test_a_fold_that_pretraining_saw_is_called_transductive(
    folds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run held out its fold, but the weights that all of them started from held out fold 2 alone."""
    init = {"source": "other", "seen": [{"dataset": "tones", "fold": 2}]}
    opened = retrieval_folds.open_run

    def started_elsewhere(path: Path) -> Any:
        run: Any = opened(path)
        return replace(
            run,
            recipe=recipe(
                "wave-mel", "tones", dataset__fold=run.recipe.dataset.fold, branches__wave__init=init
            ),
        )

    monkeypatch.setattr(retrieval_folds, "open_run", started_elsewhere)
    report = retrieval_folds.run(folds)
    assert report["transductive"]
    assert report["seen_in_pretraining"] == {"1": True, "2": False, "3": True}
    printed = capsys.readouterr().out
    assert "3 folds, transductive: 36 samples" in printed
    assert "Fold 1, 3: transductive." in printed
    assert "Split fold1: transductive." in printed


def test_a_place_that_cannot_be_written_is_told_before_any_fold_is_judged(
    folds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (folds / "fold3" / "eval", folds / "eval"):
        place.write_text("a file where the folder should be")
        with pytest.raises(UserError, match=rf"cannot write {place}"):
            retrieval_folds.run(folds)
        place.unlink()
    assert "Retrieval" not in capsys.readouterr().out
    assert not (folds / "fold1" / "eval").exists()


def test_a_folder_of_folds_is_one_result_and_complete(
    folds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _mmvicreg(monkeypatch, "eval", "retrieval", folds) == 0
    assert "3 folds, each held out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--split is for one run.*name one, such as .*fold1"):
        retrieval_folds.run(folds, split="fold2")
    with pytest.raises(UserError, match="--export is for one run"):
        retrieval_folds.run(folds, export=Path("ranking.json"))
    (folds / "fold2" / RECIPE).unlink()
    with pytest.raises(UserError, match="no run of fold2 of tones's 3 folds"):
        retrieval_folds.run(folds)
    with pytest.raises(UserError, match="holds no runs by fold"):
        retrieval_folds.run(folds / "fold1")


def test_folds_that_are_not_all_finished_have_no_mean(
    tmp_path: Path, tiny_tones: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of five stopped before its end; the command that is named would go on with these very runs."""
    folder = tmp_path / "folds"
    recipes = {n: tiny_recipe("wave-mel", tiny_tones, f"dataset.fold={n}") for n in range(1, 6)}
    for number, made in recipes.items():
        untrained_run(folder / f"fold{number}", made)
    file = next((folder / "fold5" / "checkpoints").iterdir())
    content = torch.load(file, weights_only=True)
    torch.save({**content, "position": {**content["position"], "epoch": 1}}, file)
    for protocol in ("retrieval", "linear"):
        assert _mmvicreg(monkeypatch, "eval", protocol, folder) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"error: {folder} is not finished: fold5 after epoch 1 of 2, and" in told
        assert f"by itself, such as {folder / 'fold1'}" in told
    command = told.partition(" Go on with mmvicreg ")[2].partition(", or judge")[0].split()
    assert command == ["train", "--resume", "--out", str(folder)]
    assert _mmvicreg(monkeypatch, *command, "--print-config") == 0
    assert parse_recipe(yaml.safe_load(capsys.readouterr().out), source="printed") == recipes[1]
    assert not (folder / "eval").exists()


def test_a_part_of_the_data_is_judged_on_the_same_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on ESC-50 without fold 3, on ESC-10: its fold 3 again, and another fold is told to be memory."""
    from mmvicreg import datasets

    samples = {f: [Sample(id=f"f{f}-{i}", fold=f) for i in range(4)] for f in (1, 3)}
    rng = np.random.default_rng(0)
    vectors = {s.id: rng.standard_normal(8) for part in samples.values() for s in part}
    monkeypatch.setattr(
        retrieval, "encode", StubEncode({("trained", "wave"): vectors, ("trained", "mel"): vectors})
    )
    part = StubData({f"fold{f}": found for f, found in samples.items()}, name="esc10")
    monkeypatch.setattr(datasets, "open_dataset", lambda name, root: part)
    whole = StubData({}, name="esc50")
    run = StubRun(tmp_path / "run", recipe("wave-mel", "esc50", dataset__fold=3), whole)
    report = retrieval.run(run, dataset="esc10")
    assert (report["split"], report["seen_in_pretraining"]) == ("fold3", False)
    assert retrieval.run(run, dataset="esc10", split="fold1")["seen_in_pretraining"]
