"""The retrieval protocol's result as a table, with the published rows that it can be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table as RichTable

from mmvicreg.datasets import in_folds
from mmvicreg.eval.output import Report, number, short
from mmvicreg.eval.published import published
from mmvicreg.eval.trained_data import elsewhere
from mmvicreg.runs import Run
from mmvicreg.samples import DataSet, Sample
from mmvicreg.tables import console, print_table

RECALLS = (1, 5, 10)
SEEN = "transductive. The run, or weights it started from, was pretrained on samples of it: this measures memory."


def show(report: Report, directions: Sequence[str], *, skipped: Path) -> None:
    """Print a report as a table, with chance and, where the paper has them, its rows.

    Args:
        report: the result.
        directions: the keys of its directions.
        skipped: the list of samples that could not be read, where there are such.
    """
    out = console()
    count = f"{report['samples']:,} samples"
    if report["captions"] is not None:
        count = (
            f"{report['samples']:,} images, {report['captions']:,} captions ({report['captions_per_image']})"
        )
    out.print(
        f"Retrieval, {report['dataset']} {report['split']}, protocol {report['protocol']}: {count}",
        style="bold",
        soft_wrap=True,
    )
    if report["skipped"]:
        out.print(
            f"{report['skipped']:,} more cannot be judged and are in neither queries nor gallery: {skipped} "
            "says of each why.",
            style="bold",
            soft_wrap=True,
        )
    table = RichTable()
    for column in ("direction", "", *(f"R@{k}" for k in RECALLS), "median", "mean", "queries", "gallery"):
        table.add_column(column, justify="left" if column in ("direction", "") else "right")
    for name in directions:
        found = report[name]
        words = name.replace("_to_", " to ")
        table.add_row(
            words,
            "this run",
            *(number(found[f"R@{k}"]) for k in RECALLS),
            number(found["median_rank"]),
            number(found["mean_rank"]),
            f"{found['queries']:,}",
            f"{found['gallery']:,}",
            style="bold",
        )
        table.add_row("", "chance", *(f"{found['chance'][f'R@{k}']:.2f}" for k in RECALLS), style="dim")
        for row in report["published"]:
            values = [row.get(f"{name} R@{k}") for k in RECALLS]
            table.add_row("", f"{row['method']} (paper)", *(number(value) for value in values))
        table.add_section()
    print_table(table)
    out.print(f"rsum {report['rsum']:.1f}, the sum of this run's recalls.", soft_wrap=True)
    out.print(
        f"Recall in percent, ranks from 1, {report['similarity']} in {report['space']} space; "
        f"run {report['run']} after epoch {report['epoch']} on {report['pretrained_on']}.",
        soft_wrap=True,
    )
    for name in directions:
        if "search" in report[name]:
            out.print(f"{name.replace('_to_', ' to ')}: {_say_search(report[name])}.", soft_wrap=True)
    if report["doubt"] is not None:
        out.print(
            f"Split {report['split']}: counted as transductive. {report['doubt']}, so that whether it saw this split "
            "is not known.",
            soft_wrap=True,
        )
    elif report["seen_in_pretraining"]:
        out.print(f"Split {report['split']}: {SEEN}", soft_wrap=True)
    if report["published"]:
        out.print(
            "Paper: Table 3 with its two directions put right; in print they stand under each other's "
            "heading (VSE++'s own paper and code have them as here).",
            soft_wrap=True,
        )
    else:
        out.print(
            f"No published row for {report['dataset']} {report['split']} under this protocol.", soft_wrap=True
        )


def file_name(run: Run, data: DataSet, report: Report, part: str, *, search: str) -> str:
    """``retrieval-<split>.json``; what was asked for besides is added, so that no result is lost to another.

    That is another data set than the run's before the split; after it the protocol (``5k``, ``1k-5fold``), space and
    similarity where one of them is not the recipe's, a search by FAISS, and the folder of data that are others under
    the name of the run's (:func:`mmvicreg.eval.trained_data.elsewhere`).

    Args:
        run: what was judged.
        data: what it was judged on.
        report: the result: ``dataset``, ``protocol``, ``space`` and ``similarity``.
        part: the split, or ``folds``.
        search: how candidates were asked to be searched.
    """
    own = run.recipe.evaluation
    reading = (report["space"], report["similarity"])
    words = [
        "retrieval",
        *([] if report["dataset"] == run.recipe.dataset.name else [report["dataset"]]),
        part,
    ]
    words += [report["protocol"]] if report["protocol"] != "all" else []
    words += reading if reading != (own.space, own.similarity) else ()
    words += ["faiss"] if search == "faiss" else []
    words += [f"{flag}={short(value)}" for flag, value in elsewhere(run, data).items()]
    return f"{'-'.join(words)}.json"


def _say_search(found: Report) -> str:
    search = found["search"]
    return (
        f"searched by FAISS ({search['index']}, nprobe {search['probes']}): of the 10 best of an exact "
        f"search it finds {search['found']:.1f} %; ranks beyond {search['depth']} are not known"
    )


def published_rows(data: DataSet, split: str, *, images: int, captions: int, protocol: str) -> list[Report]:
    """Rows of Table 3 where they are comparable: Karpathy's whole COCO test split as one gallery."""
    karpathy = data.name == "coco" and getattr(data, "layout", None) == "karpathy"
    whole = (images, captions) == (5000, 25000)
    if not (karpathy and split == "test" and whole and protocol in ("5k", "all")):
        return []
    table = published(3)
    return [{"method": row.method, **dict(zip(table.columns, row.values, strict=True))} for row in table.rows]


def captions_per_image(samples: Sequence[Sample], *, most: int) -> str:
    """How many captions of each picture were used, at most the first ``most``, in words."""
    used = sorted({min(len(sample.captions), most) for sample in samples})
    if len(used) > 1:
        return f"{used[0]} to {used[-1]} of each, the first {most} at most"
    more = any(len(sample.captions) > most for sample in samples)
    return f"the first {used[0]} of each" if more else f"{used[0]} of each"


def pretrained_on(run: Run, data: DataSet | None) -> str:
    """What a run saw, in words; ``data`` is its first data set, where that is at hand."""
    settings, *others = run.recipe.trained_on
    if data is None:
        first = settings.name
    elif not in_folds(data):
        first = f"{settings.name} {settings.train_split}"
    else:
        first = (
            f"{settings.name}, {'all folds' if settings.fold == 'none' else f'all folds but {settings.fold}'}"
        )
    return " and ".join([first, *(f"{other.name} {other.train_split}" for other in others)])
