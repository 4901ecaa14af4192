"""A path that the system will not even look at is the user's to mend, whatever is done with it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from picture_runs import mmvicreg

from mmvicreg.errors import for_want_of_access

LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ("export", LONG, "--branch", "image"),
        ("train", "--pair", "image-image", "--dataset", "shapes", "--out", LONG),
        ("train", "--pair", "image-image", "--dataset", "shapes", "--init", f"image={LONG}"),
    ],
)
def test_a_path_that_cannot_be_asked_about(
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mmvicreg(monkeypatch, *words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert f"{LONG}: {os.strerror(errno.ENAMETOOLONG)}; name another place" in told
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_entered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who may do everything cannot be kept out, so the system's answer is made up."""

    def closed(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", closed)
        assert mmvicreg(patched, "export", "theirs/run", "--branch", "image") == 2
    assert "error: theirs/run: Permission denied; name another place" in capsys.readouterr().err


def test_other_faults_stay_what_they_are() -> None:
    assert for_want_of_access(OSError(errno.EIO, "Input/output error", "a")) is None
    assert for_want_of_access(PermissionError("of no path")) is None
