"""Is this the whole published data set, and can every file of it be read?"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mmvicreg import registry
from mmvicreg.data.bars import counted
from mmvicreg.data.card import Card, card_of
from mmvicreg.data.download import unpacked_checksums, wrong
from mmvicreg.data.reader import MissingFilesError, shorten
from mmvicreg.errors import UserError
from mmvicreg.samples import DataSet, File, Sample

NAMED = 20
"""How many damaged files a message names before it counts the rest."""
AT_ONCE = 4096
"""Samples handed to the reading threads at a time."""


@dataclass(frozen=True)
class SplitReport:
    """One split.

    Attributes:
        split: its name.
        published: samples in the published set; None where nobody says.
        listed: samples listed here whose files are there; 0 for a split that is absent or whose list is refused.
        readable: samples whose files were all read to the end.
        captions: captions listed.
        judged: of these, the first so many of each picture that evaluation takes (``Card.captions_each``).
    """

    split: str
    published: int | None
    listed: int
    readable: int
    captions: int = 0
    judged: int = 0


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found; it is the whole data set when ``problems`` is empty.

    Attributes:
        name: the data set.
        root: where it lies.
        splits: one by one, then the unions that are published as one.
        problems: what is wrong, in words.
        captions_each: captions of each picture that evaluation takes; 0: any number.
        partial: all that is wrong is that there are fewer or more samples than were published.
        compared: files whose bytes were held against the checksums of the archive that they were unpacked from; None
            of a data set that does not come in zips.
    """

    name: str
    root: Path
    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]
    captions_each: int = 0
    partial: bool = False
    compared: int | None = None

    def check(self) -> None:
        """Raise :class:`UserError` with every problem, if there is one."""
        if self.problems:
            what = "is not the whole of" if self.partial else "is not the whole of, or a damaged copy of,"
            hint = (
                ". What is there is sound: train and eval take it, say how much of it there is, and show no "
                "published figures beside it"
            )
            raise UserError(
                f"{self.root} {what} {self.name}: {'; '.join(self.problems)}{hint if self.partial else ''}"
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
    things = "recordings" if card.pairs == ("wave-mel",) else "pictures"
    problems: list[str] = []
    counts: list[str] = []
    unlisted: set[str] = set()
    reports: dict[str, SplitReport] = {}
    for split in dict.fromkeys([*published, *dataset.splits()]):
        samples: Sequence[Sample] = ()
        if split in dataset.splits():
            try:
                samples = dataset.samples(split)
            except MissingFilesError as error:
                samples = error.present
                problems.append(str(error))
            except UserError as error:  # nobody knows how many it has
                problems.append(str(error))
                unlisted.add(split)
        count = published.get(split)
        if count is not None and split not in unlisted and len(samples) != count:
            counts.append(f"{len(samples):,} of {count:,} {things} of the split {split}")
        problems += _few_captions(samples, split, card.captions_each)
        bad = _read_all(samples, split, progress=progress)
        reports[split] = SplitReport(
            split,
            count,
            len(samples),
            len(samples) - len({sample for sample, _ in bad}),
            sum(len(sample.captions) for sample in samples),
            sum(len(sample.captions[: card.captions_each]) for sample in samples),
        )
        problems += [f"{message}" for _, message in bad[:NAMED]]
        if len(bad) > NAMED:
            problems.append(f"and {len(bad) - NAMED:,} more damaged files in the split {split}")
    if card.classes is not None and len(dataset.classes) != card.classes:
        problems.append(f"{len(dataset.classes):,} of {card.classes:,} classes")
    problems += getattr(dataset, "faults", list)()  # what a data set knows of itself
    problems += _check_archives(card, root)
    compared, changed = _compare_unpacked(card, root, progress=progress)
    problems += changed
    unions = [_union(name, reports) for name in card.unions if set(name.split("+")) <= reports.keys()]
    splits = (*reports.values(), *unions)
    partial = bool(counts) and not problems
    return Report(name, root, splits, (*counts, *problems), card.captions_each, partial, compared)


def _few_captions(samples: Sequence[Sample], split: str, each: int) -> list[str]:
    """Which pictures lack some of the captions that evaluation takes of every one."""
    few = [sample for sample in samples if len(sample.captions) < each]
    if not few:
        return []
    names = shorten([f"{sample.id} ({len(sample.captions)})" for sample in few])
    return [f"{len(few):,} pictures of the split {split} have fewer than {each} captions: {names}"]


def _union(name: str, reports: dict[str, SplitReport]) -> SplitReport:
    parts = [reports[split] for split in name.split("+")]
    published = [part.published for part in parts if part.published is not None]
    return SplitReport(
        name,
        sum(published) if len(published) == len(parts) else None,
        sum(part.listed for part in parts),
        sum(part.readable for part in parts),
        sum(part.captions for part in parts),
        sum(part.judged for part in parts),
    )


def _published(dataset: DataSet, card: Card) -> dict[str, int]:
    """The counts of the layout that lies there."""
    layout = getattr(dataset, "layout", next(iter(card.counts), ""))
    return dict(card.counts.get(layout, {}))


def _read_all(samples: Sequence[Sample], split: str, *, progress: bool) -> list[tuple[str, str]]:
    """Sample id and what is wrong, for every sample with a file that cannot be read to its end."""
    bad: list[tuple[str, str]] = []
    with (
        # each decoding sets the process's filters and puts back what it found, which may be another thread's
        warnings.catch_warnings(action="ignore"),
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        counted(len(samples), f"Reading {split}", "samples", progress=progress) as advance,
    ):
        for start in range(0, len(samples), AT_ONCE):  # the pool queues all it is given
            some = samples[start : start + AT_ONCE]
            for sample, faults in zip(some, pool.map(_faults, some), strict=True):
                bad += [(sample.id, fault) for fault in faults]
                advance(1)
    return bad


def _faults(sample: Sample) -> list[str]:
    faults = [sample.fault or None]
    faults += [picture_fault(sample.image)] if sample.image else []
    faults += [recording_fault(sample.audio)] if sample.audio else []
    return [fault for fault in faults if fault is not None]


def picture_fault(path: File) -> str | None:
    """Why a picture cannot be decoded to its last row, as training would, or None."""
    from mmvicreg.inputs.image import decode_image

    try:
        decode_image(path)
    except UserError as error:
        return str(error)
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


def _compare_unpacked(card: Card, root: Path, *, progress: bool) -> tuple[int | None, list[str]]:
    """How many unpacked files were held against their archive's checksums, and what differs.

    A file that is not there is counted elsewhere.
    """
    archives = [file for file in card.files if file.extract and file.unpacker is None]
    wanted = {name: crc for file in archives for name, crc in unpacked_checksums(file, root).items()}
    there = [name for name in wanted if (root / name).is_file()]
    changed: list[str] = []
    with (
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        counted(len(there), "Comparing with the archive", "files", progress=progress) as advance,
    ):
        for name, crc in zip(there, pool.map(_crc32, [root / name for name in there]), strict=True):
            if crc != wanted[name]:
                changed.append(name)
            advance(1)
    problems = [f"not the bytes that the archive held (CRC-32): {shorten(changed)}"] if changed else []
    return len(there) if archives else None, problems


def _crc32(path: Path) -> str:
    """In hexadecimal; empty, which is no file's, where it cannot be read."""
    crc = 0
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                crc = zlib.crc32(part, crc)
    except OSError:
        return ""
    return f"{crc:08x}"
