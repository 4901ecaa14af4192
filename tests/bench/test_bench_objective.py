"""``mmvicreg bench objective``: what it measures is what it says, and its options are checked."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mmvicreg.bench.measure import interleaved_seconds, peak_memory
from mmvicreg.bench.objective import embeddings, errors, reference
from mmvicreg.bench.peers import NAMES, authors, peer, solo_learn
from mmvicreg.cli import main
from mmvicreg.objectives import VICReg
from mmvicreg.training import distributed
from mmvicreg.training.distributed import World

CPU = torch.device("cpu")
KEYS = {
    "n": int,
    "d": int,
    "processes": int,
    "device": str,
    "ours_ms": float,
    "peer": str,
    "peer_ms": float,
    "ratio": float,
    "ours_mb": float,
    "peer_mb": float,
    "max_rel_err": float,
}
HERE = [name for name in NAMES if name != "lightly" or importlib.util.find_spec("lightly")]


class Said(NamedTuple):
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """``mmvicreg bench objective`` on the CPU, in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Said:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["mmvicreg", "bench", "objective", "--device", "cpu", *arguments])
        try:
            main()
        except SystemExit as ended:
            return Said(int(ended.code or 0), *capfd.readouterr())
        return Said(0, *capfd.readouterr())

    return run


def check_rows(rows: list[dict[str, Any]], cases: list[tuple[int, int, int]], *, error: float) -> None:
    """Exactly the documented keys, a row for each peer of each case, and figures that can be true."""
    assert [(row["n"], row["d"], row["processes"]) for row in rows] == [c for c in cases for _ in HERE]
    assert [row["peer"] for row in rows] == HERE * len(cases)
    for row in rows:
        assert {key: type(value) for key, value in row.items()} == KEYS
        assert row["device"] == "cpu"
        assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"])
        assert row["ours_ms"] > 0
        gradients = 2 * row["n"] // row["processes"] * row["d"] * 4 / 1e6
        assert row["ours_mb"] > gradients
        assert row["peer_mb"] > gradients + 2 * row["d"] ** 2 * 4 / 1e6  # two covariance matrices
        assert 0 < row["max_rel_err"] < error


def test_json_on_stdout(bench: Callable[..., Said]) -> None:
    said = bench("--shapes", "6x40,40x6", "--repeats", "2", "--json", "-")
    assert said.status == 0, said.err
    check_rows(json.loads(said.out), [(6, 40, 1), (40, 6, 1)], error=1e-5)


def test_processes_share_the_batch_and_check_their_rows(
    bench: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them, also where there is one core."""
    monkeypatch.setattr(distributed, "cpu_count", lambda: 1)
    said = bench("--shapes", "8x12", "--processes", "2", "--repeats", "1", "--json", "rows.json")
    assert said.status == 0, said.err
    check_rows(json.loads(Path("rows.json").read_text()), [(8, 12, 2)], error=1e-5)
    for expected in (*HERE, "8 x 12"):
        assert expected in said.out


def test_options_that_change_what_a_row_says_are_in_it(bench: Callable[..., Said]) -> None:
    said = bench(
        *("--shapes", "4x8", "--peers", "authors", "--repeats", "1"),
        *("--precision", "bf16", "--share", "--json", "-"),
    )
    assert said.status == 0, said.err
    (row,) = json.loads(said.out)
    assert row.keys() == {*KEYS, "precision", "share"}
    assert row["precision"] == "bf16"
    assert row["share"] > 0
    assert 1e-4 < row["max_rel_err"] < 1e-2  # of gradients rounded to bfloat16


def test_without_lightly_its_rows_are_left_out(
    bench: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightly", None)
    said = bench("--shapes", "4x8", "--repeats", "1", "--json", "-")
    assert said.status == 0, said.err
    assert [row["peer"] for row in json.loads(said.out)] == ["authors", "solo-learn"]
    told = [
        line for line in said.err.splitlines() if not line.startswith("USDT:")
    ]  # torch's profiler, at times
    assert told == [
        "lightly is not installed; pip install 'mmvicreg[bench]' brings it; its rows are left out"
    ]
    asked = bench("--shapes", "4x8", "--peers", "lightly")
    assert (asked.status, asked.out) == (2, "")
    assert "pip install 'mmvicreg[bench]'" in asked.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shapes", "256"], ["--shapes", "'256'", "256x4096"]),
        (["--shapes", "4x8,6 by 9"], ["--shapes", "'6 by 9'"]),
        (["--shapes", "4x8,"], ["--shapes", "''"]),
        (["--shapes", "1x8"], ["1x8", "two samples"]),
        (["--shapes", "7x8", "--processes", "2"], ["7 samples", "2 processes"]),
        (["--shapes", "2x8", "--processes", "2"], ["2 samples", "2 processes"]),
        (["--processes", "0"], ["--processes", "'0'"]),
        (["--processes", "1,two"], ["--processes", "'two'"]),
        (["--shapes", "9999999999x9999", "--peers", "authors"], ["not enough memory"]),
        (["--peers", "authors,solo"], ["'solo'", "solo-learn"]),
        (["--precision", "fp16"], ["'fp16'", "bf16"]),
        (["--precision", "tf32"], ["tf32", "--device cuda"]),
        (["--device", "tpu"], ["'tpu'", "cuda"]),
        (["--json", "nowhere/rows.json"], ["--json nowhere/rows.json", "no folder"]),
        (["--json", "."], ["--json . is a folder", "name a file in it"]),
    ],
)
def test_refused(bench: Callable[..., Said], arguments: list[str], words: list[str]) -> None:
    said = bench(*arguments)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    for word in words:
        assert word in said.err


def test_torchrun_is_refused(bench: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    said = bench("--shapes", "4x8")
    assert said.status == 2
    assert "--processes" in said.err


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    kept: list[Tensor] = []

    def work() -> Tensor:
        first = torch.empty(1_000_000, dtype=torch.uint8)
        second = torch.empty(2_000_000, dtype=torch.uint8)
        del first
        kept.append(torch.empty(500_000, dtype=torch.uint8))
        return second

    assert peak_memory(work, CPU) == 3_000_000
    kept.clear()  # what one measurement left behind is none of the next one's
    assert peak_memory(work, CPU) == 3_000_000
    assert peak_memory(lambda: None, CPU) == 0


def test_peak_memory_sees_temporaries_of_operations_and_of_backward() -> None:
    x = torch.randn(250_000, requires_grad=True)  # 1 MB
    chosen = x.detach() > 0
    picked = int(chosen.sum())
    # The values and, while they are being picked, their positions as int64.
    assert peak_memory(lambda: x.detach()[chosen], CPU) == pytest.approx(12 * picked, rel=1e-3)
    # exp keeps its result for backward, which then makes the gradient.
    assert peak_memory(lambda: torch.autograd.grad(x.exp().sum(), x), CPU) == pytest.approx(2e6, rel=1e-3)


@pytest.mark.gpu
def test_peak_memory_on_a_gpu() -> None:
    device = torch.device("cuda")
    before = torch.empty(8_000_000, dtype=torch.uint8, device=device)
    assert peak_memory(lambda: torch.empty_like(before), device) == pytest.approx(8_000_000, rel=0.3)


def test_runs_are_interleaved() -> None:
    order: list[str] = []
    functions = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = interleaved_seconds(functions, repeats=3, device=CPU)
    assert order == ["a", "b"] * 3
    assert all(len(values) == 3 and min(values) >= 0 for values in seconds.values())


@pytest.mark.parametrize(("n", "d"), [(6, 11), (30, 7)])
def test_peers_compute_the_same_loss(n: int, d: int) -> None:
    a, b = (z.requires_grad_() for z in embeddings(n, d, torch.float64))
    losses = {authors: "paper", solo_learn: "paper"}
    if "lightly" in HERE:
        losses[peer("lightly")] = "official"
    for loss, convention in losses.items():
        theirs, ours = loss(a, b), VICReg(convention=convention)(a, b).loss
        torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=0)
        for mine, his in zip(
            torch.autograd.grad(ours, (a, b)), torch.autograd.grad(theirs, (a, b)), strict=True
        ):
            torch.testing.assert_close(mine, his, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("n", "d"), [(12, 2100), (40, 9)])
def test_the_reference_is_the_loss_in_float64(n: int, d: int) -> None:
    """2100 dimensions: three blocks of columns, the last of another width."""
    batch = tuple(z.requires_grad_() for z in embeddings(n, d, torch.float64))
    ours = VICReg()(*batch).loss
    loss, gradients = reference(*batch)
    torch.testing.assert_close(loss, ours.detach(), rtol=1e-12, atol=0)
    for exact, mine in zip(gradients, torch.autograd.grad(ours, batch), strict=True):
        assert float((exact - mine).norm() / mine.norm()) < 1e-10
    dealt = [reference(*batch, rank=rank, processes=2) for rank in range(2)]  # no group: nothing is summed
    torch.testing.assert_close(dealt[0][0] + dealt[1][0], loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(dealt[0][1][1] + dealt[1][1][1], gradients[1], rtol=1e-10, atol=1e-14)


def test_errors_find_what_is_wrong() -> None:
    batch = embeddings(8, 20, torch.float32)
    loss, gradients = reference(*batch)
    alone = World(0, 1, 0, CPU)
    right = errors(loss, tuple(gradients), batch, alone)
    assert max(right) == 0
    wrong = errors(loss * (1 + 1e-3), (gradients[0], gradients[1] * (1 - 1e-2)), batch, alone)
    assert wrong == pytest.approx((1e-3, 1e-2))
