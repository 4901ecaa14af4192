"""Gradients and weights that are not finite, errors nobody foresaw: a run ends, its last good checkpoint is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_recipe
from torch import Tensor

from mmvicreg.errors import UserError
from mmvicreg.runs import Run, create_run
from mmvicreg.training.checkpoint import list_checkpoints, load_checkpoint
from mmvicreg.training.distributed import World
from mmvicreg.training.loop import Trainer

STEPS = 5
"""In an epoch of the tiny shapes."""


def poisoned(out: Path, data: Path, *settings: str, step: int, value: float = torch.inf) -> Trainer:
    """A trainer whose gradient of the text branch gets an infinity at one step; the loss stays finite."""
    recipe = tiny_recipe("image-text", data, "training.epochs=2", "training.keep_checkpoints=1", *settings)
    trainer = Trainer(Run(out, recipe), World(0, 1, 0, torch.device("cpu")), resume=False, workers=0)
    create_run(out, recipe)
    assert len(trainer.loader) == STEPS

    def spoil(gradient: Tensor) -> Tensor:
        return gradient.index_fill(0, torch.tensor([0]), value) if trainer.step == step - 1 else gradient

    weight = next(iter(trainer.model.branch("text").expander.parameters()))
    weight.register_hook(spoil)
    return trainer


def left(out: Path) -> dict[str, Any]:
    (only,) = list_checkpoints(out / "checkpoints")
    content = load_checkpoint(only)
    assert all(torch.isfinite(value).all() for value in content["model"].values())
    return content


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_no_step_is_taken_with_a_gradient_that_is_not_finite(
    value: float, tiny_shapes: Path, tmp_path: Path
) -> None:
    trainer = poisoned(tmp_path, tiny_shapes, "optimizer.clip_norm=1", step=2 * STEPS, value=value)
    with pytest.raises(UserError, match=r"step 10: the gradient of text is not finite, .* no step was taken"):
        trainer.train()
    assert left(tmp_path)["position"]["step"] == STEPS
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())


def test_no_checkpoint_is_made_of_weights_that_are_not_finite(tiny_shapes: Path, tmp_path: Path) -> None:
    trainer = poisoned(tmp_path, tiny_shapes, "optimizer.clip_norm=null", step=2 * STEPS)
    with pytest.raises(
        UserError, match=r"step 10: weights of text are not finite, and no checkpoint is made"
    ):
        trainer.train()
    assert left(tmp_path)["position"]["step"] == STEPS


SCRIPT = """
import sys
from pathlib import Path
import torch
from tiny import tiny_recipe
from mmvicreg.runs import Run, create_run
from mmvicreg.training.distributed import World
from mmvicreg.training.loop import Trainer

out = Path(sys.argv[2])
recipe = tiny_recipe("image-text", Path(sys.argv[1]))
trainer = Trainer(Run(out, recipe), World(0, 1, 0, torch.device("cpu")), resume=False, workers=1)
create_run(out, recipe)

def surprise(*_, **__):
    raise ZeroDivisionError("nobody foresaw this")

trainer.model.judge = surprise
trainer.train()
"""


def test_an_error_that_nobody_foresaw_ends_the_process(tiny_shapes: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_shapes), str(tmp_path / "run")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,  # it would wait for its loader's worker for ever
        check=False,
    )
    assert done.returncode == 1
    assert "nobody foresaw this" in done.stderr
