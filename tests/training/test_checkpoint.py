"""Checkpoints: whole or not at all, data and never code, one clear message when they cannot be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmvicreg.errors import UserError
from mmvicreg.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint


def test_round_trip_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        save_checkpoint(tmp_path, step, {"model": {"w": torch.arange(3)}, "step": step}, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000000002.pt", "step-000000030.pt"]
    content = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert content["step"] == 30
    assert torch.equal(content["model"]["w"], torch.arange(3))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-000000002.pt", "step-000000030.pt"]


def test_those_of_a_multiple_stay_beside_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 13, 15, 20, 25):  # stopped once within an epoch of five steps
        save_checkpoint(tmp_path, step, {"step": step}, keep=1, every=10)
    assert [load_checkpoint(path)["step"] for path in list_checkpoints(tmp_path)] == [10, 20, 25]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "step-000000007.tmp").write_bytes(b"half")
    (tmp_path / "notes.tmp").write_text("mine")
    save_checkpoint(tmp_path, 8, {"a": 1}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.tmp", "step-000000008.pt"]


def test_truncated_names_the_file_and_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"w": torch.zeros(1000)}, keep=2)
    last = save_checkpoint(tmp_path, 2, {"w": torch.zeros(1000)}, keep=2)
    last.write_bytes(last.read_bytes()[:1500])
    with pytest.raises(
        UserError, match=r"step-000000002.pt: it is truncated .* continue from step-000000001.pt"
    ):
        load_checkpoint(last)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step-000000001.pt"
    torch.save({"format": 1, "model": Evil()}, path)
    with pytest.raises(UserError, match="it holds code or unknown objects"):
        load_checkpoint(path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied; make it readable"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        (MemoryError(), "there is not enough memory"),
    ],
)
def test_a_whole_checkpoint_is_never_called_truncated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, message: str
) -> None:
    def load(*_: object, **__: object) -> None:
        raise fault

    path = save_checkpoint(tmp_path, 1, {"a": 1}, keep=2)
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(path)
    assert "remove it" not in str(caught.value)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-000000001.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="is not a checkpoint of this program"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "step-000000009.pt")


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from mmvicreg.errors import UserError
from mmvicreg.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
folder = Path(sys.argv[1])
save_checkpoint(folder, 1, {"w": torch.zeros(10)}, keep=1)
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # as a disk that is full after 50 kB
try:
    save_checkpoint(folder, 2, {"w": torch.zeros(100_000)}, keep=1)
except UserError as error:
    print(error)
print([p.name for p in sorted(folder.iterdir())], float(load_checkpoint(list_checkpoints(folder)[0])["w"].sum()))
"""


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "cannot write the checkpoint" in done.stdout
    assert "continue with --resume" in done.stdout
    assert "['step-000000001.pt'] 0.0" in done.stdout
