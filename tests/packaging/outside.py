"""Running commands where the checkout is out of sight."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


def run(
    command: Sequence[str | Path], *, cwd: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run in ``cwd``, with nothing but ``path`` on Python's path that the environment does not bring."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def output(command: Sequence[str | Path], *, cwd: Path) -> str:
    """What a command that must succeed prints, without the last line's end."""
    done = run(command, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()
