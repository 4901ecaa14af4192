"""Whether the data that a run is judged on are still those it was pretrained on.

A recipe names the fold or split that was held out, not its samples: folds are made of the files that are there, and a
table can be edited or another one named. So the fingerprint that training left in the checkpoint is held against the
training samples as they are now, before a figure is called inductive. Where they are not there (COCO's layouts have
splits of their own, of the same pictures), the ids of the samples trained on are held against those judged on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmvicreg.config import DatasetConfig
from mmvicreg.datasets import OWN_DATA, dataset_root, in_folds, training_samples
from mmvicreg.errors import UserError
from mmvicreg.runs import Run
from mmvicreg.samples import DataSet, Sample, fingerprint
from mmvicreg.trained_ids import count_among


@dataclass(frozen=True)
class _Change:
    """How training samples differ from those in their place in some data.

    Attributes:
        words: that, after "was pretrained on n samples of d, ".
        there: whether the training split is there at all.
    """

    words: str
    there: bool


def _compare(data: DataSet, *, split: str, fold: int | str, then: Mapping[str, Any]) -> _Change | None:
    """Hold a fingerprint of training samples against those in their place in ``data``; None: the same.

    Raises:
        UserError: data in folds, without the fold that was held out.
    """
    try:
        now = fingerprint(training_samples(data, split=split, fold=fold))
    except UserError:
        if in_folds(data):
            raise
        return _Change(f"of the split '{split}', which cannot be read at {data.root} to be compared", False)
    if now == {key: then[key] for key in now}:
        return None
    count = now["samples"]
    differ = f"{count:,}" if count != then["samples"] else "as many, but others or in another order"
    return _Change(f"and in their place at {data.root} there are now {differ}", True)


def _own(run: Run, data: DataSet) -> list[tuple[DatasetConfig, Mapping[str, Any]]]:
    """What a run itself was trained on under the name of ``data``, with its fingerprints."""
    recorded = run.content["data"]
    pairs = [(run.recipe.dataset, recorded)]
    pairs += [
        (source.dataset, recorded.get("sources", {}).get(name, {"samples": 0}))
        for name, source in run.recipe.sources.items()
    ]
    return [(config, then) for config, then in pairs if config.name == data.name and then["samples"]]


def _own_change(run: Run, data: DataSet) -> _Change | None:
    """As :func:`changed_since_training`, with whether the training split is there."""
    found: _Change | None = None
    for config, then in _own(run, data):
        change = _compare(data, split=config.train_split, fold=config.fold, then=then)
        if change is None:
            return None
        words = (
            f"the run {run.path} was pretrained on {then['samples']:,} samples of {data.name}, {change.words}"
        )
        found = found or replace(change, words=words)
    return found


def changed_since_training(run: Run, data: DataSet) -> str | None:
    """How the samples that a run was pretrained on differ from those in their place in ``data``, in words.

    Where ``data`` lies does not matter, and a training split that is not there differs. None: they do not differ, or
    there is nothing to compare: another data set than the run's (a part of it is taken at its folds' word), or a run
    that trained on none.

    Raises:
        UserError: data in folds, without the fold that was held out.
    """
    change = _own_change(run, data)
    return None if change is None else change.words


def elsewhere(run: Run, data: DataSet) -> dict[str, object]:
    """``data-root`` -> a folder, for a result's name, where the data are others under the name of the run's.

    That is another place than the run's with other training samples, or with none to compare; data that were moved
    whole are the same.
    """
    settings = run.recipe.trained_as(data.name)
    usual = Path(settings.root) if settings is not None and settings.root is not None else None
    here = Path(data.root).expanduser().resolve()
    if here == dataset_root(data.name, usual).resolve():
        return {}
    try:
        changed = changed_since_training(run, data) is not None
    except UserError:  # the fold that the run held out is not there
        changed = True
    return {"data-root": here} if changed else {}


def check_trained_data(run: Run, data: DataSet) -> None:
    """Refuse data that are not those the run was trained on.

    Raises:
        UserError: they differ (:func:`changed_since_training`).
    """
    if changed := changed_since_training(run, data):
        raise changed_data(changed)


def in_doubt(run: Run, data: DataSet, samples: Sequence[Sample], *, seen: bool) -> str | None:
    """Why it is not known whether a run saw what it is judged on, in words; None: it is (``seen``, or not).

    Args:
        run: an opened run with a checkpoint.
        data: what it is judged on.
        samples: those of it that it is judged on.
        seen: whether it is known that it saw them.

    Raises:
        UserError: the fold it held out is not the one it held out then. In splits, which another table of one's own may
            have too, the result is counted as transductive instead.
    """
    if seen:
        return None
    change = _own_change(run, data)
    if change is not None and in_folds(data):
        raise changed_data(change.words)
    own = _by_ids(run, data, samples, change) if change is not None else None
    return own or _started_in_doubt(run, data)


def _started_in_doubt(run: Run, data: DataSet) -> str | None:
    """Why it is not known whether the weights that branches started from saw what a run is judged on; None: it is.

    The recipe has the fingerprint of what they were trained on. Published folds are taken at their word, and so are
    those of one's own where an earlier version wrote down no fingerprint.
    """
    own = {
        (then["samples"], then["names"]) for _, then in _own(run, data)
    }  # held against data with the run's own
    for name, branch in run.recipe.branches.items():
        for then in branch.init.seen if branch.init is not None else ():
            if then.dataset != data.name or then.samples == 0 or (then.samples, then.names) in own:
                continue
            if in_folds(data) and (data.name not in OWN_DATA or then.names is None):
                continue
            words = (
                f"the weights that the branch '{name}' of the run {run.path} started from were pretrained on"
            )
            if then.samples is None or then.names is None:
                return f"{words} the split '{then.split}' of {data.name}, and of which samples that was is not recorded"
            recorded = {"samples": then.samples, "names": then.names}
            words = f"{words} {then.samples:,} samples of {data.name}"
            try:
                change = _compare(data, split=then.split, fold=then.fold, then=recorded)
            except UserError:
                return f"{words}, all folds but {then.fold}, which {data.root} does not have"
            if change is not None:
                return f"{words}, {change.words}"
    return None


def _by_ids(run: Run, data: DataSet, samples: Sequence[Sample], change: _Change) -> str | None:
    """What the ids that the checkpoint holds say where the training split itself does not say that it is the same.

    Checkpoints of earlier versions hold none, and ids of other data than COCO's may be others in another layout: that
    none is the same tells only where the training split is not there, as in a copy of the test split alone.
    """
    ids = run.content.get("trained_on", {}).get(data.name)
    if ids is None:
        return change.words
    if known := count_among(samples, ids):
        return (
            f"{known:,} of the {len(samples):,} samples it is judged on have the ids of samples of {data.name} that "
            f"the run {run.path} was pretrained on"
        )
    return change.words if change.there and not getattr(data, "lasting_ids", False) else None


def changed_data(changed: str) -> UserError:
    """The refusal, with the way out."""
    return UserError(
        f"{changed}: which of them it has seen is not known. Put the data back as they were, give their place with "
        "--data-root, or train a new run on what is there now"
    )
