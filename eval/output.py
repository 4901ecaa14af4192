"""What every protocol does with its result: print it, and write it into the run folder."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mmvicreg
from mmvicreg.errors import UserError
from mmvicreg.runs import Run
from mmvicreg.skipped import OnBadSample
from mmvicreg.tables import console

Report = dict[str, Any]
"""A result as it stands in JSON."""


def number(value: float | None) -> str:
    """A percentage or rank with one decimal, ``-`` when there is none."""
    return "-" if value is None else f"{value:.1f}"


def spread(mean: float, deviation: float | None) -> str:
    """``72.5 ± 3.1``, or the mean alone."""
    return number(mean) if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def mean_and_spread(results: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean of ``top1``, its standard deviation ``std`` (n - 1; None of one), mean of ``top5`` where it is there."""
    top1 = [result["top1"] for result in results if result["top1"] is not None]
    top5 = [result["top5"] for result in results if result["top5"] is not None]
    return {
        "top1": float(np.mean(top1)),
        "std": float(np.std(top1, ddof=1)) if len(top1) > 1 else None,
        "top5": float(np.mean(top5)) if top5 else None,
    }


def command_line(protocol: str, path: Path, options: Mapping[str, object]) -> str:
    """The command that gives this result again; options that are None are left out."""
    words = ["mmvicreg", "eval", protocol, str(path)]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def short(value: object) -> str:
    """A value as a part of a file's name, which has 255 bytes: of a long one the beginning and its digest.

    Of a path it is the beginning of its last part, and the digest of all of it.
    """
    text = str(value).replace(os.sep, "_")
    if len(text) <= 24 and not isinstance(value, Path):
        return text
    begin = value.name if isinstance(value, Path) else text
    return f"{begin[:12]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def bad_sample_flag(on_bad_sample: OnBadSample) -> dict[str, str]:
    """``--on-bad-sample`` among :func:`command_line`'s options, where it is not the default."""
    return {} if on_bad_sample == "error" else {"on-bad-sample": on_bad_sample}


def origin(run: Run, command: str) -> Report:
    """Where a result comes from: run, checkpoint, command, version."""
    return {
        "run": str(run.path),
        "pair": run.recipe.pair,
        "method": "none" if run.weights else run.recipe.objective["name"],
        "epoch": run.epochs_done,
        **({"weights": run.weights} if run.weights else {}),
        "command": command,
        "mmvicreg": mmvicreg.__version__,
    }


def say_skipped(report: Report) -> None:
    """Print how many samples a report is without, where it is without any."""
    if report.get("skipped"):
        console().print(
            f"{report['skipped']:,} samples could not be read and are in neither training nor test samples: "
            f"{report['skipped_list']} lists them.",
            style="bold",
            soft_wrap=True,
        )


def write_report(path: Path, report: Report) -> None:
    """Write JSON whole or not at all (see :func:`write_file`)."""
    write_file(path, [json.dumps(report, indent=2, allow_nan=False) + "\n"])


def save(file: Path, report: Report) -> None:
    """Write a result into the run folder and say where; last, so that it has been shown whatever happens here."""
    write_report(file, report)
    console().print(f"Written: {file}", soft_wrap=True)


def write_file(path: Path, parts: Iterable[str]) -> None:
    """Write text whole or not at all: to a temporary file beside ``path``, flushed, then renamed.

    Raises:
        UserError: the folder cannot be written to.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes files that nobody else can read
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
