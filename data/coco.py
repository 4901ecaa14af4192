"""COCO captions: COCO's own annotation files (2014 or 2017), or Karpathy's split of 2014.

Lin et al. 2014, "Microsoft COCO: Common Objects in Context"; Chen et al. 2015, "Microsoft COCO Captions";
the split is Karpathy & Fei-Fei 2015, "Deep Visual-Semantic Alignments for Generating Image Descriptions".
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from mmvicreg.data.card import Card, RemoteFile
from mmvicreg.data.files import list_folder
from mmvicreg.data.karpathy import KarpathyFile
from mmvicreg.data.reader import (
    Reader,
    check_captions,
    check_inside,
    check_present,
    duplicates,
    not_here,
    read_json,
    shorten,
)
from mmvicreg.errors import UserError
from mmvicreg.samples import Sample

_HOST = "http://images.cocodataset.org"

CARD = Card(
    name="coco",
    title="COCO",
    source=("https://cocodataset.org", "https://cs.stanford.edu/people/karpathy/deepimagesent/"),
    licence="annotations CC BY 4.0; pictures under their Flickr licences (COCO's terms of use)",
    description=(
        "Photographs of everyday scenes with five to seven captions each. Retrieval papers use the 2014 "
        "pictures in Karpathy's split (train, restval, val, test); COCO's own 2014 and 2017 layouts "
        "(train, val) are read too."
    ),
    pairs=("image-text", "image-image"),
    splits=("train", "restval", "val", "test"),
    counts=MappingProxyType(
        {
            "karpathy": MappingProxyType({"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000}),
            "2014": MappingProxyType({"train": 82_783, "val": 40_504}),
            "2017": MappingProxyType({"train": 118_287, "val": 5_000}),
        }
    ),
    unions=("train+restval",),
    captions_each=5,
    # Sizes and sha256 as recorded by TensorFlow Datasets (url_checksums/coco.txt and coco_captions.txt).
    files=(
        RemoteFile(
            url="https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
            path="caption_datasets.zip",
            size=36_745_453,
            sha256="4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
            extract=True,
            members=("dataset_coco.json",),
            layouts=("karpathy",),
        ),
        RemoteFile(
            url=f"{_HOST}/annotations/annotations_trainval2014.zip",
            path="annotations_trainval2014.zip",
            size=252_872_794,
            sha256="031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
            extract=True,
            members=("annotations/captions_",),
            layouts=("karpathy", "2014"),
        ),
        RemoteFile(
            url=f"{_HOST}/zips/val2014.zip",
            path="val2014.zip",
            size=6_645_013_297,
            sha256="fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
            extract=True,
            layouts=("karpathy", "2014"),
        ),
        RemoteFile(
            url=f"{_HOST}/zips/train2014.zip",
            path="train2014.zip",
            size=13_510_573_713,
            sha256="ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            extract=True,
            layouts=("karpathy", "2014"),
        ),
        RemoteFile(
            url=f"{_HOST}/annotations/annotations_trainval2017.zip",
            path="annotations_trainval2017.zip",
            size=252_907_541,
            sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            extract=True,
            members=("annotations/captions_",),
            layouts=("2017",),
        ),
        RemoteFile(
            url=f"{_HOST}/zips/val2017.zip",
            path="val2017.zip",
            size=815_585_330,
            sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            extract=True,
            layouts=("2017",),
        ),
        RemoteFile(
            url=f"{_HOST}/zips/train2017.zip",
            path="train2017.zip",
            size=19_336_861_798,
            sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            extract=True,
            layouts=("2017",),
        ),
    ),
    citation="Lin et al., Microsoft COCO: Common Objects in Context, 2014; Chen et al., arXiv:1504.00325",
)


class Coco(Reader):
    """COCO's captions, in whichever published layout lies in the root.

    Karpathy's ``dataset_coco.json`` beside ``train2014/`` and ``val2014/`` (or ``images/``) gives the
    splits train, restval, val and test; else ``annotations/captions_<split><year>.json`` beside
    ``<split><year>/`` gives COCO's own splits; of several years the newest whose pictures of train are there, else the
    newest with pictures.
    """

    name: ClassVar[str] = "coco"
    pairs: ClassVar[tuple[str, ...]] = ("image-text", "image-image")
    card: ClassVar[Card] = CARD
    marker: ClassVar[str | None] = None
    """File that a folder of this data set holds and folders of its relatives do not."""
    lasting_ids: ClassVar[bool] = True
    """Whether a picture has one id in every layout, so that ids tell whether it was trained on in another."""

    layout: str
    """Key of ``card.counts``: "karpathy", "2014" or "2017"."""

    def _find(self) -> tuple[str, ...]:
        self._check_marker()
        folders = list_folder(self.root)
        karpathy = self.root / "dataset_coco.json"
        pictures = {"train2014", "val2014", "images"} & folders
        # Karpathy's file alone cannot be trained on; a whole 2017 layout beside it can.
        if karpathy.is_file() and (pictures or not self._years()):
            return self._open_karpathy(karpathy)
        years = self._years()
        if not years:
            raise not_here(
                self.root,
                self.card,
                "it should hold dataset_coco.json (Karpathy's split) or annotations/captions_train2017.json",
            )
        return self._open_own(years)

    def _load(self, split: str) -> list[Sample]:
        if self._karpathy is not None:
            return self._karpathy.samples(split)
        return read_captions(
            self._captions(split), self.root / f"{split}{self.layout}", self.card, root=self.root
        )

    def _absent(self, split: str) -> str:
        if self._karpathy is not None or (self.name, split) != (Coco.name, "restval"):
            return ""
        return (
            " restval is of Karpathy's split of 2014 (dataset_coco.json, which mmvicreg data download coco gets), and "
            f"this is COCO's own of {self.layout}: train without it by --set dataset.train_split=train"
        )

    def _check_marker(self) -> None:
        if self.marker is not None and not (self.root / self.marker).is_file():
            raise not_here(self.root, self.card, f"it should hold {self.marker}")
        if self.marker is None and (self.root / "shapes.json").is_file():
            raise not_here(self.root, self.card, "it should hold COCO's own files")

    def _open_karpathy(self, path: Path) -> tuple[str, ...]:
        self._karpathy: KarpathyFile | None = KarpathyFile(
            path, "coco", self.card, folders=("", "images"), root=self.root
        )
        self.layout = "karpathy"
        self.notes = self._karpathy.notes
        return self._karpathy.splits

    def _open_own(self, years: dict[str, list[str]]) -> tuple[str, ...]:
        self._karpathy = None
        there = {
            year: [split for split in splits if list_folder(self.root / f"{split}{year}")]
            for year, splits in years.items()
        }
        self.layout = max(years, key=lambda year: ("train" in there[year], bool(there[year]), year))
        notes = []
        if len(years) > 1:
            notes.append(
                f"{self.root} holds COCO's captions of {' and '.join(sorted(years))}; {self.layout} is read"
            )
        splits = []
        for split in years[self.layout]:
            folder = self.root / f"{split}{self.layout}"
            present = len(list_folder(folder))
            if not folder.is_dir():
                notes.append(f"split '{split}' left out: {self._captions(split)} is there, {folder} is not")
                continue
            splits.append(split)
            whole = self.card.counts.get(self.layout, {}).get(split)
            if whole is not None and present < whole:
                notes.append(f"{present:,} of {self.card.title}'s {whole:,} pictures of {split}{self.layout}")
        if not splits:
            raise UserError(
                f"{self.card.title} at {self.root} has captions but no pictures: none of the folders "
                f"{', '.join(f'{split}{self.layout}' for split in years[self.layout])} is there. "
                f"{self.card.way_out(self.root)}"
            )
        self.notes = tuple(notes)
        return tuple(splits)

    def _years(self) -> dict[str, list[str]]:
        """Year -> splits with a captions file, in the order train, val, test."""
        years: dict[str, list[str]] = {}
        names = list_folder(self.root / "annotations")  # Path.glob would pass over one that it may not list
        for split in ("train", "val", "test"):
            for name in fnmatch.filter(names, f"captions_{split}20[0-9][0-9].json"):
                years.setdefault(Path(name).stem[-4:], []).append(split)
        return years

    def _captions(self, split: str) -> Path:
        return self.root / "annotations" / f"captions_{split}{self.layout}.json"


def read_captions(path: Path, pictures: Path, card: Card, *, root: Path) -> list[Sample]:
    """One of COCO's ``captions_*.json`` as samples, put in order by pycocotools; ids are COCO's image ids.

    Args:
        path: the annotation file.
        pictures: the folder of its pictures.
        card: whose data set this is, for messages.
        root: the data set's folder, for messages.

    Raises:
        UserError: not COCO's captions, an image or its file listed twice, a caption of no listed image, an empty
            caption, or pictures that are not there.
    """
    from pycocotools.coco import COCO

    coco: Any = COCO()
    coco.dataset = read_json(path, card, root)
    if not isinstance(coco.dataset, dict):
        raise _not_captions(path, card, root)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            coco.createIndex()
    except (KeyError, TypeError, AttributeError) as error:
        raise _not_captions(path, card, root) from error
    images, annotations = coco.dataset.get("images"), coco.dataset.get("annotations")
    if not images or not annotations or any("caption" not in annotation for annotation in annotations):
        raise _not_captions(path, card, root)
    if any("id" not in image or "file_name" not in image for image in images):
        raise UserError(f"{path}: an image has no id or no file_name. {card.way_out(root)}")
    if twice := duplicates(str(image["id"]) for image in images):
        raise UserError(f"{path} lists images twice, by id: {shorten(twice)}")
    files = [check_inside(image["file_name"], path) for image in images]
    if twice := duplicates(files):
        raise UserError(f"{path} lists the same file under several ids: {shorten(twice)}")
    if twice := duplicates(str(caption["id"]) for caption in annotations if "id" in caption):
        raise UserError(f"{path} lists captions twice, by id: {shorten(twice)}")
    known = {image["id"] for image in images}
    if strays := [str(i) for i in coco.imgToAnns if i not in known]:
        raise UserError(f"{path} has captions of images that it does not list, by id: {shorten(strays)}")
    samples = [
        Sample(
            id=str(image["id"]),
            image=pictures / file,
            captions=check_captions(
                [annotation["caption"] for annotation in coco.imgToAnns.get(image["id"], [])], file, path
            ),
            caption_ids=tuple(str(annotation["id"]) for annotation in coco.imgToAnns.get(image["id"], [])),
        )
        for image, file in zip(images, files, strict=True)
    ]
    return check_present(samples, "pictures", path, card.way_out(root))


def _not_captions(path: Path, card: Card, root: Path) -> UserError:
    return UserError(
        f"{path} is not a file of COCO captions: it needs 'images' and 'annotations' with an 'image_id' and "
        f"a 'caption' each. {card.way_out(root)}"
    )
