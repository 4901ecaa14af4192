"""A run over two data sets: captioned shapes, and a folder of pictures in two views, on one ResNet."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from joint_runs import (
    assert_micro_batches_are_exact,
    assert_same_state,
    first_batch,
    joint_recipe,
    loss_of,
    losses,
    start,
    stop_and_resume,
)
from picture_runs import write_pictures

from mmvicreg.cli import app
from mmvicreg.config import Recipe
from mmvicreg.datasets import open_dataset
from mmvicreg.errors import UserError
from mmvicreg.registry import PROTOCOLS
from mmvicreg.runs import open_run
from mmvicreg.skipped import SKIPPED, read_skipped
from mmvicreg.sources import FIRST, part_recipes
from mmvicreg.trained_ids import count_among
from mmvicreg.training.log import read_lines


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures to train on, of 3 classes: with batches of 8, three steps a round."""
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


def two_sources(shapes: Path, pictures: Path, *settings: str) -> Recipe:
    edges = "edges=[{a: image, b: text}, {a: image, b: image, invariance: 7, source: pictures}]"
    source = (
        f"sources.pictures={{dataset: {{name: image-folder, root: {pictures}}}, batch_size: 8, weight: 0.5, "
        "branches: {image: {variance: 10, covariance: 0.5}}}"
    )
    return joint_recipe(shapes, source, edges, *settings)


def test_the_loss_is_the_weighted_sum_over_the_sources(
    tiny_shapes: Path, pictures: Path, tmp_path: Path
) -> None:
    trainer = start(tmp_path / "run", two_sources(tiny_shapes, pictures, "training.precision=fp64"))
    output = trainer.model(first_batch(trainer))
    z = output.embeddings
    assert {name: len(rows) for name, rows in z.items()} == {
        "image": 16,
        "text": 16,
        "pictures:image/0": 8,
        "pictures:image/1": 8,
    }
    captions = loss_of(z, [("image", "text", 25)], {"image": 25, "text": 25}, nu=1)
    ends = ("pictures:image/0", "pictures:image/1")
    views = loss_of(z, [(*ends, 7)], dict.fromkeys(ends, 10), nu=0.5)
    assert float(output.loss.detach()) == pytest.approx(captions + 0.5 * views, rel=1e-10)
    assert float(output.terms["loss/dataset"]) == pytest.approx(captions, rel=1e-10)
    assert float(output.terms["loss/pictures"]) == pytest.approx(views, rel=1e-10)
    assert "variance/pictures:image/0" in output.terms


def test_an_epoch_is_the_first_source_s_and_the_other_goes_round(
    tiny_shapes: Path, pictures: Path, tmp_path: Path
) -> None:
    trainer = start(tmp_path / "run", two_sources(tiny_shapes, pictures))
    assert len(trainer.loader) == 5
    seen = [
        batch.others["pictures"].index.tolist()
        for epoch in range(3)
        for batch in trainer._batches(epoch, start=0)
    ]
    assert len(seen) == 15
    rounds = [[row for rows in seen[i : i + 3] for row in rows] for i in range(0, 15, 3)]
    assert all(sorted(order) == list(range(24)) for order in rounds)
    assert len({tuple(order) for order in rounds}) == 5
    assert trainer.data.streams(7)["pictures"].__next__().index.tolist() == seen[7]


def test_resumed_in_the_middle_of_a_round_ends_in_the_same_bits(
    tiny_shapes: Path, pictures: Path, tmp_path: Path
) -> None:
    recipe = two_sources(tiny_shapes, pictures, "training.epochs=2")
    found, expected = stop_and_resume(recipe, tmp_path, at=7, workers=1)
    assert found["position"]["step"] == expected["position"]["step"] == 10
    assert found["position"].keys() == {"step", "epoch", "seconds"}
    assert_same_state(found, expected)
    last = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert {"image", "text", "pictures:image/0", "pictures:image/1"} == last["branches"].keys()


def test_what_a_method_learns_is_each_source_s_own(tiny_shapes: Path, pictures: Path, tmp_path: Path) -> None:
    trainer = start(
        tmp_path / "run", two_sources(tiny_shapes, pictures, "objective={name: swav, prototypes: 8}")
    )
    trainer.model(first_batch(trainer)).loss.backward()
    ours = (
        list(trainer.model.objective.parameters()),
        list(trainer.model.objective_of("pictures").parameters()),
    )
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    for parameters in ours:
        assert parameters
        for parameter in parameters:
            assert id(parameter) in trained
            assert parameter.grad is not None
            assert float(parameter.grad.norm()) > 0
    assert not {id(p) for p in ours[0]} & {id(p) for p in ours[1]}
    assert any(key.startswith("objectives.pictures.") for key in trainer.model.state_dict())


def test_micro_batches_of_two_sources_are_exact(tiny_shapes: Path, pictures: Path, tmp_path: Path) -> None:
    settings = [f"branches.{name}.expander.norm=none" for name in ("image", "text")]
    recipe = two_sources(tiny_shapes, pictures, "training.precision=fp64", *settings)
    assert_micro_batches_are_exact(start(tmp_path / "run", recipe))


def test_two_processes_follow_one_over_two_sources(tiny_shapes: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = two_sources(tiny_shapes, pictures, "training.precision=fp64")
    one = losses(recipe, tmp_path / "one")
    two = losses(recipe, tmp_path / "two", "--devices", "2")
    assert len(one) == 5
    assert one == pytest.approx(two, rel=1e-7)


def test_each_source_is_judged_where_it_was(tiny_shapes: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = two_sources(tiny_shapes, pictures)
    start(tmp_path / "run", recipe).train()
    run = open_run(tmp_path / "run")
    retrieval = PROTOCOLS.load("retrieval")(run)
    assert retrieval["dataset"] == "shapes"
    assert retrieval["pretrained_on"] == "shapes train and image-folder train"
    near = PROTOCOLS.load("knn")(run, dataset="image-folder", k=[5], baseline=False)
    assert (near["train"], near["test"], near["seen_in_pretraining"]) == (24, 12, False)
    again = PROTOCOLS.load("knn")(
        run, dataset="image-folder", k=[5], baseline=False, split="train", train_split="val"
    )
    assert again["seen_in_pretraining"]


def test_retrieval_reads_the_source_with_captions_wherever_it_stands(
    tiny_shapes: Path, pictures: Path, tmp_path: Path
) -> None:
    edges = "edges=[{a: image, b: image}, {a: image, b: text, source: captions}]"
    recipe = joint_recipe(
        pictures, "pair=image-image", "dataset.name=image-folder", "training.batch_size=8", edges,
        f"sources.captions={{dataset: {{name: shapes, root: {tiny_shapes}}}, batch_size: 16}}",
    )  # fmt: skip
    start(tmp_path / "run", recipe).train()
    report = PROTOCOLS.load("retrieval")(open_run(tmp_path / "run"))
    assert (report["dataset"], report["captions"]) == ("shapes", 150)
    trained_on = open_run(tmp_path / "run").content[
        "trained_on"
    ]  # of every source, for whoever judges it elsewhere
    assert {name: len(ids) for name, ids in trained_on.items()} == {"image-folder": 24, "shapes": 80}
    assert count_among(open_dataset("shapes", root=tiny_shapes).samples("all"), trained_on["shapes"]) == 80
    assert {"image_to_text", "text_to_image"} <= report.keys()


def test_without_the_key_a_recipe_is_its_own_only_part(tiny_shapes: Path, tmp_path: Path) -> None:
    recipe = joint_recipe(tiny_shapes)
    parts = part_recipes(recipe)
    assert list(parts) == [FIRST]
    assert parts[FIRST] is recipe
    trainer = start(tmp_path / "run", recipe)
    assert not any(key.startswith("objectives") for key in trainer.model.state_dict())
    assert trainer.data.fingerprint().keys() == {"samples", "names", "captions"}
    assert first_batch(trainer).others == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["edges.1.source=picture"], "names source 'picture', which is not one of pictures; did you mean 'pictures'"),
        (["edges.0.source=pictures"], "every edge names a source"),
        (["edges.1.source=null"], "no edge names source 'pictures'"),
        (["sources.pictures.branches={text: {variance: 1}}"], "'text' is not on an edge of that source"),
        (["sources.pictures.batchsize=3"], "unknown key 'sources.pictures.batchsize'; did you mean 'batch_size'"),
        (["sources.picture.batch_size=3"], "no 'sources.picture'; did you mean 'pictures'"),
        (["sources.pictures.dataset={}"], "missing key 'sources.pictures.dataset.name'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_source_is_said(
    tiny_shapes: Path, pictures: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(UserError) as error:
        two_sources(tiny_shapes, pictures, *settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sources.pictures.dataset.root=/nowhere", "source 'pictures': "),
        ("sources.pictures.batch_size=25", "source 'pictures': a batch of 25 is larger than the training data (24"),
        ("sources.pictures.dataset={name: tones, root: TONES}", "the data set tones is for wave-mel, and its"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_source_s_data_is_said(
    tiny_shapes: Path, tiny_tones: Path, pictures: Path, tmp_path: Path, setting: str, message: str
) -> None:
    setting = setting.replace("TONES", str(tiny_tones))
    with pytest.raises(UserError) as error:
        start(tmp_path / "run", two_sources(tiny_shapes, pictures, setting))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_other_pictures_at_resume_are_refused_by_source(
    tiny_shapes: Path, pictures: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(pictures, here)
    recipe = two_sources(tiny_shapes, here)
    start(tmp_path / "run", recipe).train()
    next((here / "train" / "c00").iterdir()).unlink()
    with pytest.raises(
        UserError,
        match=r"24 samples of source 'pictures', and the data there now are 23 samples.*"
        r"give its place with --set sources\.pictures\.dataset\.root=DIR, or",
    ):
        start(tmp_path / "run", recipe, resume=True)


def test_a_source_that_was_moved_is_told_at_resume(tiny_shapes: Path, pictures: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(pictures, here)
    start(tmp_path / "run", two_sources(tiny_shapes, here)).train()
    there = tmp_path / "there"
    here.rename(there)
    resume = ["train", "--resume", "--out", str(tmp_path / "run"), "--workers", "0"]
    place = r"--set sources\.pictures\.dataset\.root=DIR"
    with pytest.raises(
        UserError, match=rf"source 'pictures': .*here: no such folder.*{place} \(--data-root is"
    ):
        app(resume, standalone_mode=False)
    with pytest.raises(UserError, match=rf"takes the run folder alone .*{place.replace('pictures', 'NAME')}"):
        app([*resume, "--set", "sources.pictures.weight=2"], standalone_mode=False)
    app([*resume, "--set", f"sources.pictures.dataset.root={there}"], standalone_mode=False)
    assert open_run(tmp_path / "run").recipe.sources["pictures"].dataset.root == str(there)
    app([*resume, "--set", "sources.pictures.dataset.on_bad_sample=skip"], standalone_mode=False)
    after = open_run(tmp_path / "run").recipe.sources["pictures"].dataset
    assert (after.root, after.on_bad_sample) == (str(there), "skip")


def test_what_a_source_cannot_read_is_skipped_by_its_own_option(
    tiny_shapes: Path, pictures: Path, tmp_path: Path
) -> None:
    """``--on-bad-sample`` is of the first data set; to name it would leave the run where it was."""
    here = tmp_path / "here"
    shutil.copytree(pictures, here)
    bad = next((here / "train" / "c00").iterdir())
    bad.write_bytes(b"damaged")
    recipe = two_sources(tiny_shapes, here)
    option = "sources.pictures.dataset.on_bad_sample=skip"
    with pytest.raises(
        UserError, match=rf"source 'pictures': .*{bad.name}.*cannot be read: --set {option}\)"
    ):
        start(tmp_path / "run", recipe).train()
    start(tmp_path / "again", two_sources(tiny_shapes, here, option)).train()
    (one,) = read_skipped(tmp_path / "again" / SKIPPED)
    # a sample of the first data set may have the same id, and each has its line
    assert (one.id, one.file) == (f"pictures:train/c00/{bad.name}", str(bad))


def test_nan_names_the_source_and_its_samples(tiny_shapes: Path, pictures: Path, tmp_path: Path) -> None:
    trainer = start(tmp_path / "run", two_sources(tiny_shapes, pictures))
    embed = trainer.model.embed

    def broken(batch: object, source: str = FIRST) -> object:
        z, y = embed(batch, source)  # type: ignore[arg-type]
        if source == "pictures":
            z["image/0"] = z["image/0"].clone()
            z["image/0"][3] = torch.nan
        return z, y

    trainer.model.embed = broken  # type: ignore[method-assign, assignment]
    index = int(trainer.data.streams(0)["pictures"].__next__().index[3])
    with pytest.raises(UserError) as error:
        trainer.train()
    assert "step 1: source pictures: NaN" in str(error.value)
    assert f"Samples: {trainer.data.samples['pictures'][index].id}." in str(error.value)
