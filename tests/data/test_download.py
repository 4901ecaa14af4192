"""Downloading from a real server on this machine: resumed, restarted, checked, unpacked."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from mmvicreg.data import unpack as unpacking
from mmvicreg.data.card import Card, RemoteFile, TableFilter
from mmvicreg.data.download import Downloader
from mmvicreg.errors import UserError

CONTENT = np.random.default_rng(0).bytes(300_000)


@dataclass
class Server:
    """What the server does, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    version: str = "v1"
    cut: list[int] = field(default_factory=list)
    """Bytes of the body after which each of the next connections is dropped."""
    status: list[int] = field(default_factory=list)
    """Statuses of the next answers."""
    slow: float = 0.0
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers.get("Range")))
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            content = state.files.get(self.path.lstrip("/"))
            if body and state.status:
                self.send_error(state.status.pop(0))
                return
            if content is None:
                self.send_error(404)
                return
            start, asked = 0, self.headers.get("Range")
            current = self.headers.get("If-Range") in (None, f'"{state.version}"')
            if asked and state.ranges and current:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", f'"{state.version}"')
            self.end_headers()
            if not body:
                return
            rest = content[start:]
            if state.cut:
                rest = rest[: state.cut.pop(0)]
            for at in range(0, len(rest), 16_384):
                self.wfile.write(rest[at : at + 16_384])
                time.sleep(state.slow)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that was killed is no news here."""

    http = Quiet(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def card(*files: RemoteFile) -> Card:
    return Card("toy", "Toy", ("nowhere",), "none", "a toy", ("image-text",), ("train",), "none", files=files)


def data_file(server: Server, **changes: object) -> RemoteFile:
    server.files.setdefault("data.bin", CONTENT)
    file = RemoteFile(
        url=f"{server.url}/data.bin",
        path="data.bin",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    return replace(file, **changes)  # type: ignore[arg-type]


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def quiet(**changes: object) -> Downloader:
    return replace(Downloader(progress=False, sleep=lambda _: None), **changes)  # type: ignore[arg-type]


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


MEMBERS = {
    "set-main/meta/table.csv": b"filename,good\na.wav,True\nb.wav,False\n",
    "set-main/audio/a.wav": b"aaa",
    "set-main/audio/b.wav": b"bbb",
    "set-main/README": b"not wanted",
}


def archive(server: Server, contents: dict[str, bytes], **changes: object) -> RemoteFile:
    server.files["set.zip"] = zipped(contents)
    file = RemoteFile(
        url=f"{server.url}/set.zip",
        path="set.zip",
        extract=True,
        members=("set-main/meta/", "set-main/audio/"),
        strip="set-main/",
    )
    return replace(file, **changes)  # type: ignore[arg-type]


def names(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and ".downloaded" not in path.parts
    }


def test_an_archive_is_unpacked_and_removed(server: Server, tmp_path: Path) -> None:
    file = archive(server, MEMBERS)
    assert quiet().get(card(file), tmp_path) == ["set.zip: fetched, 3 files unpacked"]
    assert names(tmp_path) == {"meta/table.csv", "audio/a.wav", "audio/b.wav"}
    assert (tmp_path / "audio" / "a.wav").read_bytes() == b"aaa"
    assert quiet().get(card(file), tmp_path) == ["set.zip: already there"]
    (tmp_path / "audio" / "b.wav").unlink()
    assert quiet().get(card(file), tmp_path) == ["set.zip: fetched, 3 files unpacked"]
    assert names(tmp_path) == {"meta/table.csv", "audio/a.wav", "audio/b.wav"}


def test_a_table_chooses_members(server: Server, tmp_path: Path) -> None:
    only = TableFilter("set-main/meta/table.csv", column="good", folder="set-main/audio/")
    quiet().get(card(archive(server, MEMBERS, only=only)), tmp_path)
    assert names(tmp_path) == {"meta/table.csv", "audio/a.wav"}


def test_an_interrupted_unpacking_is_finished(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = archive(server, MEMBERS)
    file = replace(file, sha256=hashlib.sha256(server.files["set.zip"]).hexdigest())
    extract = unpacking._extract

    def stop(source: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
        if target.name == "b.wav":
            raise KeyboardInterrupt
        extract(source, info, target)

    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "_extract", stop)
        with pytest.raises(KeyboardInterrupt):
            quiet().get(card(file), tmp_path)
    assert names(tmp_path) == {"set.zip", "meta/table.csv", "audio/a.wav"}
    quiet().get(card(file), tmp_path)
    assert names(tmp_path) == {"meta/table.csv", "audio/a.wav", "audio/b.wav"}
    assert len(server.asked) == 1


@pytest.mark.parametrize("name", ["../evil", "set-main/audio/../../evil", "/evil", "C:\\evil", "..\\evil"])
def test_members_that_lead_outside_are_refused(server: Server, tmp_path: Path, name: str) -> None:
    root = tmp_path / "in" / "root"
    file = archive(server, {**MEMBERS, name: b"evil"}, members=())
    with pytest.raises(UserError, match="leads outside"):
        quiet().get(card(file), root)
    assert names(tmp_path) == set()


def test_links_are_refused(server: Server, tmp_path: Path) -> None:
    file = archive(server, MEMBERS)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        link = zipfile.ZipInfo("set-main/audio/a.wav")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        out.writestr(link, "/etc/passwd")
    server.files["set.zip"] = buffer.getvalue()
    with pytest.raises(UserError, match=r"'set-main/audio/a\.wav' is a link"):
        quiet().get(card(file), tmp_path)


@pytest.mark.parametrize("damage", ["page", "cut", "flipped", "another"])
def test_what_is_not_the_archive_is_fetched_anew(server: Server, tmp_path: Path, damage: str) -> None:
    """Without a published checksum only unpacking finds the damage; the next call must not stumble again."""
    file = archive(server, MEMBERS)
    good = server.files["set.zip"]
    at = good.index(b"aaa")
    server.files["set.zip"] = {
        "page": b"<html>Please log in</html>",
        "cut": good[: len(good) // 2],
        "flipped": good[:at] + b"aXa" + good[at + 3 :],
        "another": zipped({"elsewhere": b"x"}),
    }[damage]
    with pytest.raises(UserError, match=r"set\.zip"):
        quiet().get(card(file), tmp_path)
    server.files["set.zip"] = good
    quiet().get(card(file), tmp_path)
    assert names(tmp_path) == {"meta/table.csv", "audio/a.wav", "audio/b.wav"}
