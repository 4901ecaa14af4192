"""Places205 and iNaturalist 2018: pictures of which the publisher's lists say the split and the class."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmvicreg.data.card import Card
from mmvicreg.data.files import Files
from mmvicreg.data.pictures import Pictures
from mmvicreg.data.reader import Reader, check_inside, duplicates, not_here, read_json, shorten
from mmvicreg.errors import UserError
from mmvicreg.samples import Sample


class ListedPictures(Reader):
    """What the two share: lists by split, and where the pictures they name lie. Labels, to judge encoders on."""

    pairs: ClassVar[tuple[str, ...]] = ("image-image",)
    lists: ClassVar[dict[str, tuple[str, ...]]]
    """Split -> where its list may be, relative to the root."""
    folders: ClassVar[tuple[str, ...]] = ("",)
    """Where the pictures may be, relative to the root."""

    def _find(self) -> tuple[str, ...]:
        self._lists = {
            split: next((self.root / place for place in places if (self.root / place).is_file()), None)
            for split, places in self.lists.items()
        }
        splits = tuple(split for split, path in self._lists.items() if path is not None)
        if not splits:
            wanted = " and ".join(places[0] for places in self.lists.values())
            raise not_here(self.root, self.card, f"it should hold the lists {wanted}")
        return splits

    def _load(self, split: str) -> Sequence[Sample]:
        path = self._lists[split]
        assert path is not None
        names, labels, classes = self._read(path)
        if not names:
            raise UserError(f"{path} lists no pictures")
        if self.classes and self.classes != classes:
            raise UserError(
                f"{path} has other classes than the list of the other split: they are not of one version"
            )
        self.classes = classes
        if twice := duplicates(names):
            raise UserError(
                f"{path} lists {shorten(twice)} more than once; get it again, or leave one line each"
            )
        first, files = names[0], Files()
        base = next((f for f in self.folders if files.find(self.root / f / first) is not None), None)
        if base is None:
            raise UserError(
                f"the pictures listed in {path} are not there, first "
                f"{self.root / self.folders[0] / first}. {self.card.manual}"
            )
        names = [_as_on_disk(name, self.root / base, files) for name in names]
        if twice := duplicates(names):
            raise UserError(f"{path} lists the same file in two spellings that look alike: {shorten(twice)}")
        self.notes = (*self.notes, *self.card.lacking(split, len(names)))
        return Pictures(self.root, (f"{base}/{name}" if base else name for name in names), labels)

    @abstractmethod
    def _read(self, path: Path) -> tuple[list[str], list[int], tuple[str, ...]]:
        """Names of the pictures, checked, their classes as numbers, and the names of all classes."""


def _as_on_disk(name: str, folder: Path, files: Files) -> str:
    """A listed name as the disk spells it; itself where it has one spelling, or the file is not there."""
    if name.isascii():  # no folder is listed for these: a list may name millions
        return name
    there = files.find(folder / name)
    return name if there is None else there.relative_to(folder).as_posix()


class Places205(ListedPictures):
    """``trainvalsplit_places205/train_places205.csv``: lines of a picture's path, a space, its class from 0."""

    name: ClassVar[str] = "places205"
    lists: ClassVar[dict[str, tuple[str, ...]]] = {
        split: (f"trainvalsplit_places205/{split}_places205.csv", f"{split}_places205.csv")
        for split in ("train", "val")
    }
    folders: ClassVar[tuple[str, ...]] = ("data/vision/torralba/deeplearning/images256", "images256", "")
    card: ClassVar[Card] = Card(
        name="places205",
        title="Places205",
        source=("http://places.csail.mit.edu/",),
        licence="academic research and education, after registration",
        description="2.4 million photographs of 205 scenes, 256 x 256; the paper's Table 2 (C.3).",
        pairs=("image-image",),
        splits=("train", "val"),
        citation="Zhou, Lapedriza, Xiao, Torralba, Oliva. Learning Deep Features for Scene Recognition. NIPS 2014.",
        counts={"Places205": {"train": 2_448_873, "val": 20_500}},
        classes=205,
        manual=(
            "Places205 needs a request: fill in the form at http://places.csail.mit.edu/downloadData.html, fetch "
            "imagesPlaces205_resize.tar.gz and trainvalsplit_places205.tar.gz, and unpack both there."
        ),
    )

    def _read(self, path: Path) -> tuple[list[str], list[int], tuple[str, ...]]:
        names, labels = [], []
        classes: dict[int, str] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
        for number, line in enumerate(lines, start=1):
            name, _, label = line.strip().rpartition(" ")
            if not name or not label.isdecimal():
                raise UserError(
                    f"{path}, line {number}: expected a path, a space and a class, got '{line}' (truncated?)"
                )
            name = check_inside(name, path)
            folder = name.rpartition("/")[0]
            if classes.setdefault(int(label), folder) != folder:
                raise UserError(
                    f"{path}, line {number}: the class {label} is {folder} here and {classes[int(label)]} before"
                )
            names.append(name)
            labels.append(int(label))
        if absent := sorted({*range(len(classes))} - {*classes}):
            raise UserError(
                f"{path} has no picture of the classes {shorten([str(label) for label in absent])}"
            )
        return names, labels, tuple(classes[label] for label in sorted(classes))


class INat18(ListedPictures):
    """``train2018.json`` and ``val2018.json`` in COCO's form, beside the pictures, ``train_val2018/``."""

    name: ClassVar[str] = "inat18"
    lists: ClassVar[dict[str, tuple[str, ...]]] = {
        split: (f"{split}2018.json",) for split in ("train", "val")
    }
    card: ClassVar[Card] = Card(
        name="inat18",
        title="iNaturalist 2018",
        source=("https://github.com/visipedia/inat_comp/tree/master/2018",),
        licence="non-commercial research and education; pictures under their own licences",
        description="460 000 photographs of 8 142 species; the paper's Table 2 (C.3).",
        pairs=("image-image",),
        splits=("train", "val"),
        citation=(
            "Van Horn, Mac Aodha, Song, et al. The iNaturalist Species Classification and Detection Dataset. CVPR 2018."
        ),
        counts={"2018": {"train": 437_513, "val": 24_426}},
        classes=8142,
        manual=(
            "Fetch train_val2018.tar.gz (120 GB), train2018.json.tar.gz and val2018.json.tar.gz from "
            "https://github.com/visipedia/inat_comp/tree/master/2018 and unpack them there."
        ),
    )

    def _read(self, path: Path) -> tuple[list[str], list[int], tuple[str, ...]]:
        tree: Any = read_json(path, self.card, self.root)
        try:
            species = {int(c["id"]): str(c["name"]) for c in tree["categories"]}
            index = {identifier: label for label, identifier in enumerate(sorted(species))}
            if twice := duplicates(str(a["image_id"]) for a in tree["annotations"]):
                raise UserError(
                    f"{path} has several annotations of the pictures with the ids {shorten(twice)}, and each is of one "
                    f"species: get it again. {self.card.manual}"
                )
            label_of = {a["image_id"]: index[int(a["category_id"])] for a in tree["annotations"]}
            names = [check_inside(image["file_name"], path) for image in tree["images"]]
            labels = [label_of[image["id"]] for image in tree["images"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not a list of iNaturalist 2018 (images, annotations, categories): {error!r}. "
                f"{self.card.manual}"
            ) from error
        return names, labels, tuple(species[identifier] for identifier in sorted(species))
