"""How a branch gets better while it is trained: the quick protocols at every checkpoint that a run has kept.

A run keeps the newest checkpoints, one an epoch (``training.keep_checkpoints``), and that of every k-th epoch besides
(``training.keep_every``). At each of them, and before the first step, the branch is judged by its nearest neighbours
and by the quick linear probe. The curve stands in the run folder and in TensorBoard, beside what training wrote there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmvicreg.errors import UserError
from mmvicreg.eval import knn
from mmvicreg.eval.classification import about, announce, report_file, show
from mmvicreg.eval.labelled import DataOptions, image_branch, labelled_data
from mmvicreg.eval.linear_image import quick_probe
from mmvicreg.eval.output import Report, command_line, save
from mmvicreg.eval.readable import readable
from mmvicreg.metrics.neighbours import check_votes
from mmvicreg.runs import Run
from mmvicreg.skipped import OnBadSample
from mmvicreg.training.checkpoint import list_checkpoints
from mmvicreg.training.distributed import World
from mmvicreg.training.processes import on_processes


def run(
    run: Run,
    *,
    branch: str | None = None,
    k: Sequence[int] = knn.NEIGHBOURS[:1],
    data_root: Path | None = None,
    dataset: str | None = None,
    split: str | None = None,
    train_split: str | None = None,
    on_bad_sample: OnBadSample = "error",
    devices: int = 1,
    device: str = "auto",
) -> Report:
    """Judge a branch at every checkpoint there is, print the table, write ``eval/curve-<split>.json``.

    What is not the default is in the file's name.

    Args:
        run: an opened run with a checkpoint.
        branch: which branch; None: the first that reads pictures.
        k: numbers of neighbours.
        data_root: where the data is; None: where it was in training.
        dataset: another data set with classes than the run's own, by name.
        split: what is tested on; None: ``test`` where there is one, else ``val``.
        train_split: what is trained on and searched; None: what the run was trained on, else ``train``.
        on_bad_sample: ``error``, or ``skip`` as in the other protocols.
        devices: processes on this machine that share the work.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        What was written: ``points``, each with ``epoch``, ``step``, ``linear`` (quick probe) and ``<k>-NN``, top-1 in
        percent, the first of them before training; ``chance``; and what it was measured on.

    Raises:
        UserError: no checkpoint, a run that was not trained, no such branch, data set or split, no labels, too many
            neighbours.
    """
    if run.weights:
        raise UserError(
            f"{run.path} holds weights as they are, and was not trained: eval knn and eval linear judge it"
        )
    check_votes(k, temperature=knn.TEMPERATURE, weighting="exp")
    where = DataOptions(data_root, dataset, split, train_split, on_bad_sample)
    votes = knn.Settings(
        image_branch(run, branch),
        tuple(dict.fromkeys(k)),
        knn.TEMPERATURE,
        "exp",
        "representation",
        False,
        where,
    )
    return on_processes(devices, device, _judge, run, votes)


def _judge(world: World, run: Run, settings: knn.Settings) -> Report:
    """The whole protocol, on each of the processes; the main one prints and writes."""
    found = labelled_data(run, settings.where)
    announce(world, found.data)
    numbers = ",".join(map(str, settings.k))
    changed: dict[str, object] = {"k": numbers} if settings.k != knn.NEIGHBOURS[:1] else {}
    changed |= settings.where.changed(run)
    file = report_file(run, "curve", settings.branch, found.split, found.data, own=found.own, changed=changed)
    if settings.where.on_bad_sample == "skip":
        found = readable(world, run, settings.branch, found, protocol="curve")
    knn.check_enough(found, settings.k)
    points: list[Report] = []
    kept: list[Path | None] = [*list_checkpoints(run.checkpoints)] or [None]
    for checkpoint, untrained in [(kept[-1], True), *((one, False) for one in kept)]:
        at = replace(run, checkpoint=checkpoint)  # one at a time: it holds its checkpoint, optimiser and all
        near = knn.accuracies(world, at, found, settings, untrained=untrained)
        linear = quick_probe(world, at, found, settings.branch, untrained=untrained)
        position = {"epoch": 0, "step": 0} if untrained else at.content["position"]
        points.append(
            {
                "epoch": position["epoch"],
                "step": position["step"],
                "linear": linear.top1,
                **{f"{number}-NN": values["top1"] for number, values in near.items()},
            }
        )
    options: dict[str, object] = {"branch": settings.branch, "k": numbers}
    report: Report = {
        "points": points,
        "published": [],
        **about(
            run,
            settings.branch,
            found,
            command_line("curve", run.path, options | settings.where.flags()),
        ),
    }
    if world.is_main:
        columns = [name for name in points[0] if name not in ("epoch", "step")]
        show(
            f"Epoch by epoch, {found.data.name}: {found.classes} classes, {len(found.train):,} of "
            f"'{found.train_split}', {len(found.test):,} of '{found.split}'",
            {name: f"{name} (quick)" if name == "linear" else name for name in columns},
            _named(points),
            report,
            [
                "Top-1. The probe is the quick variant, on centre crops; epoch 0 is before training. The run kept "
                f"{len(kept)} checkpoints (training.keep_every: K keeps every K-th).",
                f"As curves: tensorboard --logdir {run.path / 'tensorboard'}",
            ],
        )
        save(file, report)
        _draw(run, settings.branch, file, points)
    return report


def _named(points: Sequence[Report]) -> dict[str, Report]:
    """The rows of the table; of one epoch there may be several, where a run was stopped within it."""
    epochs = Counter(point["epoch"] for point in points)
    steps = [f", step {point['step']}" if epochs[point["epoch"]] > 1 else "" for point in points]
    return {f"epoch {point['epoch']}{step}": point for point, step in zip(points, steps, strict=True)}


def _draw(run: Run, branch: str, file: Path, points: Sequence[Report]) -> None:
    """The curve in TensorBoard, in the place of an earlier one of the same name."""
    from torch.utils.tensorboard import SummaryWriter

    folder = run.path / "tensorboard" / file.stem
    try:
        for old in folder.glob("events.*"):
            old.unlink()
        with SummaryWriter(str(folder)) as events:
            for point in points:
                for name in point.keys() - {"epoch", "step"}:
                    events.add_scalar(f"top1/{branch}/{name}", point[name], point["step"])
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
