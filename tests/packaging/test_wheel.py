"""The wheel: one top-level name, everything inside, and it works where there is no checkout."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from outside import output

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("data", "configs", "eval")  # at the top of the checkout, inside the package once installed


def test_the_only_top_level_name_is_the_package(wheel: Path) -> None:
    names = {PurePosixPath(name).parts[0] for name in members(wheel)}
    assert {name for name in names if not name.endswith(".dist-info")} == {"mmvicreg"}


def test_the_wheel_holds_every_source_file_and_no_other(wheel: Path) -> None:
    inside = {name for name in members(wheel) if name.startswith("mmvicreg/")}
    assert inside == {f"mmvicreg/{name}" for name in tracked("mmvicreg")} | {
        f"mmvicreg/{part}/{name}" for part in PARTS for name in tracked(part)
    }
    assert "mmvicreg/py.typed" in inside
    assert any(name.startswith("mmvicreg/configs/") and name.endswith(".yaml") for name in inside)


def test_the_licence_travels_with_wheel_and_sdist(wheel: Path, built: Path) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in members(wheel))
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "mmvicreg/__init__.py", "data/__init__.py"} <= names


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["--help"], "Usage"),
        (["data", "list"], "shapes"),
        (["train", "--pair", "image-text", "--dataset", "shapes", "--print-config"], "pair: image-text"),
        (["train", "--pair", "wave-mel", "--dataset", "tones", "--print-config"], "pair: wave-mel"),
    ],
)
def test_the_installed_command_runs(
    installed: Path, tmp_path: Path, command: list[str], expected: str
) -> None:
    assert expected in output([installed / "mmvicreg", *command], cwd=tmp_path)


def test_every_module_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    program = (
        "import mmvicreg, mmvicreg.data, mmvicreg.eval, mmvicreg.recipes\n"
        "print(*mmvicreg.__path__, mmvicreg.data.__file__, mmvicreg.eval.__file__,"
        " mmvicreg.recipes.recipes_folder(), sep='\\n')"
    )
    files = output([installed / "python", "-c", program], cwd=tmp_path).splitlines()
    assert len(files) == 4, "the search path of an installed package is its own folder alone"
    for file in files:
        assert Path(file).is_relative_to(installed.parent)
        assert not Path(file).is_relative_to(ROOT / "mmvicreg")


@pytest.mark.parametrize("name", [*PARTS, "tests"])
def test_nothing_generic_can_be_imported(installed: Path, tmp_path: Path, name: str) -> None:
    program = (
        "import importlib.util, sys\n"
        "spec = importlib.util.find_spec(sys.argv[1])\n"
        "print(*(spec.submodule_search_locations or [spec.origin]) if spec else [], sep='\\n')"
    )
    (package,) = output([installed / "python", "-c", program, "mmvicreg"], cwd=tmp_path).splitlines()
    assert Path(package).is_relative_to(installed.parent)
    for place in output([installed / "python", "-c", program, name], cwd=tmp_path).splitlines():
        assert not Path(place).is_relative_to(Path(package).parent)
        assert not Path(place).is_relative_to(ROOT), "the checkout is on the path of the installed wheel"


def test_an_editable_install_holds_no_copy(tmp_path: Path) -> None:
    program = "import hatchling.build, sys; hatchling.build.build_editable(sys.argv[1])"
    output([sys.executable, "-c", program, tmp_path], cwd=ROOT)
    (file,) = tmp_path.glob("*.whl")
    assert {name.rpartition("/")[2] for name in members(file)} == {
        "_mmvicreg.pth", "METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE",
    }  # fmt: skip


def members(wheel: Path) -> list[str]:
    """Names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def tracked(part: str) -> set[str]:
    """Files of a folder of the checkout, relative to it, less what Python leaves behind."""
    files = (file for file in (ROOT / part).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(ROOT / part).as_posix() for file in files if file.suffix != ".pyc"}
