"""ImageNet (ILSVRC2012) as its archives unpack: class folders named by WordNet, validation sorted or not."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from mmvicreg.data.card import Card
from mmvicreg.data.image_folder import ImageFolder, check_filled, class_folders
from mmvicreg.data.pictures import list_pictures
from mmvicreg.data.reader import not_here, shorten
from mmvicreg.errors import UserError
from mmvicreg.samples import Sample

KAGGLE = Path("ILSVRC") / "Data" / "CLS-LOC"
SOLUTION = "LOC_val_solution.csv"
DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"
_WORDNET = re.compile(r"n\d{8}")


class ImageNet(ImageFolder):
    """``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``, or ``val/*.JPEG`` with the devkit or Kaggle's solution.

    Fewer classes than 1 000 are read too, and said; the test pictures have no published classes and are left out.
    """

    name: ClassVar[str] = "imagenet"
    card: ClassVar[Card] = Card(
        name="imagenet",
        title="ImageNet (ILSVRC2012)",
        source=("https://image-net.org/challenges/LSVRC/2012/", "https://arxiv.org/abs/1409.0575"),
        licence="non-commercial research and education, after registration",
        description=(
            "1.28 million photographs of 1 000 classes. One training picture is a PNG and 22 are CMYK by their "
            "contents, whatever their names say; all of them are read."
        ),
        pairs=("image-image",),
        splits=("train", "val"),
        citation=(
            "Russakovsky, Deng, Su, et al. ImageNet Large Scale Visual Recognition Challenge. IJCV 115, 2015."
        ),
        counts={"ILSVRC2012": {"train": 1_281_167, "val": 50_000}},
        classes=1000,
        manual=(
            "ImageNet needs an account: register at https://image-net.org, fetch ILSVRC2012_img_train.tar, "
            "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, and unpack them so that there are "
            f"train/n01440764/*.JPEG and so on, val/*.JPEG and {DEVKIT.as_posix()}/; or unpack Kaggle's "
            f"imagenet-object-localization-challenge, with {SOLUTION} beside ILSVRC/."
        ),
    )

    def _find(self) -> tuple[str, ...]:
        base = self.root / KAGGLE if (self.root / KAGGLE).is_dir() else self.root
        self._folders = {split: base / split for split in ("train", "val") if (base / split).is_dir()}
        if not self._folders:
            raise not_here(self.root, self.card, "it should hold the folders train and val")
        found = {split: class_folders(folder) for split, folder in self._folders.items()}
        if "train" in found and not found["train"]:
            raise UserError(
                f"{self._folders['train']} holds pictures and no class folders (n01440764 and so on). "
                f"{self.card.manual}"
            )
        for split, names in found.items():
            if others := [name for name in names if not _WORDNET.fullmatch(name)]:
                raise UserError(
                    f"{self._folders[split]} holds folders that are not ImageNet's classes: {shorten(others)}. "
                    "Pictures of your own classes are read by --dataset image-folder"
                )
        self._truth = self._read_truth(base) if not found.get("val", ["sorted"]) else None
        if self._truth is not None:
            del found["val"]
        self._use_classes(found)
        if self._truth is not None and not self.classes:
            self.classes = tuple(sorted(set(self._truth.values())))
        if self._truth is not None:
            there = {self._truth.get(_stem(file)) for file in list_pictures(self._folders["val"])[0]}
            check_filled([self._folders["val"] / name for name in self.classes if name not in there])
        if len(self.classes) != 1000:
            self.notes = (*self.notes, f"{len(self.classes):,} of ImageNet's 1 000 classes")
        return tuple(self._folders)

    def _read_truth(self, base: Path) -> dict[str, str]:
        """Picture (without its suffix) -> class, of the validation pictures."""
        for place in dict.fromkeys((self.root, base)):
            if (place / SOLUTION).is_file():
                return read_solution(place / SOLUTION)
            if (place / DEVKIT / "meta.mat").is_file():
                return read_devkit(place / DEVKIT)
        raise UserError(
            f"{self._folders['val']} holds validation pictures in no class folders, and what their classes are is not "
            f"there: put {SOLUTION} (Kaggle) or {DEVKIT.parent} (unpacked from ILSVRC2012_devkit_t12.tar.gz) into "
            f"{self.root}, or sort the pictures into class folders"
        )

    def _list(self, split: str) -> Sequence[Sample]:
        if split != "val" or self._truth is None:
            return super()._list(split)
        folder, truth = self._folders["val"], self._truth
        index = {name: label for label, name in enumerate(self.classes)}
        files, _ = list_pictures(folder)
        if unknown := [file for file in files if _stem(file) not in truth]:
            raise UserError(
                f"{len(unknown):,} of {len(files):,} pictures in {folder} are not in the published list of validation "
                f"classes: {shorten(unknown)}. Remove them, or get ImageNet's own files"
            )
        listed: dict[str, list[str]] = {name: [] for name in self.classes}
        others = [file for file in files if truth[_stem(file)] not in index]
        for file in files:
            if truth[_stem(file)] in index:
                listed[truth[_stem(file)]].append(file)
        if others:
            note = (
                f"{len(others):,} validation pictures are of classes that train does not have, and not used"
            )
            self.notes = (*self.notes, note)
        return self._pictures(
            folder,
            {"": [f for files in listed.values() for f in files]},
            labels=[index[name] for name, files in listed.items() for _ in files],
        )


def read_solution(path: Path) -> dict[str, str]:
    """Kaggle's list of validation classes: picture -> wnid (the first of its boxes; all are of one class).

    Raises:
        UserError: not such a table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            return {row["ImageId"]: _wnid(row["PredictionString"], path, table.line_num) for row in table}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a table with the columns ImageId and PredictionString") from error


def _wnid(text: str | None, path: Path, line: int) -> str:
    wnid = (text or "").split(" ", 1)[0]
    if not _WORDNET.fullmatch(wnid):
        raise UserError(
            f"{path}, line {line}: '{wnid}' is not a WordNet id such as n01440764 (truncated file?)"
        )
    return wnid


def read_devkit(folder: Path) -> dict[str, str]:
    """The development kit's list of validation classes: picture -> wnid.

    Raises:
        UserError: a file that is missing, damaged or of another kit.
    """
    from scipy.io import loadmat

    meta, truth = folder / "meta.mat", folder / "ILSVRC2012_validation_ground_truth.txt"
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        wnids: Mapping[int, str] = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # scipy raises many kinds over a file that is not MATLAB's
        raise UserError(f"cannot read {meta} ({error}); unpack ILSVRC2012_devkit_t12.tar.gz again") from error
    try:
        numbers = [int(line) for line in truth.read_text(encoding="ascii").split()]
        return {f"ILSVRC2012_val_{place:08d}": wnids[number] for place, number in enumerate(numbers, start=1)}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot read {truth} ({error}); unpack ILSVRC2012_devkit_t12.tar.gz again"
        ) from error


def _stem(file: str) -> str:
    return file.rsplit("/", 1)[-1].rsplit(".", 1)[0]
