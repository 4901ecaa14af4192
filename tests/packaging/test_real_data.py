"""Tests that read real data: skipped without them, run with them, and never quietly left out in CI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
TEST = """
def test_reads(unpacked):
    assert (unpacked("toy") / "file.txt").read_text() == "toy"
    assert unpacked("toy") == unpacked("toy")
"""
UNPACK = """
import pathlib, sys
name, folder = sys.argv[1:]
(pathlib.Path(__file__).parents[1] / "calls").open("a").write(name)
(pathlib.Path(folder) / "file.txt").write_text(name)
"""


@pytest.mark.parametrize(
    ("there", "named", "required", "outcome"),
    [
        (True, True, True, "1 passed"),
        (True, False, False, "1 skipped"),
        (True, False, True, "1 error"),
        (False, True, False, "1 error"),
    ],
)
def test_real_data_are_read_skipped_or_missed(
    tmp_path: Path, there: bool, named: bool, required: bool, outcome: str
) -> None:
    real = tmp_path / "real"
    if there:
        real.mkdir()
        (real / "unpack.py").write_text(UNPACK, encoding="utf-8")
    suite = tmp_path / "suite"
    suite.mkdir()
    shutil.copy(CONFTEST, suite)
    (suite / "test_it.py").write_text(TEST, encoding="utf-8")
    (suite / "pytest.ini").write_text("[pytest]\nmarkers =\n  real\n", encoding="utf-8")
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTEST_", "MMVICREG_REAL", "MMVICREG_REQUIRE"))
    }
    environment |= {"TMPDIR": str(tmp_path)}
    environment |= {"MMVICREG_REAL_DATA": str(real)} if named else {}
    environment |= {"MMVICREG_REQUIRE_REAL_DATA": "1"} if required else {}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "real", suite],
        cwd=suite,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(rf"^{outcome} in", done.stdout, flags=re.MULTILINE), done.stdout + done.stderr
    assert not named or not there or (tmp_path / "calls").read_text(encoding="utf-8") == "toy"  # once
