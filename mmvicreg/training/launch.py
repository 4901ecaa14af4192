"""Starting a run: in this process, under torchrun or SLURM, or as several processes of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmvicreg.branches.init import pin, pin_as, settle
from mmvicreg.config import LEFT_TO_THE_MACHINE, DatasetConfig, Recipe
from mmvicreg.datasets import check_evaluation_split, open_dataset
from mmvicreg.errors import UserError
from mmvicreg.locking import alone_in
from mmvicreg.recipes import differences, dump_recipe, say_differences
from mmvicreg.runs import RECIPE, Run, check_free, create_run, is_free, open_run, write_whole
from mmvicreg.training.checkpoint import list_checkpoints
from mmvicreg.training.distributed import (
    World,
    check_devices,
    from_main,
    join_world,
    leave_world,
    own_cores,
    started_by_others,
)
from mmvicreg.training.log import say
from mmvicreg.training.processes import Stopped, start_processes
from mmvicreg.training.setup import resolve_precision

if TYPE_CHECKING:
    from mmvicreg.training.loop import Trainer


@dataclass(frozen=True)
class Launch:
    """What decides how a run is carried out, and nothing of its result.

    Attributes:
        recipe: the resolved recipe; None takes that of the run folder (with ``resume``).
        out: the run folder.
        resume: continue the run that is there.
        devices: processes to start on this machine.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: loader workers per process; None: the cores there are, shared out, at most 8.
        whole: the folder of runs by fold that it is one of, which is continued as a whole.
    """

    recipe: Recipe | None
    out: Path
    resume: bool = False
    devices: int = 1
    device: str = "auto"
    workers: int | None = None
    whole: Path | None = None

    @property
    def way_on(self) -> str:
        """How it is taken up again after it was stopped."""
        if not (self.out / RECIPE).is_file():
            return "nothing is kept of a run that had not begun; start it again"
        return f"continue with: mmvicreg train --resume --out {self.whole or self.out}"


def train(launch: Launch) -> Path:
    """Train a run and return its folder.

    ``devices > 1`` starts that many processes through torchrun's elastic agent; a process that torchrun or
    srun started joins the others; a single one needs no process group.

    Raises:
        UserError: anything of the user's that is wrong, found in any process.
        SystemExit: 128 + signal, after a checkpoint, when SIGINT or SIGTERM asked to stop.
    """
    try:
        if launch.devices == 1 or started_by_others():
            _worker(launch)
        else:
            check_devices(launch.devices, launch.device)
            start_processes(launch.devices, _worker, launch)
    except Stopped as stopped:
        say(f"stopped by {signal.Signals(stopped.signal).name}; {launch.way_on}")
        raise SystemExit(128 + stopped.signal) from None
    return launch.out


def _worker(launch: Launch) -> None:
    """One process's whole run; :class:`Stopped` when a signal ended it, after a checkpoint."""
    from mmvicreg.training.imported import import_weights
    from mmvicreg.training.loop import Trainer

    world = join_world(launch.device)
    held = ExitStack()
    try:
        if launch.resume:
            _together(world, lambda: _hold(held, open_run(launch.out)))
        run = _together(world, lambda: _plan(launch, world.device))
        if not run.recipe.training.epochs:
            _together(world, lambda: import_weights(run, resume=launch.resume))
            if launch.resume:
                _together(world, lambda: _keep_recipe(run))
            return
        trainer = Trainer(run, world, resume=_resumes(launch, run), workers=_workers(launch, world))
        if launch.resume:
            _together(world, lambda: _keep_recipe(run))
        else:
            # only now, when nothing the user gave can be wrong any more: a mistake leaves no folder behind
            _together(world, lambda: _hold(held, _create(run, trainer)))
        stopped_by = trainer.train().stopped_by
    finally:
        held.close()
        leave_world()
    if stopped_by is not None:
        raise Stopped(stopped_by)


def _hold(held: ExitStack, run: Run) -> Run:
    """The run, as long as this process trains it its own: two would write over each other's checkpoints."""
    held.enter_context(alone_in(run.path, "trains the run in"))
    return run


def _create(run: Run, trainer: Trainer) -> Run:
    """Make the run's folder, with what its encoders start from."""
    made = create_run(run.path, run.recipe)
    made.save_initial(trainer.model)
    return made


def _together(world: World, action: Callable[[], Run]) -> Run:
    """Let the main process act and give every process its result, or its user's mistake."""
    result: Run | str | None = None
    if world.is_main:
        try:
            result = action()
        except UserError as error:
            result = str(error)
    result = from_main(result)
    if not isinstance(result, Run):
        raise UserError(str(result))
    return result


def _plan(launch: Launch, device: torch.device) -> Run:
    """The run as it will be, or the one that is there to be resumed; nothing is written."""
    if not launch.resume:
        if launch.recipe is None:
            raise UserError("a new run needs a pair: mmvicreg train --pair image-text --dataset shapes")
        check_free(launch.out)
        return Run(launch.out, pin(_resolve(launch.recipe, device)))
    run = open_run(launch.out)
    if launch.recipe is None:
        return run
    asked = pin_as(_resolve(launch.recipe, device), run.recipe)
    # what was left to the machine was resolved where the run began
    if launch.recipe.training.precision in LEFT_TO_THE_MACHINE:
        asked = _with_precision(asked, run.recipe.training.precision)
    changed = [line for line in differences(settle(run.recipe), asked) if not is_free(line)]
    if changed:
        raise UserError(
            f"the run {launch.out} was started with another recipe ({say_differences(changed)}); give the same "
            "one, name only --resume --out, or choose another --out"
        )
    sources = {
        name: source.model_copy(update={"dataset": _placed(source.dataset, run.recipe.sources[name].dataset)})
        for name, source in asked.sources.items()
    }
    update = {"dataset": _placed(asked.dataset, run.recipe.dataset), "sources": sources}
    return Run(run.path, asked.model_copy(update=update))


def _placed(asked: DatasetConfig, before: DatasetConfig) -> DatasetConfig:
    """A data set as a resumed run is told it is now; where nothing is said of its place, it is where it was."""
    return asked if asked.root is not None else asked.model_copy(update={"root": before.root})


def _keep_recipe(run: Run) -> Run:
    """Write down what a resumed run was told anew: where its data is, and whatever else decides no weight.

    What judges or resumes it next goes by that: data that was moved is no longer where the run began.
    """
    before = open_run(run.path).recipe
    if told := differences(before, run.recipe):
        if run.recipe.training.epochs:  # a run of weights as they are needs no data
            _check_eval_splits(before, run.recipe)
        write_whole(run.path / RECIPE, dump_recipe(run.recipe))
        say(f"what {run.path / RECIPE} says anew: {say_differences(told)}")
    return run


def _check_eval_splits(before: Recipe, now: Recipe) -> None:
    """Refuse a split to judge on that a resumed run is told anew, and that its data do not have."""
    pairs = [(before.dataset, now.dataset)]
    pairs += [(before.sources[name].dataset, source.dataset) for name, source in now.sources.items()]
    for then, config in pairs:
        if config.eval_split not in (None, then.eval_split):
            root = Path(config.root) if config.root is not None else None
            check_evaluation_split(open_dataset(config.name, root=root), config.eval_split)


def _resolve(recipe: Recipe, device: torch.device) -> Recipe:
    return settle(_with_precision(recipe, resolve_precision(recipe.training.precision, device)))


def _with_precision(recipe: Recipe, precision: str) -> Recipe:
    training = recipe.training.model_copy(update={"precision": precision})
    return recipe.model_copy(update={"training": training})


def _resumes(launch: Launch, run: Run) -> bool:
    """Whether there is something to continue from: a run killed in its first epoch starts again."""
    return launch.resume and bool(list_checkpoints(run.checkpoints))


def _workers(launch: Launch, world: World) -> int:
    if launch.workers is not None:
        return launch.workers
    return min(8, own_cores(world.size))
