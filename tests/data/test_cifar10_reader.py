"""CIFAR-10 from the publisher's archive, over the downloader, and as others have laid it out."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import data_layouts as layouts
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mmvicreg.data.cifar10 import BATCHES, CLASSES, Cifar10
from mmvicreg.data.download import Downloader
from mmvicreg.errors import UserError

EACH = 13
"""Records of a batch in these tests; the publisher's have 10 000."""


def records(seed: int) -> npt.NDArray[np.uint8]:
    """uint8 (n, 3073) as published: class, then planes of red, green and blue."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (EACH, 3073), dtype=np.uint8)
    raw[:, 0] = (np.arange(EACH) * 3 + seed) % 10
    return raw


def archive(path: Path, *, without: str = "", broken: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for seed, name in enumerate(BATCHES):
            content = records(seed).tobytes()[: -1 if broken else None]
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name != without:
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and where it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def card_for(path: Path) -> object:
    """The published card, with this archive's size and checksum."""
    (published,) = Cifar10.card.files
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(Cifar10.card, files=(replace(published, size=path.stat().st_size, sha256=digest),))


def test_downloaded_checked_and_written_as_pictures(tmp_path: Path, server: tuple[Path, str]) -> None:
    served, url = server
    card = card_for(archive(served / "cifar-10-binary.tar.gz"))
    root = tmp_path / "cifar10"
    loader = Downloader(mirror=url, progress=False, sleep=lambda _: None)
    (said,) = loader.get(card, root)  # type: ignore[arg-type]
    assert said == f"cifar-10-binary.tar.gz: fetched, {6 * EACH} files unpacked"
    assert not (root / "cifar-10-binary.tar.gz").exists()
    assert loader.get(card, root) == ["cifar-10-binary.tar.gz: already there"]  # type: ignore[arg-type]

    expected: dict[str, npt.NDArray[np.uint8]] = {}
    for seed, split in enumerate(BATCHES.values()):
        for record in records(seed):
            name = CLASSES[record[0]]
            number = sum(key.startswith(f"{split}/{name}/") for key in expected)
            expected[f"{split}/{name}/{number:04d}.png"] = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
    data = Cifar10(root)
    assert data.splits() == ("train", "test")
    assert data.classes == CLASSES
    found = {sample.id: sample for sample in data.samples("all")}
    assert found.keys() == expected.keys()
    for name, pixels in expected.items():
        sample = found[name]
        assert sample.label == CLASSES.index(name.split("/")[1])
        with Image.open(root / name) as picture:
            np.testing.assert_array_equal(np.asarray(picture), pixels)
    assert f"{5 * EACH} of CIFAR-10's 50,000 pictures in the split train" in data.notes


def test_a_picture_that_went_missing_is_fetched_again(tmp_path: Path, server: tuple[Path, str]) -> None:
    served, url = server
    card = card_for(archive(served / "cifar-10-binary.tar.gz"))
    loader = Downloader(mirror=url, progress=False, sleep=lambda _: None)
    loader.get(card, tmp_path / "c")  # type: ignore[arg-type]
    lost = next((tmp_path / "c").glob("train/*/*.png"))
    content = lost.read_bytes()
    lost.unlink()
    assert "unpacked" in loader.get(card, tmp_path / "c")[0]  # type: ignore[arg-type]
    assert lost.read_bytes() == content


@pytest.mark.parametrize("fault", ["member", "records", "truncated", "not a tar"])
def test_a_bad_archive_is_named_and_nothing_is_written(tmp_path: Path, fault: str) -> None:
    path = archive(
        tmp_path / "cifar-10-binary.tar.gz",
        without=next(iter(BATCHES)) if fault == "member" else "",
        broken=fault == "records",
    )
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:9000])
    if fault == "not a tar":
        path.write_bytes(b"<html>404</html>")
    (published,) = Cifar10.card.files
    assert published.unpacker is not None
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz"):
        published.unpacker(path, tmp_path / "root", False)
    assert not (tmp_path / "root").exists()


def test_another_folder_of_classes_is_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(2):
            layouts.picture(tmp_path / "train" / name / f"{number}.jpg", number)
    with pytest.raises(UserError, match=r"does not hold CIFAR-10's classes .* but cat, dog; .*image-folder"):
        Cifar10(tmp_path)
    with pytest.raises(UserError, match="mmvicreg data download cifar10 --data-root"):
        Cifar10(tmp_path / "absent")


def test_the_real_copy_holds_out_the_last_500_of_each_class(unpacked: Callable[[str], Path]) -> None:
    data = Cifar10(unpacked("cifar10"))
    assert data.splits() == ("train", "val")
    assert data.layout == "train alone"
    train, val = data.samples("train"), data.samples("val")
    assert (len(train), len(val)) == (45_000, 5_000)
    assert not {sample.id for sample in train} & {sample.id for sample in val}
    assert np.bincount([sample.label for sample in val if sample.label is not None]).tolist() == [500] * 10
    assert val[0].id == "train/airplane/4500.jpg"
    assert all("the last 500 of each class" in note for note in data.notes)
    assert len(data.notes) == 1
