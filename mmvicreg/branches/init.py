"""Where a branch's encoder starts from instead of random weights: a branch of a run, or a file of weights.

The expander starts anew. What was loaded is written into the recipe by its checksum, with the data it was trained on
where that is known, and a copy of it into the run folder (``initial.pt``): the run it came from may go on training
or be removed, and the branch "before its first step" stays what it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmvicreg.branches.weights import load_strictly, read_weights
from mmvicreg.config import BranchConfig, DatasetConfig, InitConfig, Recipe, SeenConfig
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import Input
from mmvicreg.registry import nearest

FREE = frozenset({"name", "weights", "zero_init_residual", "dropout", "model"})
"""Options of an encoder that trained weights do not depend on."""


@dataclass(frozen=True)
class Source:
    """Weights for one branch's encoder.

    Attributes:
        state: names to tensors.
        what: the weights, in words for messages.
        encoder: the encoder's part of the recipe they were trained by; None for a file.
        inputs: what the branch's input had learned there (a vocabulary); None for a file.
        seen: the data they were trained on, as far as that is known.
    """

    state: Mapping[str, Tensor]
    what: str
    encoder: Mapping[str, Any] | None = None
    inputs: Mapping[str, Any] | None = None
    seen: tuple[SeenConfig, ...] = ()


def start_encoder(encoder: nn.Module, config: BranchConfig, source: Input, *, name: str) -> None:
    """Load what ``branches.<name>.init`` names into an encoder.

    Args:
        encoder: what to load into.
        config: the branch, with ``init``.
        source: the branch's input, fitted.
        name: the branch's name.

    Raises:
        UserError: nothing there, weights of another encoder (the differing options or keys are listed), of another
            vocabulary, or other weights than the run once started from.
    """
    assert config.init is not None
    found = find(config.init, name)
    key = f"branches.{name}.init"
    if config.init.sha256 not in (None, digest(found.state)):
        raise UserError(
            f"{key}: {found.what} is not what the recipe names (sha256 {config.init.sha256}): it was trained on or "
            "replaced since; put it back, name the checkpoint file of that time, or start a new run"
        )
    if found.encoder is not None:
        _check_encoder(found, config, key)
    if found.inputs is not None and not same(found.inputs, source.state()):
        raise UserError(
            f"{key}: {found.what} has another vocabulary than this run, so that its embedding would be of other "
            f"words; train on the same captions with the same inputs.{config.input}, or leave out this --init"
        )
    load = getattr(encoder, "load_weights", None)
    if found.encoder is None and load is not None:
        load(found.state, what=f"{key}: {found.what}")
    else:
        load_strictly(
            encoder,
            found.state,
            what=f"{key}: {found.what}, for the encoder {config.encoder['name']},",
            way_out="choose the encoder they were trained with, or leave out this --init",
        )


def find(init: InitConfig, name: str) -> Source:
    """The weights that ``init`` of the branch ``name`` means.

    Raises:
        UserError: neither a run with such a branch nor a file of weights.
    """
    path = Path(init.source).expanduser()
    if path.is_dir():
        return _of_run(path, None, init.branch or name)
    if (
        path.is_file()
        and (path.parent.parent / "recipe.yaml").is_file()
        and path.parent.name == "checkpoints"
    ):
        return _of_run(path.parent.parent, path, init.branch or name)
    if "://" not in init.source and not path.exists():
        raise UserError(
            f"branches.{name}.init: no run folder, file or URL '{init.source}'; name a run (--init {name}=RUN) or a "
            "file of weights"
        )
    return Source(read_weights(init.source), f"the weights '{init.source}'")


def _of_run(folder: Path, checkpoint: Path | None, branch: str) -> Source:
    from mmvicreg.runs import open_run
    from mmvicreg.training.checkpoint import load_checkpoint

    run = open_run(folder)
    if branch not in run.recipe.branches:
        raise UserError(
            f"the run {folder} has no branch '{branch}'{nearest(branch, run.recipe.branches)} It has "
            f"{', '.join(run.recipe.branches)}; choose one with branches.<name>.init.branch"
        )
    content = run.content if checkpoint is None else load_checkpoint(checkpoint)
    prefix = f"branches.{branch}.encoder."
    config = run.recipe.branches[branch]
    sources = content["data"].get("sources", {})
    recorded = [content["data"], *(sources.get(name, {}) for name in run.recipe.sources)]
    seen = [
        SeenConfig(
            dataset=config.name,
            fold=config.fold,
            split=config.train_split,
            samples=then.get("samples"),
            names=then.get("names"),
        )
        for config, then in zip(run.recipe.trained_on, recorded, strict=True)
    ]
    for other in run.recipe.branches.values():  # every edge carries what one branch knows to the other
        seen += [data for data in (other.init.seen if other.init else ()) if data not in seen]
    return Source(
        {key.removeprefix(prefix): v for key, v in content["model"].items() if key.startswith(prefix)},
        f"the branch '{branch}' of the run {folder}",
        config.encoder,
        content["inputs"][config.input],
        tuple(seen),
    )


def _check_encoder(found: Source, config: BranchConfig, key: str) -> None:
    theirs, ours = dict(found.encoder or {}), config.encoder
    if theirs["name"] != ours["name"]:
        raise UserError(
            f"{key}: {found.what} has the encoder {theirs['name']}, and this branch {ours['name']}; set "
            f"{key.replace('init', 'encoder.name')}={theirs['name']}, or choose another run"
        )
    changed = [
        f"{option} {theirs.get(option)}, not {ours.get(option)}"
        for option in sorted({*theirs, *ours} - FREE)
        if theirs.get(option) != ours.get(option)
    ]
    if changed:
        raise UserError(
            f"{key}: {found.what} has an encoder of other options ({'; '.join(changed)}); set them alike, or export "
            "that branch (mmvicreg export) and name the file, which checks names and shapes only"
        )


def settle(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths of its data and weights, so that it means the same anywhere; nothing is read."""

    def absolute(place: str) -> str:
        return place if "://" in place else str(Path(place).expanduser().resolve())

    def data(config: DatasetConfig) -> DatasetConfig:
        if config.root is None:
            return config
        # a link stays one: the files of a manifest lie beside it, not beside what it points to
        return config.model_copy(update={"root": str(Path(config.root).expanduser().absolute())})

    def model(options: dict[str, Any]) -> dict[str, Any]:
        """A text model's folder, which a name of the hub may be as well: as transformers does, what is there counts."""
        name = options.get("model")
        return {**options, "model": absolute(name)} if name is not None and Path(name).is_dir() else options

    def branch(config: BranchConfig) -> BranchConfig:
        update: dict[str, Any] = {}
        if config.init is not None:
            update["init"] = config.init.model_copy(update={"source": absolute(config.init.source)})
        if names_weights(config) and Path(config.encoder["weights"]).expanduser().exists():
            update["encoder"] = {**config.encoder, "weights": absolute(config.encoder["weights"])}
        if config.encoder["name"] == "transformers":
            update["encoder"] = model(config.encoder)
        return config.model_copy(update=update)

    sources = {
        name: source.model_copy(update={"dataset": data(source.dataset)})
        for name, source in recipe.sources.items()
    }
    update = {
        "dataset": data(recipe.dataset),
        "sources": sources,
        "inputs": {name: model(options) for name, options in recipe.inputs.items()},
        "branches": {name: branch(config) for name, config in recipe.branches.items()},
    }
    return recipe.model_copy(update=update)


def names_weights(config: BranchConfig) -> bool:
    """Whether the encoder's own ``weights`` are a path or a URL, which may come to mean something else."""
    return config.encoder.get("weights", "none") not in ("none", "imagenet")


def pin(recipe: Recipe) -> Recipe:
    """The recipe with the checksum of every ``init``'s weights, and what they were trained on.

    Raises:
        UserError: as :func:`find`, or the recipe names another checksum.
    """
    inits: dict[str, InitConfig] = {}
    for name, branch in recipe.branches.items():
        if branch.init is None:
            continue
        found = find(branch.init, name)
        value = digest(found.state)
        if branch.init.sha256 not in (None, value):
            raise UserError(
                f"branches.{name}.init: {found.what} has the sha256 {value}, and the recipe names "
                f"{branch.init.sha256}; name the right weights, or leave out the checksum"
            )
        inits[name] = branch.init.model_copy(update={"sha256": value, "seen": list(found.seen)})
    return _with_inits(recipe, inits)


def pin_as(recipe: Recipe, before: Recipe) -> Recipe:
    """The recipe with the checksums that a run started with, where the two name the same weights."""
    inits: dict[str, InitConfig] = {}
    for name, branch in recipe.branches.items():
        old = before.branches[name].init if name in before.branches else None
        if branch.init is None or old is None or branch.init.sha256 is not None:
            continue
        inits[name] = branch.init.model_copy(update={"sha256": old.sha256, "seen": old.seen})
    return _with_inits(recipe, inits)


def _with_inits(recipe: Recipe, inits: Mapping[str, InitConfig]) -> Recipe:
    if not inits:
        return recipe
    branches = {
        name: branch.model_copy(update={"init": inits[name]}) if name in inits else branch
        for name, branch in recipe.branches.items()
    }
    return recipe.model_copy(update={"branches": branches})


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of a state dict: names, types, shapes and values, in the order of the names."""
    found = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        found.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def same(a: Any, b: Any) -> bool:
    """Whether two trees of plain values and tensors are equal."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)
