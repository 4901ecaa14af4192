"""The wheel, built once, and installed apart from the checkout."""

from __future__ import annotations

import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from outside import output

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from that sdist."""
    out = tmp_path_factory.mktemp("built")
    output([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT], cwd=out)
    return out


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and can see this one's packages, but not this checkout.

    Only the folders of packages are added to its path: the ``.pth`` files in them, through which an
    editable install finds the checkout, are not read.
    """
    environment = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python]
    output([*pip, "install", "--no-deps", "--no-index", wheel], cwd=environment)
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(output([python, "-c", program], cwd=environment))
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "borrowed.pth").write_text("\n".join(sorted(folders)) + "\n", encoding="utf-8")
    return environment / "bin"
