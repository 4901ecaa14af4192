"""Sweep files, ours and wrong ones, and the table that is made of results."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_files import mistake, write

from mmvicreg import registry
from mmvicreg.branches.model import build_graph
from mmvicreg.errors import UserError
from mmvicreg.eval.published import published
from mmvicreg.recipes import recipes_folder
from mmvicreg.sweep.file import base_recipe, changes, read_sweep, recipes, sweep_path, with_seeds
from mmvicreg.sweep.finished import Result
from mmvicreg.sweep.table import best_of_groups, markdown, method_settings, other_settings, spread

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted(recipes_folder().glob("*/sweeps/*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sweep_resolves(path: Path) -> None:
    sweep = read_sweep(path)
    assert sweep.pair == path.parent.parent.name
    plans = recipes(sweep)
    base = base_recipe(sweep)
    changed = [tuple(changes(base, plan[0])) for plan in plans.values()]
    assert len(set(changed)) == len(changed), "two alternatives are the same"
    for name, plan in plans.items():  # one optimiser for all, where a name does not say otherwise
        told = sweep.settings | sweep.alternatives[name].settings
        told_so = any(key.startswith("optimizer.") for key in told)
        assert told_so == (plan[0].optimizer != base.optimizer)
    assert {plan[0].dataset.name for plan in plans.values()} == {sweep.dataset}
    assert sweep_path(path.stem) == path
    for plan in plans.values():  # a method that its own graph does not allow is refused here
        options = {key: value for key, value in plan[0].objective.items() if key != "name"}
        registry.OBJECTIVES.load(plan[0].objective["name"]).from_config(options, build_graph(plan[0]))


def test_the_paper_s_figures_are_those_of_its_tables() -> None:
    printed = {tuple(map(float, row.values[:3])): row.values[3] for row in published(7).rows}
    sweep = read_sweep(sweep_path("table7"))
    for one, (recipe,) in recipes(sweep).items():
        lambda_, mu, nu = map(float, one.split("-"))
        assert {edge.invariance for edge in recipe.edges} == {lambda_}
        assert {(branch.variance, branch.covariance) for branch in recipe.branches.values()} == {(mu, nu)}
        assert sweep.alternatives[one].paper == printed[lambda_, mu, nu]
    rows = {row.method: row.values for row in published(4).rows}
    names = {
        "byol": "BYOL: momentum encoder, stop-gradient, predictor, BN",
        "simsiam": "SimSiam: stop-gradient, predictor, BN",
        "simsiam-no-bn": "SimSiam: stop-gradient, predictor",
        "simsiam-sg-only": "SimSiam: stop-gradient",
        "vicreg-pr": "VICReg: predictor",
        "vicreg-pr-bn": "VICReg: predictor, BN",
        "vicreg-bn": "VICReg: BN",
        "vicreg-none": "VICReg: none of them",
    }
    added = {"none": "", "variance": "-var", "variance+covariance": "-varcov"}
    sweep = read_sweep(sweep_path("table4"))
    for one, (recipe,) in recipes(sweep).items():
        objective = recipe.objective
        suffix = added[objective["regularise"]]
        base = one.removesuffix(suffix)
        assert sweep.alternatives[one].paper == rows[names[base]][list(added.values()).index(suffix)]
        parts = names[base].partition(": ")[2].split(", ")
        assert ("momentum encoder" in parts) == (objective["momentum"] is not None)
        assert ("stop-gradient" in parts) == objective["stop_gradient"]
        assert ("predictor" in parts) == (objective["predictor"] is not None)
        assert ("BN" in parts) == (recipe.branches["image"].expander.norm == "batchnorm")
        if objective["predictor"] is not None:
            assert ("BN" in parts) == (objective["predictor_norm"] == "batchnorm")


def test_the_comparison_of_methods_changes_the_objective_and_the_rate_alone() -> None:
    sweep = read_sweep(sweep_path("flickr8k-methods"))
    base = base_recipe(sweep)
    methods = {name: plan[0] for name, plan in recipes(sweep).items()}
    assert list(methods) == ["vicreg", "barlow_twins", "vse", "vse0", "simclr"]
    assert methods["vse0"].objective == methods["vse"].objective | {"negatives": "all"}
    for name, recipe in methods.items():
        assert recipe.objective["name"] == name.removesuffix("0")
        rate = {"lr": base.optimizer.lr}
        optimizer = recipe.optimizer.model_copy(update=rate)
        assert recipe.model_copy(update={"objective": base.objective, "optimizer": optimizer}) == base
        assert other_settings(base, recipe) == ([] if name == "vicreg" else ["optimizer.lr=0.0003"])
    assert (
        method_settings(methods["vse"])
        == "vse (margin 0.2, negatives hardest, reduction sum, warmup_steps 0)"
    )
    assert "mu_image 25, nu_image 1" in method_settings(methods["vicreg"])
    assert "lambda_image-text 25" in method_settings(methods["vicreg"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": "test"}, "a sweep chooses, so it is judged on validation data, not on 'test'"),
        ({"split": "val+test"}, "not on 'val\\+test'"),
        ({"alternatives": {}}, "alternatives"),
        ({"alternatives": {"a/b": {}}}, "'a/b' names a folder"),
        ({"alternatives": {"a": {"setings": {}}}}, r"alternatives\.a\.setings"),
        (
            {"alternatives": {"a": {"settings": {"optimizer.lrr": 1}}}},
            "alternative 'a': .*optimizer.lrr.*did you mean 'lr'",
        ),
        ({"alternatives": {"a": {"method": "vicregg"}}}, "alternative 'a': .*did you mean 'vicreg'"),
        ({"judge": "trainng", "alternatives": {"a": {}}}, "judge: .*'retrieval' or 'training'"),
        ({"pair": "image-txt", "alternatives": {"a": {}}}, "did you mean 'image-text'"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    file = write(tmp_path / "mine.yaml", **{"alternatives": {"a": {}}, **keys})
    with pytest.raises(UserError, match=message):
        recipes(read_sweep(file))


def test_seeds_are_a_flag() -> None:
    sweep = read_sweep(sweep_path("flickr8k-methods"))
    assert [recipe.seed for recipe in recipes(with_seeds(sweep, "2, 0,5"))["vicreg"]] == [2, 0, 5]
    for wrong in ("", "1,", "a", "-1", "1,1", "0.5"):
        assert "--seeds takes whole numbers" in mistake("sweep", "flickr8k-methods", "--seeds", wrong)


def test_names_are_looked_up(tmp_path: Path) -> None:
    assert "did you mean 'flickr8k'" in mistake("sweep", "flickr8")
    assert "no sweep file" in mistake("sweep", tmp_path / "x.yaml")
    assert "no alternative 'vicregg'; did you mean 'vicreg'" in mistake(
        "sweep", "flickr8k-methods", "--only", "vicregg"
    )


def test_the_best_of_a_group_has_every_seed() -> None:
    recipe = base_recipe(read_sweep(sweep_path("flickr8k-methods")))
    some = [
        Result("a", "g", recipe, [{"rsum": 10.0}, {"rsum": 20.0}]),
        Result("b", "g", recipe, [{"rsum": 90.0}], problem="training stopped: ..."),
        Result("c", "g", recipe, [{"rsum": 15.0}, {"rsum": 15.0}]),
    ]
    assert best_of_groups(some) == {"g": "a"}
    assert spread([1.0, 2.0, 4.5]) == "2.5 ± 1.8"
    assert spread([1.25]) == "1.2"


def test_make_flickr8k_says_what_it_needs_and_runs_the_sweep() -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    venv = Path(sys.prefix)
    asked = subprocess.run(
        ["make", f"VENV={venv}", "flickr8k"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert asked.returncode != 0
    assert "FLICKR8K=DIR" in asked.stderr
    shown = subprocess.run(
        ["make", "--dry-run", f"VENV={venv}", "flickr8k", "FLICKR8K=/data/f8k", "EPOCHS=3", "SEEDS=0,1",
         "ARGS=--device cpu"], cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.replace("\\\n", "")  # fmt: skip
    for word in (
        "sweep",
        '"flickr8k-methods"',
        '"/data/f8k"',
        '"runs/flickr8k"',
        "--epochs 3",
        "--seeds 0,1",
        "--device cpu",
    ):
        assert word in shown
    assert read_sweep(sweep_path("flickr8k-methods"))


def test_what_all_runs_share_is_said_once() -> None:
    sweep = read_sweep(sweep_path("flickr8k"))
    plans = recipes(sweep, overrides={"training.epochs": 3})
    base = base_recipe(sweep)
    report = {"rsum": 6.0, "epoch": 3}
    way = {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0, "queries": 5, "gallery": 1, "chance": {"R@1": 0.1}}
    reports = [{**report, "image_to_text": way, "text_to_image": way}]
    some = [
        Result(name, sweep.alternatives[name].group or name, plans[name][0], reports)
        for name in ("vicreg-25-25-1", "vicreg-nu-5", "vse-hardest")
    ]
    page = markdown(sweep, some, base, command="mmvicreg sweep flickr8k")
    assert "- every run: `training.epochs=3`" in page
    assert page.count("training.epochs") == 1
    assert "| vicreg-25-25-1 * |" in page
    assert "| vse-hardest |" in page  # nothing competes with it
    assert "- vicreg-nu-5: vicreg (" in page
    assert "mu_image 25, nu_image 5" in page
