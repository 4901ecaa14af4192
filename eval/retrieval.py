"""Retrieval between the two branches of an edge: recall at K and ranks, both directions.

The protocols are those of :mod:`mmvicreg.eval.retrieval_samples`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from mmvicreg.config import DatasetConfig, EdgeConfig, EvaluationConfig
from mmvicreg.encode import Encoded, encode, without_failed
from mmvicreg.errors import UserError
from mmvicreg.eval.export import DEPTH, check_export, write_ranking
from mmvicreg.eval.output import Report, bad_sample_flag, command_line, origin, save, write_report
from mmvicreg.eval.ranking import (
    Found,
    SearchName,
    best_candidates,
    check_search,
    choose_search,
    count_ranks,
)
from mmvicreg.eval.retrieval_report import (
    RECALLS,
    captions_per_image,
    file_name,
    pretrained_on,
    published_rows,
    show,
)
from mmvicreg.eval.retrieval_samples import (
    CAPTIONS,
    FOLD,
    Protocol,
    check_protocol,
    check_size,
    with_captions,
)
from mmvicreg.eval.tasks import saw_split
from mmvicreg.eval.trained_data import in_doubt
from mmvicreg.metrics import Similarity, chance_recall, mean_rank, median_rank
from mmvicreg.registry import nearest
from mmvicreg.runs import Run, check_writable, evaluation_data
from mmvicreg.samples import Sample
from mmvicreg.skipped import OnBadSample, write_skipped
from mmvicreg.tables import console
from mmvicreg.training.distributed import World
from mmvicreg.training.processes import on_processes

Space: TypeAlias = Literal["embedding", "representation"]


@dataclass(frozen=True)
class Direction:
    """One direction's queries over one gallery or, for ``1k-5fold``, over several of one size.

    Attributes:
        found: per gallery, how the candidates of each query compare, and how they were searched.
        gallery: candidates of a query, in each gallery.
        own: per gallery, how many of them are right, per query ``(q,)``.
    """

    found: Sequence[Found]
    gallery: Sequence[int]
    own: Sequence[npt.NDArray[np.int64]]

    def report(self) -> Report:
        """Recall in percent and 1-based ranks (None: not known), each the mean over galleries; sizes; chance."""
        galleries = sorted(set(self.gallery))
        counts = [part[0] for part in self.found]
        report: Report = {
            **{f"R@{k}": float(np.mean([part.recall(k) for part in counts])) for k in RECALLS},
            "median_rank": _finite(np.mean([median_rank(part.ranks) for part in counts])),
            "mean_rank": _finite(np.mean([mean_rank(part.ranks) for part in counts])),
            "queries": sum(len(part.better) for part in counts),
            "gallery": galleries[0] if len(galleries) == 1 else float(np.mean(self.gallery)),
            "chance": {
                f"R@{k}": float(
                    np.mean([chance_recall(g, own, k) for g, own in zip(self.gallery, self.own, strict=True)])
                )
                for k in RECALLS
            },
        }
        searches = [search for _, search in self.found if search is not None]
        if searches:
            report["search"] = asdict(searches[0]) | {"found": float(np.mean([s.found for s in searches]))}
        return report


@dataclass(frozen=True)
class Settings:
    """What :func:`run` was asked for, besides the run."""

    data_root: Path | None
    dataset: str | None
    split: str | None
    protocol: Protocol
    space: Space | None
    similarity: Similarity | None
    search: SearchName
    export: Path | None
    export_depth: int
    on_bad_sample: OnBadSample

    def resolved(self, recipe: EvaluationConfig) -> EvaluationConfig:
        """The recipe's way of reading branches, unless another was asked for."""
        asked = {"space": self.space, "similarity": self.similarity}
        return EvaluationConfig.model_validate(
            recipe.model_dump() | {key: value for key, value in asked.items() if value is not None}
        )

    def command(self, run: Run, split: str) -> str:
        """The command that gives the same result again."""
        options = {"split": split, "protocol": self.protocol, "data-root": self.data_root}
        options |= {"dataset": self.dataset, "space": self.space, "similarity": self.similarity}
        options |= {"search": None if self.search == "auto" else self.search}
        options |= bad_sample_flag(self.on_bad_sample)
        return command_line("retrieval", run.path, options)


def run(
    run: Run,
    *,
    data_root: Path | None = None,
    dataset: str | None = None,
    split: str | None = None,
    protocol: Protocol = "all",
    space: Space | None = None,
    similarity: Similarity | None = None,
    search: SearchName = "auto",
    export: Path | None = None,
    export_depth: int = DEPTH,
    on_bad_sample: OnBadSample = "error",
    devices: int = 1,
    device: str = "auto",
) -> Report:
    """Judge a run by retrieval, print the table, write ``eval/retrieval-<split>.json`` into the run folder.

    Every edge of the run's graph between two different branches ``a`` and ``b`` is judged in the
    directions ``a_to_b`` and ``b_to_a`` (``image_to_text``, ``text_to_image``). Recall counts tied
    candidates in expectation, ranks count them in the middle, so a collapsed model scores chance.

    Args:
        run: an opened run with a checkpoint.
        data_root: where the data is; None: where it was in training.
        dataset: another data set than the run's own, by name (its file is then
            ``retrieval-<dataset>-<split>.json``, see :func:`mmvicreg.eval.retrieval_report.file_name`).
        split: None: the recipe's ``eval_split``, else ``test`` where there is one, else ``val``; for data in
            folds the held-out fold.
        protocol: ``5k``, ``1k-5fold`` or ``all``.
        space: ``embedding`` or ``representation``; None: the recipe's.
        similarity: ``cosine``, ``dot`` or ``euclidean``; None: the recipe's.
        search: ``exact`` scores every candidate, in float64; ``faiss`` those it finds; ``auto`` is exact up
            to a million candidates.
        export: also write the ranking there, exact and of the whole split (see :mod:`mmvicreg.eval.export`).
        export_depth: candidates per query in it.
        on_bad_sample: ``error`` stops at a sample that cannot be read; ``skip`` leaves it out of queries and
            gallery, says so, and lists it in the run folder, ``eval/skipped-<data set>-<split>.jsonl``.
        devices: processes on this machine that share the work; the result is the same for any number.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        What was written: per direction ``R@1``, ``R@5``, ``R@10`` and ``chance`` in percent, 1-based
        ``median_rank`` and ``mean_rank``, ``queries``, ``gallery``; ``rsum``, the sum of all recalls; and
        what it was measured on; ``doubt``, why it is not known whether pretraining saw that, or None.

    Raises:
        UserError: no such split, protocol, space, similarity or search, a protocol that does not fit the
            images and their captions, no edge to judge, embeddings that cannot be compared, an export that
            is there already or cannot be written, folds of other samples than the run was trained on.
    """
    check_protocol(protocol)
    _check_reading(space, similarity)
    check_search(search)
    check_export(export, export_depth)
    check_writable(run.path / "eval" / "retrieval.json")
    dataset = dataset or _captioned(run)
    edges = _edges(run, dataset)
    if export is not None and not (len(edges) == 1 and _is_text(run, _sides(run, edges[0])[1])):
        raise UserError(
            "--export is the ranking of one edge between pictures and captions; this run has another"
        )
    settings = Settings(
        data_root, dataset, split, protocol, space, similarity, search, export, export_depth, on_bad_sample
    )
    return on_processes(devices, device, _judge_run, run, settings)


def _judge_run(world: World, run: Run, settings: Settings) -> Report:
    """The whole protocol, on each of the processes; the main one prints and writes."""
    edges = _edges(run, settings.dataset)
    data, samples, split = evaluation_data(
        run, root=settings.data_root, dataset=settings.dataset, split=settings.split
    )
    branches = dict.fromkeys(end for edge in edges for end in (edge.a, edge.b))
    texts = [branch for branch in branches if _is_text(run, branch)]
    seen = saw_split(run, data.name, split)
    doubt = in_doubt(run, data, samples, seen=seen)
    where = f"the split '{split}' of {data.name} at {data.root}"
    samples, bare = (
        with_captions(samples, where, skip=settings.on_bad_sample == "skip") if texts else (samples, [])
    )
    check_size(settings.protocol, data, split, samples, captions=bool(texts))
    judged = settings.resolved(run.recipe.evaluation)
    model = run.model(device=world.device.type)
    encoded: dict[str, Encoded] = {
        branch: encode(
            model,
            branch,
            samples,
            space=judged.space,
            batch_size=judged.batch_size,
            captions=CAPTIONS,
            description=f"encoding {split} with {branch}",
            world=world,
            skip=settings.on_bad_sample == "skip",
        )
        for branch in branches
    }
    encoded, samples, failed = without_failed(encoded, samples)
    skipped = [*bare, *failed]
    if skipped:  # a protocol of so many pictures may be none without these
        check_size(settings.protocol, data, split, samples, captions=bool(texts))
    directions: Report = {}
    for edge in edges:
        directions |= _judge(world, run, edge, encoded, len(samples), settings)
    own_data = data.name == run.recipe.dataset.name
    captions = len(encoded[texts[0]].owner) if texts else None
    rows = published_rows(
        data, split, images=len(samples), captions=captions or 0, protocol=settings.protocol
    )
    report: Report = {
        **directions,
        "rsum": sum(direction[f"R@{k}"] for direction in directions.values() for k in RECALLS),
        "protocol": settings.protocol,
        "dataset": data.name,
        "split": split,
        "samples": len(samples),
        "skipped": len(skipped),
        "captions": captions,
        "captions_per_image": captions_per_image(samples, most=CAPTIONS) if texts else None,
        "pretrained_on": pretrained_on(run, data if own_data else None),
        "seen_in_pretraining": seen or doubt is not None,
        "doubt": doubt,
        "space": judged.space,
        "similarity": judged.similarity,
        "published": rows,
        **origin(run, settings.command(run, split)),
    }
    if world.is_main:
        listed = run.path / "eval" / f"skipped-{data.name}-{split}.jsonl"
        show(report, list(directions), skipped=listed)
        file = run.path / "eval" / file_name(run, data, report, split, search=settings.search)
        save(file, report)
        if report["protocol"] != "all":
            # whoever reads the split's file finds what was measured last, by whichever protocol
            last = file_name(run, data, {**report, "protocol": "all"}, split, search=settings.search)
            write_report(run.path / "eval" / last, report)
        if settings.on_bad_sample == "skip":
            write_skipped(listed, skipped)
    if settings.export is not None:
        _export(world, run, edges[0], encoded, samples, settings)
    return report


def _export(
    world: World,
    run: Run,
    edge: EdgeConfig,
    encoded: Mapping[str, Encoded],
    samples: Sequence[Sample],
    settings: Settings,
) -> None:
    assert settings.export is not None
    a, b = _sides(run, edge)
    similarity = settings.resolved(run.recipe.evaluation).similarity
    forth, back = best_candidates(world, encoded[a], encoded[b], settings.export_depth, similarity=similarity)
    if world.is_main:
        write_ranking(settings.export, samples, encoded[b].owner, forth, back)
        console().print(f"Ranking written: {settings.export}", soft_wrap=True)


def _captioned(run: Run) -> str | None:
    """The data set of the first source that joins two different branches; None: the run's first data set."""
    source = _edges(run, None)[0].source
    return run.recipe.sources[source].dataset.name if source is not None else None


def judged_data(run: Run) -> DatasetConfig:
    """The data set that a run is judged on where none is named; only its recipe is looked at.

    Raises:
        UserError: it has no edge to judge.
    """
    name = _captioned(run)
    return run.recipe.dataset if name is None else run.recipe.trained_as(name) or run.recipe.dataset


def _edges(run: Run, dataset: str | None) -> list[EdgeConfig]:
    """The edges to judge: those trained on ``dataset`` (None: the run's first), else all there are."""
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
    names: dict[str | None, str] = {None: run.recipe.dataset.name}
    names |= {name: source.dataset.name for name, source in run.recipe.sources.items()}
    asked = dataset or run.recipe.dataset.name
    return [edge for edge in edges if names[edge.source] == asked] or edges


def _check_reading(space: Space | None, similarity: Similarity | None) -> None:
    for kind, asked, known in (
        ("space", space, get_args(Space)),
        ("similarity", similarity, get_args(Similarity)),
    ):
        if asked is not None and asked not in known:
            raise UserError(f"unknown {kind} '{asked}'{nearest(asked, known)} Known: {', '.join(known)}.")


def _is_text(run: Run, branch: str) -> bool:
    return run.recipe.branches[branch].input == "text"


def _sides(run: Run, edge: EdgeConfig) -> tuple[str, str]:
    """The two ends of an edge; the one with several rows per sample, if any, comes second."""
    return (edge.b, edge.a) if _is_text(run, edge.a) else (edge.a, edge.b)


def _judge(
    world: World,
    run: Run,
    edge: EdgeConfig,
    encoded: Mapping[str, Encoded],
    samples: int,
    settings: Settings,
) -> Report:
    a, b = _sides(run, edge)
    x, y = encoded[a], encoded[b]
    judged = settings.resolved(run.recipe.evaluation)
    if x.vectors.shape[1] != y.vectors.shape[1]:
        raise UserError(
            f"the branches {a} and {b} of {run.path} have {judged.space}s of "
            f"{x.vectors.shape[1]} and {y.vectors.shape[1]} dimensions, which cannot be compared; "
            "they can in the embedding space (--space embedding, or evaluation.space in the run's recipe.yaml)"
        )
    step = FOLD if settings.protocol == "1k-5fold" else samples
    search = choose_search(settings.search, len(y.owner), visible=world.is_main)
    forth, back, right, many, one = [], [], [], [], []
    for start in range(0, samples, step):
        first, last = np.searchsorted(y.owner, [start, start + step])
        images = Encoded(x.vectors[start : start + step], x.owner[start : start + step] - start)
        captions = Encoded(y.vectors[first:last], y.owner[first:last] - start)
        found = count_ranks(world, images, captions, similarity=judged.similarity, search=search)
        forth.append(found[0])
        back.append(found[1])
        right.append(np.bincount(captions.owner, minlength=len(images.owner)))
        many.append(len(captions.owner))
        one.append(len(images.owner))
    return {
        f"{a}_to_{b}": Direction(forth, many, right).report(),
        f"{b}_to_{a}": Direction(back, one, [np.ones(m, np.int64) for m in many]).report(),
    }


def _finite(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
