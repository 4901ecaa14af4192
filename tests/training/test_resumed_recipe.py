"""A resumed run is the run of its checkpoint: in its precision, by its recipe, its weights in their order."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_resume import last_state, same
from tiny import as_flags

from mmvicreg.cli import main
from mmvicreg.errors import UserError
from mmvicreg.eval import linear
from mmvicreg.recipes import dump_recipe
from mmvicreg.runs import open_run
from mmvicreg.training.checkpoint import list_checkpoints, load_checkpoint, save_data
from mmvicreg.training.distributed import World
from mmvicreg.training.loop import Trainer


def mmvicreg(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mmvicreg", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def begin(monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path, *settings: str) -> tuple[Path, Path]:
    """A run of two epochs, and a copy of it as it was after the first."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    flags = as_flags("wave-mel", root, "dataset.fold=1", "training.keep_checkpoints=9", *settings)
    assert mmvicreg(monkeypatch, "train", *flags, "--out", whole, "--device", "cpu", "--workers", "0") == 0
    shutil.copytree(whole, half)
    list_checkpoints(half / "checkpoints")[-1].unlink()
    return whole, half


def resume(monkeypatch: pytest.MonkeyPatch, run: Path, *more: object) -> int:
    return mmvicreg(
        monkeypatch, "train", "--resume", "--out", run, "--device", "cpu", "--workers", "0", *more
    )


def rewrite(run: Path, change: Callable[[dict[str, Any]], object], *, sort_keys: bool = False) -> None:
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    change(tree)
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=sort_keys))


def test_float64_goes_on_in_the_same_bits(
    tiny_tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half = begin(monkeypatch, tiny_tones, tmp_path, "training.precision=fp64")
    assert resume(monkeypatch, half) == 0
    weights = last_state(half)["model"]
    assert isinstance(weights, dict)
    assert any(value.dtype == torch.float64 for value in weights.values())
    assert same(last_state(whole)["model"], weights)


def test_options_that_earlier_versions_kept_and_nothing_read_are_forgiven(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--set inputs.text.tokenizer=words`` left the ``vocabulary`` of the recipe file in the run's."""
    run = tmp_path / "run"
    flags = as_flags("image-text", tiny_shapes, "inputs.text={tokenizer: words}", "training.epochs=1")
    assert mmvicreg(monkeypatch, "train", *flags, "--out", run, "--device", "cpu", "--workers", "0") == 0
    (file,) = list_checkpoints(run / "checkpoints")
    content = load_checkpoint(file)
    content["recipe"]["inputs"]["text"]["vocabulary"] = 200
    save_data(file, content)
    rewrite(run, lambda tree: tree["inputs"]["text"].update(vocabulary=200))
    assert open_run(run).epochs_done == 1
    assert open_run(run).resumed_recipe.inputs["text"]["vocabulary"] == 8000
    assert resume(monkeypatch, run, "--set", "monitor.patience=50") == 0
    assert open_run(run).recipe.monitor.patience == 50
    shown = "".join(capsys.readouterr())
    assert f"what {run / 'recipe.yaml'} says anew: monitor.patience: " in shown
    assert "-> 50" in shown


def test_a_split_to_judge_on_that_is_not_there_is_not_kept(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = as_flags("image-text", tiny_shapes, "training.epochs=1")
    assert mmvicreg(monkeypatch, "train", *flags, "--out", run, "--device", "cpu", "--workers", "0") == 0
    assert resume(monkeypatch, run, "--set", "dataset.eval_split=vall") == 2
    assert "dataset.eval_split: shapes" in (told := capsys.readouterr().err)
    assert "no split 'vall'; did you mean 'val'" in told
    assert open_run(run).recipe.dataset.eval_split is None
    assert resume(monkeypatch, run, "--set", "dataset.eval_split=val") == 0
    assert open_run(run).recipe.dataset.eval_split == "val"


@pytest.mark.parametrize("captions", ["one", "all"])
def test_other_captions_are_other_data(
    tiny_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    captions: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Which caption is drawn hangs on how many there are, and so does an epoch's length where all are."""
    root, run = tmp_path / "shapes", tmp_path / "run"
    shutil.copytree(tiny_shapes, root)
    flags = as_flags(
        "image-text", root, f"dataset.captions={captions}", "training.epochs=1", "training.batch_size=80"
    )
    options = ("--device", "cpu", "--workers", "0")
    assert mmvicreg(monkeypatch, "train", *flags, "--out", run, *options) == 0
    file = next(root.rglob("captions_train*.json"))
    content = json.loads(file.read_text())
    content["annotations"][0]["caption"] += " again"
    file.write_text(json.dumps(content))
    assert resume(monkeypatch, run) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "trained on 80 samples, and the data there now are the same with other captions: a resumed run"
        in told
    )
    kept = list_checkpoints(run / "checkpoints")[-1]
    state = torch.load(kept, weights_only=True)
    del state["data"]["captions"]  # as earlier versions wrote it
    torch.save(state, kept)
    assert resume(monkeypatch, run) == 0


def test_a_recipe_written_in_another_order_is_the_same_recipe(
    tiny_tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optimiser's state is kept by the weights' places: those of mel, sorted to the front, are not wave's."""
    whole, half = begin(monkeypatch, tiny_tones, tmp_path)
    rewrite(half, lambda tree: None, sort_keys=True)
    assert list(open_run(half).recipe.branches) == ["mel", "wave"]
    assert resume(monkeypatch, half) == 0
    for part in ("model", "optimizer"):
        assert same(last_state(whole)[part], last_state(half)[part]), part


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tree: tree.update(seed=4), "seed: 0 -> 4"),
        (lambda tree: tree["optimizer"].update(lr=0.1), "optimizer.lr: "),
        (lambda tree: tree["training"].update(epochs=5), "training.epochs: 2 -> 5"),
        (lambda tree: tree["branches"]["mel"].update(covariance=9.0), "branches.mel.covariance: "),
    ],
)
def test_an_edited_recipe_is_not_gone_on_with(
    tiny_tones: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], object],
    named: str,
) -> None:
    _, half = begin(monkeypatch, tiny_tones, tmp_path)
    rewrite(half, change)
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert resume(monkeypatch, half) == 2
    told = capsys.readouterr().err
    assert f"was trained by another recipe than {half / 'recipe.yaml'} says ({named}" in told
    assert "put the one back" in told
    assert before == {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="was trained by another recipe"):  # nor judged under its name
        linear.run(half)


def test_a_resumed_run_does_not_keep_the_checkpoint_in_memory(
    tiny_tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, half = begin(monkeypatch, tiny_tones, tmp_path)
    run = open_run(half)
    Trainer(run, World(0, 1, 0, torch.device("cpu")), resume=True, workers=0)
    assert "content" not in vars(run)
    assert run.epochs_done == 1  # who asks again is told


def test_what_no_weight_depends_on_may_be_edited(
    tiny_tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, half = begin(monkeypatch, tiny_tones, tmp_path)
    rewrite(half, lambda tree: tree["evaluation"].update(batch_size=7))
    rewrite(half, lambda tree: tree["monitor"].update(patience=9))
    rewrite(half, lambda tree: tree["inputs"]["audio"].update(cache=False))
    rewrite(half, lambda tree: tree["training"].update(keep_checkpoints=3, log_every=7))
    run = open_run(half)
    assert run.content["position"]["epoch"] == 1
    assert run.recipe.evaluation.batch_size == 7
    assert dump_recipe(run.resumed_recipe) == (half / "recipe.yaml").read_text()


@pytest.mark.parametrize("asked", ["auto", "bf16-if-native"])
def test_a_precision_left_to_the_machine_stays_what_it_was_on_another(
    tiny_tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """A run that began in fp32 is continued by the command that began it where ``asked`` would be bf16 now."""
    run, flags = tmp_path / "run", as_flags("wave-mel", tiny_tones, f"training.precision={asked}")
    monkeypatch.setattr("mmvicreg.training.launch.resolve_precision", lambda *_: "fp32")
    assert mmvicreg(monkeypatch, "train", *flags, "--out", run, "--device", "cpu", "--workers", "0") == 0
    list_checkpoints(run / "checkpoints")[-1].unlink()
    monkeypatch.setattr("mmvicreg.training.launch.resolve_precision", lambda *_: "bf16")
    assert resume(monkeypatch, run, *flags) == 0
    assert open_run(run).recipe.training.precision == "fp32"
    assert open_run(run).epochs_done == 2


def test_a_run_that_the_monitor_stopped_goes_on_as_its_message_says(
    tiny_tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its count is as high as its patience then, and would stop it at the next look."""
    always = ("monitor.min_rank=1000", "monitor.grace_steps=0", "dataset.fold=1")
    flags = as_flags("wave-mel", tiny_tones, *always)
    options = ("--device", "cpu", "--workers", "0")
    whole, run = tmp_path / "whole", tmp_path / "run"
    patient = ("--set", "monitor.patience=100")
    assert mmvicreg(monkeypatch, "train", *flags, *patient, "--out", whole, *options) == 0
    assert mmvicreg(monkeypatch, "train", *flags, "--set", "monitor.patience=2", "--out", run, *options) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "to go on all the same: mmvicreg train --resume --out RUN --set monitor.patience=20" in told
    assert last_state(run)["position"]["step"] == 2  # type: ignore[index]
    assert resume(monkeypatch, run) == 2  # nothing has changed
    # counted anew: two more looks, where the old count would stop it at the first
    assert resume(monkeypatch, run, "--set", "monitor.patience=2", "--set", "monitor.min_rank=999") == 2
    assert last_state(run)["position"]["step"] == 3 + 2  # type: ignore[index]
    keep = ("--set", "training.keep_checkpoints=3", "--set", "monitor.min_rank=1000")
    assert resume(monkeypatch, run, *patient, *keep) == 0
    for part in ("model", "optimizer"):
        assert same(last_state(whole)[part], last_state(run)[part]), part
    recipe = open_run(run).recipe
    assert (recipe.monitor.patience, recipe.monitor.min_rank, recipe.training.keep_checkpoints) == (
        100,
        1000,
        3,
    )
    assert resume(monkeypatch, run, "--set", "optimizer.lr=1") == 2
    told = capsys.readouterr().err
    assert "--resume takes the run folder alone" in told
    assert "; optimizer.lr is none of these" in told


def test_a_mapping_that_decides_no_weight_is_taken_as_its_keys_are(
    tiny_tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a run that begins, the mapping takes the place of the one that was there."""
    _, half = begin(monkeypatch, tiny_tones, tmp_path, "monitor.min_rank=1")
    assert resume(monkeypatch, half, "--set", "training={keep_checkpoints: 3}") == 2
    assert "; training is none of these (name every key of a mapping by itself)" in capsys.readouterr().err
    mappings = ("--set", "monitor={patience: 50}", "--set", "evaluation={space: representation}")
    assert resume(monkeypatch, half, *mappings) == 0
    recipe = open_run(half).recipe
    assert (recipe.monitor.patience, recipe.monitor.min_rank) == (50, 2)
    assert recipe.evaluation.space == "representation"


def test_data_that_was_moved_is_found_again_afterwards(
    tiny_tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what judges the run, and by the next --resume, which names no place; relative places become absolute."""
    here, there, run = tmp_path / "here", tmp_path / "there", tmp_path / "run"
    shutil.copytree(tiny_tones, here)
    flags = as_flags("wave-mel", here, "dataset.fold=1", "training.keep_checkpoints=9")
    assert mmvicreg(monkeypatch, "train", *flags, "--out", run, "--device", "cpu", "--workers", "0") == 0
    list_checkpoints(run / "checkpoints")[-1].unlink()
    here.rename(there)
    assert resume(monkeypatch, run) == 2
    monkeypatch.chdir(tmp_path)
    assert resume(monkeypatch, run, "--set", "dataset.root=there") == 0
    assert open_run(run).recipe.dataset.root == str(there)
    assert open_run(run).dataset().samples("fold1")
    assert resume(monkeypatch, run) == 0
