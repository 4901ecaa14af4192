"""CIFAR-10 as a folder of pictures: unpacked from the publisher's archive, or as anyone has laid it out."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np

from mmvicreg.data.bars import counted
from mmvicreg.data.card import Card, RemoteFile
from mmvicreg.data.image_folder import LAST, ImageFolder
from mmvicreg.data.unpack import check_room
from mmvicreg.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
PICTURE = 3 * SIDE * SIDE
RECORD = 1 + PICTURE
"""Bytes of a record: the class, then the red, the green and the blue plane, row by row."""
BLOCK = 4096
"""Bytes that a small file takes on a disk."""
_FOLDER = "cifar-10-batches-bin/"
BATCHES = {
    **{f"{_FOLDER}data_batch_{n}.bin": "train" for n in range(1, 6)},
    f"{_FOLDER}test_batch.bin": "test",
}
"""Members of the archive in the publisher's order -> their split."""


def write_pictures(path: Path, root: Path, progress: bool) -> list[str]:
    """Write the pictures of the publisher's binary archive as ``<split>/<class>/<number>.png``.

    Numbers count the pictures of a class in the publisher's order, so that the last of them by name are the last by
    that order too. The binary version is taken because reading it runs no code, as unpickling the other would.

    Returns:
        The files, relative to ``root``.

    Raises:
        UserError: another or a damaged archive, or too little room.
    """
    from PIL import Image

    names: list[str] = []
    count: Counter[tuple[str, int]] = Counter()
    try:
        with tarfile.open(path, "r:gz") as archive:
            batches = {name: _records(archive, name, path) for name in BATCHES}
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise UserError(f"{path} cannot be unpacked ({error or type(error).__name__})") from error
    total = sum(len(records) for records in batches.values())
    check_room(total * BLOCK, root, f"unpacking {path.name}")
    with counted(total, f"Writing the pictures of {path.name}", "files", progress=progress) as advance:
        for name, records in batches.items():
            split = BATCHES[name]
            for record in records:
                label = int(record[0])
                file = f"{split}/{CLASSES[label]}/{count[split, label]:04d}.png"
                count[split, label] += 1
                stream = io.BytesIO()
                pixels = record[1:].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
                Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG")
                _write_whole(root / file, stream.getvalue())
                names.append(file)
            advance(len(records))
    return names


def _records(
    archive: tarfile.TarFile, name: str, path: Path
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """The records of one member, uint8 ``(n, 3073)``."""
    member = archive.extractfile(name)
    raw = b"" if member is None else member.read()
    records = np.frombuffer(raw, dtype=np.uint8)
    if not len(records) or len(records) % RECORD or records[::RECORD].max() >= len(CLASSES):
        raise UserError(f"{path}: {name} does not hold CIFAR-10's records")
    return records.reshape(-1, RECORD)


def _write_whole(target: Path, content: bytes) -> None:
    if target.is_file() and target.stat().st_size == len(content):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    partial.write_bytes(content)
    partial.replace(target)


class Cifar10(ImageFolder):
    """``train/<class>/*`` and ``test/<class>/*``; of ``train`` alone the last 500 of each class are ``val``."""

    name: ClassVar[str] = "cifar10"
    card: ClassVar[Card] = Card(
        name="cifar10",
        title="CIFAR-10",
        source=("https://www.cs.toronto.edu/~kriz/cifar.html",),
        licence="not stated by its publisher; cite the report",
        description=(
            "60 000 photographs of 32 x 32 pixels in 10 classes, written as PNG below train/<class>/ and "
            f"test/<class>/. A copy without test is read too: the last {LAST} of each class are then its val."
        ),
        pairs=("image-image",),
        splits=("train", "test"),
        citation="Krizhevsky. Learning Multiple Layers of Features from Tiny Images. Technical report, 2009.",
        counts={
            "published": {"train": 50_000, "test": 10_000},
            "train alone": {"train": 45_000, "val": 5_000},
        },
        classes=10,
        files=(
            RemoteFile(
                url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                path="cifar-10-binary.tar.gz",
                size=170_052_171,
                sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                md5="c32a1d4ab5d03f1284b67883e8d87530",  # the one on the publisher's page
                extract=True,
                unpacker=write_pictures,
            ),
        ),
    )

    def _find(self) -> tuple[str, ...]:
        splits = super()._find()
        if self.classes != CLASSES:
            raise UserError(
                f"{self.root} does not hold CIFAR-10's classes ({', '.join(CLASSES)}) but "
                f"{', '.join(self.classes[:10]) or 'pictures without classes'}; pictures of your own classes are read "
                f"by --dataset image-folder. {self.card.way_out(self.root)}"
            )
        self.layout = "train alone" if self._holds_out else "published"
        return splits
