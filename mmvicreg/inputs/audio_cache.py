"""Recordings decoded once: int16 at the rate of training, read through a memory map.

One ``.npy`` file a recording, all of a rate in one folder of the cache, whatever data set they are of. A single
map a data set would be one file to open instead of many, but a run must not open the recordings of the fold it
holds out, so each fold would need a map of its own, with four fifths of the others' contents. This way a run
decodes what it was given, the next fold finds four fifths of its recordings there, and a recording that was
changed is decoded again alone.

A file's name tells its source's path, size and time of modification: of a changed source there is no file, and
those of its earlier states go when it is decoded again. Files are written under another name, flushed, then
renamed, so one that is there is whole; a lock keeps processes that start together from doing the same work.
Nothing is written beside the recordings.

Reading never depends on the cache: what is not in it is decoded, to the same numbers. Loader workers map files
read-only, so the system keeps one copy of each page for all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mmvicreg.datasets import cache_folder
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import NotPreparedError
from mmvicreg.inputs.decode import Waveform, read_header, read_recording
from mmvicreg.locking import locked
from mmvicreg.progress import progress_bar
from mmvicreg.training.distributed import cpu_count
from mmvicreg.training.loader import begin_worker, end_workers

VERSION = 1
"""Raised whenever the same file would be decoded to other numbers."""

_FEW = 32
"""Recordings that are decoded sooner than worker processes start."""
_EXPANSION = 12
"""Decoded bytes a byte of file, where only decoding would tell: lossy formats at 64 kbit/s and more."""
_WAY_OUT = "point XDG_CACHE_HOME at another disk (a new run may do without: --set inputs.audio.cache=false)"


@dataclass(frozen=True)
class Built:
    """What :func:`build` added: recordings and bytes, and the folder they are in."""

    folder: Path
    recordings: int = 0
    size: int = 0


def folder_of(sample_rate: int) -> Path:
    """Where recordings decoded to ``sample_rate`` (Hz) are kept."""
    return cache_folder() / "recordings" / f"{sample_rate}-v{VERSION}"


def read(source: Path, *, sample_rate: int) -> Waveform | None:
    """The map of a decoded recording, int16 ``(samples,)``, read-only; None where there is none."""
    try:
        mapped: Waveform = np.load(folder_of(sample_rate) / _name(source), mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return None
    return mapped


def build(
    sources: Sequence[Path], *, sample_rate: int, workers: int | None = None, skip: bool = False
) -> Built:
    """Decode those of ``sources`` that are not there yet, and open no others.

    Processes that call this at the same time do the work once: one decodes, the others wait for it.

    Args:
        sources: recordings.
        sample_rate: Hz.
        workers: processes that decode; None: as many as there are cores, none for a few recordings.
        skip: leave out those that cannot be read, as whoever reads them will.

    Raises:
        UserError: a recording that cannot be read, without ``skip``.
        NotPreparedError: the cache cannot be written, or has too little room.
    """
    folder = folder_of(sample_rate)
    wanted = _named(sources, skip=skip)
    try:
        if not _absent(wanted, folder):
            return Built(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", create=True):
            jobs = _absent(wanted, folder)  # another process may have been at work since
            _sweep(folder, wanted)
            if skip:
                jobs = {name: source for name, source in jobs.items() if _has_header(source)}
            _check_room(jobs.values(), folder, sample_rate)
            work = _Decoding([(source, folder / name) for name, source in jobs.items()], sample_rate)
            sizes = _decode_all(work, workers, skip=skip)
            return Built(folder, len(sizes), sum(sizes))
    except OSError as error:
        raise NotPreparedError(
            f"cannot keep decoded recordings in {folder}: {_why(error)}; {_WAY_OUT}"
        ) from error


class _Decoding(Dataset["int | UserError"]):
    """One recording after the other; an item is the bytes written for it, or what was wrong."""

    def __init__(self, jobs: Sequence[tuple[Path, Path]], sample_rate: int) -> None:
        self.jobs, self.sample_rate = jobs, sample_rate

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, position: int) -> int | UserError:
        source, target = self.jobs[position]
        try:
            return _write(read_recording(source, sample_rate=self.sample_rate), target)
        except UserError as error:  # an error raised in a worker would arrive with its whole traceback
            return error
        except OSError as error:
            return NotPreparedError(f"cannot write the decoded recording {target}: {_why(error)}; {_WAY_OUT}")


def _decode_all(work: _Decoding, workers: int | None, *, skip: bool) -> list[int]:
    """Bytes written for each recording."""
    if workers is None:
        workers = cpu_count() if len(work) > _FEW else 0
    loader = DataLoader(
        work,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=begin_worker,
    )
    sizes = []
    try:
        with progress_bar(len(work), "decoding recordings, once", "recording") as bar:
            for result in loader:
                if not isinstance(result, UserError):
                    sizes.append(result)
                elif isinstance(result, NotPreparedError) or not skip:
                    raise result
                bar.advance()
    finally:
        end_workers(loader)
    return sizes


def _write(waveform: Waveform, target: Path) -> int:
    """Have ``target`` appear whole; its size."""
    temporary = target.with_name(f"{target.stem}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, waveform)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return size


def _named(sources: Sequence[Path], *, skip: bool) -> dict[str, Path]:
    """Recordings by the names of their decoded files."""
    named = {}
    for source in sources:
        try:
            named[_name(source)] = source
        except OSError as error:
            if not skip:
                raise UserError(f"recording not found: {source} ({_why(error)})") from error
    return named


def _has_header(source: Path) -> bool:
    try:
        read_header(source)
    except UserError:
        return False
    return True


def _name(source: Path) -> str:
    state = source.stat()
    return f"{_origin(source)}-{state.st_size:x}-{state.st_mtime_ns:x}.npy"


def _origin(source: Path) -> str:
    return hashlib.sha256(os.fsencode(source.absolute())).hexdigest()[:24]


def _absent(wanted: dict[str, Path], folder: Path) -> dict[str, Path]:
    there = set(_listed(folder))
    return {name: source for name, source in wanted.items() if name not in there}


def _listed(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except FileNotFoundError:
        return []


def _sweep(folder: Path, wanted: dict[str, Path]) -> None:
    """Remove what killed processes left half-written, and earlier states of the sources. The lock is held."""
    current = {name.partition("-")[0]: name for name in wanted}
    for name in _listed(folder):
        stale = name.endswith(".npy") and current.get(name.partition("-")[0], name) != name
        if stale or name.endswith(".tmp"):
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def _check_room(sources: Iterable[Path], folder: Path, sample_rate: int) -> None:
    needed, free = sum(_size(source, sample_rate) for source in sources), shutil.disk_usage(folder).free
    if needed > free:
        raise NotPreparedError(
            f"recordings decoded to {sample_rate} Hz need {needed / 1e9:.3g} GB in {folder}, where {free / 1e9:.3g} "
            f"GB are free; free some, {_WAY_OUT}"
        )


def _size(source: Path, sample_rate: int) -> int:
    header = read_header(source)
    if header is None:
        return _EXPANSION * source.stat().st_size
    return 2 * round(header.frames * sample_rate / header.sample_rate) + 128


def _why(error: OSError) -> str:
    return error.strerror or str(error)
