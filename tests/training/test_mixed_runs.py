"""A checkpoint whose vocabulary is another run's is refused, wherever it is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_recipe, untrained_run

from mmvicreg.errors import UserError
from mmvicreg.eval import retrieval
from mmvicreg.runs import open_run
from mmvicreg.training.launch import Launch
from mmvicreg.training.launch import train as launch


def test_a_vocabulary_of_another_run_is_refused_at_resume(tiny_shapes: Path, tmp_path: Path) -> None:
    """The embedding has a row for each of its own words; in another order they would mean nothing."""
    small = untrained_run(
        tmp_path / "small", tiny_recipe("image-text", tiny_shapes, "inputs.text.vocabulary=50")
    )
    words = untrained_run(
        tmp_path / "words",
        tiny_recipe("image-text", tiny_shapes, "inputs.text={tokenizer: words, min_count: 1}"),
    )
    for number, (other, message) in enumerate(
        (
            (words, r"'words' and the recipe's of 'sentencepiece'"),
            (small, r"branches\.text\.encoder\.embedding"),
        )
    ):
        run = untrained_run(tmp_path / f"mixed{number}", tiny_recipe("image-text", tiny_shapes))
        content = torch.load(next(run.checkpoints.iterdir()), weights_only=True)
        content["inputs"] = other.content["inputs"]
        torch.save(content, next(run.checkpoints.iterdir()))
        with pytest.raises(UserError, match=message):
            launch(Launch(None, run.path, resume=True, workers=0))
        with pytest.raises(UserError, match=message):
            retrieval.run(open_run(run.path))
