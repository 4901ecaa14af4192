"""Flickr8k and Flickr30k in Karpathy's form.

Hodosh et al. 2013, "Framing Image Description as a Ranking Task"; Young et al. 2014, "From image
descriptions to visual denotations".
"""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar

from mmvicreg.data.card import Card, RemoteFile
from mmvicreg.data.files import list_folder
from mmvicreg.data.karpathy import KarpathyFile
from mmvicreg.data.reader import Reader, not_here
from mmvicreg.samples import Sample

_KARPATHY_URL = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"


def _karpathy(name: str) -> RemoteFile:
    # Size and sha256 as recorded by TensorFlow Datasets (url_checksums/coco_captions.txt).
    return RemoteFile(
        url=_KARPATHY_URL,
        path="caption_datasets.zip",
        size=36_745_453,
        sha256="4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
        extract=True,
        members=(f"dataset_{name}.json",),
    )


class Flickr(Reader):
    """A ``dataset_<name>.json`` beside a folder of pictures."""

    folders: ClassVar[tuple[str, ...]]
    """Where the pictures may lie."""

    def _find(self) -> tuple[str, ...]:
        candidates = [self.root / f"dataset_{self.name}.json", self.root / "dataset.json"]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            raise not_here(self.root, self.card, f"it should hold dataset_{self.name}.json")
        if not set(self.folders) & list_folder(self.root):
            raise not_here(self.root, self.card, f"its pictures should lie in {' or '.join(self.folders)}/")
        self._file = KarpathyFile(path, self.name, self.card, folders=self.folders, root=self.root)
        self.notes = self._file.notes
        return self._file.splits

    def _load(self, split: str) -> list[Sample]:
        return self._file.samples(split)


class Flickr8k(Flickr):
    """8 000 photographs, mostly of people and dogs doing things, five captions each."""

    name: ClassVar[str] = "flickr8k"
    pairs: ClassVar[tuple[str, ...]] = ("image-text", "image-image")
    folders: ClassVar[tuple[str, ...]] = ("images", "Flicker8k_Dataset", "Flickr8k_Dataset")
    card: ClassVar[Card] = Card(
        name="flickr8k",
        title="Flickr8k",
        source=(
            "http://hockenmaier.cs.illinois.edu/Framing_Image_Description/KCCA.html",
            "https://cs.stanford.edu/people/karpathy/deepimagesent/",
        ),
        licence="research and education only; pictures under their Flickr licences",
        description="8 000 photographs with five captions each, in Karpathy's split.",
        pairs=("image-text", "image-image"),
        splits=("train", "val", "test"),
        counts=MappingProxyType(
            {"karpathy": MappingProxyType({"train": 6_000, "val": 1_000, "test": 1_000})}
        ),
        captions_each=5,
        files=(_karpathy("flickr8k"),),
        manual=(
            "Flickr8k's pictures come from its authors on request (see `mmvicreg data info flickr8k`): "
            "unpack them so that images/ (or Flicker8k_Dataset/) lies beside dataset_flickr8k.json."
        ),
        citation="Hodosh, Young, Hockenmaier, Framing Image Description as a Ranking Task, JAIR 2013",
    )


class Flickr30k(Flickr):
    """31 014 photographs, five captions each."""

    name: ClassVar[str] = "flickr30k"
    pairs: ClassVar[tuple[str, ...]] = ("image-text", "image-image")
    folders: ClassVar[tuple[str, ...]] = ("images", "flickr30k-images", "flickr30k_images")
    card: ClassVar[Card] = Card(
        name="flickr30k",
        title="Flickr30k",
        source=(
            "https://shannon.cs.illinois.edu/DenotationGraph/",
            "https://cs.stanford.edu/people/karpathy/deepimagesent/",
        ),
        licence="research and education only; pictures under their Flickr licences",
        description="31 014 photographs with five captions each, in Karpathy's split.",
        pairs=("image-text", "image-image"),
        splits=("train", "val", "test"),
        counts=MappingProxyType(
            {"karpathy": MappingProxyType({"train": 29_000, "val": 1_014, "test": 1_000})}
        ),
        captions_each=5,
        files=(_karpathy("flickr30k"),),
        manual=(
            "Flickr30k's pictures come from its authors after a form is filled in (the first page that "
            "`mmvicreg data info flickr30k` names): unpack them so that the folder flickr30k-images/ (or "
            "images/) lies beside dataset_flickr30k.json."
        ),
        citation="Young, Lai, Hodosh, Hockenmaier, From image descriptions to visual denotations, TACL 2014",
    )
