"""What every test stands on: one thread, fixed seeds, a cache of its own, and the real data sets.

Real data are found through the environment only. ``MMVICREG_REAL_DATA`` names a folder of archives with
an ``unpack.py`` that lays one out as its publisher does (``python unpack.py NAME DEST``). Without the
variable the tests that need it are skipped, with it they run, and with ``MMVICREG_REQUIRE_REAL_DATA=1``
its absence is an error.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300  # a test that takes longer hangs
SLOW_SECONDS = 1800


def pytest_configure(config: pytest.Config) -> None:
    """Point every cache at one temporary folder, for this process, its workers and their children."""
    if hasattr(config, "workerinput"):
        return  # a worker inherits the folder from the process that started it
    home = Path(tempfile.mkdtemp(prefix="mmvicreg-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ.pop("MMVICREG_DATA", None)
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")
    os.environ["TORCH_HOME"] = str(home / "cache" / "torch")
    os.environ["HF_HOME"] = str(home / "cache" / "huggingface")
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Two workers on two cores: a second thread each would only make them wait for one another.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    # A command that a test starts in another folder runs this checkout, whatever else is installed.
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([inherited] if inherited else [])])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what reads real data, bound every test's time, and leave out GPU tests where there is no GPU."""
    for item in items:
        if {"real_data", "unpacked"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)
        if config.pluginmanager.hasplugin("timeout") and item.get_closest_marker("timeout") is None:
            slow = item.get_closest_marker("slow") is not None
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS if slow else SECONDS))
    gpu = [item for item in items if item.get_closest_marker("gpu") is not None]
    if gpu and not _has_gpu():
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:  # a test that does without need not wait for it
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real archives and their ``unpack.py``. Read only."""
    named = os.environ.get("MMVICREG_REAL_DATA")
    if not named:
        if os.environ.get("MMVICREG_REQUIRE_REAL_DATA") == "1":
            pytest.fail("real data are required here, and MMVICREG_REAL_DATA does not name their folder")
        pytest.skip("reads real data: set MMVICREG_REAL_DATA to the folder that holds them")
    folder = Path(named).resolve()
    if not (folder / "unpack.py").is_file():
        pytest.fail(f"MMVICREG_REAL_DATA is {folder}, where there is no unpack.py")
    return folder


@pytest.fixture(scope="session")
def unpacked(real_data: Path) -> Callable[[str], Path]:
    """``unpacked("esc10")`` is that data set in its publisher's layout. Read only: tests share it.

    It is laid out once per machine and kept, because the archives do not change from run to run.
    """

    def lay_out(name: str) -> Path:
        shelf = Path(tempfile.gettempdir()) / f"mmvicreg-real-{os.getuid()}"
        shelf.mkdir(mode=0o700, exist_ok=True)
        folder = shelf / f"{name}-{_fingerprint(real_data)}"
        with FileLock(shelf / f"{folder.name}.lock"):
            if not folder.is_dir():
                partial = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=shelf))
                subprocess.run([sys.executable, real_data / "unpack.py", name, partial], check=True)
                partial.rename(folder)
        return folder

    return lay_out


def _fingerprint(folder: Path) -> str:
    """Of the archives' names, sizes and times: another version of them is laid out elsewhere."""
    state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    return hashlib.sha256(repr(state).encode()).hexdigest()[:12]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``shapes`` with 80 training, 20 validation and 30 test pictures. Read only."""
    from mmvicreg.data.shapes import Shapes

    root = tmp_path_factory.mktemp("tiny") / "shapes"
    Shapes.make(root, progress=False, counts={"train": 80, "val": 20, "test": 30})
    return root


@pytest.fixture(scope="session")
def tiny_tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tones`` with 4 classes of 20 clips in 5 folds. Read only."""
    from mmvicreg.data.tones import Tones

    root = tmp_path_factory.mktemp("tiny") / "tones"
    Tones.make(root, progress=False, classes=4, sources=2)
    return root
