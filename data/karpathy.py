"""Karpathy's JSON: one file that lists the pictures of a data set, their split and their captions.

From https://cs.stanford.edu/people/karpathy/deepimagesent/ (dataset_coco.json, dataset_flickr8k.json,
dataset_flickr30k.json): ``{"dataset": ..., "images": [{"filename", "filepath"?, "split", "sentences":
[{"raw", "tokens", "sentid"?, "imgid"?}], "imgid"?, "cocoid"?}]}``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmvicreg.data.card import Card
from mmvicreg.data.files import Files
from mmvicreg.data.names import check_split
from mmvicreg.data.reader import (
    MissingFilesError,
    check_captions,
    check_inside,
    duplicates,
    read_json,
    shorten,
)
from mmvicreg.errors import UserError
from mmvicreg.samples import Sample

ORDER = ("train", "restval", "val", "test")


class KarpathyFile:
    """A parsed ``dataset_<name>.json``.

    Args:
        path: the file.
        name: what its ``dataset`` key should say.
        card: whose data set it is.
        folders: where pictures may lie, relative to ``root``; the first in which a split's first picture
            is found serves the split. ``<folder>/<filepath>/<filename>`` and ``<folder>/<filename>`` count.
        root: the data set's folder.

    Attributes:
        splits: the splits present, in the usual order.
        notes: what a run should say once (fewer pictures than published).

    Raises:
        UserError: not Karpathy's form, or of another data set.
    """

    def __init__(self, path: Path, name: str, card: Card, *, folders: Sequence[str], root: Path) -> None:
        self._path, self._card, self._folders, self._root = path, card, folders, root
        tree = read_json(path, card, root)
        if not isinstance(tree, dict) or not isinstance(tree.get("images"), list) or not tree["images"]:
            raise UserError(
                f"{path} is not in Karpathy's form: it needs a list 'images'. {card.way_out(root)}"
            )
        told = tree.get("dataset")
        if told is not None and told != name:
            raise UserError(f"{path} says it is the data set '{told}', not '{name}'. {card.way_out(root)}")
        self._images: dict[str, list[_Entry]] = {}
        for position, image in enumerate(tree["images"]):
            entry = _Entry(image, position, path)
            self._images.setdefault(entry.split, []).append(entry)
        if twice := duplicates(entry.id for entries in self._images.values() for entry in entries):
            raise UserError(f"{path} lists pictures twice: {shorten(twice)}")
        entries = [entry for split in self._images.values() for entry in split]
        if twice := duplicates(f"{entry.filepath}/{entry.name}".lstrip("/") for entry in entries):
            raise UserError(
                f"{path} lists the same file under several ids, perhaps in two splits: {shorten(twice)}"
            )
        self._check_spellings(entries)
        for key, numbers in (
            ("imgid", (entry.number for entry in entries if entry.number is not None)),
            ("sentid", (number for entry in entries for number in entry.caption_ids)),
        ):
            if twice := duplicates(numbers):
                raise UserError(f"{path} gives the same {key} twice: {shorten(twice)}. {card.way_out(root)}")
        self.splits = tuple(sorted(self._images, key=_order))
        whole = next(iter(card.counts.values()), {})
        self.notes = tuple(
            f"{len(self._images.get(split, ())):,} of {card.title}'s {count:,} pictures in the split {split}"
            for split, count in whole.items()
            if len(self._images.get(split, ())) != count
        )

    def _check_spellings(self, entries: Sequence[_Entry]) -> None:
        """Refuse a file that is listed in two spellings, perhaps for training and for testing."""
        alike: dict[str, list[_Entry]] = {}
        for entry in entries:
            if not f"{entry.filepath}{entry.name}".isascii():
                key = unicodedata.normalize("NFC", f"{entry.filepath}/{entry.name}")
                alike.setdefault(key, []).append(entry)
        files = Files()
        found = [self._find(entry, files) for some in alike.values() if len(some) > 1 for entry in some]
        if twice := duplicates(str(image) for image in found if image is not None):
            raise UserError(
                f"{self._path} lists the same file in two spellings that look alike: {shorten(twice)}"
            )

    def _find(self, entry: _Entry, files: Files) -> Path | None:
        """Where an entry's picture lies, as the disk spells it; None where it does not."""
        places = [place for folder in self._folders for place in entry.places(self._root / folder)]
        image = next((place for place in places if place in files), None)
        return image or next((there for place in places if (there := files.find(place))), None)

    def samples(self, split: str) -> list[Sample]:
        """The samples of one split, captions and pictures checked."""
        entries = self._images[split]
        files = Files()
        samples, missing = [], []
        for entry in entries:
            image = self._find(entry, files)
            if image is None:
                missing.append(entry.name)
                continue
            captions = check_captions(entry.captions, entry.name, self._path)
            samples.append(Sample(id=entry.id, image=image, captions=captions, caption_ids=entry.caption_ids))
        if missing:
            where = " or ".join(str(self._root / folder) for folder in self._folders)
            raise MissingFilesError(
                f"{len(missing):,} of {len(entries):,} pictures of the split '{split}' listed in "
                f"{self._path} are missing: {shorten(missing)} (looked in {where}). "
                f"{self._card.way_out(self._root)}",
                samples,
            )
        return samples


class _Entry:
    """One picture of the list."""

    __slots__ = ("caption_ids", "captions", "filepath", "id", "name", "number", "split")

    def __init__(self, image: Any, position: int, source: Path) -> None:
        if not isinstance(image, Mapping):
            raise UserError(f"{source}: entry {position} of 'images' is not an object")
        self.name = check_inside(image.get("filename"), source)
        self.filepath = check_inside(image["filepath"], source) if image.get("filepath") else ""
        self.id = _coco_id(self.name) if image.get("cocoid") is None else str(image["cocoid"])
        self.number = None if image.get("imgid") is None else str(image["imgid"])
        split, sentences = image.get("split"), image.get("sentences")
        if not isinstance(split, str) or not split:
            raise UserError(f"{source}: the picture '{self.name}' has no split")
        if not isinstance(sentences, list):
            raise UserError(f"{source}: the picture '{self.name}' has no list of sentences")
        self.split = check_split(split, f"{source}: the picture '{self.name}'")
        for place, sentence in enumerate(sentences, start=1):
            owner = sentence.get("imgid") if isinstance(sentence, Mapping) else None
            if None not in (owner, self.number) and str(owner) != self.number:
                raise UserError(
                    f"{source}: caption {place} of {len(sentences)} of the picture '{self.name}' (imgid "
                    f"{self.number}) says that it belongs to the picture with imgid {owner}: "
                    f"{_sentence(sentence)!r}. Get the file again, or mend it"
                )
        self.captions = [_sentence(sentence) for sentence in sentences]
        ids = [sentence.get("sentid") for sentence in sentences if isinstance(sentence, Mapping)]
        # in COCO's file a sentid is the annotation's id; elsewhere Karpathy's own count
        self.caption_ids = tuple(map(str, ids)) if None not in ids and len(ids) == len(sentences) else ()

    def places(self, folder: Path) -> list[Path]:
        """Where the picture may lie below ``folder``, likeliest first."""
        plain = folder / self.name
        return [folder / self.filepath / self.name, plain] if self.filepath else [plain]


def _coco_id(name: str) -> str:
    """The id in the name of a picture of COCO's 2014, so that it is that of COCO's other layouts; else the name."""
    match = re.fullmatch(r"COCO_(?:train|val|test)2014_(\d{12})\.jpg", name)
    return name if match is None else str(int(match[1]))


def _sentence(sentence: object) -> object:
    if not isinstance(sentence, Mapping):
        return sentence
    if "raw" in sentence:
        return sentence["raw"]
    tokens = sentence.get("tokens")
    return " ".join(map(str, tokens)) if isinstance(tokens, list) else None


def _order(split: str) -> tuple[int, str]:
    return (ORDER.index(split) if split in ORDER else len(ORDER), split)
