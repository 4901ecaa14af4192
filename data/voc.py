"""PASCAL VOC 2007's classification task: several classes a picture, in the publisher's layout.

``ImageSets/Main/<class>_<split>.txt`` says of every picture of a split whether it shows the class: 1, -1 (it does
not), or 0: only in objects marked difficult, which the task leaves out.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from mmvicreg.data.card import Card
from mmvicreg.data.reader import Reader, check_inside, check_present, not_here, shorten
from mmvicreg.errors import UserError
from mmvicreg.samples import Sample

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)
_ARCHIVES = {"trainval": "VOCtrainval_06-Nov-2007.tar", "test": "VOCtest_06-Nov-2007.tar"}
_SPLITS = tuple(_ARCHIVES)
_PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/"


class Voc07(Reader):
    """Pictures of VOC 2007; :meth:`targets` has their classes, of which each may have several."""

    name: ClassVar[str] = "voc07"
    pairs: ClassVar[tuple[str, ...]] = ("image-image",)
    card: ClassVar[Card] = Card(
        name="voc07",
        title="PASCAL VOC 2007",
        source=(_PAGE,),
        licence="photographs from Flickr, under Flickr's terms of use",
        description=(
            "9 963 photographs of 20 classes, several to a picture; eval svm trains on trainval and tests on test."
        ),
        pairs=("image-image",),
        splits=_SPLITS,
        counts={"voc07": {"trainval": 5_011, "test": 4_952}},
        manual=(
            f"Get {' and '.join(_ARCHIVES.values())} from {_PAGE} and unpack both in one place; "
            "the folder to name is VOCdevkit or its VOC2007, with JPEGImages and ImageSets/Main."
        ),
        citation="Everingham, Van Gool, Williams, Winn, Zisserman: The PASCAL Visual Object Classes Challenge 2007",
    )

    def _find(self) -> tuple[str, ...]:
        self._targets: dict[str, npt.NDArray[np.int8]] = {}
        for inside in ("", "VOC2007", "VOCdevkit/VOC2007"):
            self.folder = self.root / inside
            lists = self.folder / "ImageSets" / "Main"
            splits = tuple(split for split in _SPLITS if (lists / f"{CLASSES[0]}_{split}.txt").is_file())
            if splits:
                return splits
        raise not_here(
            self.root, self.card, f"it should hold ImageSets/Main/{CLASSES[0]}_trainval.txt and the like"
        )

    def _absent(self, split: str) -> str:
        if split not in _ARCHIVES:
            return ""
        return f" It is in {_ARCHIVES[split]}, from {_PAGE}: unpack that in the same place."

    def _load(self, split: str) -> list[Sample]:
        lists = self.folder / "ImageSets" / "Main"
        columns: list[list[int]] = []
        ids: list[str] = []
        for name in CLASSES:
            path = lists / f"{name}_{split}.txt"
            mine, column = _read_list(path, self.card.way_out(self.root))
            if not ids:
                ids = mine
            elif mine != ids:
                there = next((pair for pair in zip(mine, ids, strict=False) if pair[0] != pair[1]), None)
                where = f", first {there[0]} and {there[1]}" if there else ""
                raise UserError(
                    f"{path} lists other pictures than {lists / f'{CLASSES[0]}_{split}.txt'} "
                    f"({len(mine):,} and {len(ids):,}{where}); get both again. {self.card.way_out(self.root)}"
                )
            columns.append(column)
        samples = [Sample(id=name, image=self.folder / "JPEGImages" / f"{name}.jpg") for name in ids]
        samples = check_present(samples, "pictures", lists, self.card.way_out(self.root))
        self._targets[split] = np.array(columns, dtype=np.int8).T
        published = self.card.counts["voc07"][split]
        if len(ids) != published:
            note = f"{len(ids):,} of {self.card.title}'s {published:,} pictures in the split {split}"
            self.notes = (*self.notes, note)
        return samples

    def targets(self, split: str) -> npt.NDArray[np.int8]:
        """What the pictures of one split show ``(n, 20)``: 1 yes, -1 no, 0 only what is marked difficult.

        Raises:
            UserError: as :meth:`samples`.
        """
        self.samples(split)
        return self._targets[split]

    @property
    def classes_shown(self) -> tuple[str, ...]:
        """Names of the columns of :meth:`targets`. ``classes`` is empty: no picture has one class."""
        return CLASSES


def _read_list(path: Path, way_out: str) -> tuple[list[str], list[int]]:
    """Picture ids and labels of one class's list; ``way_out``: where it is to be had."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}. {way_out}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: {error}; get it again. {way_out}") from error
    ids: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if len(parts) != 2 or parts[1] not in ("-1", "0", "1"):
            raise UserError(f"{path}, line {number}: expected a picture and -1, 0 or 1, got '{line}'")
        ids.append(check_inside(parts[0], path))
        labels.append(int(parts[1]))
    if not ids:
        raise UserError(f"{path} is empty (truncated?)")
    twice = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise UserError(f"{path} lists {shorten(twice)} twice")
    return ids, labels
