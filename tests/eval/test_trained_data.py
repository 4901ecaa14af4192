"""A held-out fold is only called that while it is the one that was held out in training."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import data_layouts as layouts
import numpy as np
import pytest
import soundfile
from eval_stubs import StubData, StubEncode, StubRun, recipe
from picture_runs import picture_run, write_pictures
from tiny import WAVE_MEL, tiny_recipe, untrained_run

from mmvicreg.branches.init import pin
from mmvicreg.cli import main
from mmvicreg.config import InitConfig
from mmvicreg.datasets import open_dataset
from mmvicreg.errors import UserError
from mmvicreg.eval import knn, linear, retrieval, retrieval_folds, supervised
from mmvicreg.eval import probe as arithmetic
from mmvicreg.eval.trained_data import changed_since_training, in_doubt
from mmvicreg.recipes import load_recipe, recipe_path
from mmvicreg.runs import Run, open_run
from mmvicreg.samples import Sample, fingerprint
from mmvicreg.training.checkpoint import list_checkpoints, load_checkpoint, save_data

CHANGED = (
    r"was pretrained on \d+ samples of audio-folder, and in their place at .* there are now .*--data-root"
)


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Two classes of twelve recordings each, in folders and nothing more: folds are made of what is there."""
    rng = np.random.default_rng(0)
    for kind in ("owl", "tit"):
        (tmp_path / "birds" / kind).mkdir(parents=True)
        for i in range(12):
            soundfile.write(
                tmp_path / "birds" / kind / f"{kind}-{i:02}.wav", rng.uniform(-0.3, 0.3, 2000), 4000
            )
    return tmp_path / "birds"


def trained(path: Path, root: Path, fold: int | str = 1) -> Run:
    """A run on a folder of recordings."""
    keys = {"dataset.name": "audio-folder", "dataset.root": str(root), "dataset.fold": fold}
    return untrained_run(path, load_recipe(recipe_path("wave-mel", "tones", None), keys, list(WAVE_MEL)))


def one_more(root: Path) -> None:
    """A file that comes first, so that the folds are others."""
    shutil.copy(root / "owl" / "owl-00.wav", root / "owl" / "aaa.wav")


def test_a_file_more_and_the_fold_is_not_the_one_held_out(
    tmp_path: Path, birds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", birds)
    before = {sample.id for sample in open_dataset("audio-folder", root=birds).samples("fold1")}
    one_more(birds)
    after = {sample.id for sample in open_dataset("audio-folder", root=birds).samples("fold1")}
    assert after - before - {"owl/aaa.wav"}  # what the check is for: clips that the run was pretrained on
    for judge in (linear.run, retrieval.run, supervised.run):
        with pytest.raises(UserError, match=CHANGED):
            judge(run)
    monkeypatch.setattr(sys, "argv", ["mmvicreg", "eval", "linear", str(run.path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: the run")
    assert not (run.path / "eval").exists()


def test_a_fold_that_is_transductive_anyway_is_judged(
    tmp_path: Path, birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that held out nothing, on other recordings: the label is the careful one already."""
    monkeypatch.setattr(arithmetic, "GRID", (1.0,))
    run = trained(tmp_path / "run", birds, "none")
    one_more(birds)
    report = linear.run(run, fold=2)
    assert (report["setting"], report["doubt"]) == ("transductive", None)


def test_the_same_samples_elsewhere_are_the_same(
    tmp_path: Path, birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "GRID", (1.0,))
    run = trained(tmp_path / "run", birds)
    moved = birds.rename(tmp_path / "moved")
    assert linear.run(run, data_root=moved)["setting"] == "inductive"
    assert not retrieval.run(run, data_root=moved)["seen_in_pretraining"]


def test_samples_left_out_because_they_are_damaged_are_no_other_data(
    tmp_path: Path, birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "GRID", (1.0,))
    run = trained(tmp_path / "run", birds)
    spoilt = next(iter(open_dataset("audio-folder", root=birds).samples("fold2"))).audio
    assert spoilt is not None
    spoilt.write_bytes(b"no sound")
    report = linear.run(run, on_bad_sample="skip")
    assert (report["setting"], report["skipped"]) == ("inductive", 1)


def _splits(train: int) -> tuple[StubData, StubEncode]:
    samples = [Sample(id=f"s{i}", label=i % 2, captions=("a",)) for i in range(40)]
    rng = np.random.default_rng(0)
    table: dict[tuple[str, str], Any] = {
        (model, branch): {sample.id: rng.standard_normal(4) for sample in samples}
        for model in ("trained", "untrained")
        for branch in ("wave", "mel", "image", "text")
    }
    parts = {"train": samples[:train], "test": samples[30:]}
    return StubData(parts, name="manifest", classes=("x", "y")), StubEncode(table)


def test_an_edited_manifest_in_splits_counts_as_transductive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or another one: to judge on that is no mistake, but nothing says that its test split was not trained on."""
    data, encode = _splits(20)
    monkeypatch.setattr(linear, "encode", encode)
    monkeypatch.setattr(retrieval, "encode", encode)
    monkeypatch.setattr(arithmetic, "GRID", (1.0,))
    made = recipe("wave-mel", "tones", dataset__name="manifest")
    run = StubRun(tmp_path / "run", made, data)
    assert linear.run(run)["doubt"] is None
    seen = run.content
    edited = replace(run, data=_splits(19)[0])
    vars(edited)["content"] = seen
    report = linear.run(edited)
    assert report["setting"] == "transductive"
    assert "pretrained on 20 samples of manifest" in report["doubt"]
    assert "Counted as transductive: the run" in capsys.readouterr().out
    with pytest.raises(UserError, match="there are now 19: which of them it has seen is not known"):
        linear.run(edited, supervised=True)
    found = retrieval.run(edited)
    assert found["seen_in_pretraining"]
    assert "Split test: counted as transductive. the run" in capsys.readouterr().out
    alone = replace(run, data=replace(data, parts={"test": data.parts["test"]}))
    vars(alone)["content"] = seen
    assert not retrieval.run(alone)["seen_in_pretraining"]  # the test split alone was copied here
    mixed = replace(run, data=replace(data, parts={"test": data.parts["test"] + data.parts["train"][:1]}))
    vars(mixed)["content"] = seen
    assert "1 of the 11 samples it is judged on have the ids of samples of manifest" in str(
        retrieval.run(mixed)["doubt"]
    )


def _coco_run(path: Path, root: Path, split: str) -> Run:
    names = ("dataset.name=coco", f"dataset.train_split={split}")
    return untrained_run(path, tiny_recipe("image-text", root, *names))


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    """Two pictures a split, 900 to 907, in Karpathy's split."""
    splits = ("test", "train", "restval", "val")
    return layouts.karpathy(tmp_path / "karpathy", "coco", splits=splits)


def _forget_ids(run: Run) -> Run:
    """The run as earlier versions left it."""
    (file,) = list_checkpoints(run.checkpoints)
    save_data(file, {key: value for key, value in load_checkpoint(file).items() if key != "trained_on"})
    return open_run(run.path)


def test_pictures_trained_on_in_another_layout_of_coco_were_seen(tmp_path: Path, karpathy: Path) -> None:
    """Every layout has its own splits of the same pictures: all of Karpathy's test are in 2017's train."""
    run = _coco_run(
        tmp_path / "run",
        layouts.coco(tmp_path / "2017", splits=("train", "val"), images=8, first=900),
        "train",
    )
    shutil.rmtree(karpathy / "images" / "train2014")
    report = retrieval.run(run, split="test", data_root=karpathy)
    assert report["seen_in_pretraining"]
    assert "2 of the 2 samples it is judged on have the ids of samples of coco" in report["doubt"]
    (file,) = (run.path / "eval").glob("*.json")
    assert file.name.startswith("retrieval-test-data-root=karpathy~")

    report = retrieval.run(_forget_ids(run), split="test", data_root=karpathy)
    assert report["seen_in_pretraining"]
    assert "of the split 'train', which cannot be read at" in report["doubt"]


def test_restval_is_half_of_the_validation_pictures_of_2014(tmp_path: Path, karpathy: Path) -> None:
    run = _coco_run(tmp_path / "run", karpathy, "train+restval")
    retrieval.run(run, split="val")
    own = (run.path / "eval" / "retrieval-val.json").read_text()
    there = layouts.coco(tmp_path / "2014", year=2014, splits=("val",), images=8, first=900)
    doubt = retrieval.run(run, split="val", data_root=there)["doubt"]
    assert "4 of the 8 samples it is judged on" in doubt
    assert (run.path / "eval" / "retrieval-val.json").read_text() == own  # the run's own val, not this one


def test_pictures_not_trained_on_are_held_out_in_every_layout(tmp_path: Path, karpathy: Path) -> None:
    """By their ids: the training split is another one there, or not there at all."""
    run = _coco_run(tmp_path / "run", karpathy, "train+restval")
    there = layouts.coco(tmp_path / "2014", year=2014, splits=("train", "val"), images=8, first=900)
    report = retrieval.run(run, split="val", data_root=there)  # 908 to 915
    assert (report["seen_in_pretraining"], report["doubt"]) == (False, None)
    copy = Path(shutil.copytree(karpathy, tmp_path / "copy"))
    shutil.rmtree(copy / "images" / "train2014")
    report = retrieval.run(run, split="test", data_root=copy)
    assert (report["seen_in_pretraining"], report["doubt"]) == (False, None)
    moved = karpathy.rename(tmp_path / "moved")
    retrieval.run(run, split="test", data_root=moved)
    assert (run.path / "eval" / "retrieval-test.json").is_file()  # moved whole, it is the run's own


def _started(run: Run, source: Path, **seen: object) -> Run:
    """The run as if its pictures' branch had started from another run; ``seen`` is changed of what the recipe has."""
    config = run.recipe.branches["image"].model_copy(update={"init": InitConfig(source=str(source))})
    made = pin(run.recipe.model_copy(update={"branches": {**run.recipe.branches, "image": config}}))
    init = made.branches["image"].init
    assert init is not None
    init.seen[0] = init.seen[0].model_copy(update=seen)
    found = replace(run, recipe=made)
    vars(found)["content"] = run.content
    return found


def test_weights_of_a_run_on_another_layout_of_coco_leave_a_doubt(tmp_path: Path, karpathy: Path) -> None:
    """They saw Karpathy's test pictures, and the recipe has only how many they saw and a digest of their names."""
    other = layouts.coco(tmp_path / "2017", splits=("train", "val"), images=8, first=900)
    source = _coco_run(tmp_path / "source", other, "train")
    run = _coco_run(tmp_path / "run", karpathy, "train")
    samples = run.dataset().samples("test")
    doubt = in_doubt(_started(run, source.path), run.dataset(), samples, seen=False)
    words = "the weights that the branch 'image' of the run .* started from were pretrained on"
    assert re.match(f"{words} 8 samples of coco, and in their place at .* there are now 2$", str(doubt))
    earlier = _started(run, source.path, samples=None, names=None)  # of an earlier version
    assert re.match(
        f"{words} the split 'train' .* not recorded$",
        str(in_doubt(earlier, run.dataset(), samples, seen=False)),
    )
    assert in_doubt(_started(run, source.path), run.dataset(), samples, seen=True) is None

    same = _coco_run(tmp_path / "same", karpathy, "train")
    more = _coco_run(tmp_path / "more", karpathy, "train+restval")
    for one in (same, more):
        assert in_doubt(_started(run, one.path), run.dataset(), samples, seen=False) is None
    copy = Path(shutil.copytree(karpathy, tmp_path / "copy"))
    shutil.rmtree(copy / "images" / "train2014")
    data = run.dataset(root=copy)
    assert (
        in_doubt(_started(run, same.path), data, samples, seen=False) is None
    )  # the same samples as the run's own
    assert "cannot be read" in str(in_doubt(_started(run, more.path), data, samples, seen=False))


def test_weights_of_a_run_on_other_recordings_leave_a_doubt_over_folds(
    tmp_path: Path, birds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folds of one's own are numbered anew in every folder: to have held out "fold 1" of another tells nothing."""
    monkeypatch.setattr(arithmetic, "GRID", (1.0,))
    copy = Path(shutil.copytree(birds, tmp_path / "copy"))
    source = trained(tmp_path / "source", copy)
    one_more(birds)
    for fold in range(1, 6):
        keys = {"dataset.name": "audio-folder", "dataset.root": str(birds), "dataset.fold": fold}
        init = f"branches.wave.init={source.path}"
        recipe = load_recipe(recipe_path("wave-mel", "tones", None), keys, [*WAVE_MEL, init])
        untrained_run(tmp_path / "folds" / f"fold{fold}", pin(recipe))
    report = linear.run(tmp_path / "folds")
    assert report["transductive"]
    assert "the weights that the branch 'wave' of the run" in report["doubt"]
    assert "fold1 started from were pretrained on" in report["doubt"]
    one = json.loads((tmp_path / "folds" / "fold1" / "eval" / "linear.json").read_text())
    assert (one["transductive"], one["doubt"]) == (True, report["doubt"])
    capsys.readouterr()
    report = retrieval_folds.run(tmp_path / "folds")
    assert [fold for fold, doubt in report["doubt"].items() if doubt is not None] == ["1"]
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("Fold 1")] == [
        f"Fold 1: counted as transductive. {report['doubt']['1']}, so that whether it saw this fold is not known."
    ]
    assert any(line.startswith("Fold 2, 3, 4, 5: transductive. The run") for line in printed)


def test_a_run_and_the_one_it_is_compared_with_are_each_in_doubt_by_themselves(
    tmp_path: Path, birds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their samples are the same, but not what the weights that they started from were trained on."""
    monkeypatch.setattr(arithmetic, "GRID", (1.0,))
    source = trained(tmp_path / "source", Path(shutil.copytree(birds, tmp_path / "copy")))
    one_more(birds)
    plain = trained(tmp_path / "plain", birds)
    keys = {"dataset.name": "audio-folder", "dataset.root": str(birds), "dataset.fold": 1}
    init = f"branches.wave.init={source.path}"
    recipe = load_recipe(recipe_path("wave-mel", "tones", None), keys, [*WAVE_MEL, init])
    started = untrained_run(tmp_path / "started", pin(recipe))
    for own, other in ((plain, started), (started, plain)):
        capsys.readouterr()
        methods = linear.run(own, compare=[other.path])["methods"]
        assert {method["run"]: method["transductive"] for method in methods if "run" in method} == {
            str(plain.path): False,
            str(started.path): True,
        }
        printed = capsys.readouterr().out
        assert (
            f"Counted as transductive: the weights that the branch 'wave' of the run {started.path}"
            in printed
        )
        assert "pretraining saw the test samples" not in printed


def test_every_source_of_a_run_is_known_by_its_own_samples(tmp_path: Path) -> None:
    """A manifest beside another: either is one that was trained on, and a third is not."""
    first, other, third = (_splits(n)[0] for n in (20, 10, 5))
    made = tiny_recipe("wave-mel", tmp_path)
    config = made.dataset.model_copy(update={"name": "manifest"})
    source = type("Source", (), {"dataset": config})()
    made = made.model_copy(update={"dataset": config, "sources": {"more": source}})
    run = StubRun(tmp_path / "run", made, first)
    vars(run)["content"] = {
        "data": {**fingerprint(first.parts["train"]), "sources": {"more": fingerprint(other.parts["train"])}}
    }
    assert changed_since_training(run, first) is None
    assert changed_since_training(run, other) is None
    assert "pretrained on 20 samples" in str(changed_since_training(run, third))


def test_a_picture_more_and_the_held_out_pictures_may_have_been_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a folder without splits the last tenth of each class is held out: of what is there now."""
    root = write_pictures(tmp_path / "pictures", train=20) / "train"
    run = picture_run(tmp_path / "run", root)
    report = knn.run(run, k=(3,))
    assert (report["seen_in_pretraining"], report["doubt"]) == (False, None)
    shutil.copy(root / "c00" / "train0-0.png", root / "c00" / "zzz.png")
    report = knn.run(run, k=(3,))
    assert report["seen_in_pretraining"]
    assert "pretrained on 54 samples of image-folder" in report["doubt"]
    assert "Counted as seen in pretraining: the run" in capsys.readouterr().out
