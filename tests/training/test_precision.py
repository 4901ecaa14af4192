"""What a recipe's precision comes to on the machine at hand, and what is said where it is slow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_recipe

from mmvicreg.runs import create_run
from mmvicreg.training.distributed import World
from mmvicreg.training.loop import Trainer
from mmvicreg.training.setup import computes_bf16, resolve_precision

CPU = torch.device("cpu")
WARNING = "this cpu has no bfloat16 arithmetic"


def with_instructions(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    told = dict.fromkeys(("avx2", "amx_bf16", "avx512_bf16"), False) | dict.fromkeys(names, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)


@pytest.mark.parametrize(
    ("instructions", "native"),
    [([], "fp32"), (["avx2"], "fp32"), (["amx_bf16"], "bf16"), (["avx512_bf16"], "bf16"), (["bf16"], "bf16")],
)
def test_a_cpu_uses_bf16_where_it_is_native_and_asked_for(
    monkeypatch: pytest.MonkeyPatch, instructions: list[str], native: str
) -> None:
    with_instructions(monkeypatch, *instructions)
    assert resolve_precision("bf16-if-native", CPU) == native
    assert resolve_precision("auto", CPU) == "fp32"
    assert [resolve_precision(asked, CPU) for asked in ("fp32", "bf16", "fp64")] == ["fp32", "bf16", "fp64"]


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").is_file(), reason="the system does not list the CPU's instructions"
)
def test_the_instructions_are_those_that_the_system_lists() -> None:
    listed = set(Path("/proc/cpuinfo").read_text().split())
    assert computes_bf16(CPU) == bool(listed & {"amx_bf16", "avx512_bf16", "bf16"})


@pytest.mark.parametrize(
    ("instructions", "precision", "said"),
    [([], "bf16", True), (["amx_bf16"], "bf16", False), ([], "fp32", False)],
)
def test_emulated_bf16_is_told(
    tiny_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    instructions: list[str],
    precision: str,
    said: bool,
) -> None:
    with_instructions(monkeypatch, *instructions)
    recipe = tiny_recipe("image-text", tiny_shapes, f"training.precision={precision}")
    Trainer(create_run(tmp_path / "run", recipe), World(0, 1, 0, CPU), resume=False, workers=0)
    assert (WARNING in " ".join("".join(capsys.readouterr()).split())) is said


@pytest.mark.gpu
def test_a_gpu_uses_bf16_where_it_is_native() -> None:
    device = torch.device("cuda")
    native = torch.cuda.get_device_capability(device) >= (8, 0)
    for asked in ("auto", "bf16-if-native"):
        assert resolve_precision(asked, device) == ("bf16" if native else "fp32")
