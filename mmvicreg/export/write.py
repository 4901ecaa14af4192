"""Writing an export: everything under another name first, checked, then renamed."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmvicreg
from mmvicreg.errors import UserError
from mmvicreg.export.check import Verdict, check
from mmvicreg.export.describe import preprocessing
from mmvicreg.export.formats import FORMATS, Format, Loading, missing
from mmvicreg.export.subject import Subject, open_subject
from mmvicreg.locking import free, locked
from mmvicreg.registry import nearest
from mmvicreg.runs import Run


@dataclass(frozen=True)
class Written:
    """What an export wrote, and what its check found."""

    files: tuple[Path, ...]
    verdict: Verdict | None


def export(
    run: Run,
    branch: str,
    *,
    format: str,
    out: Path | None = None,
    overwrite: bool = False,
    prove: bool = False,
) -> Written:
    """Write one branch's encoder in a format of another library, with a JSON file that describes it.

    Args:
        run: an opened run with a checkpoint.
        branch: which of its branches.
        format: one of ``FORMATS``.
        out: the file, or for ``transformers`` the folder; None: ``export/<branch>`` in the run folder, with the
            format's (first) ending.
        overwrite: replace what is there.
        prove: load it in a process that cannot import this library, and compare its outputs with ours.

    Returns:
        The files, in the order they were written.

    Raises:
        UserError: an unknown branch or format, an encoder that the format cannot hold, something in the way, a
            package that is not installed, a full disk, or a difference found by the check. Nothing is left behind,
            and what was there before stays; what a SIGKILL leaves behind goes with the next export to this place.
    """
    chosen = _format(format, prove=prove)
    if out is None:
        out = run.path / "export" / "".join((branch, *chosen.suffixes[:1]))
    _check_way(out, format, overwrite=overwrite)
    subject = open_subject(run, branch)
    try:
        with _workshop(out) as place:
            loading = chosen.write(subject, place / out.name)
            described = place / out.name if not chosen.suffixes else place
            about = _about(subject, loading, format, out, described)
            sidecar = described / (f"{out.name}.json" if chosen.suffixes else "export.json")
            sidecar.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            verdict = check(subject, loading, place / out.name, format=format) if prove else None
            made = sorted(place.iterdir(), key=lambda path: path.name != out.name)
            targets = [out.parent / path.name for path in made]
            if not overwrite and (there := [path for path in targets if path.exists()]):
                raise _in_the_way(there[0])
            for path, target in zip(made, targets, strict=True):
                _move(path, target)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot write {out}: {reason}; free some space, or name another place") from error
    return Written(tuple(targets), verdict)


def _format(name: str, *, prove: bool) -> Format:
    if name not in FORMATS:
        raise UserError(f"unknown format '{name}'{nearest(name, FORMATS)} Known: {', '.join(FORMATS)}.")
    chosen = FORMATS[name]
    if absent := missing(chosen.packages):
        raise UserError(
            f"exporting {name} needs {' and '.join(absent)}: pip install 'mmvicreg[export]', or choose --format pt2, "
            "which needs torch alone"
        )
    if prove and (absent := missing(chosen.reading)):
        raise UserError(
            f"--check of {name} needs {' and '.join(absent)}: pip install 'mmvicreg[export]', or leave out --check"
        )
    return chosen


def _check_way(out: Path, name: str, *, overwrite: bool) -> None:
    chosen = FORMATS[name]
    if chosen.suffixes and out.suffix not in chosen.suffixes:
        raise UserError(f"--out {out}: a file of {name} ends in {' or '.join(chosen.suffixes)}")
    if out.exists() and out.is_dir() and chosen.suffixes:
        raise UserError(f"--out {out} is a folder; name a file")
    if out.exists() and not chosen.suffixes and not (out.is_dir() and (out / "export.json").is_file()):
        raise UserError(
            f"--out {out} is not an earlier export's folder; name another, it will not be replaced"
        )
    there = [path for path in (out, out.with_name(f"{out.name}.json")) if path.exists()]
    if there and not overwrite:
        raise _in_the_way(there[0])


def _in_the_way(path: Path) -> UserError:
    return UserError(f"{path} exists; give --overwrite to replace it, or --out another name")


@contextlib.contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to write in, gone in the end, after a SIGTERM too; those of killed exports go first."""
    prefix = f".{out.name}.exporting-"
    out.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # a folder that may be written to and not listed, say
        _sweep(out, prefix)
    with (
        _ended_by_sigterm(),
        tempfile.TemporaryDirectory(prefix=prefix, dir=out.parent) as folder,
        locked(Path(folder) / "lock", create=True),
    ):
        place = Path(folder) / "made"
        place.mkdir()
        yield place


def _sweep(out: Path, prefix: str) -> None:
    """Remove what killed exports to ``out`` left beside it."""
    for left in [path for path in out.parent.iterdir() if path.name.startswith(prefix)]:
        if not free(left / "lock"):
            continue
        if (before := left / "made" / _old(out.name)).exists() and not out.exists():
            before.rename(out)  # killed between the two renames of a folder
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Have a SIGTERM end the process as Ctrl-C does, with everything that is to be done at an end."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _old(name: str) -> str:
    """What a folder that is to be replaced is called meanwhile."""
    return f"{name}.old"


def _move(path: Path, target: Path) -> None:
    """Rename; a folder that is there goes only when the new one lies beside it."""
    if not target.is_dir():
        path.replace(target)
        return
    old = path.with_name(_old(path.name))
    try:
        target.rename(old)
        path.rename(target)
    except BaseException:  # a signal between the two as well
        with contextlib.suppress(OSError):
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _about(subject: Subject, loading: Loading, format: str, out: Path, folder: Path) -> dict[str, Any]:
    return {
        "mmvicreg": mmvicreg.__version__,
        "run": str(subject.run.path),
        "epoch": subject.run.epochs_done,
        "branch": subject.name,
        "encoder": subject.branch.config.encoder,
        "format": format,
        "load": list(loading.lines),
        "inputs": {
            name: {
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": ["n", *_sizes(name, value, format)],
            }
            for name, value in (loading.inputs or subject.inputs).items()
        },
        "representation": int(subject.branch.encoder.out_features),
        "preprocessing": preprocessing(subject, folder, out.name),
    }


def _sizes(name: str, value: Any, format: str) -> list[int | str]:
    """Sizes behind the first; captions may be of any length but in a program."""
    if name in ("ids", "input_ids", "attention_mask") and format != "pt2":
        return ["longest"]
    return [int(size) for size in value.shape[1:]]
