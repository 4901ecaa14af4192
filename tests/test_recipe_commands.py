"""The commands of configs/image-text/README.md, taken at their word as far as their resolved recipe."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from typer.testing import CliRunner

from mmvicreg.cli import app
from mmvicreg.config import parse_recipe, recipes_folder

TEXT = (recipes_folder() / "image-text" / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines()
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 12
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


def test_every_recipe_is_in_the_table() -> None:
    for path in (recipes_folder() / "image-text").glob("*.yaml"):
        assert f"`{path.stem}`" in TEXT, path.name
