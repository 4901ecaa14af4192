"""``--init``: an encoder starts from another run's or a file's, wherever that is when it is asked for again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny import IMAGE_IMAGE, as_flags, tiny_recipe, untrained_run

from mmvicreg.branches.init import pin, settle
from mmvicreg.cli import app
from mmvicreg.config import Recipe, SeenConfig
from mmvicreg.datasets import open_dataset
from mmvicreg.errors import UserError
from mmvicreg.eval import tasks
from mmvicreg.runs import Run, open_run
from mmvicreg.samples import fingerprint
from mmvicreg.training.launch import Launch, train

ONE_EPOCH = ("training.epochs=1", "training.batch_size=40", "seed=5")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, tiny_shapes: Path) -> Run:
    recipe = tiny_recipe("image-image", tiny_shapes, "branches.image.encoder.small_stem=false", "seed=11")
    return untrained_run(tmp_path_factory.mktemp("init") / "pictures", recipe)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory, tiny_tones: Path) -> Run:
    return untrained_run(
        tmp_path_factory.mktemp("init") / "sounds", tiny_recipe("wave-mel", tiny_tones, "dataset.fold=2")
    )


def encoder(run: Run, branch: str, *, untrained: bool = False) -> dict[str, torch.Tensor]:
    model = run.model(untrained=untrained, device="cpu")
    return {key: value.clone() for key, value in model.branch(branch).encoder.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def start(out: Path, recipe: Recipe) -> Run:
    return open_run(train(Launch(recipe, out, workers=0)))


def test_a_run_that_starts_from_another_no_longer_needs_it(
    pictures: Run, tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures.path, "source")
    flags = as_flags("image-text", tiny_shapes, *ONE_EPOCH)
    command = ["train", *flags, "--init", "image=source", "--out", "run", "--workers", "0"]
    app(command, standalone_mode=False)
    run = open_run(tmp_path / "run")
    init = run.recipe.branches["image"].init
    assert init is not None
    assert (init.source, init.branch) == (str(tmp_path / "source"), None)
    assert len(init.sha256 or "") == 64
    then = fingerprint(open_dataset("shapes", root=tiny_shapes).samples("train"))
    assert init.seen == [SeenConfig(dataset="shapes", fold=pictures.recipe.dataset.fold, **then)]
    shutil.rmtree("source")
    began = encoder(run, "image", untrained=True)
    assert equal(began, encoder(pictures, "image"))
    assert not equal(began, encoder(run, "image"))
    plain = untrained_run(tmp_path / "plain", tiny_recipe("image-text", tiny_shapes, *ONE_EPOCH))
    assert equal(encoder(run, "text", untrained=True), encoder(plain, "text"))  # the others start as ever
    app([*command, "--resume"], standalone_mode=False)  # the flags it was started with
    for file in run.checkpoints.iterdir():
        file.unlink()  # killed in its first epoch
    app(["train", "--resume", "--out", "run", "--workers", "0"], standalone_mode=False)
    assert equal(encoder(open_run(run.path), "image"), encoder(run, "image"))
    elsewhere = ["image=elsewhere" if word == "image=source" else word for word in command]
    with pytest.raises(UserError, match=r"another recipe \(branches\.image\.init"):
        app([*elsewhere, "--resume"], standalone_mode=False)


def test_a_branch_starts_from_a_file_and_from_a_checkpoint(
    sounds: Run, tiny_tones: Path, tmp_path: Path
) -> None:
    save_file(encoder(sounds, "wave"), tmp_path / "wave.safetensors")
    recipe = tiny_recipe(
        "wave-mel",
        tiny_tones,
        "seed=3",
        "training.epochs=1",
        f"branches.wave.init={tmp_path / 'wave.safetensors'}",
        f"branches.mel.init={next(sounds.checkpoints.iterdir())}",
        "branches.mel.encoder.weights=nowhere.pth",  # init comes instead
    )
    run = start(tmp_path / "run", recipe)
    for branch in ("wave", "mel"):
        assert equal(encoder(run, branch, untrained=True), encoder(sounds, branch))
        assert not equal(encoder(run, branch), encoder(sounds, branch))
    saved = yaml.safe_load((run.path / "recipe.yaml").read_text())["branches"]
    assert saved["wave"]["init"]["seen"] == []
    trained_on = {"dataset": "tones", "fold": 2, "split": "train", **sounds.content["data"]}
    assert saved["mel"]["init"]["seen"] == [trained_on]
    # fold 1 was held out here, and pretrained on by the weights it started from
    data = run.dataset()
    assert run.recipe.dataset.fold == 1
    assert tasks.saw(run, data, 1)
    assert tasks.saw(sounds, data, 1)
    assert not tasks.saw(sounds, data, 2)
    # a run that starts from this one knows all of that
    again = tiny_recipe("wave-mel", tiny_tones, "training.epochs=1", f"branches.wave.init={run.path}")
    init = start(tmp_path / "again", again).recipe.branches["wave"].init
    assert init is not None
    assert [(seen.dataset, seen.fold) for seen in init.seen] == [("tones", 1), ("tones", 2)]


def test_a_split_that_the_weights_were_trained_on_is_known_to_be_seen(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    more = "dataset.train_split=train+test"
    plain = ("branches.image.encoder.small_stem=false", "seed=11")
    source = untrained_run(tmp_path / "source", tiny_recipe("image-image", tiny_shapes, *plain, more))
    recipe = pin(tiny_recipe("image-text", tiny_shapes, f"branches.image.init={source.path}"))
    run = Run(tmp_path / "run", recipe)
    assert tasks.saw_split(run, "shapes", "test")
    assert tasks.saw_split(run, "shapes", "val+test")
    assert not tasks.saw_split(run, "shapes", "val")
    assert not tasks.saw_split(run, "coco", "test")
    alone = Run(tmp_path / "alone", tiny_recipe("image-text", tiny_shapes))
    assert not tasks.saw_split(alone, "shapes", "test")


def test_what_does_not_fit_is_refused_before_a_folder_is_made(
    pictures: Run, sounds: Run, tiny_shapes: Path, tiny_tones: Path, tmp_path: Path
) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    source = pictures.path
    image_text = [
        ([f"branches.image.init={source}", "branches.image.encoder=resnet34"], r"resnet18, and this branch resnet34"),
        (
            [f"branches.image.init={source}", "branches.image.encoder.small_stem=true"],
            r"other options \(small_stem False, not True\)",
        ),
        ([f"branches.text.init={source}"], r"has no branch 'text'. It has image"),
        ([f"branches.image.init={{source: {source}, branch: imag}}"], r"did you mean 'image'\?"),
        (["branches.image.init=nowhere"], r"branches\.image\.init: no run folder, file or URL '.*nowhere'"),
        ([f"branches.image.init={tmp_path / 'other.pth'}"], r"the weights .*other\.pth', for resnet18, do not fit"),
        ([f"branches.image.init={{source: {source}, sha256: abc}}"], r"and the recipe names abc"),
        ([f"branches.image.init={{source: {source}, brunch: a}}"], r"unknown key 'branches\.image\.init\.brunch'"),
    ]  # fmt: skip
    for settings, message in image_text:
        with pytest.raises(UserError, match=message):
            start(tmp_path / "run", tiny_recipe("image-text", tiny_shapes, *settings))
    settings = [f"branches.wave.init={sounds.path}", "branches.wave.encoder.strides=[1, 1, 2, 4]"]
    with pytest.raises(UserError, match=r"other options \(strides \[1, 2, 2, 2\], not \[1, 1, 2, 4\]\)"):
        start(tmp_path / "run", tiny_recipe("wave-mel", tiny_tones, *settings))
    assert not (tmp_path / "run").exists()


def test_words_of_another_vocabulary_are_refused(tiny_shapes: Path, tmp_path: Path) -> None:
    words = ("inputs.text={tokenizer: words, min_count: 1}",)
    first = untrained_run(tmp_path / "first", tiny_recipe("image-text", tiny_shapes, *words))
    start(
        tmp_path / "same",
        tiny_recipe("image-text", tiny_shapes, *words, *ONE_EPOCH, f"branches.text.init={first.path}"),
    )
    other = tiny_recipe("image-text", tiny_shapes, *ONE_EPOCH, f"branches.text.init={first.path}")
    with pytest.raises(UserError, match=r"branches\.text\.init: .* has another vocabulary"):
        start(tmp_path / "other", other)


def test_a_source_that_was_trained_on_is_not_taken_for_what_it_was(
    pictures: Run, tiny_shapes: Path, tmp_path: Path
) -> None:
    source = untrained_run(tmp_path / "source", pictures.recipe)
    recipe = tiny_recipe("image-text", tiny_shapes, *ONE_EPOCH, f"branches.image.init={source.path}")
    run = start(tmp_path / "run", recipe)
    (run.path / "initial.pt").unlink()
    assert equal(encoder(open_run(run.path), "image", untrained=True), encoder(source, "image"))
    file = next(source.checkpoints.iterdir())
    content = torch.load(file, weights_only=True)
    content["model"]["branches.image.encoder.network.conv1.weight"] += 1
    torch.save(content, file)
    with pytest.raises(UserError, match=r"is not what the recipe names .* trained on or replaced since"):
        open_run(run.path).model(untrained=True)


def test_a_run_means_the_same_from_another_folder(
    pictures: Run, tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative places are those of the folder it was started in; an encoder's own weights go with the run."""
    monkeypatch.chdir(tmp_path)
    began = {key.removeprefix("network."): value for key, value in encoder(pictures, "image").items()}
    torch.save(began, "r18.pth")
    (tmp_path / "data").symlink_to(tiny_shapes)
    settings = (
        *("branches.image.encoder.small_stem=false", "branches.image.encoder.weights=r18.pth"),
        *("dataset.root=data", "sources.more={dataset: {name: shapes, root: data}, batch_size: 40}"),
        *ONE_EPOCH,
        "edges=[{a: image, b: image}, {a: image, b: image, source: more}]",
    )
    words = [part for setting in (*IMAGE_IMAGE, *settings) for part in ("--set", setting)]
    command = ["train", "--pair", "image-image", "--dataset", "shapes", *words, "--workers", "0", "--out"]
    app([*command, "run"], standalone_mode=False)
    app([*command, "run", "--resume"], standalone_mode=False)  # the words it was started with
    (tmp_path / "r18.pth").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    app(["train", "--resume", "--out", "../run", "--workers", "0"], standalone_mode=False)
    run = open_run(tmp_path / "run")
    roots = [config.root for config in run.recipe.trained_on]
    assert roots == [str(tmp_path / "data")] * 2
    assert run.recipe.branches["image"].encoder["weights"] == str(tmp_path / "r18.pth")
    now = encoder(run, "image", untrained=True)
    assert equal({key.removeprefix("network."): value for key, value in now.items()}, began)
    assert len(run.dataset().samples("train"))


def test_a_text_model_s_folder_is_the_same_from_anywhere_and_a_hub_name_stays_one(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bert").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, meant in (("bert", str(tmp_path / "bert")), ("bert-base-uncased", "bert-base-uncased")):
        recipe = tiny_recipe(
            "image-text",
            tiny_shapes,
            f"inputs.text={{tokenizer: transformers, model: {name}}}",
            f"branches.text.encoder={{name: transformers, model: {name}}}",
        )
        settled = settle(recipe)
        assert settled.inputs["text"]["model"] == meant
        assert settled.branches["text"].encoder["model"] == meant
        assert settled.inputs["image"] == recipe.inputs["image"]
