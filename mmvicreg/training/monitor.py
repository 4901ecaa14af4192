"""Watching for collapse.

Symptom: the loss falls and the probe stays at chance. Cause: the embedding of a branch became constant
(every dimension dead) or one-dimensional (its dimensions copy each other). Fix: see the message.

Branches may also stay spread out and learn nothing of each other, as with coefficients that Table 7 calls a collapse.
That shows in their agreement. Early in training it is near 0 for any method, so only a run's end is judged by it.
And invariance, or hard negatives, may hold them at a small part of the spread that they should have: the end is
judged by that as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmvicreg.config import MonitorConfig
from mmvicreg.metrics.spectrum import (
    agreement,
    dead_fraction,
    effective_rank,
    mean_correlation,
    standard_deviations,
)
from mmvicreg.objectives.base import Graph, Objective
from mmvicreg.sources import in_source


@dataclass(frozen=True)
class Health:
    """What one node's embedding (z) and representation (y) look like over a global batch.

    Attributes:
        std: mean over dimensions of z's standard deviation; of sqrt(d) z/|z| for a method that compares
            directions only, so that 1 is spread over the whole sphere (Figure 4 shows it over sqrt(d)).
        dead: part of z's dimensions whose standard deviation is below the threshold.
        effective_rank: of z (RankMe: exponential of the entropy of its singular values).
        mean_correlation: of y, Eq. 9 for one branch.
        representation_std: mean over dimensions of y's standard deviation.
        representation_rank: effective rank of y.
        most_rank: the most that z's effective rank can be, min(n - 1, d); None in what earlier versions wrote.
    """

    std: float
    dead: float
    effective_rank: float
    mean_correlation: float
    representation_std: float
    representation_rank: float
    most_rank: int | None = None


def measure(z: Tensor, y: Tensor, *, dead_std: float, directional: bool = False) -> Health:
    """Measure an embedding ``(n, d)`` and its representation ``(n, f)``, both detached.

    Args:
        z: the embedding.
        y: the representation.
        dead_std: a dimension that deviates by less is dead.
        directional: measure z's direction: an embedding that grows while all samples point one way has
            collapsed for a method that compares directions.
    """
    z, y = z.float(), y.float()
    if directional:
        z = functional.normalize(z, dim=1) * z.shape[1] ** 0.5
    figures = torch.stack(
        [
            standard_deviations(z).mean(),
            dead_fraction(z, dead_std).to(z.dtype),
            effective_rank(z).to(z.dtype),
            mean_correlation(y).to(z.dtype),
            standard_deviations(y).mean(),
            effective_rank(y).to(z.dtype),
        ]
    )
    n, d = z.shape
    return replace(Health(*figures.tolist()), most_rank=min(n - 1, d))


def agreements(
    embeddings: Mapping[str, Tensor], graphs: Mapping[str, Graph], *, directional: bool = False
) -> dict[str, float]:
    """Agreement (:func:`~mmvicreg.metrics.spectrum.agreement`) along every edge, named as the edges' terms are.

    Args:
        embeddings: of every node ``(n, d)``, detached, over the global batch.
        graphs: of every source.
        directional: compare directions, as :func:`measure` does.
    """
    found = {}
    for source, graph in graphs.items():
        for edge in graph.edges:
            a, b = (embeddings[in_source(source, node)] for node in (edge.a, edge.b))
            if directional:
                a, b = functional.normalize(a.float(), dim=1), functional.normalize(b.float(), dim=1)
            found[in_source(source, f"{edge.a}-{edge.b}")] = float(agreement(a, b))
    return found


def nothing_shared(found: Mapping[str, float], config: MonitorConfig, *, advice: str) -> list[str]:
    """What to say of each edge over which a run that ends with these agreements has learnt nothing.

    Args:
        found: agreement along each edge.
        config: thresholds.
        advice: the method's (:attr:`~mmvicreg.objectives.base.Objective.advice`).
    """
    return [
        f"the run ends with embeddings that have nothing in common along {edge}: they agree by {value:.3f}, where 0 is "
        f"chance and 1 the same (monitor.min_agreement is {config.min_agreement:g}). {advice}, or train for longer"
        for edge, value in found.items()
        if value < config.min_agreement
    ]


def nearly_collapsed(
    branches: Mapping[str, Health], targets: Mapping[str, float], config: MonitorConfig, *, advice: str
) -> list[str]:
    """What to say of each node that ends a run with a small part of the spread that it should have.

    Args:
        branches: node -> its last figures.
        targets: node -> the spread (:meth:`~mmvicreg.objectives.base.Objective.target_std`), where there is one.
        config: thresholds.
        advice: the method's (:attr:`~mmvicreg.objectives.base.Objective.advice`).
    """
    return [
        f"the run ends with embeddings of branch {node} that deviate by {branches[node].std:.2g} on average, "
        f"{branches[node].std / target:.0%} of the {target:.2g} that they should (monitor.min_spread is "
        f"{config.min_spread:g}): they have nearly collapsed. {advice}"
        for node, target in targets.items()
        if branches[node].std < config.min_spread * target
    ]


def target_stds(graphs: Mapping[str, Graph], objectives: Mapping[str, Objective]) -> dict[str, float]:
    """Node -> the spread it should have, of every source, for methods that say one."""
    found = {
        in_source(source, node.name): objectives[source].target_std(node)
        for source, graph in graphs.items()
        for node in graph.nodes
    }
    return {node: target for node, target in found.items() if target is not None}


def last_words(line: Mapping[str, Any], config: MonitorConfig, *, advice: str) -> dict[str, list[str]]:
    """What to say of a whole run from its last measurement, a line of ``metrics.jsonl``; what it lacks is passed over.

    Returns:
        ``nearly_collapsed`` and ``nothing_shared``, what each of these functions says.
    """
    branches = {node: Health(**figures) for node, figures in line.get("branches", {}).items()}
    return {
        "nearly_collapsed": nearly_collapsed(branches, line.get("target_std", {}), config, advice=advice),
        "nothing_shared": nothing_shared(line.get("agreement", {}), config, advice=advice),
    }


@dataclass(frozen=True)
class Verdict:
    """What a monitor had to say about a whole run.

    Attributes:
        warned: the step of the first warning; None: there was none.
        stopped: the step at which it stopped the run.
        collapsed: whether a branch looked collapsed more often than not up to the end.
        message: the last thing it said; empty where it said nothing.
        looked: whether a measurement came after ``grace_steps``.
    """

    warned: int | None = None
    stopped: int | None = None
    collapsed: bool = False
    message: str = ""
    looked: bool = False


class CollapseMonitor:
    """Counts measurements in which a branch looks collapsed; a healthy one takes one back.

    Args:
        config: thresholds.
        advice: what the method advises (:attr:`~mmvicreg.objectives.base.Objective.advice`).
    """

    def __init__(self, config: MonitorConfig, *, advice: str = Objective.advice) -> None:
        self.config, self.advice = config, advice
        self.counts: dict[str, int] = {}

    def look(self, step: int, health: Mapping[str, Health]) -> tuple[str | None, bool]:
        """Judge one measurement.

        Returns:
            What to tell the user (None: nothing new), and whether the run must stop.
        """
        message, stop = None, False
        for node, figures in health.items():
            reason = self._collapsed(figures)
            if reason is None or step < self.config.grace_steps:
                # one step back, not to zero: a branch that flickers around the threshold is no healthier
                self.counts[node] = max(0, self.counts.get(node, 0) - 1)
                continue
            self.counts[node] = self.counts.get(node, 0) + 1
            if self.counts[node] == 1 and not stop:
                message = f"step {step}: branch {node} looks collapsed: {reason}"
            if self.counts[node] >= self.config.patience:
                stop = True
                message = (
                    f"branch {node} has collapsed ({reason}, {self.counts[node]} measurements up to step "
                    f"{step}). {self.advice}, or lower the learning rate; monitor.patience and "
                    "monitor.grace_steps decide when a run is stopped; to go on all the same: mmvicreg train --resume "
                    f"--out RUN --set monitor.patience={10 * self.config.patience}"
                )
        return message, stop

    def state(self) -> dict[str, int]:
        """Counts so far, for a checkpoint."""
        return dict(self.counts)

    def load_state(self, state: Mapping[str, int]) -> None:
        """Restore :meth:`state`."""
        self.counts = {node: int(count) for node, count in state.items()}

    def _collapsed(self, figures: Health) -> str | None:
        if figures.dead > self.config.max_dead:
            return (
                f"{100 * figures.dead:.0f} % of its dimensions have a standard deviation below "
                f"{self.config.dead_std:g}"
            )
        if figures.std < self.config.dead_std:
            return f"the standard deviation of its dimensions is {figures.std:.2g} on average"
        least = self.config.min_rank
        if figures.most_rank is not None:  # two or three samples never reach 2, however far apart they are
            least = min(least, (1 + figures.most_rank) / 2)
        if figures.effective_rank < least:
            return f"its effective rank is {figures.effective_rank:.2f}"
        return None


def judge(
    config: MonitorConfig,
    measurements: Iterable[tuple[int, Mapping[str, Health]]],
    *,
    advice: str = Objective.advice,
) -> Verdict:
    """Look at a run's measurements ``(step, node -> figures)`` again, in their order, with a method's advice."""
    monitor, verdict = CollapseMonitor(config, advice=advice), Verdict()
    for step, health in measurements:
        message, stop = monitor.look(step, health)
        verdict = replace(
            verdict,
            warned=step if message is not None and verdict.warned is None else verdict.warned,
            stopped=step if stop else None,
            collapsed=any(monitor.counts.values()),
            message=message or verdict.message,
            looked=verdict.looked or step >= config.grace_steps,
        )
        if stop:
            break
    return verdict
