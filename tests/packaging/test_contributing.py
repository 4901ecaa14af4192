"""The recipes of CONTRIBUTING.md, taken at their word: they make a package that trains and is judged.

It runs against the installed wheel, as another's package would, so this is also the test that the wheel
trains and evaluates where there is no checkout.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from outside import run
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as if the package of the recipes had been installed into it, with some data."""
    folder = tmp_path_factory.mktemp("example")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path, block in re.findall(r"```\w+\n# (\S+)\n(.*?)```", text, flags=re.DOTALL):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(block, encoding="utf-8")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = folder / "example-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(
        "\n".join(
            f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in points.items())
            for group, points in project["entry-points"].items()
        ),
        encoding="utf-8",
    )
    write_pictures(folder / "pictures")
    return folder


def write_pictures(folder: Path) -> None:
    """Eight plain pictures to train on and eight to test on, noisy, with two captions each."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for number in range(8):
            name, colour = list(COLOURS.items())[number % len(COLOURS)]
            pixels = np.clip(np.array(colour) + rng.normal(0, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
            (folder / split / f"{number}.txt").write_text(f"a {name} picture\nall {name}\n", encoding="utf-8")


TRAIN = ("train", "--pair", "image-text", "--dataset", "captioned-folder", "--recipe", "recipe.yaml")


def test_the_recipes_train_and_are_judged(installed: Path, example: Path) -> None:
    done = run(
        [installed / "mmvicreg", *TRAIN, "--data-root", "pictures", "--out", "run", "--workers", "0"],
        cwd=example,
        path=example,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (example / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("uniform" in json.dumps(line) for line in lines), "the objective of the recipe was not used"
    judged = run([installed / "mmvicreg", "eval", "retrieval", "run"], cwd=example, path=example)
    assert judged.returncode == 0, judged.stderr[-3000:]
    result = json.loads((example / "run" / "eval" / "retrieval-test.json").read_text(encoding="utf-8"))
    assert result["image_to_text"]["queries"] == 8
    program = (
        "import pathlib, mmvicreg.registry, mmvicreg.runs\n"
        "judge = mmvicreg.registry.PROTOCOLS.load('cosine')\n"
        "judge(mmvicreg.runs.open_run(pathlib.Path('run')))"
    )
    done = run([installed / "python", "-c", program], cwd=example, path=example)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (example / "run" / "eval" / "cosine-test.json").is_file()


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [
        ("branches.image.encoder.featurs=8", "features"),
        ("objective.wieght=1", "weight"),
        ("branches.image.encoder={name: mean-color}", "mean-colour"),
        ("dataset.name=captioned-foldr", "captioned-folder"),
    ],
)
def test_a_misspelt_option_of_a_third_party_is_named(
    installed: Path, example: Path, setting: str, nearest: str
) -> None:
    done = run(
        [installed / "mmvicreg", *TRAIN, "--print-config", "--set", setting], cwd=example, path=example
    )
    assert done.returncode == 2
    assert f"did you mean '{nearest}'" in done.stderr


def test_what_is_missing_in_a_folder_is_named(installed: Path, example: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    missing = tmp_path / "pictures" / "train" / "3.txt"
    missing.unlink()
    out = tmp_path / "run"
    done = run(
        [installed / "mmvicreg", *TRAIN, "--data-root", str(tmp_path / "pictures"), "--out", str(out)],
        cwd=example,
        path=example,
    )
    assert done.returncode == 2
    assert str(missing) in done.stderr


def test_the_code_is_clean(example: Path) -> None:
    config = ["--config", str(ROOT / "pyproject.toml")]
    apart = ["--config", 'lint.isort.known-first-party = ["mmvicreg", "example"]']
    for command in (["check", *config, *apart], ["format", "--check", *config]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "example"],
            cwd=example,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
