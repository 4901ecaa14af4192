"""A sweep: alternatives of one recipe, trained one after another, judged in one table.

A sweep file (``configs/<pair>/sweeps/<name>.yaml``)::

    pair: image-text
    dataset: flickr8k              # and/or recipe: a name in configs/<pair>, or a file
    judge: retrieval               # the default; training: loss, spread, rank, and what the monitor said
    split: val                     # retrieval is judged on; test data are refused, because a sweep chooses
    settings: {training.epochs: 9} # dotted keys of the recipe, for every run
    seeds: [0, 1, 2]               # default [0]; with several the table has mean and deviation
    alternatives:
      paper: {}                    # the recipe as it is
      wide: {group: vicreg, method: vicreg, settings: {branches.image.variance: 10}}
      flat: {settings: {branches.image.variance: 0}, paper: collapse}     # the paper's figure, shown beside ours

Every run is a folder of its own, ``OUT/<alternative>/seed<n>``. A second call trains what is missing, continues
what was interrupted, judges what has not been judged, and writes ``OUT/sweep.json`` and ``OUT/sweep.md`` anew,
with what alternatives that were not asked for came to before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from mmvicreg import registry
from mmvicreg.config import LEFT_TO_THE_MACHINE, Recipe
from mmvicreg.errors import UserError
from mmvicreg.recipes import differences, load_recipe, recipe_path, recipes_folder
from mmvicreg.registry import check_pair
from mmvicreg.runs import RECIPE, Run, open_run
from mmvicreg.strict import Strict
from mmvicreg.sweep_split import check_split

if TYPE_CHECKING:
    from mmvicreg.training.launch import Launch


_PLACE = re.compile(r"(sources\.[^.]+\.)?dataset\.(root|on_bad_sample):")
"""Lines of :func:`differences` that make no other run of it: where its data are, and what is done with damaged ones."""


class Alternative(Strict):
    """One line of the table."""

    method: str | None = None
    """Objective by name; null: the recipe's."""
    group: str | None = None
    """Alternatives of one group compete, and the best stands for it; null: a group of its own."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys of the recipe, after those of the whole sweep."""
    paper: float | str | None = None
    """What the paper has for it, for the table; null: nothing."""


class Sweep(Strict):
    """A sweep file."""

    pair: str
    dataset: str | None = None
    recipe: str | None = None
    judge: Literal["retrieval", "training"] = "retrieval"
    split: str = "val"
    settings: dict[str, Any] = Field(default_factory=dict)
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, default_factory=lambda: [0])]
    alternatives: Annotated[dict[str, Alternative], Field(min_length=1)]

    @field_validator("pair")
    @classmethod
    def _pair(cls, pair: str) -> str:
        check_pair(pair)
        return pair

    @field_validator("split")
    @classmethod
    def _validation(cls, split: str) -> str:
        if any("test" in part or part == "all" for part in split.split("+")):
            raise ValueError(f"a sweep chooses, so it is judged on validation data, not on '{split}'")
        return split

    @field_validator("alternatives", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        for name in value if isinstance(value, Mapping) else ():
            if not str(name) or any(mark in str(name) for mark in "/\\") or str(name).startswith("."):
                raise ValueError(f"'{name}' names a folder, so it must not hold '/' nor begin with '.'")
        return {str(name): one or {} for name, one in value.items()} if isinstance(value, Mapping) else value


@dataclass
class Result:
    """What one alternative came to, over its seeds.

    Attributes:
        name: the alternative.
        group: which others it competes with.
        recipe: of its first seed.
        reports: one a seed that was judged: of the retrieval protocol, or on its training.
        problem: why a seed has none; empty where all were judged.
    """

    name: str
    group: str
    recipe: Recipe
    reports: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""

    @property
    def rsum(self) -> float | None:
        """Mean over seeds of the sum of all recalls, in percent; None where a seed or retrieval is missing."""
        if self.problem or not all("rsum" in report for report in self.reports) or not self.reports:
            return None
        return float(sum(report["rsum"] for report in self.reports) / len(self.reports))


def with_seeds(sweep: Sweep, seeds: str) -> Sweep:
    """The sweep with other seeds, ``"0,1,2"``.

    Raises:
        UserError: that is no list of whole numbers from 0 on, or one stands there twice.
    """
    words = seeds.split(",")
    if not all(word.strip().isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise UserError(f"--seeds takes whole numbers from 0 on, each once, parted by commas; got '{seeds}'")
    return sweep.model_copy(update={"seeds": [int(word) for word in words]})


def sweep_path(name: str) -> Path:
    """The file of a shipped sweep by name, or of one's own by path.

    Raises:
        UserError: no such sweep.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise UserError(f"no sweep file '{name}'")
        return Path(name)
    known = {path.stem: path for path in sorted(recipes_folder().glob("*/sweeps/*.yaml"))}
    if name not in known:
        raise UserError(
            f"no sweep '{name}'{registry.nearest(name, known)} Known: {', '.join(known)}; or give the path of a file."
        )
    return known[name]


def read_sweep(path: Path) -> Sweep:
    """A sweep file.

    Raises:
        UserError: not YAML, an unknown key, or judged on test data.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Sweep.model_validate(tree)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the sweep {path}: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        )
        raise UserError(f"the sweep {path}: {problems}") from error


def recipes(
    sweep: Sweep, *, overrides: Mapping[str, Any] | None = None, settings: Sequence[str] = ()
) -> dict[str, list[Recipe]]:
    """Alternative -> its recipe, once a seed.

    Args:
        sweep: the file.
        overrides: dotted keys for every run, after the sweep's own (``dataset.root``, ``training.epochs``).
        settings: ``key=value`` for every run, last.

    Raises:
        UserError: a key or value that the recipe does not take; the alternative is named.
    """
    found: dict[str, list[Recipe]] = {}
    path = recipe_path(sweep.pair, sweep.dataset or registry.PAIRS[sweep.pair], sweep.recipe)
    for name, one in sweep.alternatives.items():
        tree = {"pair": sweep.pair, "dataset.name": sweep.dataset, "objective": one.method}
        given = {key: value for key, value in tree.items() if value is not None}
        lines = [f"{key}={json.dumps(value)}" for key, value in (sweep.settings | one.settings).items()]
        lines += [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()]
        try:
            recipe = load_recipe(path, given, [*lines, *settings])
        except UserError as error:
            raise UserError(f"alternative '{name}': {error}") from error
        found[name] = [recipe.model_copy(update={"seed": seed}) for seed in sweep.seeds]
    return found


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
    from mmvicreg.sweep_training import training_report
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
    from mmvicreg.sweep_training import verdict_of
    from mmvicreg.training.launch import train

    if launch.resume:
        run = open_run(launch.out)
        same = not _changed(run.recipe, recipe)
        if same and _is_whole(run, recipe):
            return
        if same and (verdict := verdict_of(run)).stopped is not None:
            raise UserError(f"training stopped: {verdict.message}")
    train(launch)


def _is_whole(run: Run, recipe: Recipe) -> bool:
    """Whether a run was trained to the end of a recipe."""
    from mmvicreg.training.checkpoint import list_checkpoints

    return bool(list_checkpoints(run.checkpoints)) and run.epochs_done >= recipe.training.epochs


def _changed(old: Recipe, new: Recipe) -> list[str]:
    """What differs of a run's recipe but where the data lie, and what it was told when it began.

    That is a precision that was left to the machine, absolute paths, and the checksums of weights it starts from.
    """
    from mmvicreg.branches.init import pin_as, settle

    lines = differences(settle(old), pin_as(settle(new), old))
    left = new.training.precision in LEFT_TO_THE_MACHINE
    return [
        line
        for line in lines
        if not _PLACE.match(line) and not (left and line.startswith("training.precision:"))
    ]


def _judge(place: Path, asked: Mapping[str, str], *, devices: int, device: str) -> dict[str, Any]:
    """The retrieval protocol's report on a run, made now or read where the same was made of the same epoch."""
    run = open_run(place)
    if (report := _judged(run, asked)) is not None:
        return report
    judge = registry.PROTOCOLS.load("retrieval")
    made: dict[str, Any] = judge(run, **asked, devices=devices, device=device)
    return made


def _judged(run: Run, asked: Mapping[str, str]) -> dict[str, Any] | None:
    """The report that lies in a run's folder, where it is what the sweep would make."""
    file = run.path / "eval" / f"retrieval-{asked['split']}.json"
    if not file.is_file():
        return None
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return report if _as_asked(report, run, asked) else None
    except (ValueError, KeyError, AttributeError):
        return None  # half a file is no report


def finished(sweep: Sweep, plans: Mapping[str, Sequence[Recipe]], out: Path) -> list[Result]:
    """The alternatives that an earlier call trained and judged by these recipes, all seeds of each; nothing is made.

    What is half done, of another recipe or unreadable is left out: a call for that alternative says what it is.
    """
    found = []
    for name, seeds in plans.items():
        result = Result(name, sweep.alternatives[name].group or name, seeds[0])
        try:
            if all(
                _add_finished(result, sweep, recipe, out / name / f"seed{recipe.seed}") for recipe in seeds
            ):
                found.append(result)
        except UserError:
            continue
    return found


def _add_finished(result: Result, sweep: Sweep, recipe: Recipe, place: Path) -> bool:
    """Add one seed's report, or why it has none; False where it is not finished."""
    from mmvicreg.sweep_training import training_report, verdict_of

    if not (place / RECIPE).is_file():
        return False
    run = open_run(place)
    if _changed(run.recipe, recipe):
        return False
    report: dict[str, Any] | None = None
    if not _is_whole(run, recipe):
        # one that was stopped may have been continued all the same, to its end
        if (verdict := verdict_of(run)).stopped is None:
            return False
        result.problem = f"training stopped: {verdict.message}"
    elif sweep.judge == "retrieval":
        asked = {"split": sweep.split, "on_bad_sample": recipe.dataset.on_bad_sample}
        if (report := _judged(run, asked)) is None:
            return False
    if sweep.judge == "training":
        report = training_report(run)
    if report is not None:
        result.reports.append(report)
    return True


def _as_asked(report: Mapping[str, Any], run: Run, asked: Mapping[str, str]) -> bool:
    """Whether a report that lies there is what the sweep would make: somebody may have judged the run otherwise."""
    reading = run.recipe.evaluation
    return (
        report["epoch"] == run.epochs_done
        and report["dataset"] == run.recipe.dataset.name
        and report["protocol"] == "all"
        and (report["space"], report["similarity"]) == (reading.space, reading.similarity)
        and not any("search" in part for part in report.values() if isinstance(part, Mapping))
        and (asked["on_bad_sample"] == "skip" or not report["skipped"])
    )


def _stopped_by_itself(error: UserError) -> bool:
    return str(error).startswith(("training stopped:", "step ")) or " gives NaN or infinity for " in str(
        error
    )


def changes(base: Recipe, recipe: Recipe) -> list[str]:
    """What an alternative changes of another, as ``key=value``; the seed and the place of the data aside."""
    lines = []
    for line in differences(base, recipe):
        key, _, values = line.partition(": ")
        value = values.partition(" -> ")[2]
        if key not in ("seed", "dataset.root") and value != "absent":
            lines.append(f"{key}={value}")
    return lines


def base_recipe(sweep: Sweep) -> Recipe:
    """The sweep's recipe file, nothing changed but the data set's name."""
    path = recipe_path(sweep.pair, sweep.dataset or registry.PAIRS[sweep.pair], sweep.recipe)
    return load_recipe(path, {"dataset.name": sweep.dataset} if sweep.dataset else {})
