"""Samples that could not be read and were left out: how they are written down.

``--on-bad-sample skip`` (``dataset.on_bad_sample``) goes on where a sample cannot be decoded. In training
another sample takes its place, chosen by the address of the one it replaces (seed, epoch, row), so that every
number of processes and workers, and every resumption, sees the same batches. In evaluation the sample is in
neither queries nor gallery. Either way a list in the run folder names each of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from mmvicreg.errors import UserError
from mmvicreg.registry import nearest
from mmvicreg.runs import write_whole
from mmvicreg.samples import Sample

OnBadSample: TypeAlias = Literal["error", "skip"]
SKIPPED = "skipped.jsonl"
"""The list of a run's training, in its folder: one JSON object a line, with ``id``, ``file`` and ``reason``."""


@dataclass(frozen=True, order=True)
class Skipped:
    """A sample that could not be read.

    Attributes:
        id: the sample's; of a run's other source ``<source>:<id>``, since two data sets may have one id.
        file: the file at fault, empty where it is not a file (an empty caption).
        reason: what is wrong, as the error would have said it.
    """

    id: str
    file: str
    reason: str

    @classmethod
    def of(cls, sample: Sample, reason: str) -> Skipped:
        """Of one sample and the message of its error."""
        files = [str(file) for file in (sample.image, sample.audio) if file is not None]
        return cls(sample.id, next((file for file in files if file in reason), ""), reason)


def check_on_bad_sample(asked: str) -> OnBadSample:
    """What was asked for, or :class:`UserError` unless it is ``error`` or ``skip``."""
    known: tuple[OnBadSample, ...] = get_args(OnBadSample)
    for name in known:
        if asked == name:
            return name
    raise UserError(f"unknown --on-bad-sample '{asked}'{nearest(asked, known)} Known: error, skip.")


def read_skipped(path: Path) -> list[Skipped]:
    """The list that :func:`write_skipped` wrote; nothing where there is none.

    Raises:
        UserError: it is not such a list.
    """
    if not path.is_file():
        return []
    try:
        return [Skipped(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{path} is not a list of skipped samples ({error}); remove it") from error


def write_skipped(path: Path, found: Iterable[Skipped]) -> int:
    """Write a list, each sample once and sorted by id; an empty one removes the file. Returns its length.

    Raises:
        UserError: it cannot be written.
    """
    unique = sorted({one.id: one for one in found}.values())
    try:
        if unique:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in unique))
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return len(unique)
