"""Downloading from a real server on this machine: resumed, restarted, checked."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from file_server import Server, card, quiet

from mmvicreg.data.card import RemoteFile
from mmvicreg.errors import UserError

CONTENT = np.random.default_rng(0).bytes(300_000)


def data_file(server: Server, **changes: object) -> RemoteFile:
    server.files.setdefault("data.bin", CONTENT)
    file = RemoteFile(
        url=f"{server.url}/data.bin",
        path="data.bin",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    return replace(file, **changes)  # type: ignore[arg-type]


def test_a_file_comes_whole_and_once(server: Server, tmp_path: Path) -> None:
    file = data_file(server)
    assert quiet().get(card(file), tmp_path) == ["data.bin: fetched"]
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert quiet().get(card(file), tmp_path) == ["data.bin: already there"]
    assert len(server.asked) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]


def test_dropped_connections_are_continued(server: Server, tmp_path: Path) -> None:
    server.cut = [100_000, 50_000]
    quiet().get(card(data_file(server)), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_killed_download_is_continued(server: Server, tmp_path: Path) -> None:
    server.slow = 0.2
    file = data_file(server)
    program = (
        "from pathlib import Path\n"
        "from mmvicreg.data.card import Card, RemoteFile\n"
        "from mmvicreg.data.download import Downloader\n"
        f"file = {file!r}\n"
        "card = Card('toy', 'Toy', (), '', '', (), (), '', files=(file,))\n"
        f"Downloader(progress=False).get(card, Path({str(tmp_path)!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    part = tmp_path / "data.bin.part"
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size > 30_000):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    have = part.stat().st_size
    assert 0 < have < len(CONTENT)
    assert not (tmp_path / "data.bin").exists()
    server.slow = 0.0
    quiet().get(card(file), tmp_path)
    assert server.asked[-1] == ("/data.bin", f"bytes={have}-")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cut = [100_000]
    quiet().get(card(data_file(server)), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_server_that_always_drops_at_the_same_place_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cut = [100_000, 50_000] * 10
    with pytest.raises(UserError, match="failed 3 times"):
        quiet(retries=3).get(card(data_file(server)), tmp_path)
    assert len(server.asked) <= 4


def test_a_file_that_changed_meanwhile_starts_over(server: Server, tmp_path: Path) -> None:
    """Nothing vouches for this file, so two halves of different versions must never be joined."""
    file = data_file(server, size=None, sha256=None)
    server.cut = [100_000]
    with pytest.raises(UserError, match="kept"):
        quiet(retries=1).get(card(file), tmp_path)
    assert (tmp_path / "data.bin.part").stat().st_size == 100_000
    server.files["data.bin"] = bytes(reversed(CONTENT))
    server.version = "v2"
    quiet().get(card(file), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == bytes(reversed(CONTENT))


def test_a_whole_part_needs_only_its_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    quiet().get(card(data_file(server)), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_part_that_is_too_long_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT + b"more")
    quiet().get(card(data_file(server)), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_corruption_is_refused_with_both_sums(server: Server, tmp_path: Path, algorithm: str) -> None:
    damaged = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    server.files["data.bin"] = damaged
    wanted = hashlib.new(algorithm, CONTENT).hexdigest()
    file = data_file(server, **{"sha256": None, algorithm: wanted})
    with pytest.raises(UserError) as caught:
        quiet().get(card(file), tmp_path)
    for word in ("data.bin", wanted, hashlib.new(algorithm, damaged).hexdigest(), "removed"):
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    server.files["data.bin"] = CONTENT
    quiet().get(card(file), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_damaged_half_is_not_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(b"\0" * 1_000)
    with pytest.raises(UserError, match="wrong sha256"):
        quiet().get(card(data_file(server)), tmp_path)
    quiet().get(card(data_file(server)), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_another_size_is_refused_before_anything_comes(server: Server, tmp_path: Path) -> None:
    file = data_file(server, size=len(CONTENT) + 1)
    with pytest.raises(UserError, match="300,000 bytes where 300,001 are published"):
        quiet().get(card(file), tmp_path)
    assert not (tmp_path / "data.bin").exists()


@pytest.mark.parametrize("length", ["many", "-1", "9, 9"])
def test_a_length_that_is_no_number_is_none(server: Server, tmp_path: Path, length: str) -> None:
    server.length = length
    quiet().get(card(data_file(server, size=None)), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_file_damaged_later_is_fetched_again(server: Server, tmp_path: Path) -> None:
    file = data_file(server)
    (tmp_path / "data.bin").write_bytes(b"\0" * len(CONTENT))
    quiet().get(card(file), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_tired_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.status = [503, 429]
    waits: list[float] = []
    quiet(sleep=waits.append, pause=1.0).get(card(data_file(server)), tmp_path)
    assert waits == [1.0, 2.0]


def test_a_refusal_is_final(server: Server, tmp_path: Path) -> None:
    server.status = [404]
    with pytest.raises(UserError, match=r"data\.bin answers 404.*--mirror"):
        quiet().get(card(data_file(server)), tmp_path)
    assert len(server.asked) == 1


def test_no_server(tmp_path: Path) -> None:
    file = RemoteFile(url="http://127.0.0.1:9/data.bin", path="data.bin", size=3)
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/data\.bin failed 3 times.*refused"):
        quiet(retries=3).get(card(file), tmp_path)


def test_a_mirror_serves_by_file_name(server: Server, tmp_path: Path) -> None:
    file = data_file(server, url="http://publisher.invalid/deep/data-1.2?download")
    quiet(mirror=f"{server.url}/").get(card(file), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_too_little_room_is_said_first(server: Server, tmp_path: Path) -> None:
    file = data_file(server, size=10**18)
    with pytest.raises(UserError, match=r"needs 1000000000\.0 GB"):
        quiet().get(card(file), tmp_path)
    assert server.asked == []


def test_nothing_to_download_tells_the_way(tmp_path: Path) -> None:
    by_hand = replace(card(), manual="Ask the authors.")
    with pytest.raises(UserError, match="Ask the authors"):
        quiet().get(by_hand, tmp_path)


def test_layouts_choose_files(server: Server, tmp_path: Path) -> None:
    server.files |= {"old.bin": b"old", "new.bin": b"new"}
    files = [
        RemoteFile(url=f"{server.url}/{name}.bin", path=f"{name}.bin", layouts=(name,))
        for name in ("old", "new")
    ]
    counts = MappingProxyType({name: MappingProxyType({"train": 1}) for name in ("old", "new")})
    both = replace(card(*files), counts=counts)
    quiet().get(both, tmp_path / "a")
    quiet().get(both, tmp_path / "b", layout="new")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["old.bin"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["new.bin"]
    with pytest.raises(UserError, match="no layout 'nwe'; did you mean 'new'"):
        quiet().get(both, tmp_path, layout="nwe")
