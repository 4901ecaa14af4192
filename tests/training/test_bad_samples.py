"""--on-bad-sample: one substitute whatever the processes, workers or interruptions; a list of what was left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_recipe, untrained_run
from typer.testing import CliRunner

from mmvicreg.branches.model import Batch, build_inputs
from mmvicreg.cli import app
from mmvicreg.config import Recipe
from mmvicreg.datasets import open_dataset, training_samples
from mmvicreg.embed import embed
from mmvicreg.errors import UserError
from mmvicreg.eval import retrieval
from mmvicreg.runs import Run, create_run, open_run
from mmvicreg.samples import Sample
from mmvicreg.skipped import SKIPPED, Skipped, read_skipped, write_skipped
from mmvicreg.training.addressing import epoch_order, substitute
from mmvicreg.training.distributed import World
from mmvicreg.training.launch import Launch
from mmvicreg.training.launch import train as launch
from mmvicreg.training.loader import TrainingLoader
from mmvicreg.training.loop import Trainer

SKIP = "dataset.on_bad_sample=skip"


def samples_of(root: Path, split: str = "train") -> list[Sample]:
    return list(training_samples(open_dataset("shapes", root=root), split=split, fold=1))


@pytest.fixture
def damaged(tiny_shapes: Path, tmp_path: Path) -> Path:
    """The tiny shapes with three training pictures and two test pictures that do not decode."""
    root = tmp_path / "shapes"
    shutil.copytree(tiny_shapes, root)
    for sample in [*samples_of(root)[3:30:10], *samples_of(root, "test")[4:9:4]]:
        assert sample.image is not None
        sample.image.write_bytes(sample.image.read_bytes()[:40])
    return root


def loader(recipe: Recipe, *, rank: int = 0, world_size: int = 1, workers: int = 0) -> TrainingLoader:
    samples = samples_of(Path(str(recipe.dataset.root)))
    inputs = build_inputs(recipe)
    for source in inputs.values():
        source.fit(samples)
    return TrainingLoader(recipe, inputs, samples, rank=rank, world_size=world_size, workers=workers)


def flat(batch: Batch) -> dict[str, torch.Tensor]:
    tensors = {f"{view}.{name}": value for view, item in batch.views.items() for name, value in item.items()}
    return {"index": batch.index, **tensors}


def test_an_error_is_the_default_and_tells_the_way_on(damaged: Path) -> None:
    with pytest.raises(UserError, match=r"cannot decode the picture .*--on-bad-sample skip"):
        list(loader(tiny_recipe("image-text", damaged)).epoch(0))


def test_substitutes_do_not_depend_on_processes_workers_or_the_start(damaged: Path) -> None:
    recipe = tiny_recipe("image-text", damaged, SKIP)
    alone = loader(recipe)
    whole = [flat(batch) for batch in alone.epoch(1)]
    assert len(whole) == 5
    assert all(len(batch["index"]) == 16 for batch in whole)
    bad = {3, 13, 23}
    order = epoch_order(recipe.seed, 1, 80)
    seen = torch.cat([batch["index"] for batch in whole]).tolist()
    for row, index in zip(order.tolist(), seen, strict=True):
        if row not in bad:
            assert index == row
        else:
            tried = (substitute(recipe.seed, 1, row, attempt, 80) for attempt in range(20))
            assert index == next(other for other in tried if other not in bad)
    samples = samples_of(damaged)
    assert set(alone.skipped) == {samples[i].id for i in bad}
    for one in alone.skipped.values():
        assert one.file in one.reason
        assert one.file.endswith(".jpg")
    halves = [loader(recipe, rank=rank, world_size=2) for rank in (0, 1)]
    for batch, first, second in zip(whole, *(part.epoch(1) for part in halves), strict=True):
        for key in ("index", "image/0.pixels", "text/0.length"):
            assert torch.equal(batch[key], torch.cat([flat(first)[key], flat(second)[key]])), key
    assert {**halves[0].skipped, **halves[1].skipped} == alone.skipped
    again = [flat(batch) for batch in loader(recipe, workers=2).epoch(1, start=2)]
    for batch, other in zip(whole[2:], again, strict=True):
        assert all(torch.equal(batch[key], other[key]) for key in batch)


def test_a_recording_that_others_mix_in_is_left_out_and_they_are_not(
    tiny_tones: Path, tmp_path: Path
) -> None:
    root = tmp_path / "tones"
    shutil.copytree(tiny_tones, root)
    mixing = [SKIP, "inputs.audio.mix.probability=1", "inputs.audio.cache=false"]
    recipe = tiny_recipe("wave-mel", root, *mixing)
    samples = list(training_samples(open_dataset("tones", root=root), split="", fold=1))
    bad = 5
    path = samples[bad].audio
    assert path is not None
    path.write_bytes(path.read_bytes()[:60])

    def epochs(**options: int) -> list[dict[str, torch.Tensor]]:
        inputs = build_inputs(recipe)
        inputs["audio"].train_on(samples)
        made.append(TrainingLoader(recipe, inputs, samples, rank=0, world_size=1, **options))
        return [flat(batch) for number in range(3) for batch in made[-1].epoch(number)]

    made: list[TrainingLoader] = []
    batches = epochs(workers=0)
    per_epoch = len(batches) // 3
    for number in range(3):
        order = epoch_order(recipe.seed, number, len(samples)).tolist()
        part = batches[number * per_epoch : (number + 1) * per_epoch]
        seen = torch.cat([batch["index"] for batch in part]).tolist()
        for row, index in zip(order, seen, strict=False):
            assert index == row or row == bad  # who only met the damaged one as a partner stays
            assert index != bad
    assert [*made[0].skipped] == [samples[bad].id]
    assert made[0].skipped[samples[bad].id].file == str(path)
    for one, other in zip(batches, epochs(workers=2), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    recipe = tiny_recipe("wave-mel", root, *mixing[1:])
    with pytest.raises(UserError, match=rf"{path.name}.*--on-bad-sample skip"):
        epochs(workers=0)


def test_data_of_which_nothing_can_be_read_is_an_error(damaged: Path) -> None:
    for sample in samples_of(damaged):
        assert sample.image is not None
        sample.image.write_bytes(b"")
    with pytest.raises(UserError, match=r"21 samples in a row cannot be read.*the first: cannot decode"):
        list(loader(tiny_recipe("image-text", damaged, SKIP)).epoch(0))


def weights(path: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = open_run(path).content["model"]
    return content


def test_a_resumed_run_replaces_the_same_and_lists_them_all(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe("image-text", damaged, SKIP)
    world = World(0, 1, 0, torch.device("cpu"))
    Trainer(create_run(tmp_path / "whole", recipe), world, resume=False, workers=0).train()
    listed = read_skipped(tmp_path / "whole" / SKIPPED)
    assert len(listed) == 3
    assert "3 of 80 samples could not be read" in capsys.readouterr().err.replace("\n", " ")

    stopped = Trainer(create_run(tmp_path / "twice", recipe), world, resume=False, workers=0)
    for step, batch in enumerate(stopped.loader.epoch(0)):
        if step == 3:
            break
        stopped._first_of_epoch = 0
        stopped._step(stopped._wrap(0), batch, 5)
    stopped._save()
    early = read_skipped(tmp_path / "twice" / SKIPPED)
    Trainer(open_run(tmp_path / "twice"), world, resume=True, workers=0).train()
    assert set(early) <= set(listed)
    assert read_skipped(tmp_path / "twice" / SKIPPED) == listed
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "twice")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_met_a_bad_sample_can_go_on_with_skip(damaged: Path, tmp_path: Path) -> None:
    """Up to that sample nothing was decided by the setting, so it may be changed, and the recipe says so."""
    out = tmp_path / "run"
    recipe = tiny_recipe("image-text", damaged)
    create_run(out, recipe)
    with pytest.raises(UserError, match="--on-bad-sample skip"):
        launch(Launch(recipe, out, resume=True, workers=0))
    result = CliRunner().invoke(
        app, ["train", "--resume", "--out", str(out), "--on-bad-sample", "skip", "--workers", "0"]
    )
    assert result.exit_code == 0, result.output
    run = open_run(out)
    assert run.recipe.dataset.on_bad_sample == "skip"
    assert run.epochs_done == 2
    whole = tmp_path / "whole"
    launch(Launch(tiny_recipe("image-text", damaged, SKIP), whole, workers=0))
    one, other = weights(out), weights(whole)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def judged(damaged: Path, tmp_path: Path) -> Run:
    return untrained_run(tmp_path / "judged", tiny_recipe("image-text", damaged))


def test_retrieval_leaves_them_out_of_queries_and_gallery(
    judged: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="cannot decode"):
        retrieval.run(judged)
    report = retrieval.run(judged, on_bad_sample="skip")
    shown = capsys.readouterr().out
    assert (report["samples"], report["skipped"]) == (28, 2)
    assert report["image_to_text"]["queries"] == report["text_to_image"]["gallery"] == 28
    assert report["text_to_image"]["queries"] == report["captions"] == 140
    assert "2 more cannot be judged and are in neither queries nor gallery" in shown
    assert report["command"].endswith("--on-bad-sample skip")
    listed = read_skipped(judged.path / "eval" / "skipped-shapes-test.jsonl")
    test = samples_of(Path(str(judged.recipe.dataset.root)), "test")
    assert [one.id for one in listed] == sorted(test[i].id for i in (4, 8))
    # the same as judging a data set that never had them
    rest = tmp_path / "rest"
    shutil.copytree(Path(str(judged.recipe.dataset.root)), rest)
    path = next((rest / "annotations").glob("captions_test*.json"))
    tree = json.loads(path.read_text())
    gone = {int(one.id) for one in listed}
    tree["images"] = [image for image in tree["images"] if image["id"] not in gone]
    tree["annotations"] = [a for a in tree["annotations"] if a["image_id"] not in gone]
    path.write_text(json.dumps(tree))
    clean = retrieval.run(judged, data_root=rest)
    for way in ("image_to_text", "text_to_image"):
        assert clean[way] == report[way]


@pytest.mark.slow
def test_two_processes_leave_out_the_same(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them meets a bad sample that the other does not."""
    monkeypatch.setattr("mmvicreg.training.processes.check_devices", lambda *_: None)  # one core will do
    run = untrained_run(tmp_path / "judged", tiny_recipe("image-text", damaged, "evaluation.batch_size=8"))
    alone = retrieval.run(run, on_bad_sample="skip", device="cpu")
    both = retrieval.run(run, on_bad_sample="skip", devices=2, device="cpu")
    assert both == alone
    assert alone["skipped"] == 2


def test_a_protocol_of_a_number_of_pictures_is_not_one_without_some(
    judged: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmvicreg.eval.retrieval_samples.FULL", 30)
    with pytest.raises(UserError, match="defined on 30 images"):
        retrieval.run(judged, protocol="5k", on_bad_sample="skip")


def test_embed_leaves_them_out_of_every_branch(judged: Run, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npz"
    with pytest.raises(UserError, match="cannot decode"):
        embed(judged, out)
    embed(judged, out, on_bad_sample="skip")
    with np.load(out) as file:
        assert file["image/vectors"].shape[0] == 28
        assert set(file["text/samples"]) == set(file["image/ids"])
        assert json.loads(str(file["about"]))["skipped"] == 2


def test_a_wrong_word_is_refused(judged: Run, tmp_path: Path) -> None:
    for command in (
        ["eval", "retrieval", str(judged.path)],
        ["embed", str(judged.path), "--out", str(tmp_path / "x.npz")],
        ["train", "--resume", "--out", str(judged.path)],
    ):
        result = CliRunner().invoke(app, [*command, "--on-bad-sample", "skipp"])
        assert isinstance(result.exception, UserError), command
        assert "skip" in str(result.exception)


def test_the_list_is_read_back_sorted_and_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "skipped.jsonl"
    one, two = Skipped("a", "a.jpg", "broken — ✗"), Skipped("b", "", "empty")
    assert write_skipped(path, [two, one, two]) == 2
    assert read_skipped(path) == [one, two]
    path.write_text("{}\n")
    with pytest.raises(UserError, match=r"skipped\.jsonl is not a list"):
        read_skipped(path)
    write_skipped(path, [])
    assert not path.exists()
