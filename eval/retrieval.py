"""Retrieval between the two branches of an edge: recall at K and ranks, both directions.

Protocols. ``5k`` is the one papers report on COCO: Karpathy's 5 000 test images against the first five
captions of each, 25 000. ``1k-5fold`` is the mean over five consecutive folds of 1 000 of the same images.
``all`` takes the whole split, of any size, as one gallery. Of each image at most the first five captions
count, everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from rich.table import Table as RichTable

from mmvicreg.config import EdgeConfig
from mmvicreg.datasets import evaluation_split, open_dataset
from mmvicreg.encode import Encoded, encode
from mmvicreg.errors import UserError
from mmvicreg.eval.output import Report, command_line, console, number, origin, write_report
from mmvicreg.eval.published import published
from mmvicreg.metrics import RankCounts, chance_recall, mean_rank, median_rank, rank_counts
from mmvicreg.registry import nearest
from mmvicreg.runs import Run
from mmvicreg.samples import DataSet, Sample

Protocol: TypeAlias = Literal["5k", "1k-5fold", "all"]
RECALLS = (1, 5, 10)
CAPTIONS = 5
"""Captions per picture; COCO has six or seven of some."""
_FULL, _FOLD = 5000, 1000


@dataclass(frozen=True)
class Direction:
    """One direction's queries over one gallery or, for ``1k-5fold``, over several of one size.

    Attributes:
        counts: per gallery, how the candidates of each query compare.
        gallery: candidates of a query, in each gallery.
        own: per gallery, how many of them are right, per query ``(q,)``.
    """

    counts: Sequence[RankCounts]
    gallery: Sequence[int]
    own: Sequence[npt.NDArray[np.int64]]

    def report(self) -> Report:
        """Recall in percent and 1-based ranks, each the mean over galleries; sizes; chance."""
        galleries = sorted(set(self.gallery))
        return {
            **{f"R@{k}": float(np.mean([counts.recall(k) for counts in self.counts])) for k in RECALLS},
            "median_rank": float(np.mean([median_rank(counts.ranks) for counts in self.counts])),
            "mean_rank": float(np.mean([mean_rank(counts.ranks) for counts in self.counts])),
            "queries": sum(len(counts.better) for counts in self.counts),
            "gallery": galleries[0] if len(galleries) == 1 else float(np.mean(self.gallery)),
            "chance": {
                f"R@{k}": float(
                    np.mean([chance_recall(g, own, k) for g, own in zip(self.gallery, self.own, strict=True)])
                )
                for k in RECALLS
            },
        }


def run(
    run: Run,
    *,
    data_root: Path | None = None,
    dataset: str | None = None,
    split: str | None = None,
    protocol: Protocol = "all",
) -> Report:
    """Judge a run by retrieval, print the table, write ``eval/retrieval-<split>.json`` into the run folder.

    Every edge of the run's graph between two different branches ``a`` and ``b`` is judged in the
    directions ``a_to_b`` and ``b_to_a`` (``image_to_text``, ``text_to_image``). Recall counts tied
    candidates in expectation, ranks count them in the middle, so a collapsed model scores chance.

    Args:
        run: an opened run with a checkpoint.
        data_root: where the data is; None: where it was in training.
        dataset: another data set than the run's own, by name (its file is then
            ``retrieval-<dataset>-<split>.json``).
        split: None: the recipe's ``eval_split``, else ``test`` where there is one, else ``val``; for data in
            folds the held-out fold.
        protocol: ``5k``, ``1k-5fold`` or ``all``.

    Returns:
        What was written: per direction ``R@1``, ``R@5``, ``R@10`` and ``chance`` in percent, 1-based
        ``median_rank`` and ``mean_rank``, ``queries``, ``gallery``; ``rsum``, the sum of all recalls; and
        what it was measured on.

    Raises:
        UserError: no such split or protocol, a protocol that does not fit the number of images, no edge to
            judge, embeddings that cannot be compared.
    """
    check_protocol(protocol)
    edges = _edges(run)
    data, samples, name = _open(run, data_root=data_root, dataset=dataset, split=split)
    _check_size(protocol, data, name, len(samples))
    model = run.model()
    judged = run.recipe.evaluation
    encoded: dict[str, Encoded] = {
        branch: encode(
            model,
            branch,
            samples,
            space=judged.space,
            batch_size=judged.batch_size,
            captions=CAPTIONS,
            description=f"encoding {name} with {branch}",
        )
        for branch in dict.fromkeys(end for edge in edges for end in (edge.a, edge.b))
    }
    directions: Report = {}
    for edge in edges:
        directions |= _judge(run, edge, encoded, len(samples), protocol)
    own_data = data.name == run.recipe.dataset.name
    texts = [len(e.owner) for branch, e in encoded.items() if run.recipe.branches[branch].input == "text"]
    report: Report = {
        **directions,
        "rsum": sum(direction[f"R@{k}"] for direction in directions.values() for k in RECALLS),
        "protocol": protocol,
        "dataset": data.name,
        "split": name,
        "samples": len(samples),
        "captions": texts[0] if texts else None,
        "captions_per_image": _captions_per_image(samples) if texts else None,
        "seen_in_pretraining": own_data and _seen(run, name),
        "space": judged.space,
        "similarity": judged.similarity,
        "published": _published_rows(data, name, len(samples), protocol),
        **origin(
            run,
            command_line(
                "retrieval",
                run.path,
                {"split": name, "protocol": protocol, "data-root": data_root, "dataset": dataset},
            ),
        ),
    }
    file = f"retrieval-{name}.json" if own_data else f"retrieval-{data.name}-{name}.json"
    write_report(run.path / "eval" / file, report)
    show(report, run.path / "eval" / file, list(directions))
    return report


def show(report: Report, file: Path, directions: Sequence[str]) -> None:
    """Print a report as a table, with chance and, where the paper has them, its rows."""
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
    table = RichTable()
    for column in ("direction", "", *(f"R@{k}" for k in RECALLS), "median", "mean", "queries", "gallery"):
        table.add_column(column, justify="left" if column in ("direction", "") else "right", no_wrap=True)
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
    out.print(table)
    out.print(
        f"Recall in percent, ranks from 1, {report['similarity']} in {report['space']} space; "
        f"run {report['run']} after epoch {report['epoch']}.",
        soft_wrap=True,
    )
    if report["seen_in_pretraining"]:
        out.print("The run was pretrained on samples of this split: this measures memory.", soft_wrap=True)
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
    out.print(f"Written: {file}", soft_wrap=True)


def check_protocol(protocol: str) -> None:
    """Raise :class:`UserError` naming the nearest protocol unless ``protocol`` is one."""
    known = get_args(Protocol)
    if protocol not in known:
        raise UserError(f"unknown protocol '{protocol}'{nearest(protocol, known)} Known: {', '.join(known)}.")


def _edges(run: Run) -> list[EdgeConfig]:
    branches = run.recipe.branches
    edges = [
        edge
        for edge in run.recipe.edges
        if edge.a != edge.b and not branches[edge.a].input == branches[edge.b].input == "text"
    ]
    if not edges:
        raise UserError(
            f"the run {run.path} joins no two different branches (at most one of them text), so there is "
            "nothing to retrieve"
        )
    return edges


def _open(
    run: Run, *, data_root: Path | None, dataset: str | None, split: str | None
) -> tuple[DataSet, list[Sample], str]:
    settings = run.recipe.dataset
    if dataset is None or dataset == settings.name:
        data = run.dataset(root=data_root)
        name = evaluation_split(data, split or settings.eval_split, fold=settings.fold)
    else:
        data = open_dataset(dataset, root=data_root)
        name = evaluation_split(data, split)
    samples = data.samples(name)
    if not samples:
        raise UserError(f"the split '{name}' of {data.name} at {data.root} is empty")
    return data, samples, name


def _check_size(protocol: Protocol, data: DataSet, split: str, images: int) -> None:
    if protocol != "all" and images != _FULL:
        raise UserError(
            f"--protocol {protocol} is defined on {_FULL:,} images, and the split '{split}' of {data.name} "
            f"at {data.root} has {images:,}; use --protocol all"
        )


def _judge(
    run: Run, edge: EdgeConfig, encoded: dict[str, Encoded], samples: int, protocol: Protocol
) -> Report:
    # The side with several rows per sample, if any, takes the captions' part.
    a, b = edge.a, edge.b
    if run.recipe.branches[a].input == "text":
        a, b = b, a
    x, y = encoded[a], encoded[b]
    if x.vectors.shape[1] != y.vectors.shape[1]:
        raise UserError(
            f"the branches {a} and {b} of {run.path} have {run.recipe.evaluation.space}s of "
            f"{x.vectors.shape[1]} and {y.vectors.shape[1]} dimensions, which cannot be compared; "
            "they can in the embedding space (evaluation.space in the run's recipe.yaml)"
        )
    step = _FOLD if protocol == "1k-5fold" else samples
    one_to_many, many_to_one, right, many, one = [], [], [], [], []
    for start in range(0, samples, step):
        rows = (y.owner >= start) & (y.owner < start + step)
        images = x.vectors[start : start + step]
        owner = y.owner[rows] - start
        forth, back = rank_counts(images, y.vectors[rows], owner, similarity=run.recipe.evaluation.similarity)
        one_to_many.append(forth)
        many_to_one.append(back)
        right.append(np.bincount(owner, minlength=len(images)))
        many.append(len(owner))
        one.append(len(images))
    return {
        f"{a}_to_{b}": Direction(one_to_many, many, right).report(),
        f"{b}_to_{a}": Direction(many_to_one, one, [np.ones(m, np.int64) for m in many]).report(),
    }


def _captions_per_image(samples: Sequence[Sample]) -> str:
    """How many captions of each picture were used, in words."""
    used = sorted({min(len(sample.captions), CAPTIONS) for sample in samples})
    if len(used) > 1:
        return f"{used[0]} to {used[-1]} of each, the first {CAPTIONS} at most"
    more = any(len(sample.captions) > CAPTIONS for sample in samples)
    return f"the first {used[0]} of each" if more else f"{used[0]} of each"


def _seen(run: Run, split: str) -> bool:
    """Whether pretraining saw samples of this split of the run's own data set."""
    parts = set(split.split("+"))
    if split.startswith("fold"):
        return parts != {f"fold{run.recipe.dataset.fold}"}
    trained = set(run.recipe.dataset.train_split.split("+"))
    return "all" in parts | trained or bool(parts & trained)


def _published_rows(data: DataSet, split: str, images: int, protocol: Protocol) -> list[Report]:
    """Rows of Table 3 where they are comparable: Karpathy's whole COCO test split as one gallery."""
    karpathy = data.name == "coco" and getattr(data, "layout", None) == "karpathy"
    if not (karpathy and split == "test" and images == _FULL and protocol in ("5k", "all")):
        return []
    table = published(3)
    return [{"method": row.method, **dict(zip(table.columns, row.values, strict=True))} for row in table.rows]
