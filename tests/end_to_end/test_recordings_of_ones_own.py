"""The whole wave-mel protocol on a folder of recordings: made vowels, stereo, at a rate no recipe names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import lfilter
from tiny import WAVE_MEL

from mmvicreg.cli import main

RATE = 12000
VOWELS = {"a": (730, 1090), "i": (270, 2290), "u": (300, 870)}
"""First two formants, Hz (Peterson and Barney 1952, men)."""


def vowel(formants: tuple[int, int], pitch: float, rng: np.random.Generator) -> np.ndarray:
    """0.6 s of a pulse train through two resonances, stereo ``(samples, 2)``."""
    n = int(0.6 * RATE)
    wave = (np.diff(np.floor(np.arange(n + 1) * pitch / RATE)) > 0).astype(float)
    for centre in formants:
        radius = np.exp(-np.pi * 80 / RATE)
        wave = lfilter([1.0], [1, -2 * radius * np.cos(2 * np.pi * centre / RATE), radius**2], wave)
    wave = 0.3 * wave / np.abs(wave).max() + 0.003 * rng.standard_normal(n)
    return np.stack([wave, 0.5 * wave], axis=1)


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """36 utterances of six speakers, who do not straddle the two folds, listed by a table."""
    rng = np.random.default_rng(0)
    root = tmp_path / "speech"
    (root / "clips").mkdir(parents=True)
    lines = ["filename,label,fold,source"]
    for speaker in range(6):
        for name, formants in VOWELS.items():
            for take in range(2):
                file = f"clips/{speaker}-{name}{take}.flac"
                soundfile.write(root / file, vowel(formants, 90 + 20 * speaker, rng), RATE, subtype="PCM_24")
                lines.append(f"{file},{name},{speaker % 2 + 1},speaker {speaker}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return root


def mmvicreg(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["mmvicreg", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def test_pretraining_probe_baseline_and_retrieval_by_fold(
    tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shrunk = [word for setting in WAVE_MEL for word in ("--set", setting)]
    shrunk += ["--set", "branches.mel.frontend.f_max=2000", "--set", "inputs.audio.mix={share: true}"]
    shrunk += ["--set", "training.epochs=1"]
    runs = {}
    for method in ("vicreg", "barlow_twins"):
        runs[method] = tmp_path / "runs" / method
        place = ["--data-root", speech, "--fold", "all", "--out", runs[method]]
        options = [*shrunk, "--set", "training.batch_size=9", "--workers", 0, "--method", method]
        mmvicreg(monkeypatch, "train", "--pair", "wave-mel", "--dataset", "audio-folder", *place, *options)
    compare = ["--compare", runs["barlow_twins"], "--supervised"]
    mmvicreg(monkeypatch, "eval", "linear", runs["vicreg"], *compare)
    mmvicreg(monkeypatch, "eval", "retrieval", runs["vicreg"])
    printed = capsys.readouterr().out
    assert "audio-folder, 2 folds, inductive: 3 classes, 18 training and 36 test samples" in printed
    report = json.loads((runs["vicreg"] / "eval" / "linear.json").read_text())
    methods = {found["method"]: found for found in report["methods"]}
    assert list(methods) == ["vicreg", "untrained", "barlow_twins", "supervised"]
    for found in methods.values():
        assert list(found["branches"]) == ["wave", "mel", "wave+mel"]
        assert all(list(part["folds"]) == ["1", "2"] for part in found["branches"].values())
    assert report["chance"] == pytest.approx(100 / 3)
    assert methods["vicreg"]["branches"]["mel"]["top1"] > 60  # vowels of other speakers
    found = json.loads((runs["vicreg"] / "eval" / "retrieval-folds.json").read_text())["wave_to_mel"]
    assert (found["queries"], found["gallery"]) == (36, 18)
    assert found["chance"]["R@1"] == pytest.approx(100 / 18)
