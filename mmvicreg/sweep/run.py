"""Training and judging the alternatives of a sweep, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmvicreg import registry
from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.runs import RECIPE, open_run
from mmvicreg.sweep.file import Sweep
from mmvicreg.sweep.finished import Result, changed, finished, is_not_finite, is_whole, judged
from mmvicreg.sweep.split import check_split

if TYPE_CHECKING:
    from mmvicreg.training.launch import Launch


def run_sweep(
    sweep: Sweep,
    plans: Mapping[str, Sequence[Recipe]],
    out: Path,
    *,
    devices: int = 1,
    device: str = "auto",
    workers: int | None = None,
) -> Iterator[Result]:
    """Train and judge every alternative, and give its result.

    A run that stops by itself (a collapse, a loss that is not finite) is a result too: its reason stands in the
    table. Anything else that is the user's to mend ends the sweep.

    Raises:
        UserError: a folder of another recipe, data that are not there or have no such split (before any training).
        SystemExit: a signal asked to stop; the next call continues.
    """
    from mmvicreg.sweep.training import training_report
    from mmvicreg.training.launch import Launch

    done = {result.name: result for result in finished(sweep, plans, out)}
    if sweep.judge == "retrieval":
        check_split(sweep.split, {name: seeds for name, seeds in plans.items() if name not in done}, out)
    for name, seeds in plans.items():
        if name in done:
            yield done[name]
            continue
        result = Result(name, sweep.alternatives[name].group or name, seeds[0])
        for recipe in seeds:
            place = out / name / f"seed{recipe.seed}"
            launch = Launch(recipe, place, (place / RECIPE).is_file(), devices, device, workers)
            try:
                _train(launch, recipe)
                if sweep.judge == "retrieval":
                    asked = {"split": sweep.split, "on_bad_sample": recipe.dataset.on_bad_sample}
                    result.reports.append(_judge(place, asked, devices=devices, device=device))
            except UserError as error:
                if not _stopped_by_itself(error):
                    raise UserError(f"alternative '{name}': {error}") from error
                result.problem = str(error)
            if sweep.judge == "training" and (report := training_report(open_run(place))) is not None:
                result.reports.append(report)
        yield result


def _train(launch: Launch, recipe: Recipe) -> None:
    """Train a run to its end, unless it is there; one that the monitor stopped has had its end."""
    from mmvicreg.sweep.training import verdict_of
    from mmvicreg.training.launch import train

    if launch.resume:
        run = open_run(launch.out)
        same = not changed(run.recipe, recipe)
        if same and is_whole(run, recipe):
            return
        if same and (verdict := verdict_of(run)).stopped is not None:
            raise UserError(f"training stopped: {verdict.message}")
    train(launch)


def _judge(place: Path, asked: Mapping[str, str], *, devices: int, device: str) -> dict[str, Any]:
    """The retrieval protocol's report on a run, made now or read where the same was made of the same epoch."""
    run = open_run(place)
    if (report := judged(run, asked)) is not None:
        return report
    judge = registry.PROTOCOLS.load("retrieval")
    made: dict[str, Any] = judge(run, **asked, devices=devices, device=device)
    return made


def _stopped_by_itself(error: UserError) -> bool:
    return str(error).startswith("training stopped:") or is_not_finite(str(error))
