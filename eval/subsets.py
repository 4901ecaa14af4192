"""Which part of the training labels semi-supervised protocols may use.

For ImageNet the 1 % and 10 % lists published with SimCLR, which the paper uses; they are fetched once, into the
cache. For other data sets the same share of every class, drawn alike on every machine: the smaller subset is a part
of the larger one. Or a user's own list of files.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

import numpy as np

from mmvicreg.data.card import Card, RemoteFile
from mmvicreg.data.download import Downloader
from mmvicreg.data.reader import duplicates, shorten
from mmvicreg.datasets import cache_folder
from mmvicreg.errors import UserError
from mmvicreg.eval.labelled import Integers, Labelled
from mmvicreg.samples import Member, Sample

_SOURCE = "https://raw.githubusercontent.com/google-research/simclr/master/imagenet_subsets/"
LISTS = Card(
    name="imagenet-subsets",
    title="The 1 % and 10 % subsets of ImageNet published with SimCLR",
    source=("https://github.com/google-research/simclr/tree/master/imagenet_subsets",),
    licence="Apache-2.0",
    description="12 811 and 128 116 file names, 12 or 13 and 128 or 129 of each class.",
    pairs=(),
    splits=(),
    citation="Chen et al. 2020",
    files=(
        RemoteFile(
            _SOURCE + "1percent.txt",
            "1percent.txt",
            size=260_323,
            sha256="71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17",
        ),
        RemoteFile(
            _SOURCE + "10percent.txt",
            "10percent.txt",
            size=2_603_168,
            sha256="6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
        ),
    ),
)
_PUBLISHED = {1.0: "1percent.txt", 10.0: "10percent.txt"}


@dataclass(frozen=True)
class Choice:
    """Training samples whose labels may be used.

    Attributes:
        rows: positions among the training samples, in their order.
        words: how they were chosen, for people.
        published: which of the published lists they are, percent; None: none of them.
    """

    rows: Integers
    words: str
    published: float | None = None


def parse_labels(text: str) -> float | Path:
    """``"1%"`` as the percentage 1.0, anything else as the path of a list.

    Raises:
        UserError: a percentage that is not above 0 and at most 100, or no such file.
    """
    if text.endswith("%"):
        try:
            percent = float(text[:-1])
        except ValueError:
            percent = float("nan")
        if not 0 < percent <= 100:
            raise UserError(f"--labels {text}: give a percentage above 0 and at most 100, such as 10%")
        return percent
    if not Path(text).is_file():
        raise UserError(
            f"--labels {text}: no such list of files (a percentage is written with its sign, as in 10%)"
        )
    return Path(text)


def choose_labels(found: Labelled, labels: float | Path, *, downloader: Downloader | None = None) -> Choice:
    """The training samples whose labels may be used.

    Args:
        found: samples with their classes.
        labels: percent of the labels, or a file of names, one a line.
        downloader: fetches ImageNet's lists where they are not in the cache yet.

    Raises:
        UserError: a list that cannot be fetched or read, or that names files that are not there.
    """
    if isinstance(labels, Path):
        share = published_share(labels)
        words = f"those listed in {labels}" + (f", the {share:g} % published with SimCLR" if share else "")
        return Choice(rows_of(found.train, labels, classes=found.data.classes), words, share)
    if labels == 100:
        return Choice(np.arange(len(found.train)), "all")
    if found.data.name == "imagenet" and labels in _PUBLISHED:
        path = _fetch(_PUBLISHED[labels], downloader or Downloader())
        words = f"the {labels:g} % published with SimCLR ({path})"
        return Choice(rows_of(found.train, path, classes=found.data.classes), words, labels)
    ids = [sample.id for sample in found.train]
    rows = balanced_rows(ids, found.train_labels, percent=labels)
    return Choice(rows, f"{labels:g} % of each class, drawn by this program")


def published_share(path: Path) -> float | None:
    """Which of the published lists a file is, to the byte, as a percentage; None where it is another.

    Raises:
        UserError: it cannot be read.
    """
    digest = _digest(path)
    names = [file.path for file in LISTS.files if file.sha256 == digest]
    return next((share for share, name in _PUBLISHED.items() if name in names), None)


def list_name(path: Path) -> str:
    """A list as a part of a result's name: the beginning of its own name, and a digest of what it lists.

    Raises:
        UserError: it cannot be read.
    """
    return f"{path.stem[:24]}~{_digest(path)[:8]}"


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror or error}") from error


def balanced_rows(ids: Sequence[str], labels: Integers, *, percent: float) -> Integers:
    """Positions of the same share of every class, at least one each: the first of an order drawn once and for all.

    The order is of the ids, sorted, so it is the same however the samples are listed; and what is drawn for a
    smaller share is drawn for a larger one too.
    """
    chosen: list[int] = []
    for label in np.unique(labels):
        mine = sorted(np.flatnonzero(labels == label).tolist(), key=ids.__getitem__)
        order = np.random.default_rng([0, int(label)]).permutation(len(mine))
        chosen += [mine[place] for place in order[: max(1, round(percent / 100 * len(mine)))]]
    return np.array(sorted(chosen), dtype=np.int64)


def rows_of(samples: Sequence[Sample], path: Path, *, classes: Sequence[str] = ()) -> Integers:
    """Positions of the samples that a list names: by id, with its split or without, ``<class>/<file name>``, file name.

    A whole id goes before the others: ``a/1.png`` is that picture, though there is an ``a/more/1.png``.

    Args:
        samples: training samples.
        path: the list, a name a line.
        classes: names of the classes.

    Raises:
        UserError: the list cannot be read, is empty, names a file twice (in one spelling or two), one that is not
            there, or one of several of that name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is not text in UTF-8 ({error}); save it in UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"the list {path} names no files")
    if twice := duplicates(names):
        raise UserError(f"the list {path} names {shorten(twice)} more than once")
    rows = _find(names, samples, classes)
    if lost := [name for name in names if not rows[name]]:  # a Mac's archive spells é as two characters
        rows |= _find(lost, samples, classes, form=partial(unicodedata.normalize, "NFC"))
    if missing := [name for name in names if not rows[name]]:
        raise UserError(
            f"{len(missing):,} of {len(names):,} files listed in {path} are not among the {len(samples):,} training "
            f"samples: {shorten(missing)}; the list is of other data, or the data is not whole (a picture is named by "
            f"its path, such as {samples[0].id}, with its split or without, by <class>/<file name>, or by its file "
            "name)"
        )
    if many := [name for name in names if len(rows[name]) > 1]:
        raise UserError(
            f"{path} names {shorten(many)}, and several training samples are called so; write <class>/<file name>, or "
            f"where that is of several too, the whole path, such as {samples[rows[many[0]][0]].id}"
        )
    named: dict[int, str] = {}
    for name in names:
        if (first := named.setdefault(rows[name][0], name)) != name:
            raise UserError(f"the list {path} names one picture twice, as {first} and as {name}; leave one")
    return np.array(sorted(named), dtype=np.int64)


def _find(
    names: Sequence[str], samples: Sequence[Sample], classes: Sequence[str], form: Callable[[str], str] = str
) -> dict[str, list[int]]:
    """Rows of the samples that each name may mean, whole ids before shorter names; ``form``: of names to compare."""
    whole: dict[str, list[int]] = {form(name): [] for name in names}
    short: dict[str, list[int]] = {form(name): [] for name in names}
    for row, sample in enumerate(samples):
        for found, keys in zip((whole, short), _spellings(sample, classes), strict=True):
            for key in {form(key) for key in keys} & found.keys():
                found[key].append(row)
    return {name: whole[form(name)] or short[form(name)] for name in names}


def _spellings(sample: Sample, classes: Sequence[str]) -> tuple[set[str], set[str]]:
    """What a list may call a sample: its whole id, with and without a split before its class; and shorter names."""
    whole, short = {sample.id}, set()
    if sample.image is not None:
        inside = PurePath(sample.image.name if isinstance(sample.image, Member) else sample.image)
        short |= {inside.name, f"{inside.parent.name}/{inside.name}"}
    if sample.label is not None and sample.label < len(classes):
        name, parts = classes[sample.label], sample.id.split("/")
        if parts[1:2] == [name]:
            whole.add("/".join(parts[1:]))
        short.add(f"{name}/{parts[-1]}")
    return whole, short


def _fetch(name: str, downloader: Downloader) -> Path:
    folder = cache_folder() / LISTS.name
    try:
        downloader.get(LISTS, folder)
    except UserError as error:
        raise UserError(
            f"{error} (ImageNet's published subset {name} is needed; get it from {_SOURCE}{name} and name it with "
            "--labels FILE)"
        ) from error
    return folder / name
