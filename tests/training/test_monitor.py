"""The monitor: a healthy branch passes, a dead or one-dimensional one warns, then stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_recipe

from mmvicreg.config import MonitorConfig
from mmvicreg.objectives import VSE, WMSE, BarlowTwins, SimCLR, SimSiam, SwAV, VICReg
from mmvicreg.objectives.base import Edge, Graph, Node, Objective
from mmvicreg.runs import Run, create_run
from mmvicreg.training.distributed import World
from mmvicreg.training.log import read_lines
from mmvicreg.training.loop import Trainer
from mmvicreg.training.monitor import (
    CollapseMonitor,
    Health,
    Verdict,
    agreements,
    judge,
    measure,
    nearly_collapsed,
    nothing_shared,
)

CONFIG = MonitorConfig(grace_steps=10, patience=3)


def healthy() -> torch.Tensor:
    return torch.randn(64, 32)


def constant() -> torch.Tensor:
    return torch.ones(64, 32) + 1e-4 * torch.randn(64, 32)


def shrinking() -> torch.Tensor:
    """An eighth of the dimensions above 0.01 still, as an invariance term alone leaves them on its way to nothing."""
    return torch.randn(64, 32) * torch.tensor([0.02] * 4 + [0.006] * 28)


def one_dimensional() -> torch.Tensor:
    return torch.randn(64, 1) @ torch.randn(1, 32)


def test_healthy_embeddings_are_left_alone() -> None:
    monitor = CollapseMonitor(CONFIG)
    for step in range(0, 200, 10):
        assert monitor.look(step, {"a": measure(healthy(), healthy(), dead_std=0.01)}) == (None, False)


@pytest.mark.parametrize(
    ("embedding", "reason"),
    [
        (constant, "100 % of its dimensions"),
        (shrinking, "deviation of its dimensions is 0.00"),
        (one_dimensional, "rank is 1.0"),
    ],
)
def test_collapse_warns_then_stops_and_names_the_branch(embedding: object, reason: str) -> None:
    monitor = CollapseMonitor(CONFIG, advice="Have a rest")
    health = {
        "good": measure(healthy(), healthy(), dead_std=0.01),
        "bad": measure(embedding(), healthy(), dead_std=0.01),
    }  # type: ignore[operator]
    assert monitor.look(5, health) == (None, False)  # grace
    message, stop = monitor.look(20, health)
    assert not stop
    assert message is not None
    assert "branch bad looks collapsed" in message
    assert reason in message
    assert monitor.look(30, health) == (None, False)
    again = CollapseMonitor(CONFIG, advice="Have a rest")
    again.load_state(monitor.state())  # as a resumed run does
    message, stop = again.look(40, health)
    assert stop
    assert message is not None
    assert "branch bad has collapsed" in message
    assert "Have a rest, or lower the learning rate" in message


@pytest.mark.parametrize("n", [2, 3, 4, 16])
def test_few_samples_that_are_far_apart_are_no_collapse(n: int) -> None:
    """Two have a rank of 1 and three of 2 at most, whatever they are."""
    monitor = CollapseMonitor(CONFIG)
    for step in range(0, 200, 10):
        assert monitor.look(step, {"a": measure(torch.randn(n, 32), healthy(), dead_std=0.01)}) == (
            None,
            False,
        )


@pytest.mark.parametrize("n", [3, 4, 16])
def test_few_samples_on_a_line_are_a_collapse(n: int) -> None:
    monitor = CollapseMonitor(CONFIG)
    bad = {"a": measure(torch.randn(n, 1) @ torch.randn(1, 32), healthy(), dead_std=0.0)}
    assert "rank is 1.0" in (monitor.look(20, bad)[0] or "")


def test_recovery_resets_the_count() -> None:
    monitor = CollapseMonitor(CONFIG)
    bad = {"a": measure(constant(), healthy(), dead_std=0.01)}
    good = {"a": measure(healthy(), healthy(), dead_std=0.01)}
    for step, health in ((20, bad), (30, bad), (40, good), (50, good), (60, bad), (70, bad)):
        assert not monitor.look(step, health)[1]


def test_where_only_directions_count_length_does_not_hide_a_collapse() -> None:
    grown = 500 * constant()
    assert measure(grown, healthy(), dead_std=0.01).dead == 0
    assert measure(grown, healthy(), dead_std=0.01, directional=True).dead == 1
    spread = measure(0.001 * healthy(), healthy(), dead_std=0.01, directional=True)
    assert spread.dead == 0
    assert spread.std == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("objective", "directional"),
    [
        (VSE(), True),
        (SimCLR(), True),
        (SwAV(prototypes=8, width=6), True),
        (VICReg(normalise="l2", epsilon=1e-6), True),
        (SimSiam(predictor=None), True),
        (SimSiam(predictor=None, distance="mse"), False),
        (VICReg(), False),
        (BarlowTwins(), False),
        (WMSE(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else str(value),
)
def test_what_is_directional_does_not_see_the_length_of_an_embedding(
    objective: Objective, directional: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 16, 6, generator=generator, dtype=torch.float64)
    lengths = 1 + torch.rand(16, 1, generator=generator, dtype=torch.float64)
    objective = objective.double().eval()
    same = torch.isclose(objective(a, b).loss, objective(lengths * a, b / lengths).loss, rtol=1e-9)
    assert bool(same) == objective.directional == directional


def test_a_run_is_judged_again_from_its_measurements() -> None:
    good = {"a": measure(healthy(), healthy(), dead_std=0.01)}
    bad = {"a": measure(constant(), healthy(), dead_std=0.01)}

    def over(*health: object) -> Verdict:
        return judge(CONFIG, [(10 * n, figures) for n, figures in enumerate(health)])  # type: ignore[misc]

    assert over(good) == Verdict()  # step 0 is within the grace
    assert over(bad, good, good) == Verdict(looked=True)
    gone = over(good, bad, bad)
    assert (gone.warned, gone.stopped, gone.collapsed) == (10, None, True)
    assert gone.message.startswith("step 10: branch a looks collapsed")
    back = over(good, bad, good)
    assert (back.warned, back.stopped, back.collapsed) == (10, None, False)
    ended = over(good, bad, good, bad, bad, bad, good, good)
    assert (ended.warned, ended.stopped, ended.collapsed) == (10, 50, True)
    assert "branch a has collapsed" in ended.message


def test_every_edge_is_asked_whether_its_embeddings_agree() -> None:
    z = {name: torch.randn(64, 8) for name in ("a", "b", "more:a/0", "more:a/1")}
    z["c"] = torch.nn.functional.normalize(z["a"], dim=1) * torch.linspace(1, 1000, 64)[:, None]
    graphs = {
        "": Graph(tuple(Node(n, n, 8) for n in "abc"), (Edge("a", "b"), Edge("a", "c"))),
        "more": Graph((Node("a/0", "a", 8), Node("a/1", "a", 8)), (Edge("a/0", "a/1"),)),
    }
    found = agreements(z, graphs)
    assert list(found) == ["a-b", "a-c", "more:a/0-a/1"]
    assert abs(found["a-b"]) < 0.3
    assert 0.5 < found["a-c"] < 0.99
    assert agreements(z, graphs, directional=True)["a-c"] == pytest.approx(1, abs=1e-6)
    (message,) = nothing_shared({"a-b": 0.04, "a-c": 0.06}, CONFIG, advice=SwAV.advice)
    assert "nothing in common along a-b: they agree by 0.040" in message
    assert "objective.epsilon" in message  # not VICReg's coefficients


def test_a_small_part_of_the_spread_that_is_asked_for_is_nearly_a_collapse() -> None:
    figures = Health(
        std=0.046, dead=0, effective_rank=17, mean_correlation=0, representation_std=1, representation_rank=9
    )
    branches = {"a": figures, "b": replace(figures, std=0.2), "c": replace(figures, std=0.001)}
    targets = {"a": 1.0, "b": 1.0}  # c has none
    (message,) = nearly_collapsed(branches, targets, CONFIG, advice=VSE.advice)
    assert "branch a that deviate by 0.046 on average, 5% of the 1 " in message
    assert "objective.negatives=all" in message  # not VICReg's coefficients
    node = Node("a", "a", 16)
    assert VICReg().target_std(node) == 1
    assert VICReg(gamma=0.3).target_std(node) == 0.3
    assert VICReg(normalise="l2").target_std(node) == VSE().target_std(node) == 1  # measured by direction
    assert VICReg().target_std(replace(node, variance=0.0)) is None
    assert BarlowTwins().target_std(node) is None


@pytest.mark.parametrize("share", [0.0, 1000.0])
def test_a_run_that_ends_nearly_collapsed_says_so(
    share: float, tiny_tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (f"monitor.min_spread={share}", "training.epochs=1", "training.log_every=1")
    recipe = tiny_recipe("wave-mel", tiny_tones, *settings)
    create_run(tmp_path, recipe)
    Trainer(Run(tmp_path, recipe), World(0, 1, 0, torch.device("cpu")), resume=False, workers=0).train()
    said = capsys.readouterr().err.replace("\n", " ")
    assert all(line["target_std"] == {"wave": 1, "mel": 1} for line in read_lines(tmp_path / "metrics.jsonl"))
    assert said.count("of the 1 that they should") == (2 if share else 0)


@pytest.mark.parametrize("least", [-1.0, 1.0])
def test_a_run_that_ends_with_nothing_in_common_says_so(
    least: float, tiny_tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (f"monitor.min_agreement={least}", "training.epochs=2", "training.log_every=1")
    recipe = tiny_recipe("wave-mel", tiny_tones, *settings)
    create_run(tmp_path, recipe)
    outcome = Trainer(
        Run(tmp_path, recipe), World(0, 1, 0, torch.device("cpu")), resume=False, workers=0
    ).train()
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert len(lines) == outcome.step > 1
    assert all(
        line["agreement"].keys() == {"wave-mel"} and abs(line["agreement"]["wave-mel"]) <= 1 for line in lines
    )
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("nothing in common along wave-mel") == (least > 0)
