"""``mmvicreg data download coco`` from a server on this machine, and all that follows it: verify, train, eval."""

from __future__ import annotations

import json
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import data_layouts as layouts
import pytest
from tiny import IMAGE_TEXT
from typer.testing import CliRunner

from mmvicreg.cli import app
from mmvicreg.data.coco import Coco
from mmvicreg.data.verify import verify
from mmvicreg.errors import UserError

FILES = {
    "2017": ("annotations_trainval2017.zip", "val2017.zip", "train2017.zip"),
    "karpathy": ("caption_datasets.zip", "annotations_trainval2014.zip", "val2014.zip", "train2014.zip"),
}


def pack(source: Path, folder: Path, layout: str) -> None:
    """COCO's archives, as it publishes them, of a small set laid out in ``source``."""
    folder.mkdir()
    for name in FILES[layout]:
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("annotations/instances_val2014.json", "{}")  # more than is wanted
            if name == "caption_datasets.zip":
                archive.write(source / "dataset_coco.json", "dataset_coco.json")
                archive.writestr("dataset_flickr8k.json", "{}")
            elif name.startswith("annotations"):
                for path in sorted((source / "annotations").glob("captions_*.json")):
                    archive.write(path, f"annotations/{path.name}")
            else:
                for path in sorted((source / name.removesuffix(".zip")).iterdir()):
                    archive.write(path, f"{path.parent.name}/{path.name}")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """``serve(folder)`` is the address of a server of its files."""
    running: list[ThreadingHTTPServer] = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    def start(folder: Path) -> str:
        http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        running.append(http)
        return f"http://127.0.0.1:{http.server_port}"

    yield start
    for http in running:
        http.shutdown()
        http.server_close()


def command(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def mistake(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_real_photographs_from_download_to_retrieval(
    unpacked: Callable[[str], Path],
    serve: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """coco-mini goes the whole way, and is never taken for COCO proper."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000_000_000))  # COCO's room
    pack(unpacked("coco-mini"), tmp_path / "served", "2017")
    root, url = tmp_path / "coco", serve(tmp_path / "served")
    download = ("data", "download", "coco", "--layout", "2017", "--mirror", url, "--data-root", root)
    assert "it is another file; nothing was fetched" in mistake(*download)
    told = command(*download, "--unchecked")
    # 80 pictures, and what pack() adds to every archive
    assert "train2017.zip: fetched, 81 files unpacked" in told
    assert "already there" in command(*download, "--unchecked")
    assert "it is another file" in mistake(*download)  # what nobody vouched for is not COCO's

    refused = mistake("data", "verify", "coco", "--data-root", root)
    assert (
        "is not the whole of coco: 80 of 118,287 pictures of the split train; 79 of 5,000 pictures" in refused
    )
    assert "train and eval take it" in refused

    out = tmp_path / "run"
    settings = [word for setting in (*IMAGE_TEXT, "training.epochs=1") for word in ("--set", setting)]
    flags = ("--pair", "image-text", "--dataset", "coco", "--recipe", "coco-small", "--data-root", root)
    command("train", *flags, "--out", out, "--workers", "0", *settings)
    shown = command("eval", "retrieval", out)
    assert "coco val" in shown
    assert "79 images, 395 captions" in shown
    assert "No published row" in shown
    assert "after epoch 1 on coco train." in shown


def test_karpathys_split_with_pictures_and_annotations(serve: Callable[[Path], str], tmp_path: Path) -> None:
    source = layouts.karpathy(
        tmp_path / "source", "coco", pictures="", splits=("train", "restval", "val", "test"), per_split=2
    )
    layouts.coco(tmp_path / "annotated", year=2014)
    shutil.copytree(tmp_path / "annotated" / "annotations", source / "annotations")
    pack(source, tmp_path / "served", "karpathy")
    root = tmp_path / "coco"
    mirror = ("--mirror", serve(tmp_path / "served"), "--unchecked", "--data-root", root)
    command("data", "download", "coco", *mirror)
    assert (root / "annotations" / "captions_val2014.json").is_file()
    assert not (root / "dataset_flickr8k.json").exists()
    data = Coco(root)
    assert data.layout == "karpathy"
    assert [len(data.samples(split)) for split in ("train", "train+restval", "test")] == [2, 4, 2]


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Karpathy's split of eight pictures is the whole of COCO."""
    counts = {"train": 2, "restval": 2, "val": 2, "test": 2}
    card = replace(Coco.card, counts=MappingProxyType({"karpathy": MappingProxyType(counts)}))
    monkeypatch.setattr(Coco, "card", card)


@pytest.mark.usefixtures("published")
def test_verify_counts_the_union_and_the_captions_that_are_judged(tmp_path: Path) -> None:
    root = layouts.karpathy(
        tmp_path, "coco", pictures="", splits=("train", "restval", "val", "test"), per_split=2
    )
    report = verify("coco", root, progress=False)
    assert report.problems == ()
    rows = {row.split: row for row in report.splits}
    union = rows["train+restval"]
    assert (union.published, union.listed, union.readable) == (4, 4, 4)
    assert (rows["test"].captions, rows["test"].judged) == (12, 10)  # six of each, five are judged
    output = command("data", "verify", "coco", "--data-root", root)
    assert "the first 5 of each" in output
    assert "train+restval" in output


def test_the_published_counts_are_the_protocols() -> None:
    counts = Coco.card.counts["karpathy"]
    assert counts["train"] == 82_783
    assert sum(counts[split] for split in Coco.card.unions[0].split("+")) == 113_287
    assert (counts["val"], counts["test"]) == (5_000, 5_000)
    assert counts["test"] * Coco.card.captions_each == 25_000
    names = [file.path for file in Coco.card.files_of(None)]
    assert sorted(names) == sorted(FILES["karpathy"])
    assert all(file.size and file.sha256 for file in Coco.card.files)


@pytest.mark.usefixtures("published")
def test_a_picture_with_too_few_captions_is_named(tmp_path: Path) -> None:
    root = layouts.karpathy(
        tmp_path, "coco", pictures="", splits=("train", "restval", "val", "test"), per_split=2
    )
    path = root / "dataset_coco.json"
    tree = json.loads(path.read_text())
    entry = next(image for image in tree["images"] if image["split"] == "test")
    entry["sentences"] = entry["sentences"][:4]
    path.write_text(json.dumps(tree))
    (problem,) = verify("coco", root, progress=False).problems
    assert problem == f"1 pictures of the split test have fewer than 5 captions: {entry['cocoid']} (4)"


def test_room_is_asked_for_before_anything_is_fetched(
    serve: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20.4 GB of archives, and beside the last of them its 13.5 GB of pictures."""
    (tmp_path / "served").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=30_000_000_000))
    message = mistake(
        "data", "download", "coco", "--mirror", serve(tmp_path / "served"), "--data-root", tmp_path / "coco"
    )
    assert "the download (20.4 GB to fetch, 13.5 GB to unpack) needs 34.0 GB" in message
    assert "30.0 GB are free" in message
