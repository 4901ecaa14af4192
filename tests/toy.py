"""A model of three small branches over waveforms and captions, and batches for it, without any file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvicreg.branches.model import Batch, JointModel, build_graph
from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import DRAWS
from mmvicreg.inputs.tokenizers import WordTokenizer
from mmvicreg.recipes import parse_recipe
from mmvicreg.registry import OBJECTIVES
from mmvicreg.training.setup import build_model, restore_inputs

WAVE = {
    "input": "audio",
    "frontend": {"name": "waveform", "gain_db": 6.0, "polarity": True},
    "encoder": {"name": "resnet18_1d", "widths": [4, 4, 6, 8], "stem_kernel": 9},
    "expander": {"widths": [12, 6], "norm": "none"},
    "freeze": "batchnorm",
}
LAST = {
    "input": "text",
    "frontend": "text",
    "encoder": {"name": "gru", "word_features": 5, "hidden": 7},
    "expander": {"widths": [9, 6], "norm": "none"},
}
MEAN = {**LAST, "encoder": {**LAST["encoder"], "hidden": 4, "pooling": "mean", "bidirectional": True}}
TREE = {
    "pair": "wave-mel",
    "dataset": {"name": "shapes"},
    "inputs": {"audio": {"sample_rate": 1000, "seconds": 0.25}, "text": {"tokenizer": "words"}},
    "branches": {"wave": WAVE, "last": LAST, "mean": MEAN},
    "edges": [{"a": "wave", "b": "last"}, {"a": "last", "b": "mean"}],
    "optimizer": {"lr": 1e-3},
    "training": {"epochs": 1, "batch_size": 12},
}

OPTIONS: dict[str, Any] = {
    "wmse": {"name": "wmse", "shrinkage": 0.5},  # embeddings of hardly any spread
    "byol": {"name": "byol", "predictor_norm": "none"},
    "simsiam": {"name": "simsiam", "predictor_norm": "none"},
}


def toy_recipe(method: str = "vicreg", *, branches: Mapping[str, Any] | None = None, **keys: Any) -> Recipe:
    """Edges in a row; for a method that cannot have them, two views of one branch."""
    tree = {**copy.deepcopy(TREE), "objective": OPTIONS.get(method, method), **keys}
    for name, changes in (branches or {}).items():
        tree["branches"][name].update(changes)
    recipe = parse_recipe(tree, source="toy")
    options = {key: value for key, value in recipe.objective.items() if key != "name"}
    try:
        OBJECTIVES.load(recipe.objective["name"]).from_config(options, build_graph(recipe))
    except UserError:
        tree["edges"] = [{"a": "wave", "b": "wave"}]
        tree["branches"] = {"wave": tree["branches"]["wave"]}
        del tree["inputs"]["text"]
        recipe = parse_recipe(tree, source="toy")
    return recipe


def toy_model(recipe: Recipe, dtype: torch.dtype = torch.float64) -> JointModel:
    """In training mode, the weights the recipe's seed addresses."""
    words = WordTokenizer([f"word{i}" for i in range(20)]).state()
    states = {name: {"tokenizer": words} if name == "text" else {} for name in recipe.inputs}
    model = build_model(recipe, restore_inputs(recipe, states)).to(dtype)
    for name in model.branches:
        model.branch(name).freeze(recipe.branches[name].freeze)
    return model.train()


def toy_batch(n: int = 13, seed: int = 0) -> Batch:
    """``n`` clips in two views, and captions of one to nine tokens."""
    rng = torch.Generator().manual_seed(seed)
    length = torch.randint(1, 10, (n,), generator=rng)
    ids = torch.randint(1, 24, (n, 9), generator=rng)
    ids = ids.masked_fill(torch.arange(9) >= length[:, None], 0)[:, : int(length.max())]
    views = {"text/0": {"ids": ids, "length": length}}
    for view in range(2):
        loudness = torch.rand(n, 1, generator=rng)
        waveform = (loudness * 20000 * torch.randn(n, 250, generator=rng)).clamp(-32768, 32767).short()
        views[f"audio/{view}"] = {"waveform": waveform, "draws": torch.rand(n, DRAWS, generator=rng)}
    return Batch(torch.arange(n), views)


def gradients(model: JointModel) -> dict[str, Tensor]:
    """Of every parameter that has one."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def piecewise(model: JointModel, batch: Batch, pieces: Sequence[slice]) -> Tensor:
    """What micro-batches are to give: the pieces embedded one after the other, one graph through all of them."""
    parts = [model.embed(batch.rows(piece)) for piece in pieces]
    embeddings, representations = (
        {node: torch.cat([part[kind][node] for part in parts]) for node in parts[0][kind]} for kind in (0, 1)
    )
    output = model.judge(embeddings, representations, model.embed_targets(batch))
    output.loss.backward()
    return output.loss.detach()


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """Every gradient within ``tolerance`` of its norm, or of a tenth of the whole norm if it is smaller."""
    assert found.keys() == expected.keys()
    whole = torch.stack([value.norm() for value in expected.values()]).norm()
    assert whole > 0
    for name, value in expected.items():
        error = (found[name] - value).norm() / torch.maximum(value.norm(), whole / 10)
        assert error < tolerance, f"{name}: {float(error)}"
