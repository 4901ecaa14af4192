"""The linear protocol: what a linear classifier can read from frozen representations.

Data in folds. The probe is trained on all folds but one and tested on that one. When the run did not see
that fold in pretraining either, the result is *inductive*; otherwise it is labelled *transductive*. A
folder of runs ``fold1``, ``fold2``, ... that each held out their own fold gives the published protocol:
mean and standard deviation over the folds.

Data in splits. The probe is trained on the run's training split and tested on its evaluation split.

Beside it stand the same probe on the untrained encoders (each run's own initial weights), on other runs of the
same data and folds (``compare``), and networks trained on the labels (:mod:`mmvicreg.eval.supervised`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmvicreg.datasets import open_dataset
from mmvicreg.encode import encode
from mmvicreg.errors import UserError
from mmvicreg.eval import supervised as baseline
from mmvicreg.eval.fold_runs import check_finished, check_fold_runs, one_of
from mmvicreg.eval.linear_report import compared, summarise
from mmvicreg.eval.linear_rivals import open_rival
from mmvicreg.eval.linear_table import show
from mmvicreg.eval.output import Report, bad_sample_flag, command_line, save, short, write_report
from mmvicreg.eval.probe import Outcome, ProbeResult, Task, chance_level, probe
from mmvicreg.eval.readable import find_skipped, list_skipped, without
from mmvicreg.eval.tasks import check_tasks, groups_of, labels_of, other_split, related, tasks_of
from mmvicreg.eval.trained_data import check_trained_data, elsewhere, in_doubt
from mmvicreg.runs import Run, check_writable, fold_runs, open_run
from mmvicreg.samples import DataSet, Sample
from mmvicreg.skipped import OnBadSample, Skipped
from mmvicreg.training.log import say

Features = Mapping[str, npt.NDArray[np.float32]]
"""Branch (or branches joined by ``+``) -> representations ``(n, d)``."""


def run(
    run: Run | Path,
    *,
    data_root: Path | None = None,
    dataset: str | None = None,
    fold: int | None = None,
    split: str | None = None,
    compare: Sequence[Path] = (),
    supervised: bool = False,
    on_bad_sample: OnBadSample = "error",
    device: str = "auto",
) -> Report:
    """Probe every branch of a run that is not text, and all of them side by side, concatenated.

    Prints a table and writes ``eval/linear.json`` into the run folder (and, for a folder of runs by fold,
    into that folder and each run's own). Another data set is added to the file's name, and so is a fold that is not
    the one held out, another split than the usual one, or the folder of other data under the run's data set's name:
    ``linear-<dataset>-fold<fold>.json``.

    Args:
        run: an opened run with a checkpoint, a run folder, or a folder of runs ``fold1``, ``fold2``, ...
        data_root: where the data is; None: where it was in training.
        dataset: another labelled data set than the run's own, by name.
        fold: for data in folds, the fold to test on; None: the one the run held out, and every fold in
            turn for a run that held out none.
        split: for data in splits, the split to test on; None: the recipe's ``eval_split``, else ``test`` or ``val``.
        compare: folders of other runs of the same data and folds, to be probed too.
        supervised: train the supervised baseline where it is not there yet; what is there is shown in any case.
        on_bad_sample: ``error`` stops at a sample that cannot be read; ``skip`` reads all of them once before, leaves
            such out of every method's training and test samples, and lists them in the run folder,
            ``eval/skipped-<data set>-linear.jsonl``.
        device: ``auto``, ``cpu`` or ``cuda``; where it is encoded, and the supervised baseline trained.

    Returns:
        What was written: ``top1``, ``untrained_top1``, ``std`` and ``folds`` of the branch named under
        ``branch`` (the last), ``chance``, ``transductive``, ``classes``, ``train`` (samples per probe),
        ``test`` (samples over all probes), ``skipped``, and the same per branch under ``branches``; every method's
        branches under ``methods``; ``doubt``, why it is not known whether pretraining saw the test samples, or None
        (that of a run compared with is in its method).

    Raises:
        UserError: no labels, no such fold, runs that do not make up a set of finished folds, no branch to probe,
            runs that do not compare, or folds of other samples than the run was trained on.
    """
    path, runs = _opened(run, fold)
    by_fold = None not in runs
    members = list(runs.values())
    for folder in (path, *(member.path for member in members)):
        check_writable(folder / "eval" / "linear.json")
    data, own = _open(members[0], data_root=data_root, dataset=dataset)
    split = other_split(members[0], data, split, own=own)
    place = elsewhere(members[0], data)  # of the data as they are there, what cannot be read among them
    listed = "linear" if split is None else f"linear-{split}"
    if by_fold:
        check_fold_runs(path, {number: member for number, member in runs.items() if number}, data)
        check_finished(path, members)
    doubt = _doubt(runs, data, own=own, fold=fold, split=split)
    if doubt is not None and supervised and not by_fold:
        check_trained_data(members[0], data)
    rivals = [open_rival(other, members, by_fold=by_fold) for other in compare]
    doubts = [
        _doubt(dict(zip(runs, rival.runs, strict=True)), data, own=own, fold=fold, split=split)
        for rival in rivals
    ]  # each its own: the data are the same, but not what its weights may have started from
    skipped: list[Skipped] = []
    if on_bad_sample == "skip":
        samples, _ = tasks_of(members[0], data, own=own, fold=fold, split=split)
        skipped = find_skipped(members[0], _branches(members[0]), samples)
        data = without(data, skipped)
    for number, member in runs.items():
        samples, tasks = tasks_of(member, data, own=own, fold=number or fold, split=split)
        check_tasks(samples, tasks, data)
    labelled = None
    if own and fold in (None, members[0].recipe.dataset.fold):
        labelled = _supervised(
            path,
            members,
            data,
            split=split,
            data_root=data_root,
            train=supervised,
            on_bad_sample=on_bad_sample,
            device=device,
        )
    elif supervised:
        raise UserError("a supervised baseline is of the run's own data set and of the fold it held out")
    outcomes: list[Outcome] = []
    for number, member in runs.items():
        found = _judge(member, data, own=own, fold=number or fold, split=split, doubt=doubt, device=device)
        if by_fold:
            command = _command(
                member.path, data_root=data_root, dataset=dataset, fold=number, on_bad_sample=on_bad_sample
            )
            report = summarise(found, data, [member], path=member.path, command=command)
            report["doubt"] = doubt
            report |= list_skipped(member.path, data, "linear", skipped)
            write_report(
                member.path / "eval" / _file(member, data, own=own, fold=number, place=place), report
            )
        outcomes += found
    command = _command(
        path,
        data_root=data_root,
        dataset=dataset,
        fold=fold,
        split=split,
        on_bad_sample=on_bad_sample,
        compare=compare,
        supervised=supervised,
    )
    report = summarise(outcomes, data, members, path=path, command=command)
    report["doubt"] = doubt
    report |= list_skipped(path, data, listed, skipped)
    for rival, its_doubt in zip(rivals, doubts, strict=True):
        found = [
            outcome
            for number, member in zip(runs, rival.runs, strict=True)
            for outcome in _judge(
                member,
                data,
                own=own,
                fold=number or fold,
                split=split,
                doubt=its_doubt,
                device=device,
                untrained=False,
            )
        ]
        report["methods"].append(compared(found, rival) | {"doubt": its_doubt})
    if labelled is not None:
        report["methods"].append(labelled)
    file = path / "eval" / _file(members[0], data, own=own, fold=fold, split=split, place=place)
    show(report)
    save(file, report)
    return report


def _opened(run: Run | Path, fold: int | None) -> tuple[Path, dict[int | None, Run]]:
    """The folder that is judged, and the runs in it: by fold, or one alone under None."""
    if isinstance(run, Path):
        members = fold_runs(run)
        if members and fold is None:
            return run, {number: open_run(path) for number, path in members.items()}
        run = open_run(one_of(run, members, fold) if members and fold is not None else run)
    return run.path, {None: run}


def _doubt(
    runs: Mapping[int | None, Run], data: DataSet, *, own: bool, fold: int | None, split: str | None
) -> str | None:
    """Why it is not known of one of the runs whether it saw what it is tested on, in words.

    Raises:
        UserError: the fold that one held out is not the one it held out then.
    """
    for number, member in runs.items():
        samples, tasks = tasks_of(member, data, own=own, fold=number or fold, split=split)
        tested = [samples[i] for task in tasks for i in task.test]
        doubt = in_doubt(member, data, tested, seen=all(task.transductive for task in tasks))
        if doubt is not None:
            return doubt
    return None


def _supervised(
    path: Path,
    runs: Sequence[Run],
    data: DataSet,
    *,
    split: str | None,
    data_root: Path | None,
    train: bool,
    on_bad_sample: OnBadSample,
    device: str,
) -> Report | None:
    """The supervised baseline's part of the report, where it is there or is to be trained."""
    if train:
        results: Sequence[Report | None] = baseline.obtain(
            runs, data, split=split, data_root=data_root, on_bad_sample=on_bad_sample, device=device
        )
    else:
        results = baseline.supervised_results(runs, data, split=split)
    done = [result for result in results if result is not None]
    if len(done) < len(runs):
        if done:
            say(
                f"the supervised baseline is there for {len(done)} of {len(runs)} folds: eval supervised {path}"
            )
        return None
    found = baseline.summarise_supervised(done, path=path, command="")
    return {
        "method": "supervised",
        "transductive": False,
        **{key: found[key] for key in ("branches", "epochs", "both", "run")},
    }


def _open(run: Run, *, data_root: Path | None, dataset: str | None) -> tuple[DataSet, bool]:
    """The data set, and whether it is the run's own."""
    if dataset is None or dataset == run.recipe.dataset.name:
        return run.dataset(root=data_root), True
    return open_dataset(dataset, root=data_root), False


def _judge(
    run: Run,
    data: DataSet,
    *,
    own: bool,
    fold: int | None,
    split: str | None,
    doubt: str | None,
    device: str,
    untrained: bool = True,
) -> list[Outcome]:
    branches = _branches(run)
    samples, tasks = tasks_of(run, data, own=own, fold=fold, split=split)
    if doubt is not None:  # it may have seen them
        tasks = [replace(task, transductive=True) for task in tasks]
    labels = labels_of(samples, data)
    trained = _features(run, branches, samples, untrained=False, device=device)
    initial = _features(run, branches, samples, untrained=True, device=device) if untrained else {}

    def judge(features: Features, task: Task) -> dict[str, ProbeResult]:
        return {
            name: probe(
                x[task.train],
                labels[task.train],
                x[task.test],
                labels[task.test],
                groups=groups_of([samples[i] for i in task.train]),
                classes=len(data.classes),
            )
            for name, x in features.items()
        }

    return [
        Outcome(
            task,
            judge(trained, task),
            judge(initial, task),
            chance_level(labels[task.train], labels[task.test], classes=len(data.classes)),
        )
        for task in tasks
    ]


def _branches(run: Run) -> list[str]:
    """Names of a run's branches that have one representation a sample."""
    branches = [name for name, config in run.recipe.branches.items() if config.input != "text"]
    if not branches:
        raise UserError(
            f"the run {run.path} has only text branches; the linear protocol has nothing to probe"
        )
    return branches


def _features(
    run: Run, branches: Sequence[str], samples: Sequence[Sample], *, untrained: bool, device: str
) -> Features:
    model = run.model(untrained=untrained, device=device)
    which = "untrained " if untrained else ""
    found = {
        branch: encode(
            model,
            branch,
            samples,
            space="representation",
            batch_size=run.recipe.evaluation.batch_size,
            description=f"encoding with {which}{branch}",
        ).vectors
        for branch in branches
    }
    if len(found) > 1:
        found["+".join(branches)] = np.hstack(list(found.values()))
    return found


def _file(
    run: Run,
    data: DataSet,
    *,
    own: bool,
    fold: int | None,
    split: str | None = None,
    place: Mapping[str, object],
) -> str:
    """``linear.json`` is of what is judged when nothing is asked for; that of another fold or split is kept apart."""
    words = ["linear", *([] if own else [data.name])]
    if fold is not None and not (
        fold == run.recipe.dataset.fold and related(data.name, run.recipe.dataset.name)
    ):
        words.append(f"fold{fold}")
    words += [split] if split is not None else []
    words += [f"{flag}={short(value)}" for flag, value in place.items()]
    return f"{'-'.join(words)}.json"


def _command(
    path: Path,
    *,
    data_root: Path | None,
    dataset: str | None,
    fold: int | None,
    on_bad_sample: OnBadSample,
    split: str | None = None,
    compare: Sequence[Path] = (),
    supervised: bool = False,
) -> str:
    options: dict[str, object] = {"fold": fold, "split": split, "data-root": data_root, "dataset": dataset}
    command = command_line("linear", path, options | bad_sample_flag(on_bad_sample))
    others = [word for other in compare for word in ("--compare", str(other))]
    return shlex.join([*shlex.split(command), *others, *(["--supervised"] if supervised else [])])
