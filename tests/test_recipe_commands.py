"""The commands of the documents: of the READMEs in configs as far as their recipe, of the others as far as options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mmvicreg.cli import app
from mmvicreg.recipes import parse_recipe, recipes_folder

FILES = sorted(recipes_folder().glob("*/README.md"))
COMMANDS = [
    line
    for file in FILES
    for language, block in re.findall(
        r"^```(\w*)\n(.*?)^```$", file.read_text(encoding="utf-8"), flags=re.DOTALL | re.M
    )
    for line in block.splitlines()
    if not language
]


def told_in(text: str) -> set[str]:
    """Commands of a document: the lines of its blocks, and what stands between backticks, over line ends too."""
    blocks = re.findall(r"^```\n(.*?)^```$", text, flags=re.DOTALL | re.M)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(mmvicreg [^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.M))
    parts = [" ".join(part.split()) for line in lines for part in line.split(";")]
    return {part for part in parts if part.startswith("mmvicreg ")}


DOCUMENTS = [Path(__file__).parents[1] / name for name in ("README.md", "MEASURED.md")]
TOLD = sorted({command for file in DOCUMENTS for command in told_in(file.read_text(encoding="utf-8"))})


def test_there_are_commands() -> None:
    assert len(TOLD) >= 40
    assert len(FILES) >= 2
    assert len(COMMANDS) >= 16
    assert all(command.startswith(("mmvicreg train ", "mmvicreg sweep ")) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_every_command_resolves(command: str) -> None:
    words = shlex.split(command)[1:]
    if words[0] == "train":
        words.append("--print-config")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    if words[0] == "train":
        recipe = parse_recipe(yaml.safe_load(result.output), source="printed")
        if "--method" in words:
            assert recipe.objective["name"] == words[words.index("--method") + 1]
    else:
        assert "--list" in words
        assert result.output.strip()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_every_recipe_is_in_the_table(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for path in file.parent.glob("*.yaml"):
        assert f"`{path.stem}`" in text, path.name


@pytest.mark.parametrize("told", TOLD)
def test_every_command_that_is_told_has_its_options(told: str) -> None:
    result = CliRunner().invoke(app, [*shlex.split(told)[1:], "--help"])
    assert result.exit_code == 0, result.output
