"""``mmvicreg data``, as a user types it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import data_layouts as layouts
import pytest
from typer.testing import CliRunner, Result

from mmvicreg import registry
from mmvicreg.cli.data import app
from mmvicreg.data.card import Card, card_of
from mmvicreg.data.shapes import Shapes
from mmvicreg.errors import UserError


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def mistake(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMVICREG_DATA", str(tmp_path / "home"))
    monkeypatch.delenv("MMVICREG_MIRROR", raising=False)
    return tmp_path / "home"


def test_list_says_where_and_whether(home: Path) -> None:
    layouts.coco(home / "coco")
    lines = {line.split("│")[1].strip(): line for line in run("list").output.splitlines() if "│" in line}
    assert set(registry.DATASETS.names()) <= set(lines)
    assert str(home / "coco") in lines["coco"]
    assert lines["coco"].rstrip(" │").endswith("yes")
    assert lines["esc50"].rstrip(" │").endswith("no")
    assert "made on first use" in lines["tones"]


def test_list_needs_no_torch(home: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from typer.testing import CliRunner; from mmvicreg.cli.data import app; "
        "assert CliRunner().invoke(app, ['list']).exit_code == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", registry.DATASETS.names())
def test_every_card_is_whole(name: str, home: Path) -> None:
    card = card_of(name)
    assert isinstance(card, Card)
    assert card.name == name
    assert registry.DATASETS.load(name).pairs == card.pairs
    assert card.made + bool(card.files) + bool(card.manual) >= 1
    for file in card.files:
        assert file.url.startswith(("https://", "http://images.cocodataset.org/"))
        assert len(file.sha256 or "0" * 64) == 64
        assert set(file.layouts) <= set(card.counts)
    output = run("info", name).output
    assert card.licence in output
    for file in card.files:
        assert file.url in output
        assert (file.sha256 or "not published / not checked") in output


def test_known_counts() -> None:
    karpathy = card_of("coco").counts["karpathy"]
    assert karpathy["train"] + karpathy["restval"] == 113_287
    assert sum(card_of("esc50").counts["esc50"].values()) == 2_000
    assert sum(card_of("flickr30k").counts["karpathy"].values()) == 31_014


def test_make_and_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Shapes.make
    monkeypatch.setattr(Shapes, "make", partial(whole, counts={"train": 4, "val": 2, "test": 2}))
    assert f"shapes is made at {home / 'shapes'}" in run("make", "shapes").output
    assert "is already at" in run("make", "shapes").output
    assert "not made" in mistake("make", "coco")


def test_verify_prints_the_table_then_what_is_wrong(tmp_path: Path) -> None:
    result = run("verify", "coco", "--data-root", layouts.coco(tmp_path))
    assert "118,287" in result.output
    assert "3 of 118,287 pictures of the split train" in str(result.exception)
    assert "no such folder" in mistake("verify", "coco", "--data-root", tmp_path / "absent")


def test_esc10_is_found_in_esc50(home: Path) -> None:
    layouts.esc(home / "esc50")
    assert "10 of 80" not in (found := mistake("verify", "esc10"))
    assert "2 of 80 recordings of the split fold1" in found


def test_unknown_names_and_mirrors(home: Path) -> None:
    assert "did you mean 'shapes'" in mistake("info", "shaeps")
    assert "not a http" in mistake("download", "coco", "--mirror", "ftp://example.org")
    assert "mmvicreg data make tones" in mistake("download", "tones")


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_from_a_mirror(
    tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ESC-50's archive, as GitHub lays it out, becomes the layout that the readers read."""
    import shutil

    folder, url = mirror
    layouts.esc(tmp_path / "build" / "ESC-50-master")
    shutil.make_archive(str(folder / "ESC-50-master"), "zip", tmp_path / "build")
    result = run("download", "esc50", "--data-root", tmp_path / "a", "--mirror", url)
    assert result.exit_code == 0, result.output
    assert "31 files unpacked" in result.output
    assert "already there" in run("download", "esc50", "--data-root", tmp_path / "a", "--mirror", url).output
    assert len(registry.DATASETS.load("esc50")(tmp_path / "a").samples("all")) == 30
    # ESC-10 comes in the same archive, and only its part of it is unpacked.
    monkeypatch.setenv("MMVICREG_MIRROR", url)
    assert run("download", "esc10", "--data-root", tmp_path / "b").exit_code == 0
    assert len(list((tmp_path / "b" / "audio").iterdir())) == 10
    assert len(registry.DATASETS.load("esc10")(tmp_path / "b").samples("all")) == 10


def test_a_mirror_of_something_else_is_refused(tmp_path: Path, mirror: tuple[Path, str]) -> None:
    folder, url = mirror
    (folder / "caption_datasets.zip").write_bytes(b"something else")
    message = mistake("download", "flickr30k", "--data-root", tmp_path / "x", "--mirror", url)
    assert "14 bytes where 36,745,453 are published" in message
