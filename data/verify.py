"""Is this the whole published data set, and can every file of it be read?"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mmvicreg import registry
from mmvicreg.data.bars import counted
from mmvicreg.data.card import Card, card_of
from mmvicreg.data.download import wrong
from mmvicreg.errors import UserError
from mmvicreg.samples import DataSet, Sample

NAMED = 20
"""How many damaged files a message names before it counts the rest."""


@dataclass(frozen=True)
class SplitReport:
    """One split.

    Attributes:
        split: its name.
        published: samples in the published set; None where nobody says.
        listed: samples listed here; 0 for a split that is absent.
        readable: samples whose files were all read to the end.
    """

    split: str
    published: int | None
    listed: int
    readable: int


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found; it is the whole data set when ``problems`` is empty."""

    name: str
    root: Path
    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]

    def check(self) -> None:
        """Raise :class:`UserError` with every problem, if there is one."""
        if self.problems:
            raise UserError(
                f"{self.root} is not the whole of {self.name}, or is damaged: " + "; ".join(self.problems)
            )


def verify(name: str, root: Path, *, progress: bool = True) -> Report:
    """Count a data set against its card and read every file of it.

    Args:
        name: its name in the registry.
        root: where it lies.
        progress: show a bar.

    Raises:
        UserError: there is no such data set there at all.
    """
    card = card_of(name)
    dataset: DataSet = registry.DATASETS.load(name)(root)
    published = _published(dataset, card)
    things = "pictures" if "image-text" in card.pairs else "recordings"
    problems: list[str] = []
    reports = []
    for split in dict.fromkeys([*published, *dataset.splits()]):
        samples: list[Sample] = []
        if split in dataset.splits():
            try:
                samples = dataset.samples(split)
            except UserError as error:
                problems.append(str(error))
        count = published.get(split)
        if count is not None and len(samples) != count:
            problems.append(f"{len(samples):,} of {count:,} {things} of the split {split}")
        bad = _read_all(samples, split, progress=progress)
        reports.append(
            SplitReport(split, count, len(samples), len(samples) - len({sample for sample, _ in bad}))
        )
        problems += [f"{message}" for _, message in bad[:NAMED]]
        if len(bad) > NAMED:
            problems.append(f"and {len(bad) - NAMED:,} more damaged files in the split {split}")
    problems += getattr(dataset, "faults", list)()  # what a data set knows of itself
    problems += _check_archives(card, root)
    return Report(name, root, tuple(reports), tuple(problems))


def _published(dataset: DataSet, card: Card) -> dict[str, int]:
    """The counts of the layout that lies there."""
    layout = getattr(dataset, "layout", next(iter(card.counts), ""))
    return dict(card.counts.get(layout, {}))


def _read_all(samples: list[Sample], split: str, *, progress: bool) -> list[tuple[str, str]]:
    """Sample id and what is wrong, for every sample with a file that cannot be read to its end."""
    bad: list[tuple[str, str]] = []
    with (
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        counted(len(samples), f"Reading {split}", "samples", progress=progress) as advance,
    ):
        for sample, faults in zip(samples, pool.map(_faults, samples), strict=True):
            bad += [(sample.id, fault) for fault in faults]
            advance(1)
    return bad


def _faults(sample: Sample) -> list[str]:
    faults = [picture_fault(sample.image)] if sample.image else []
    faults += [recording_fault(sample.audio)] if sample.audio else []
    return [fault for fault in faults if fault is not None]


def picture_fault(path: Path) -> str | None:
    """Why a picture cannot be decoded to its last row, or None."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"{path} is not a whole picture ({_reason(error)})"
    return None


def recording_fault(path: Path) -> str | None:
    """Why a recording cannot be decoded to its last sample, as training would, or None."""
    from mmvicreg.inputs.decode import read_header, read_recording

    try:
        header = read_header(path)
        read_recording(path, sample_rate=header.sample_rate if header is not None else 44100)
    except UserError as error:
        return str(error)
    return None


def _check_archives(card: Card, root: Path) -> Iterable[str]:
    """Downloaded files that still lie there with a wrong size or checksum."""
    for file in card.files:
        path = root / file.path
        if path.is_file() and (fault := wrong(path, file)):
            yield f"wrong {fault}"


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
