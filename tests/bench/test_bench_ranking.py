"""``bench ranking`` ranks by the published definition, and ours ranks alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mmvicreg.bench.ranking import (
    OURS,
    PUBLISHED,
    Settings,
    bench_ranking,
    embeddings,
    published_ranks,
    rows,
    table,
    unit,
)
from mmvicreg.cli import app
from mmvicreg.errors import UserError

SMALL = Settings(images=60, captions_per_image=3, width=16, repeats=2)


def test_the_published_loops_are_the_definition() -> None:
    """Two images at right angles, two captions each, by their angles; by hand."""
    degrees = np.radians([0, 90, 20, 70, 80, 35])
    x = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    # image 0 finds its caption at 20 first; image 1 its caption at 80 before 70 of the other
    image_to_text, text_to_image = published_ranks(x[:2], x[2:])
    assert image_to_text.tolist() == [0, 0]
    assert text_to_image.tolist() == [0, 1, 0, 1]
    # turned round, the captions are the others': image 0 meets 20 before 35, image 1 meets 80 before 70
    image_to_text, text_to_image = published_ranks(x[:2], x[[4, 5, 2, 3]])
    assert image_to_text.tolist() == [1, 1]
    assert text_to_image.tolist() == [1, 0, 1, 0]


def test_all_ranks_are_the_published_ones_and_there_is_something_to_rank() -> None:
    theirs, ours = bench_ranking(SMALL)
    assert (theirs.name, ours.name) == (PUBLISHED, OURS)
    assert ours.different == theirs.different == 0
    assert theirs.ratio == 1.0
    assert min(ours.seconds, ours.ratio) > 0
    assert ours.inputs == 4 * 16 * (60 + 180)
    assert theirs.inputs == 2 * ours.inputs
    assert ours.memory >= 8 * 16 * 60, "bytes: the images in float64"
    ranks = published_ranks(*(unit(x) for x in embeddings(SMALL)))
    for each, candidates in zip(ranks, (180, 60), strict=True):
        assert 0 < each.mean() < candidates / 3
    assert [row["different"] for row in rows([theirs, ours], SMALL)] == [0, 0]
    assert table([theirs, ours], SMALL).row_count == 2


def test_a_rank_that_differs_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(images: np.ndarray, captions: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        forth, back = published_ranks(unit(images), unit(captions))
        forth[7] += 0.5
        back[[0, 9]] += 1
        return forth, back

    monkeypatch.setattr("mmvicreg.bench.ranking.retrieval_ranks", wrong)
    assert [one.different for one in bench_ranking(SMALL)] == [0, 3]


def test_the_command_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    asked = ["bench", "ranking", "--images", "20", "--captions-per-image", "2", "--width", "8"]
    found = CliRunner().invoke(app, [*asked, "--json", str(file)])
    assert found.exit_code == 0, found.output
    assert "ranks that" in found.output
    written = json.loads(file.read_text(encoding="utf-8"))
    assert [row["implementation"] for row in written] == [PUBLISHED, OURS]
    assert [(row["images"], row["captions"], row["width"]) for row in written] == [(20, 40, 8)] * 2


@pytest.mark.parametrize("option", ["--images", "--captions-per-image", "--width"])
def test_nothing_to_rank_is_refused(option: str) -> None:
    with pytest.raises(UserError, match="one image, one caption"):
        CliRunner().invoke(app, ["bench", "ranking", option, "0"], catch_exceptions=False)
