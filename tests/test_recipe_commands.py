"""The commands of the READMEs in configs, taken at their word as far as their resolved recipe."""

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


def test_there_are_commands() -> None:
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
