"""ESC-50 from its archive to the table over its folds, by the commands: a small part of it, served on this machine."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import data_layouts as layouts
import numpy as np
import pytest
import soundfile
from file_server import serving
from tiny import WAVE_MEL

from mmvicreg.cli import main

CLASSES = ((0, "dog", True), (2, "pig", False))
"""Target, name, whether ESC-10 has it."""
SOURCES = 4
"""Of each class in each fold."""


def publish(folder: Path) -> bytes:
    """The archive as GitHub makes it: 40 recordings of the published form, a second of sound in silence."""
    root, rng, rows = folder / "ESC-50-master", np.random.default_rng(0), []
    for fold, (target, category, esc10), number in (
        (fold, kind, number) for fold in range(1, 6) for kind in CLASSES for number in range(SOURCES)
    ):
        source = 10_000 * fold + 100 * target + number
        name = f"{fold}-{source}-A-{target}.wav"
        values = (name, fold, target, category, esc10, source, "A")
        rows.append(dict(zip(layouts.ESC_COLUMNS, values, strict=True)))
        hertz = (300 if target == 0 else 1200) * rng.uniform(0.8, 1.25)
        clip = np.zeros(5 * 44_100)
        clip[88_200:132_300] = 0.3 * np.sin(2 * np.pi * hertz * np.arange(44_100) / 44_100)
        (root / "audio").mkdir(parents=True, exist_ok=True)
        soundfile.write(root / "audio" / name, clip, 44_100, subtype="PCM_16")
    layouts.write_csv(root / "meta" / "esc50.csv", rows)
    (root / "LICENSE").write_text("CC BY-NC\n")
    (root / "README.md").write_text("not wanted\n")
    return Path(shutil.make_archive(str(folder / "archive"), "zip", folder, "ESC-50-master")).read_bytes()


def test_from_the_archive_to_the_table_over_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, runs = tmp_path / "esc50", tmp_path / "runs"

    def mmvicreg(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmvicreg", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, " ".join(err.split())

    with serving() as server:
        server.files["ESC-50-master.zip"] = publish(tmp_path)
        download = ("data", "download", "esc50", "--data-root", root, "--mirror", server.url)
        code, out, _ = mmvicreg(*download)
        assert code == 0
        assert "fetched, 42 files unpacked" in out  # 40 recordings, their table and the licence
        assert "already there" in mmvicreg(*download)[1]
        assert [path for path, _ in server.asked] == ["/ESC-50-master.zip"]

    code, out, err = mmvicreg("data", "verify", "esc50", "--data-root", root)
    assert code == 2  # of the counts alone: names, targets, form and bytes are as they should be
    assert "8 of 400 recordings of the split fold1" in err
    assert "What is there is sound" in err

    shrunk = [
        part for setting in (*WAVE_MEL, "branches.mel.frontend.f_max=2000") for part in ("--set", setting)
    ]
    flags = (*shrunk, "--epochs", 1, "--batch-size", 16, "--workers", 0, "--device", "cpu")
    code, _, err = mmvicreg(
        "train",
        "--pair",
        "wave-mel",
        "--dataset",
        "esc50",
        "--data-root",
        root,
        "--fold",
        "all",
        "--out",
        runs,
        *flags,
    )
    assert code == 0
    assert "40 of ESC-50's 2,000 clips, 2 of 50 classes" in err
    for fold in range(1, 6):
        assert f"training on 32 samples of esc50 at {root}, fold {fold} of 5 held out" in err

    code, out, _ = mmvicreg("eval", "linear", runs)
    assert code == 0
    assert "esc50, 5 folds, inductive: 2 classes, 32 training and 40 test samples" in out
    report = json.loads((runs / "eval" / "linear.json").read_text())
    assert (report["chance"], report["published"]) == (50, [])  # a part of ESC-50 has no published row
    for branch in ("wave", "mel", "wave+mel"):
        assert set(report["branches"][branch]["folds"]) == {"1", "2", "3", "4", "5"}
    assert report["branches"]["mel"]["top1"] > 90  # two octaves between the classes
