"""Recipes: every shipped one trains, flags beat the file, and a mistake is named with the nearest key."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import tiny_recipe

from mmvicreg import registry
from mmvicreg.branches.model import Batch, build_graph, view_key
from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.inputs.tokenizers import WordTokenizer
from mmvicreg.recipes import differences, dump_recipe, load_recipe, parse_recipe, recipe_path, recipes_folder
from mmvicreg.sources import FIRST, part_recipes
from mmvicreg.training.optim import build_optimizer
from mmvicreg.training.setup import build_model, restore_inputs

SHIPPED = sorted(recipes_folder().glob("*/*.yaml"))
SHAPES = recipe_path("image-text", "shapes", None)


def shapes(*settings: str) -> Recipe:
    return load_recipe(SHAPES, {}, settings)


def test_recipes_are_shipped_for_every_pair_and_default() -> None:
    assert {path.parent.name for path in SHIPPED} == set(registry.PAIRS)
    for pair, dataset in registry.PAIRS.items():
        assert recipe_path(pair, dataset, None) in SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_takes_a_step(path: Path) -> None:
    """The recipe's own branches, objective and optimiser; pictures, clips, batch and wide expanders are smaller."""
    written = load_recipe(path)
    assert written.pair == path.parent.name
    assert registry.DATASETS.load(written.dataset.name).pairs.count(written.pair) == 1
    small = ["inputs.image.size=32"] if "image" in written.inputs else ["inputs.audio.seconds=0.5"]
    for name, branch in written.branches.items():
        if branch.encoder.get("weights", "none") != "none":
            small.append(f"branches.{name}.encoder.weights=none")
        if branch.expander.widths[0] >= 8192:  # two gigabytes of weights, gradients and momenta
            small.append(f"branches.{name}.expander.widths={[256] * len(branch.expander.widths)}")
    if "text" in written.inputs:
        small.append(f"inputs.text={{tokenizer: words, max_length: {written.inputs['text']['max_length']}}}")
    if written.schedule.final_lr is not None:  # above the rate of so small a batch
        small.append("schedule.final_lr=null")
    recipe = load_recipe(path, {"training.batch_size": 2, "training.precision": "fp32"}, small)
    words = WordTokenizer(["a", "red", "square"]).state()
    states = {name: {"tokenizer": words} if name == "text" else {} for name in recipe.inputs}
    model = build_model(recipe, restore_inputs(recipe, states), pretrained=False).train()
    for name in model.branches:
        model.branch(name).freeze(recipe.branches[name].freeze)
    optimizer = build_optimizer(model, recipe.optimizer)
    rng = torch.Generator().manual_seed(0)
    batches = {
        source: Batch(
            torch.arange(2),
            {
                view_key(part, node): synthetic(part, part.branches[node.branch].input, rng)
                for node in build_graph(part).nodes
            },
        )
        for source, part in part_recipes(recipe).items()
    }
    output = model(dataclasses.replace(batches.pop(FIRST), others=batches))
    assert bool(torch.isfinite(output.loss))
    output.loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    watched = {name: branch.expander[-1].weight for name, branch in model.branches.items()}
    before = {name: weight.detach().clone() for name, weight in watched.items()}
    optimizer.step()
    for name, weight in watched.items():
        assert bool(torch.isfinite(weight).all())
        assert not torch.equal(weight, before[name])


def synthetic(recipe: Recipe, name: str, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """A batch of two, as the input called ``name`` would collate it."""
    options = recipe.inputs[name]
    draws = torch.rand(2, 16, generator=rng)
    if name == "image":
        size = (2, 3, options["size"], options["size"])
        pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=rng)
        return {"pixels": pixels, "draws": draws, "view": torch.zeros(2, dtype=torch.int64)}
    if name == "audio":
        size = (2, round(options["sample_rate"] * options["seconds"]))
        wave = torch.randint(-9000, 9000, size, dtype=torch.int16, generator=rng)
        return {"waveform": wave, "draws": draws}
    return {"ids": torch.tensor([[2, 4, 5, 3], [2, 6, 3, 0]]), "length": torch.tensor([4, 3])}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_printed_recipe_reads_back_equal(path: Path) -> None:
    recipe = load_recipe(path)
    tree = yaml.safe_load(dump_recipe(recipe))
    assert parse_recipe(tree, source="printed") == recipe
    assert dump_recipe(parse_recipe(tree, source="printed")) == dump_recipe(recipe)


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if path.parent.name == "wave-mel"], ids=lambda p: p.stem
)
def test_the_spectrogram_of_a_recipe_rests_on_no_default(path: Path) -> None:
    """librosa's and torchaudio's differ; what augments it may be left out, and is off then."""
    frontend = yaml.safe_load(path.read_text(encoding="utf-8"))["branches"]["mel"]["frontend"]
    augments = {"gain_db", "equalise_db", "resize_time", "resize_frequency", "time_mask", "frequency_mask"}
    fields = registry.FRONTENDS.load("log_mel").Config.model_fields
    assert set(fields) - augments <= set(frontend)
    assert all(fields[name].default == 0 for name in augments)


def test_a_printed_recipe_holds_every_default() -> None:
    tree = yaml.safe_load(dump_recipe(shapes()))
    assert tree["training"]["keep_checkpoints"] == 2
    assert tree["objective"]["name"] == "vicreg"
    for part, table in (("frontend", registry.FRONTENDS), ("encoder", registry.ENCODERS)):
        for branch in tree["branches"].values():
            cls = table.load(branch[part]["name"])
            assert set(branch[part]) == {"name", *cls.Config.model_fields}
    for name, options in tree["inputs"].items():
        assert set(options) == {"name", *registry.INPUTS.load(name).Config.model_fields}
    objective = registry.OBJECTIVES.load("vicreg")
    assert set(tree["objective"]) == {"name", *objective.Config.model_fields}


def test_settings_beat_flags_beat_the_file() -> None:
    own = yaml.safe_load(SHAPES.read_text())["training"]["epochs"]
    assert shapes().training.epochs == own
    flag = {"training.epochs": own + 1}
    assert load_recipe(SHAPES, flag).training.epochs == own + 1
    assert load_recipe(SHAPES, flag, [f"training.epochs={own + 2}"]).training.epochs == own + 2
    last = load_recipe(SHAPES, flag, ["training.epochs=7", "training.epochs=8"])
    assert last.training.epochs == 8


def test_settings_reach_everywhere() -> None:
    recipe = shapes(
        "edges.0.invariance=3",
        "branches.image.expander.widths=[16, 512]",
        "branches.text.encoder.hidden=48",
        "objective=barlow_twins",
        "optimizer.lr=5e-4",  # YAML 1.1 takes this for a string
        "dataset.root=/some/folder",
        "optimizer.clip_norm=null",
    )
    assert recipe.edges[0].invariance == 3
    assert recipe.branches["image"].expander.widths == [16, 512]
    assert recipe.branches["text"].encoder["hidden"] == 48
    assert recipe.objective["name"] == "barlow_twins"
    assert recipe.optimizer.lr == 5e-4
    assert recipe.dataset.root == "/some/folder"
    assert recipe.optimizer.clip_norm is None


@pytest.mark.parametrize("part", ["encoder", "frontend"])
def test_a_component_by_its_name_alone_has_its_defaults(part: str) -> None:
    name, table = {"encoder": ("resnet18", registry.ENCODERS), "frontend": ("image", registry.FRONTENDS)}[
        part
    ]
    short = shapes(f"branches.image.{part}={name}")
    assert short == shapes(f"branches.image.{part}={{name: {name}}}")
    options = getattr(short.branches["image"], part)
    assert options == {"name": name, **table.load(name).Config().model_dump(mode="json")}


def test_an_option_can_be_set_on_a_component_given_by_name_alone() -> None:
    recipe = shapes("objective=vicreg", "objective.gamma=2", "branches.image.encoder=resnet34",
                    "branches.image.encoder.small_stem=true")  # fmt: skip
    assert recipe.objective["gamma"] == 2
    assert recipe.branches["image"].encoder["name"] == "resnet34"
    assert recipe.branches["image"].encoder["small_stem"] is True


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("trainig.epochs=5", r"unknown key 'trainig'; did you mean 'training'\?"),
        ("training.epoch=5", r"unknown key 'training\.epoch'; did you mean 'epochs'\?"),
        ("evaluation.spac=embedding", r"'evaluation\.spac'; did you mean 'space'\?"),
        ("monitor.dead_sd=1", r"'monitor\.dead_sd'; did you mean 'dead_std'\?"),
        ("dataset.tran_split=train", r"'dataset\.tran_split'; did you mean 'train_split'\?"),
        ("edges.0.invarance=5", r"'edges\.0\.invarance'; did you mean 'invariance'\?"),
        ("branches.image.varance=5", r"'branches\.image\.varance'; did you mean 'variance'\?"),
        ("branches.imge.variance=5", r"no 'branches\.imge'; did you mean 'image'\?"),
        ("branches.image.expander.width=[3]", r"'branches\.image\.expander\.width'; did you mean 'widths'\?"),
        (
            "branches.image.encoder.weigths=none",
            r"'weigths' for the encoder 'resnet18'; did you mean 'weights'",
        ),
        ("branches.image.frontend.mena=0", r"'mena' for the frontend 'image'; did you mean 'mean'"),
        ("inputs.image.sise=32", r"'sise' for the input 'image'; did you mean 'size'"),
        (
            "branches.image.frontend.augmentation=oficial",
            r"unknown augmentation 'oficial'; did you mean 'official'\?",
        ),
        ("branches.image.frontend.augmentation={blurr: [1]}", r"unknown key '.*augmentation\.blurr'"),
        ("inputs.imag.size=32", r"no 'inputs\.imag'; did you mean 'image'\?"),
        ("objective.gama=1", r"'gama' for the method 'vicreg'; did you mean 'gamma'"),
        ("objective=vicrg", r"unknown method 'vicrg'; did you mean 'vicreg'\?"),
        ("branches.image.encoder=resnet19", r"unknown encoder 'resnet19'; did you mean 'resnet18'\?"),
        ("dataset.name=shpes", r"unknown data set 'shpes'; did you mean 'shapes'\?"),
        ("pair=image-txt", r"unknown pair 'image-txt'; did you mean 'image-text'\?"),
        ("branches.image.input=imgae", r"reads input 'imgae'.*did you mean 'image'\?"),
        ("edges=[{a: image, b: texxt}]", r"names branch 'texxt'.*did you mean 'text'\?"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest(setting: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        shapes(setting)


def test_options_left_from_another_encoder_come_with_the_way_out() -> None:
    left = "branches.image.encoder.zero_init_residual=true"
    with pytest.raises(UserError) as caught:
        shapes(left, "branches.image.encoder.name=vit_small")
    assert "'zero_init_residual' for the encoder 'vit_small'. Known: patch, weights. If it" in str(
        caught.value
    )
    (way_out,) = re.findall(
        r"replace that whole: (\S+) in place of encoder.name=vit_small", str(caught.value)
    )
    found = shapes(left, f"branches.image.{way_out}", "inputs.image.size=32")
    assert found.branches["image"].encoder["name"] == "vit_small"


@pytest.mark.parametrize(
    "key",
    [
        "training.accumulate",
        "training.accumulation_steps",
        "training.gradient_accumulation",
        "training.accumulate_grad_batches",
        "optimizer.accum_freq",
        "gradientAccumulationSteps",
    ],
)
def test_plain_accumulation_is_refused_with_the_reason_and_the_way_out(key: str) -> None:
    with pytest.raises(UserError) as caught:
        shapes(f"{key}=4")
    assert f"unknown key '{key}': gradients are not accumulated over batches, because" in str(caught.value)
    assert "training.micro_batch (--micro-batch)" in str(caught.value)
    assert shapes("training.micro_batch=4").training.micro_batch == 4


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("training.epochs=five", "training.epochs"),
        ("training.epochs=-1", "training.epochs"),
        ("training.epochs=", "training.epochs"),
        ("training.batch_size=1", "training.batch_size"),
        ("training.batch_size=16.5", "training.batch_size"),
        ("training.precision=fp8", "training.precision"),
        ("training=5", "training"),
        ("optimizer.lr=.nan", "optimizer.lr"),
        ("optimizer.lr=.inf", "optimizer.lr"),
        ("optimizer.betas=[1.5, 0.9]", "optimizer.betas.0"),
        ("seed=-1", "seed"),
        ("seed.x=1", "seed"),
        ("branches=5", "branches"),
        ("branches.image=5", "branches.image"),
        ("branches.image.variance=-1", "branches.image.variance"),
        ("branches.image.variance=.inf", "branches.image.variance"),
        ("branches.image.encoder=[1]", "branches.image.encoder"),
        ("branches.image.expander.widths=[]", "branches.image.expander.widths"),
        ("branches.image.expander.widths=[0, 512]", r"branches\.image\.expander\.widths\.0"),
        ("branches.text.encoder.pooling=lst", r"branches\.text\.encoder\.pooling"),
        ("edges=[]", "edges"),
        ("edges.5.a=image", r"'edges\.5\.a'.*list of 1"),
        ("inputs=5", "inputs"),
        ("inputs.image=5", "image"),
        ("inputs.image=[1]", "image"),
        ("inputs.image=abc", "image"),
        ("inputs.image.name=audio", r"inputs\.image: name is 'audio'"),
        ("inputs.image.size=4", r"image\.size"),
        ("inputs.image.crop_area=[0.9, 0.1]", r"image\.crop_area"),
        ("inputs.image.crop_area=[0, 2]", r"image\.crop_area"),
        ("inputs.image.crop_ratio=[0, 1]", r"image\.crop_ratio"),
        ("inputs.image.interpolation=cubic", r"image\.interpolation.*bicubic"),
        ("inputs.image.worker_augmentation={blur: [2]}", r"image\.worker_augmentation\.blur\.0"),
        ("branches.image.frontend.augmentation.sigma=[2, 1]", r"augmentation: sigma: expected \[smallest"),
        ("inputs.text.tokenizer=transformers", r"text: 'model' is needed"),
        ("inputs.text.tokenizer=words", r"text: vocabulary is an option of the tokenizer sentencepiece"),
        ("objective.gamma=-1", r"objective\.gamma"),
        ("objective=5", "objective"),
        ("dataset.fold=some", r"dataset\.fold"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_key(setting: str, key: str) -> None:
    with pytest.raises(UserError, match=key):
        shapes(setting)


def test_branches_of_an_edge_must_end_in_one_width() -> None:
    with pytest.raises(UserError, match=r"image-text joins embeddings of 64 and 512 .*same width"):
        shapes("branches.image.expander.widths=[512, 64]")


@pytest.mark.parametrize("name", ["a/b", "a.b"])
def test_branch_names_must_not_look_like_paths(name: str) -> None:
    tree: dict[str, Any] = yaml.safe_load(SHAPES.read_text())
    tree["branches"][name] = tree["branches"].pop("image")
    tree["edges"][0]["a"] = name
    with pytest.raises(UserError, match="must not contain"):
        parse_recipe(tree, source="x")


def test_a_mel_of_another_rate_than_its_recording_is_refused() -> None:
    recipe = tiny_recipe("wave-mel", Path("unused"))
    assert recipe.branches["mel"].frontend["sample_rate"] == recipe.inputs["audio"]["sample_rate"]
    with pytest.raises(UserError, match=r"branches\.mel\.frontend\.sample_rate is 4000 .* 8000"):
        tiny_recipe("wave-mel", Path("unused"), "inputs.audio.sample_rate=8000")


@pytest.mark.parametrize(("seconds", "samples"), [("0.0001", 0), ("0.0003", 1)])
def test_clips_of_no_length_are_refused(seconds: str, samples: int) -> None:
    with pytest.raises(
        UserError, match=rf"inputs\.audio: seconds {seconds} are {samples} samples at 4000 Hz"
    ):
        tiny_recipe("wave-mel", Path("unused"), f"inputs.audio.seconds={seconds}")
    assert tiny_recipe("wave-mel", Path("unused"), "inputs.audio.seconds=0.0005")


def test_clips_of_more_than_an_hour_are_refused() -> None:
    with pytest.raises(UserError, match=r"audio\.seconds: Input should be less than or equal to 3600"):
        tiny_recipe("wave-mel", Path("unused"), "inputs.audio.seconds=1e300")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("inputs.audio.seconds=-3", "inputs.audio.seconds: Input should be greater than 0"),
        ("inputs.audio.seconds=0.0001", "inputs.audio: seconds 0.0001 are 0 samples"),
        ("inputs.audio.secnds=3", "inputs.audio: unknown key 'secnds' .* did you mean 'seconds'"),
        ("inputs.audio.mix.amplitude=2", "inputs.audio.mix.amplitude"),
        ("inputs.audio.name=image", "inputs.audio: name is 'image': an input is called by its kind"),
        ("inputs.audio=3", "inputs.audio: expected a mapping"),
        ("branches.mel.frontend.n_mels=-1", "branches.mel.frontend.n_mels: Input should be"),
        ("optimizer.momentum=0.3", "optimizer: momentum is an option of sgd"),
    ],
)
def test_a_setting_out_of_range_is_named_as_it_was_given(setting: str, problem: str) -> None:
    with pytest.raises(UserError, match=rf" with {re.escape(setting)}: {problem}"):
        tiny_recipe("wave-mel", Path("unused"), setting)


def test_a_setting_that_is_not_at_fault_is_not_named() -> None:
    with pytest.raises(
        UserError, match=r" with inputs\.audio\.seconds=-3: inputs\.audio\.seconds: "
    ) as refused:
        tiny_recipe("wave-mel", Path("unused"), "inputs.audio.seconds=-3", "inputs.audio.shift=0.1", "seed=1")
    assert "shift" not in str(refused.value)
    assert "seed" not in str(refused.value)


@pytest.mark.parametrize("setting", ["training.epochs", "", "=5", " =5", "x"])
def test_a_malformed_setting_is_shown(setting: str) -> None:
    with pytest.raises(UserError, match=rf"key=value.*'{setting}'|unknown key ''"):
        shapes(setting)
    with pytest.raises(UserError, match="not valid YAML"):
        shapes("training.epochs=[")
    for value in ("2024-13-45", "[" * 3000):  # no such month; deeper than Python goes
        with pytest.raises(UserError, match="not valid YAML"):
            shapes(f"training.epochs={value}")
    with pytest.raises(UserError, match="'²' is not a position in a list of 1"):
        shapes("edges.².invariance=1")


def test_a_value_of_the_command_line_is_shown_beside_the_recipe() -> None:
    """The file is right, and need not be looked into."""
    path = recipe_path("image-text", "shapes", None)
    with pytest.raises(UserError, match=r"shapes\.yaml with training\.epochs=-1: training\.epochs: Input"):
        load_recipe(path, {"training.epochs": -1, "seed": 3})
    with pytest.raises(
        UserError, match=r"shapes\.yaml with training\.keep_every=0: training\.keep_every: Input"
    ):
        load_recipe(path, settings=["seed=3", "training.keep_every=0"])


def test_the_pair_is_not_set_beside_the_pair() -> None:
    """Two branches of another pair would train under its name."""
    path = recipe_path("wave-mel", "tones", None)
    with pytest.raises(UserError, match="the pair is given by --pair, which is wave-mel"):
        load_recipe(path, {"pair": "wave-mel"}, ["pair=image-text"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n",
        "a: [\n",
        "just words",
        "1: 2\n",
        "pair: 2020-01-01\n",
        "pair: !!python/name:os x\n",
        "pair: [a]\n",
        "seed: 2024-13-45\n",
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load_recipe(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("binary.yaml", "missing.yaml", "."):
        with pytest.raises(UserError, match=name.rstrip(".") or tmp_path.name):
            load_recipe(tmp_path / name)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as refused:
        shapes("training.epochs=x", "optimiser.lr=1", "branches.image.variance=-1")
    for key in ("training.epochs", "did you mean 'optimizer'", "branches.image.variance", str(SHAPES)):
        assert key in str(refused.value)


def test_another_augmentation_on_a_runs_recipe_brings_its_own_numbers(tmp_path: Path) -> None:
    """A run's recipe names every option; those of the old name would be trained under the new one."""
    saved = tmp_path / "recipe.yaml"
    key = "branches.image.frontend.augmentation"
    saved.write_text(
        dump_recipe(load_recipe(recipe_path("image-image", "shapes", None), {}, [f"{key}.hue=0.3"]))
    )
    found = load_recipe(saved, {}, [f"{key}.name=official"]).branches["image"].frontend["augmentation"]
    assert (found["name"], found["hue"]) == ("official", 0.3)  # what was chosen stays
    assert (list(found["blur"]), list(found["solarise"])) == ([1.0, 0.1], [0.0, 0.2])


def test_recipes_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert recipe_path("wave-mel", "tones", None) == recipes_folder() / "wave-mel" / "tones.yaml"
    assert recipe_path("image-text", "shapes", "flickr8k").stem == "flickr8k"
    mine = tmp_path / "mine.yaml"
    mine.write_text(SHAPES.read_text())
    assert load_recipe(recipe_path("image-text", "coco", str(mine))) == shapes()
    with pytest.raises(UserError, match=r"no recipe 'shpes'.*did you mean 'shapes'\?.*Known: .*flickr8k"):
        recipe_path("image-text", "coco", "shpes")
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        recipe_path("image-text", "coco", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(UserError, match="no recipe 'shapes' for the pair wave-mel"):
        recipe_path("wave-mel", "shapes", None)


def test_differences_name_each_key_and_both_values() -> None:
    one = shapes()
    assert differences(one, one) == []
    two = shapes("training.epochs=3", "edges.0.invariance=7", "branches.text.encoder.hidden=48")
    told = differences(one, two)
    assert [line.partition(":")[0] for line in told] == [
        "branches.text.encoder.hidden",
        "edges.0.invariance",
        "training.epochs",
    ]
    assert told[1] == "edges.0.invariance: 25.0 -> 7.0"
    other = differences(one, shapes("objective=vse"))
    assert "objective.name: vicreg -> vse" in other
    assert any(line.startswith("objective.gamma: ") and line.endswith("-> absent") for line in other)
