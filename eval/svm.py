"""VOC07 classification by linear support vector machines on frozen representations (C.3, Table 2).

One against all the others for each of the 20 classes, by LIBLINEAR, on representations of unit length; trained on
trainval, tested on test. What the paper leaves to VISSL is as there and in the benchmark of Goyal et al. 2019:
squared hinge loss, positives weighing 2, C for each class by three-fold cross-validation of its average precision
over 2^-19 ... 2^-4 and 10^-7 ... 10^2; pictures of nothing but difficult objects of a class are negatives in
training and left out in testing. They report the interpolated area under the curve; VOC07's own eleven-point
measure stands beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import make_scorer
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from mmvicreg.errors import UserError
from mmvicreg.eval.classification import announce, published_rows, report_file, show
from mmvicreg.eval.features import features
from mmvicreg.eval.labelled import DataOptions, image_branch, open_data
from mmvicreg.eval.output import Report, command_line, origin, save
from mmvicreg.eval.tasks import saw_split
from mmvicreg.eval.trained_data import in_doubt
from mmvicreg.metrics import (
    average_precision,
    average_precision_11_point,
    interpolated_average_precision,
)
from mmvicreg.progress import progress_bar
from mmvicreg.runs import Run
from mmvicreg.samples import DataSet
from mmvicreg.training.distributed import World, cpu_count
from mmvicreg.training.processes import on_processes

GRID = tuple(sorted([2.0**power for power in range(-19, -3)] + [10.0**power for power in range(-7, 3)]))
"""Values of C that are tried (Goyal et al. 2019, appendix)."""
FOLDS = 3
MEASURES = {
    "area": interpolated_average_precision,
    "eleven_point": average_precision_11_point,
    "uninterpolated": average_precision,
}
_WHOLE = {"trainval": 5_011, "test": 4_952}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassResult:
    """One class.

    Attributes:
        measures: average precision by each of :data:`MEASURES`, percent.
        cost: the C that cross-validation chose.
    """

    measures: Mapping[str, float]
    cost: float


@dataclass(frozen=True)
class Settings:
    """What :func:`run` was asked for, besides the run."""

    branch: str
    grid: tuple[float, ...]
    baseline: bool
    where: DataOptions

    @property
    def costs(self) -> str | None:
        """The values of C as a flag; None: the published ones."""
        return None if self.grid == GRID else ",".join(f"{cost:g}" for cost in self.grid)

    @property
    def changed(self) -> dict[str, object]:
        """Flag -> value of what is not the protocol's default, for the result's name."""
        found: dict[str, object] = {} if self.costs is None else {"costs": self.costs}
        return found if self.baseline else found | {"no-baseline": True}


def run(
    run: Run,
    *,
    branch: str | None = None,
    costs: Sequence[float] = GRID,
    data_root: Path | None = None,
    dataset: str = "voc07",
    baseline: bool = True,
    devices: int = 1,
    device: str = "auto",
) -> Report:
    """Judge a branch on VOC07; print the mean average precision, write ``eval/svm-<data set>-test.json``.

    What is not the default is in the file's name.

    Args:
        run: an opened run with a checkpoint.
        branch: which branch; None: the first that reads pictures.
        costs: values of C to choose from.
        data_root: where the data is; None: the usual place of VOC07.
        dataset: ``voc07``, or another data set with several classes a picture.
        baseline: also judge the run's own initial weights.
        devices: processes on this machine that share the encoding.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        What was written: ``mAP`` (interpolated area) and ``mAP_eleven_point``, percent, the same of the untrained
        encoder, and every class's average precision and C.

    Raises:
        UserError: no such branch or data, data without several classes a picture, a class with too few pictures.
    """
    if not costs or not all(np.isfinite(cost) and cost > 0 for cost in costs):
        raise UserError(f"values of C must be above 0, got {', '.join(map(str, costs)) or 'none'}")
    where = DataOptions(data_root, dataset)
    settings = Settings(image_branch(run, branch), tuple(sorted(set(costs))), baseline, where)
    return on_processes(devices, device, _judge, run, settings)


def _judge(world: World, run: Run, settings: Settings) -> Report:
    """The whole protocol, on each of the processes; the main one fits, prints and writes."""
    data, own = open_data(run, settings.where)
    if not hasattr(data, "targets"):
        raise UserError(
            f"{data.name} does not say which of several classes a picture shows, as eval svm needs; take voc07, or "
            "judge pictures of one class each with mmvicreg eval linear"
        )
    samples = {split: data.samples(split) for split in ("trainval", "test")}
    announce(world, data)
    check_targets(
        data.targets("trainval"), data.targets("test"), classes_of(data)
    )  # before anything is encoded
    seen = saw_split(run, data.name, "test")
    doubt = in_doubt(run, data, samples["test"], seen=seen)
    file = report_file(run, "svm", settings.branch, "test", data, own=own, changed=settings.changed)
    encoded: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = {}
    for name in ("trained", "untrained") if settings.baseline else ("trained",):
        model = run.model(untrained=name == "untrained", device=world.device.type)
        of = f"{'untrained-' if name == 'untrained' else ''}{data.name}"
        train, test = (
            features(world, run, model, settings.branch, part, of=f"{of}-{split}")
            for split, part in samples.items()
        )
        encoded[name] = train, test
    if not world.is_main:  # the rest is for one process, which nobody need wait for
        return {}
    results = {
        name: judge_classes(
            train,
            test,
            data.targets("trainval"),
            data.targets("test"),
            classes_of(data),
            grid=settings.grid,
        )
        for name, (train, test) in encoded.items()
    }
    report = _report(run, data, results, settings)
    report |= {"seen_in_pretraining": seen or doubt is not None, "doubt": doubt}
    _show(report)
    save(file, report)
    return report


def classes_of(data: DataSet) -> tuple[str, ...]:
    """Names of the columns of a data set's ``targets``."""
    named: tuple[str, ...] = getattr(data, "classes_shown", data.classes)
    return named


def judge_classes(
    train: npt.NDArray[np.floating],
    test: npt.NDArray[np.floating],
    train_targets: npt.NDArray[np.integer],
    test_targets: npt.NDArray[np.integer],
    classes: Sequence[str],
    *,
    grid: Sequence[float],
) -> dict[str, ClassResult]:
    """Train and test a support vector machine for every class.

    Args:
        train: ``(n, d)`` representations.
        test: ``(k, d)``.
        train_targets: ``(n, classes)``: 1, -1, or 0 for difficult.
        test_targets: ``(k, classes)``.
        classes: their names.
        grid: values of C.

    Raises:
        UserError: as :func:`check_targets`.
    """
    check_targets(train_targets, test_targets, classes)
    x, y = _unit(train), _unit(test)
    # LIBLINEAR lets go of Python's lock: threads share the features
    with (
        # large values of C do not converge within the protocol's sweeps
        warnings.catch_warnings(action="ignore", category=ConvergenceWarning),
        progress_bar(len(classes), "support vector machines", "class") as bar,
        ThreadPoolExecutor(cpu_count()) as pool,
    ):
        jobs = [
            pool.submit(_judge_class, x, y, train_targets[:, place], test_targets[:, place], grid)
            for place in range(len(classes))
        ]
        found = []
        for job in jobs:
            found.append(job.result())
            bar.advance()
    return dict(zip(classes, found, strict=True))


def check_targets(
    train: npt.NDArray[np.integer], test: npt.NDArray[np.integer], classes: Sequence[str]
) -> None:
    """Refuse classes that no machine can be trained for or tested on.

    Args:
        train: ``(n, classes)``: 1, -1, or 0 for difficult.
        test: ``(k, classes)``.
        classes: their names.

    Raises:
        UserError: a class that fewer training pictures show, or do not show, than there are folds; one that no test
            picture shows.
    """
    for place, name in enumerate(classes):
        shown, tested = int((train[:, place] == 1).sum()), int((test[:, place] == 1).sum())
        for count, least, what in (
            (shown, FOLDS, "pictures among the training samples"),
            (len(train) - shown, FOLDS, "training samples that do not show it"),
            (tested, 1, "pictures among the test samples"),
        ):
            if count < least:
                raise UserError(f"the class {name} has {count} {what}; {least} at least are needed")


def _judge_class(
    x: Floats,
    y: Floats,
    train: npt.NDArray[np.integer],
    test: npt.NDArray[np.integer],
    grid: Sequence[float],
) -> ClassResult:
    labels = np.where(train == 1, 1, -1)  # difficult ones are negatives here
    reached = [cross_val_score(machine(cost), x, labels, cv=FOLDS, scoring=_SCORER).mean() for cost in grid]
    cost = grid[int(np.argmax(reached))]  # of equal ones the smallest
    decision = machine(cost).fit(x, labels).decision_function(y)
    counted = test != 0
    return ClassResult(
        {name: 100 * measure(decision[counted], test[counted] == 1) for name, measure in MEASURES.items()},
        cost,
    )


def machine(cost: float) -> LinearSVC:
    """The support vector machine of the benchmark."""
    return LinearSVC(
        C=cost,
        class_weight={1: 2, -1: 1},
        penalty="l2",
        loss="squared_hinge",
        dual=True,
        tol=1e-4,
        max_iter=2000,
        random_state=0,
    )


def _score(truth: npt.NDArray[np.integer], scores: Floats) -> float:
    return average_precision(scores, truth == 1)


_SCORER: Any = make_scorer(_score, response_method="decision_function")


def _unit(vectors: npt.NDArray[np.floating]) -> Floats:
    x = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(lengths > 0, lengths, 1.0))


def _report(
    run: Run, data: DataSet, results: Mapping[str, Mapping[str, ClassResult]], settings: Settings
) -> Report:
    means = {
        name: {
            measure: float(np.mean([result.measures[measure] for result in found.values()]))
            for measure in MEASURES
        }
        for name, found in results.items()
    }
    targets = data.targets("test")  # type: ignore[attr-defined]
    known = [targets[targets[:, place] != 0, place] == 1 for place in range(targets.shape[1])]
    sizes = {split: len(data.samples(split)) for split in ("trainval", "test")}
    options: dict[str, object] = {"branch": settings.branch, **settings.where.flags()}
    options["costs"] = settings.costs
    line = command_line("svm", run.path, options)
    whole = data.name == "voc07" and sizes == _WHOLE and settings.costs is None
    return {
        "mAP": means["trained"]["area"],
        "mAP_eleven_point": means["trained"]["eleven_point"],
        "mAP_uninterpolated": means["trained"]["uninterpolated"],
        "untrained_mAP": means["untrained"]["area"] if "untrained" in means else None,
        "untrained_mAP_eleven_point": means["untrained"]["eleven_point"] if "untrained" in means else None,
        "means": means,
        "chance": float(100 * np.mean([positive.mean() for positive in known])),
        "per_class": {
            name: {"AP": {k: float(v) for k, v in result.measures.items()}, "C": result.cost}
            for name, result in results["trained"].items()
        },
        "costs": list(settings.grid),
        "folds": FOLDS,
        "branch": settings.branch,
        "encoder": run.recipe.branches[settings.branch].encoder["name"],
        "dataset": data.name,
        "split": "test",
        "train": sizes["trainval"],
        "test": sizes["test"],
        "published": published_rows(2, {"area": "VOC07 mAP"}) if whole else [],
        **origin(run, line if settings.baseline else f"{line} --no-baseline"),
    }


def _show(report: Report) -> None:
    chosen = sorted(values["C"] for values in report["per_class"].values())
    show(
        f"Linear SVMs, {report['dataset']}: {len(report['per_class'])} classes, {report['train']:,} training and "
        f"{report['test']:,} test pictures",
        {"area": "mAP (area)", "eleven_point": "mAP (VOC07's 11 points)"},
        report["means"],
        report,
        [
            "Mean average precision; area: interpolated, as the published rows.",
            f"C from {chosen[0]:g} to {chosen[-1]:g} (median {chosen[len(chosen) // 2]:g}) of {len(report['costs'])} "
            f"values, by {report['folds']}-fold cross-validation.",
        ],
    )
