"""Runs of weights as they are: ``training.epochs: 0`` makes a run folder of what its encoders start from.

Every protocol, ``embed`` and ``export`` take such a run like any other. No data is opened: the recipe's data set stands
for what the weights were trained on. The run "before its first step" is one of random weights, so that a protocol's
untrained encoder is untrained there too; the expanders are random.
"""

from __future__ import annotations

from mmvicreg.branches.model import build_inputs
from mmvicreg.errors import UserError
from mmvicreg.runs import Run, create_run
from mmvicreg.training.checkpoint import list_checkpoints, plain_state, save_checkpoint
from mmvicreg.training.log import say
from mmvicreg.training.setup import build_model


def import_weights(run: Run, *, resume: bool) -> Run:
    """Make the folder of a run that trains for no epoch, with its one checkpoint; with ``resume`` what is left of it.

    Raises:
        UserError: no branch starts from weights, or one reads something else than pictures; or weights that do not fit.
    """
    if resume and list_checkpoints(run.checkpoints):
        say(f"the run {run.path} holds its weights already; nothing is left to do")
        return run
    branches = run.recipe.branches
    if other := [name for name, branch in branches.items() if branch.input != "image"]:
        raise UserError(
            f"no epochs make a run of weights as they are, for branches that read pictures; {', '.join(other)} "
            "cannot be used without training: set training.epochs to 1 or more"
        )
    if bare := [name for name in branches if name not in run.weights]:
        raise UserError(
            f"no epochs make a run of weights as they are, and {', '.join(bare)} would start from none: name them "
            f"with --init {bare[0]}=FILE (or URL, or RUN), or set training.epochs to 1 or more"
        )
    inputs = build_inputs(run.recipe)
    model = build_model(run.recipe, inputs)
    made = run if resume else create_run(run.path, run.recipe)
    content = {
        "model": plain_state(model),
        "optimizer": {},
        "monitor": {},
        "inputs": {name: source.state() for name, source in inputs.items()},
        "data": {"samples": 0, "names": ""},
        "recipe": run.recipe.model_dump(mode="json"),
        "position": {"step": 0, "epoch": 0, "seconds": 0.0},
    }
    save_checkpoint(made.checkpoints, 0, content, keep=1)
    say(
        f"{run.path} holds the weights of {', '.join(f'{name}: {source}' for name, source in run.weights.items())}; "
        "the expander is random, so judge the representation"
    )
    return made
