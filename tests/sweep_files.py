"""Sweep files of tiny runs, and what the command says of a mistake."""

from __future__ import annotations

from pathlib import Path

import yaml
from tiny import IMAGE_TEXT
from typer.testing import CliRunner

from mmvicreg.cli import app
from mmvicreg.errors import UserError

SETTINGS = {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in IMAGE_TEXT)}


def write(path: Path, **keys: object) -> Path:
    tree = {"pair": "image-text", "dataset": "shapes", "settings": SETTINGS | {"training.epochs": 1}, **keys}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def mistake(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)
