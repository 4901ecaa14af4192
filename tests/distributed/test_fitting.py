"""What frontends learn is learned once, and known to every process."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from processes import run_processes
from tiny import tiny_recipe
from torch import Tensor

from mmvicreg.branches.model import build_inputs
from mmvicreg.datasets import open_dataset, training_samples
from mmvicreg.errors import UserError
from mmvicreg.training.setup import build_model, fit_frontends


def learn(root: str, fold: int) -> Tensor | str:
    recipe = tiny_recipe("wave-mel", Path(root), "branches.mel.frontend.scaling=training")
    model = build_model(recipe, build_inputs(recipe))
    samples = training_samples(open_dataset("tones", root=Path(root)), split="train", fold=fold)
    main = dist.get_rank() == 0 if dist.is_initialized() else True
    try:
        fit_frontends(model, samples if main else [], main=main)
    except UserError as error:
        return str(error)
    level: Tensor = model.branch("mel").frontend.level
    return level


def test_every_process_knows_what_the_first_one_learned(tiny_tones: Path) -> None:
    alone = learn(str(tiny_tones), 1)
    assert isinstance(alone, Tensor)
    assert bool(alone.isfinite().all())
    for level in run_processes(2, learn, str(tiny_tones), 1):
        assert bool((level == alone).all())
