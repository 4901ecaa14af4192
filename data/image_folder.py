"""Pictures in ImageNet's layout, one folder a class: ``train/<class>/*``, ``val/<class>/*``, ``test/<class>/*``.

Class folders may also lie in the root itself, and pictures may lie in no class folder at all, which is enough to
train on. Where there is neither val nor test, the last of each class are held out as ``val``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from mmvicreg.data.card import Card
from mmvicreg.data.pictures import (
    SUFFIXES,
    Pictures,
    holds_pictures,
    list_pictures,
    loose_pictures,
    subfolders,
)
from mmvicreg.data.reader import Reader, looks_like, not_here, shorten
from mmvicreg.errors import UserError
from mmvicreg.samples import Sample

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a folder of this name, in lower case, holds."""
LAST = 500
"""The most that is held out of a class: a tenth of CIFAR-10's 5 000."""


def held_out(pictures: int) -> int:
    """How many of a class of ``pictures`` are held out: a tenth, one at least, 500 at most, never all."""
    return min(LAST, max(1, pictures // 10), pictures - 1)


class ImageFolder(Reader):
    """A user's own pictures, and what the readers of published sets in this layout share.

    ``classes`` are the names of the class folders, sorted, as torchvision's ImageFolder has them.
    """

    name: ClassVar[str] = "image-folder"
    pairs: ClassVar[tuple[str, ...]] = ("image-image",)
    card: ClassVar[Card] = Card(
        name="image-folder",
        title="a folder of pictures",
        source=("your own data",),
        licence="yours",
        description=(
            "A folder of pictures in ImageNet's layout, train/<class>/*, val/<class>/* and perhaps test/<class>/*; or "
            "class folders alone; or pictures without classes, to train on. Without val and test, the last tenth of "
            f"each class by file name (at most {LAST}) is held out as val; train_split train+val trains on all."
        ),
        pairs=("image-image",),
        splits=("train", "val", "test"),
        manual="Give a folder with train/<class>/* and val/<class>/* with --data-root, or a folder of pictures.",
        citation="none",
    )

    def _find(self) -> tuple[str, ...]:
        self._folders = self._split_folders()
        # split -> class folders; none where its pictures lie in no class folder
        found = {split: class_folders(folder) for split, folder in self._folders.items()}
        self._use_classes(found)
        if self.classes:
            self._pass_over_flat(found)
        self._holds_out = bool(found.get("train")) and not {"val", "test"} & set(found)
        if self._holds_out:
            self._check_two_each()
        return ("train", "val") if self._holds_out else tuple(found)

    def _use_classes(self, found: dict[str, list[str]]) -> None:
        """Take the classes that the splits share; ``found`` is split -> class folders."""
        labelled = {split: names for split, names in found.items() if names}
        _check_same(labelled, self._folders)
        self.classes = tuple(next(iter(labelled.values()), ()))
        # of every split, whichever is asked for: who trains on one would learn of the other after the training
        places = [self._folders[split] / name for split, names in labelled.items() for name in names]
        check_filled([place for place in places if not holds_pictures(place)])
        self._flat = frozenset(found) - frozenset(labelled)
        self._holds_out = False

    def _check_two_each(self) -> None:
        """Refuse classes of one picture where some of each are held out: there would be none to judge them by."""
        folder = self._folders["train"]
        if alone := [name for name in self.classes if not holds_pictures(folder / name, 2)]:
            raise UserError(
                f"{folder} has neither val nor test beside it, so that some pictures of each class are held out, and "
                f"{len(alone):,} of {len(self.classes):,} classes have one picture alone: {shorten(alone)}. Add "
                "pictures to them, remove them, or give val/<class>/; to train without classes, lay all in one folder"
            )

    def _pass_over_flat(self, found: dict[str, list[str]]) -> None:
        """A test set whose classes nobody knows is no use beside classes; of the others the layout is wrong."""
        for split in sorted(self._flat):
            if split == "train":
                continue
            if split == "val":
                raise UserError(
                    f"{self._folders[split]} holds pictures in no class folder, while other splits have classes; sort "
                    "them into class folders (--dataset imagenet reads ImageNet's validation pictures as they come)"
                )
            del found[split]
            self.notes = (*self.notes, f"{self._folders[split]} has no class folders, and is not used")

    def _split_folders(self) -> dict[str, Path]:
        """Split -> its folder, in the order train, val, test; the root is train where nothing else is."""
        folders: dict[str, Path] = {}
        below = subfolders(self.root)
        for name in below:
            split = SPLITS.get(name.lower())
            if split is None:
                continue
            if split in folders:
                raise UserError(
                    f"{self.root} holds the folders {folders[split].name} and {name}, both for the split "
                    f"{split}; leave one"
                )
            folders[split] = self.root / name
        # 'train' may be a class, next to 'bus' and 'car'
        if folders and (len(folders) == len(below) or any(subfolders(folder) for folder in folders.values())):
            self._check_others(folders, [name for name in below if self.root / name not in folders.values()])
            return {split: folders[split] for split in ("train", "val", "test") if split in folders}
        found = looks_like(self.root, besides=self.name)
        if (found and found != "manifest" and " " not in found) or not (below or loose_pictures(self.root)):
            raise not_here(self.root, self.card, "it should hold train/<class>/ or pictures")
        return {"train": self.root}

    def _check_others(self, folders: dict[str, Path], others: Sequence[str]) -> None:
        """Say which folders beside those of splits are not used, and refuse them where the one split may be a class."""
        if not (unused := [name for name in others if holds_pictures(self.root / name)]):
            return
        if len(folders) == 1:
            (split,) = folders.values()
            raise UserError(
                f"{split} holds folders, as that of a split does, and beside it are other folders of pictures: "
                f"{shorten(unused)}. If all of them are classes, move them into {self.root / 'train'}/ (of which "
                f"{split.name} is then one), or rename {split.name}; if {split.name} holds the classes, move the "
                "others away"
            )
        note = f"{self.root} holds pictures in {shorten(unused)} too, which are of no split and not used"
        self.notes = (*self.notes, note)

    def _load(self, split: str) -> Sequence[Sample]:
        samples = self._list(split)
        layout = getattr(self, "layout", None)
        self.notes = (*self.notes, *self.card.lacking(split, len(samples), layout))
        return samples

    def _list(self, split: str) -> Sequence[Sample]:
        """The pictures of one split, listed anew."""
        folder = self._folders["train" if self._holds_out else split]
        if split in self._flat:
            return self._pictures(folder, {"": list_pictures(folder)[0]})
        listed: dict[str, list[str]] = {}
        others = 0
        for name in self.classes:
            listed[name], rest = list_pictures(folder / name)
            others += rest
        if others:
            self.notes = (*self.notes, f"{others:,} files in {folder} are no pictures by their names")
        if self._holds_out:
            self._hold_out(listed)
            return self._parsed[split]
        return self._pictures(folder, listed)

    def _hold_out(self, listed: dict[str, list[str]]) -> None:
        """Make train and val of the one folder there is, and say so."""
        folder = self._folders["train"]
        cut = {name: len(files) - held_out(len(files)) for name, files in listed.items()}
        self._parsed["train"] = self._pictures(folder, {n: files[: cut[n]] for n, files in listed.items()})
        self._parsed["val"] = self._pictures(folder, {n: files[cut[n] :] for n, files in listed.items()})
        numbers = sorted({held_out(len(files)) for files in listed.values()})
        most = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        note = (
            f"{self.root} has neither val nor test: the last {most} of each class by file name, "
            f"{len(self._parsed['val']):,} pictures, are held out as val; train is the other "
            f"{len(self._parsed['train']):,}"
        )
        self.notes = (*self.notes, note)

    def _pictures(
        self, folder: Path, listed: dict[str, list[str]], *, labels: Sequence[int] | None = None
    ) -> Pictures:
        """The samples of listed files: class folder (or ``""``: in none) -> files in it."""
        above = folder.relative_to(self.root).as_posix()
        start = "" if above == "." else f"{above}/"
        names = (
            f"{start}{name}/{file}" if name else start + file for name in listed for file in listed[name]
        )
        if labels is None and "" not in listed:
            labels = [label for label, files in enumerate(listed.values()) for _ in files]
        return Pictures(self.root, names, labels)


def class_folders(folder: Path) -> list[str]:
    """The class folders of a split, sorted; none where its pictures lie in the folder itself.

    Raises:
        UserError: pictures both in class folders and beside them, or nothing at all.
    """
    names, loose = subfolders(folder), loose_pictures(folder)
    if names and loose:
        raise UserError(
            f"{folder} holds class folders ({shorten(names)}) and pictures beside them ({shorten(loose)}); put every "
            "picture into a class folder, or none"
        )
    if not names and not loose:
        raise UserError(f"{folder} holds neither class folders nor pictures ({', '.join(SUFFIXES)})")
    return names


def _check_same(found: dict[str, list[str]], folders: dict[str, Path]) -> None:
    """Refuse splits of different classes, naming those that only one of them has."""
    splits = list(found)
    for split in splits[1:]:
        only = [
            f"only in {folders[here]}: {shorten(sorted({*found[here]} - {*found[there]}))}"
            for here, there in ((splits[0], split), (split, splits[0]))
            if {*found[here]} - {*found[there]}
        ]
        if only:
            here, there = (
                {unicodedata.normalize("NFC", name) for name in {*found[one]} - {*found[other]}}
                for one, other in ((splits[0], split), (split, splits[0]))
            )
            alike = sorted(here & there)
            raise UserError(
                f"the splits {splits[0]} and {split} have different class folders, {'; '.join(only)}. Both need the "
                "same classes: add the missing folders, or remove the others"
                + (
                    f"; {shorten(alike)} is in both, its accents in another spelling: rename one"
                    if alike
                    else ""
                )
            )


def check_filled(empty: Sequence[Path]) -> None:
    """Refuse class folders without pictures."""
    if empty:
        folders = "class folder holds" if len(empty) == 1 else f"{len(empty):,} class folders hold"
        raise UserError(
            f"{'a ' if len(empty) == 1 else ''}{folders} no pictures: {shorten(list(map(str, empty)))}. Fill or "
            f"remove {'it' if len(empty) == 1 else 'them'}, in every split; pictures end in {', '.join(SUFFIXES)}"
        )
