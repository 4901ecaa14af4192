"""Whether the data that a run is judged on are still those it was pretrained on.

A recipe names the fold or split that was held out, not its samples: folds are made of the files that are there, and a
table can be edited or another one named. So the fingerprint that training left in the checkpoint is held against the
training samples as they are now, before a figure is called inductive.
"""

from __future__ import annotations

from pathlib import Path

from mmvicreg.datasets import dataset_root, in_folds, training_samples
from mmvicreg.errors import UserError
from mmvicreg.runs import Run
from mmvicreg.samples import DataSet, fingerprint


def changed_since_training(run: Run, data: DataSet) -> str | None:
    """How the samples that a run was pretrained on differ from those in their place in ``data``, in words.

    Where ``data`` lies does not matter. None: they do not differ, or there is nothing to compare: another data set
    than the run's (a part of it is taken at its folds' word), a run that trained on none, or a training split that is
    not here.
    """
    recorded = run.content["data"]
    pairs = [(run.recipe.dataset, recorded)]
    pairs += [
        (source.dataset, recorded.get("sources", {}).get(name, {"samples": 0}))
        for name, source in run.recipe.sources.items()
    ]
    found: str | None = None
    for config, then in pairs:
        if config.name != data.name or not then["samples"]:
            continue
        try:
            now = fingerprint(training_samples(data, split=config.train_split, fold=config.fold))
        except UserError:
            if in_folds(data):
                raise
            continue  # a copy of the test split alone
        if now == {key: then[key] for key in now}:
            return None
        count = now["samples"]
        differ = f"{count:,}" if count != then["samples"] else "as many, but others or in another order"
        found = found or (
            f"the run {run.path} was pretrained on {then['samples']:,} samples of {data.name}, and in their place at "
            f"{data.root} there are now {differ}"
        )
    return found


def elsewhere(run: Run, data: DataSet) -> dict[str, object]:
    """``data-root`` -> a folder, for a result's name, where the data are others under the name of the run's.

    That is another place than the run's with other training samples; data that were moved are the same.
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


def in_doubt(run: Run, data: DataSet, *, seen: bool) -> str | None:
    """Why it is not known whether a run saw what it is judged on, in words; None: it is (``seen``, or not).

    Raises:
        UserError: the fold it held out is not the one it held out then. In splits, which another table of one's own may
            have too, the result is counted as transductive instead.
    """
    changed = None if seen else changed_since_training(run, data)
    if changed is not None and in_folds(data):
        raise changed_data(changed)
    return changed


def changed_data(changed: str) -> UserError:
    """The refusal, with the way out."""
    return UserError(
        f"{changed}: which of them it has seen is not known. Put the data back as they were, give their place with "
        "--data-root, or train a new run on what is there now"
    )
