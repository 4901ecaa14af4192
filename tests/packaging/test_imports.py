"""What is imported when: nothing heavy for a help text, and every package that was asked for somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = ("torch", "torchvision", "torchaudio", "transformers", "pycocotools", "librosa", "sentencepiece")


def imported_packages(*command: str) -> tuple[set[str], str]:
    """The top-level packages that ``python -m mmvicreg <command>`` imports, and what it prints."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mmvicreg", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    modules = re.findall(r"^import time:[^|]*\|[^|]*\|\s+([\w.]+)", done.stderr, flags=re.MULTILINE)
    return {module.partition(".")[0] for module in modules}, done.stdout


@pytest.mark.parametrize("command", [(), ("train",), ("eval",), ("data",), ("export",), ("bench",)])
def test_help_imports_none_of_the_heavy_packages(command: tuple[str, ...]) -> None:
    packages, printed = imported_packages(*command, "--help")
    assert "Usage" in printed
    assert "mmvicreg" in packages  # else nothing was measured
    assert packages.isdisjoint(NAMED)


def test_help_names_the_verbs() -> None:
    _, printed = imported_packages("--help")
    assert {"train", "eval", "data", "bench"} <= set(re.findall(r"\w+", printed))


@pytest.mark.parametrize("package", NAMED)
def test_a_named_package_is_a_dependency_that_does_work(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert package in {re.split(r"[<>=!~ \[]", need)[0] for need in project["dependencies"]}
    files = [file for folder in ("mmvicreg", "data", "eval") for file in (ROOT / folder).rglob("*.py")]
    users = [file for file in files if package in packages_at_work(file.read_text(encoding="utf-8"))]
    assert users, f"nothing in mmvicreg/, data/ or eval/ imports {package} and uses it"


@pytest.mark.parametrize(
    ("source", "at_work"),
    [
        ("import torch\ntorch.ones(1)", {"torch"}),
        ("import torch\n", set()),
        ("import torch.nn as nn\nnn.ReLU()", {"torch"}),
        ("import torch.nn\ntorch.nn.ReLU()", {"torch"}),
        ("def f():\n    from librosa.filters import mel as bank\n    return bank(sr=1)", {"librosa"}),
        ("from librosa.filters import mel\nx = 'mel'", set()),
        ("from . import torch\ntorch.x()", set()),
    ],
)
def test_an_import_alone_is_not_work(source: str, at_work: set[str]) -> None:
    assert packages_at_work(source) == at_work


def packages_at_work(source: str) -> set[str]:
    """Packages of which a module imports a name that it then calls, or calls an attribute of."""
    tree = ast.parse(source)
    called = {name for node in ast.walk(tree) if isinstance(node, ast.Call) for name in _root(node.func)}
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.asname or alias.name.partition(".")[0], alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [(alias.asname or alias.name, node.module or "") for alias in node.names]
        else:
            continue
        used |= {module.partition(".")[0] for bound, module in names if bound in called}
    return used


def _root(node: ast.expr) -> set[str]:
    while isinstance(node, ast.Attribute):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()
