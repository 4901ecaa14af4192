"""Unpacking what was downloaded: whole, by a table, again after an interruption, and nothing outside."""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from file_server import Server, card, quiet

from mmvicreg.data import unpack as unpacking
from mmvicreg.data.card import RemoteFile, TableFilter
from mmvicreg.errors import UserError

MEMBERS = {
    "set-main/meta/table.csv": b"filename,good\na.wav,True\nb.wav,False\n",
    "set-main/audio/a.wav": b"aaa",
    "set-main/audio/b.wav": b"bbb",
    "set-main/README": b"not wanted",
}


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


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
    with pytest.raises(UserError, match=r"set\.zip .*\. It was removed: run the command again") as caught:
        quiet().get(card(file), tmp_path)
    assert "remove it" not in str(caught.value)
    assert not (tmp_path / "set.zip").exists()
    server.files["set.zip"] = good
    quiet().get(card(file), tmp_path)
    assert names(tmp_path) == {"meta/table.csv", "audio/a.wav", "audio/b.wav"}


def test_an_archive_that_is_the_published_one_stays(server: Server, tmp_path: Path) -> None:
    """To fetch it again would bring the same."""
    page = b"<html>Please log in</html>"
    file = archive(server, MEMBERS, sha256=hashlib.sha256(page).hexdigest())
    server.files["set.zip"] = page
    with pytest.raises(
        UserError, match=r"cannot be unpacked \(.*\)\. .*set\.zip stays: its sha256 is the published"
    ):
        quiet().get(card(file), tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == page
