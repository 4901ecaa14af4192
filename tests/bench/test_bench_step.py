"""The two training steps: alike in what they do to the weights, and measured phase by phase."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmvicreg.bench import input as pictures
from mmvicreg.bench.step import AUTHORS, OURS, PHASES, Authors, Ours, Settings, bench_step, rows, table
from mmvicreg.errors import UserError

TINY = Settings(width=32, batch_size=16, size=16, repeats=1, device="cpu")


def test_both_take_the_same_step() -> None:
    found = {one.name: one for one in bench_step(TINY)}
    assert set(found) == {AUTHORS, OURS}
    # float32, other memory layouts and another form of the objective: round-off, and ReLUs that it flips
    assert 0 < found[OURS].difference < 0.02
    for one in found.values():
        assert set(one.phases) == set(PHASES)
        assert min(one.seconds, one.memory, one.input_seconds) > 0
    assert found[AUTHORS].ratio == 1
    printed = rows(list(found.values()), TINY)
    assert sum(printed[1]["share"].values()) == pytest.approx(1)
    shown = table(list(found.values()), TINY)
    assert len(shown.columns) == 3
    for one, row, column in zip(found.values(), printed, shown.columns[1:], strict=True):
        assert row["input_core_seconds"] == one.input_seconds
        assert row["input_share_of_step"] == pytest.approx(one.input_seconds / one.seconds)
        cells = dict(zip(shown.columns[0].cells, column.cells, strict=True))
        assert cells["input, seconds of a core for a step"] == f"{one.input_seconds:.3f}"
        assert cells["the same, % of the step"] == f"{100 * one.input_seconds / one.seconds:.1f}"
    assert "it is in neither the seconds nor the ratio" in str(shown.caption)


def test_gradients_count_as_memory_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left from the step before, they would be part of what a GPU has in use when the measuring begins."""
    made: list[Ours] = []
    begun = Ours.__init__

    def noted(self: Ours, *arguments: Any) -> None:
        begun(self, *arguments)
        made.append(self)

    def measured(function: Callable[[], object], _: torch.device) -> int:
        left.append(sum(p.grad is not None for p in made[0].model.parameters()))
        function()
        return 1

    left: list[int] = []
    monkeypatch.setattr(Ours, "__init__", noted)
    monkeypatch.setattr("mmvicreg.bench.step.peak_memory", measured)
    bench_step(TINY)
    assert left == [0, 0]


def test_each_is_taken_with_cudnn_as_its_own_script_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each input is measured in turns, after a pass that is not timed."""
    flags, found, passes = torch.backends.cudnn, {}, []
    before = flags.deterministic, flags.benchmark

    def noted(name: str, kind: type) -> None:
        taken = kind.step

        def step(self: object, watch: Callable[[str], None]) -> None:
            found[name] = flags.deterministic, flags.benchmark
            taken(self, watch)

        monkeypatch.setattr(kind, "step", step)

    noted(OURS, Ours)
    noted(AUTHORS, Authors)
    for name in ("authors_pipeline", "our_pipeline"):
        made = getattr(pictures, name)

        def pipeline(*given: Any, name: str = name, made: Any = made, **options: Any) -> Callable[[int], Any]:
            run = made(*given, **options)
            return lambda seed: (passes.append(name), run(seed))[1]

        monkeypatch.setattr(pictures, name, pipeline)
    bench_step(replace(TINY, repeats=2))
    assert found == {OURS: (True, False), AUTHORS: (False, True)}
    assert (flags.deterministic, flags.benchmark) == before
    assert passes[:8] == 2 * (2 * ["authors_pipeline"] + 2 * ["our_pipeline"])


def test_the_command_writes_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    flags = ["--width", "16", "--batch-size", "4", "--size", "16", "--repeats", "1", "--device", "cpu"]
    command = [
        sys.executable,
        "-m",
        "mmvicreg",
        "bench",
        "step",
        *flags,
        "--precision",
        "bf16",
        "--json",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["implementation"] for row in json.loads(file.read_text())] == [AUTHORS, OURS]
    assert "pictures a second" in done.stdout


@pytest.mark.parametrize("wrong", [{"precision": "fp16"}, {"batch_size": 1}, {"repeats": 0}])
def test_what_cannot_be_measured_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"precision|needs"):
        Settings(**wrong)  # type: ignore[arg-type]
