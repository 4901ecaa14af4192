"""``mmvicreg sweep``: alternatives of a recipe, resumable, judged on validation data, one table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import IMAGE_TEXT
from typer.testing import CliRunner

from mmvicreg import registry
from mmvicreg import sweep as sweeps
from mmvicreg.branches.init import settle
from mmvicreg.branches.model import build_graph
from mmvicreg.cli import app
from mmvicreg.config import SeenConfig
from mmvicreg.errors import UserError
from mmvicreg.eval.published import published
from mmvicreg.recipes import load_recipe, recipe_path, recipes_folder
from mmvicreg.runs import open_run
from mmvicreg.sweep import Result, base_recipe, changes, read_sweep, recipes, sweep_path, with_seeds
from mmvicreg.sweep_table import best_of_groups, markdown, method_settings, other_settings, spread

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted(recipes_folder().glob("*/sweeps/*.yaml"))
SETTINGS = {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in IMAGE_TEXT)}


def write(path: Path, **keys: object) -> Path:
    tree = {"pair": "image-text", "dataset": "shapes", "settings": SETTINGS | {"training.epochs": 1}, **keys}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def mistake(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


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


def test_a_sweep_trains_judges_tables_and_is_not_repeated(tiny_shapes: Path, tmp_path: Path) -> None:
    file = write(
        tmp_path / "mine.yaml",
        seeds=[0, 1],
        alternatives={
            "nu-5": {"group": "g", "settings": {"branches.text.covariance": 5}},
            "simclr": {
                "group": "g",
                "method": "simclr",
                "settings": {"training.precision": "bf16-if-native"},  # of which a run's recipe has another
            },
        },
    )
    out = tmp_path / "out"
    words = ["sweep", str(file), "--data-root", str(tiny_shapes), "--out", str(out), "--workers", "0"]
    first = CliRunner().invoke(app, [*words, "--only", "simclr"])
    assert first.exit_code == 0, (first.output, first.exception)
    assert {path.parent.name for path in out.glob("*/seed*")} == {"simclr"}
    written = {path: path.stat().st_mtime_ns for path in out.glob("*/seed*/checkpoints/*.pt")}
    assert len(written) == 2

    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items()), "trained again"
    tree = json.loads((out / "sweep.json").read_text())
    assert list(tree["alternatives"]) == ["nu-5", "simclr"]
    for name, one in tree["alternatives"].items():
        assert [report["split"] for report in one["reports"]] == ["val", "val"]
        assert one["rsum"] == pytest.approx(sum(report["rsum"] for report in one["reports"]) / 2)
        for seed, report in enumerate(one["reports"]):
            run = open_run(out / name / f"seed{seed}")
            assert run.recipe.seed == seed
            assert json.loads((run.path / "eval" / "retrieval-val.json").read_text()) == report
    winner = max(tree["alternatives"], key=lambda name: tree["alternatives"][name]["rsum"])
    assert tree["best"] == {"g": winner}
    page = (out / "sweep.md").read_text()
    assert page in result.output
    assert "†" not in page
    assert f"| {winner} * | " in page
    assert "nu_text 5" in page
    assert "20 queries, gallery 100" in page.replace("; text", "")

    # somebody judged a run in another way since: that is no report of this sweep
    lying = out / "nu-5" / "seed1" / "eval" / "retrieval-val.json"
    right = json.loads(lying.read_text())
    for change in (
        {"protocol": "1k-5fold"},
        {"similarity": "dot"},
        {"space": "representation"},
        {"skipped": 1},
        {"dataset": "coco"},
        {"image_to_text": right["image_to_text"] | {"search": {"index": "IVF"}}},
    ):
        lying.write_text(json.dumps({**right, "rsum": -1.0, **change}))
        assert CliRunner().invoke(app, [*words, "--only", "nu-5"]).exit_code == 0
        assert json.loads(lying.read_text())["rsum"] == right["rsum"], change
    again = json.loads((out / "sweep.json").read_text())  # with what the others came to, in the sweep's order
    assert list(again["alternatives"]) == ["nu-5", "simclr"]
    assert again["alternatives"]["simclr"] == tree["alternatives"]["simclr"]
    assert again["best"] == tree["best"]
    # but not of other settings than were asked for, nor where a seed is missing
    assert CliRunner().invoke(app, [*words, "--only", "nu-5", "--seeds", "0,1,2"]).exit_code == 0
    assert list(json.loads((out / "sweep.json").read_text())["alternatives"]) == ["nu-5"]

    # a run that is gone is made again, to the same figures
    shutil.rmtree(out / "simclr" / "seed0")
    result = CliRunner().invoke(app, [*words, "--only", "simclr"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads((out / "sweep.json").read_text())["alternatives"]["simclr"]["rsum"] == pytest.approx(
        tree["alternatives"]["simclr"]["rsum"]
    )
    # another recipe under the same name is not taken for the same
    assert "alternative 'simclr': the run" in mistake(*words, "--only", "simclr", "--set", "optimizer.lr=0.5")


def test_a_run_that_stops_by_itself_is_a_line_of_the_table(tiny_shapes: Path, tmp_path: Path) -> None:
    collapse = {"monitor.grace_steps": 0, "monitor.patience": 1, "monitor.dead_std": 1000}
    file = write(tmp_path / "mine.yaml", alternatives={"bad": {"settings": collapse}, "good": {}})
    out = tmp_path / "out"
    words = ["sweep", str(file), "--data-root", str(tiny_shapes), "--out", str(out), "--workers", "0"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    tree = json.loads((out / "sweep.json").read_text())
    assert tree["alternatives"]["bad"]["problem"].startswith("training stopped:")
    assert tree["best"] == {"good": "good"}
    page = (out / "sweep.md").read_text()
    assert "bad did not finish: training stopped:" in page
    assert any(line.startswith("| bad |") and "| collapsed |" in line for line in page.splitlines())

    # a second call does not train on behind the monitor's back
    written = {path: path.stat().st_mtime_ns for path in out.glob("*/seed0/**/*") if path.is_file()}
    assert CliRunner().invoke(app, words).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert json.loads((out / "sweep.json").read_text())["alternatives"]["bad"] == tree["alternatives"]["bad"]
    assert CliRunner().invoke(app, [*words, "--only", "good"]).exit_code == 0  # the line of the other stays
    assert json.loads((out / "sweep.json").read_text())["alternatives"] == tree["alternatives"]

    # one that was continued all the same, as its message says, has its figures
    resume = ["train", "--resume", "--out", str(out / "bad" / "seed0"), "--workers", "0"]
    assert CliRunner().invoke(app, [*resume, "--set", "monitor.patience=500"]).exit_code == 0
    for more in ([], ["--only", "good"], []):
        assert CliRunner().invoke(app, [*words, *more]).exit_code == 0
        bad = json.loads((out / "sweep.json").read_text())["alternatives"]["bad"]
        assert (bad["problem"], len(bad["reports"])) == ("", 1), more


def test_a_sweep_judged_on_what_it_is_trained_on_says_so(tiny_shapes: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"training.epochs": 1}
    both = {"settings": {"dataset.train_split": "train+val"}}
    file = write(tmp_path / "mine.yaml", settings=settings, alternatives={"held-out": {}, "both": both})
    words = [
        "sweep",
        str(file),
        "--data-root",
        str(tiny_shapes),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "0",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    page = (tmp_path / "out" / "sweep.md").read_text()
    assert "| both † |" in page
    assert "| held-out |" in page
    assert "† transductive: pretrained on samples of the split, so that this measures memory (both)." in page
    sweep = read_sweep(file)
    reports = [open_run(tmp_path / "out" / "both" / "seed0").path / "eval" / "retrieval-val.json"]
    report = json.loads(reports[0].read_text()) | {"doubt": "the run was pretrained on others"}
    doubted = Result("both", "both", recipes(sweep)["both"][0], [report])
    assert "† counted as transductive: the run was pretrained on others, so" in markdown(
        sweep, [doubted], base_recipe(sweep), command=""
    )


def test_a_split_that_is_not_there_is_refused_before_anything_is_trained(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "mine.yaml", split="vall", alternatives={"a": {}, "b": {}})
    told = mistake("sweep", file, "--data-root", tiny_shapes, "--out", tmp_path / "out", "--workers", "0")
    assert (
        f"alternative 'a': split: shapes at {tiny_shapes} has no split 'vall' to judge on; did you mean 'val'"
        in told
    )
    assert not (tmp_path / "out").exists()


def test_a_table_is_made_again_without_the_data_and_a_run_goes_on_where_it_has_them(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The split to judge on is looked for where something is left to be judged, and only there."""
    monkeypatch.setenv("MMVICREG_DATA", str(tmp_path / "file" / "none"))
    (tmp_path / "file").write_text("no data can be made under this")
    data = shutil.copytree(tiny_shapes, tmp_path / "data")
    file = write(tmp_path / "mine.yaml", alternatives={"a": {}})
    words = ["sweep", str(file), "--out", str(tmp_path / "out"), "--workers", "0"]
    first = CliRunner().invoke(app, [*words, "--data-root", str(data)])
    assert first.exit_code == 0, (first.output, first.exception)
    made = json.loads((tmp_path / "out" / "sweep.json").read_text())["alternatives"]

    (tmp_path / "out" / "a" / "seed0" / "eval" / "retrieval-val.json").unlink()
    again = CliRunner().invoke(app, words)  # the run knows where its data are
    assert again.exit_code == 0, (again.output, again.exception)
    shutil.rmtree(data)
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, (again.output, again.exception)
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())["alternatives"]
    assert found["a"]["rsum"] == pytest.approx(made["a"]["rsum"])


def test_a_run_is_known_by_what_was_asked_for_not_by_what_it_was_told_when_it_began(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its recipe has absolute paths and checksums that no sweep file has; a table would lose its line."""
    monkeypatch.chdir(tmp_path)
    lines = ["branches.image.init=weights.pt", "sources.pictures.dataset.root=here"]
    asked = load_recipe(recipe_path("image-text", "", "flickr8k-cifar10"), settings=lines)
    run = settle(asked)
    init = run.branches["image"].init
    assert init is not None
    assert init.source == str(tmp_path / "weights.pt")
    seen = [SeenConfig(dataset="cifar10", fold=1, samples=3, names="abc")]
    begun = run.branches["image"].model_copy(
        update={"init": init.model_copy(update={"sha256": "1" * 64, "seen": seen})}
    )
    run = run.model_copy(update={"branches": run.branches | {"image": begun}})
    assert sweeps._changed(run, asked) == []
    moved = load_recipe(
        recipe_path("image-text", "", "flickr8k-cifar10"),
        settings=[lines[0], "sources.pictures.dataset.root=elsewhere"],
    )
    assert sweeps._changed(run, moved) == []
    other = load_recipe(
        recipe_path("image-text", "", "flickr8k-cifar10"),
        settings=["branches.image.init=others.pt", lines[1], "sources.pictures.weight=2"],
    )
    assert [line.partition(":")[0] for line in sweeps._changed(run, other)] == [
        "branches.image.init.source",
        "sources.pictures.weight",
    ]


def test_a_sweep_is_judged_by_its_training(tiny_shapes: Path, tmp_path: Path) -> None:
    stopped = {"monitor.grace_steps": 0, "monitor.patience": 2, "monitor.dead_std": 1000}
    warned = {**stopped, "monitor.patience": 1000}
    file = write(
        tmp_path / "mine.yaml",
        judge="training",
        seeds=[0, 1],
        settings=SETTINGS
        | {
            "training.epochs": 1,
            "training.log_every": 1,
            "monitor.grace_steps": 0,
            "monitor.min_agreement": -1,
        },
        alternatives={
            "strangers": {"settings": {"monitor.min_rank": 0, "monitor.min_agreement": 1}},
            "huddled": {"settings": {"monitor.min_rank": 0, "monitor.min_spread": 1000}},
            "good": {"paper": 68.6, "settings": {"monitor.min_rank": 0}},
            "stopped": {"paper": "collapse", "settings": stopped},
            "warned": {"settings": warned},
            "brief": {"settings": {"monitor.grace_steps": 1000}},
        },
    )
    out = tmp_path / "out"
    words = ["sweep", str(file), "--data-root", str(tiny_shapes), "--out", str(out), "--workers", "0"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    tree = json.loads((out / "sweep.json").read_text())
    assert tree["best"] == {}
    assert not list(out.glob("*/seed0/eval/*")), "nothing is encoded"
    steps = len((out / "good" / "seed0" / "metrics.jsonl").read_text().splitlines())
    for name, verdict in {
        "good": {"warned": None, "stopped": None, "collapsed": False, "looked": True},
        "stopped": {"warned": 1, "stopped": 2, "collapsed": True, "looked": True},
        "warned": {"warned": 1, "stopped": None, "collapsed": True, "looked": True},
        "brief": {"warned": None, "stopped": None, "collapsed": False, "looked": False},
    }.items():
        for seed, report in enumerate(tree["alternatives"][name]["reports"]):
            assert verdict.items() <= report["monitor"].items()
            lines = (out / name / f"seed{seed}" / "metrics.jsonl").read_text().splitlines()
            first, last = json.loads(lines[0]), json.loads(lines[-1])
            assert report["steps"] == last["step"] == (2 if name == "stopped" else steps)
            assert report["loss"] == [first["loss"], last["loss"]]
            assert report["branches"] == last["branches"]
            assert report["agreement"] == last["agreement"]
            assert report["nothing_shared"] == report["nearly_collapsed"] == []
    page = [line.strip("| ").split(" | ") for line in (out / "sweep.md").read_text().splitlines()]
    cells = {row[0]: row for row in page if len(row) > 5}
    assert cells["alternative"][2:] == [
        "paper", "steps", "loss", "standard deviation", "dead", "effective rank", "agreement", "monitor",
    ]  # fmt: skip
    assert [cells[name][2] for name in ("good", "stopped", "warned")] == ["68.6", "collapse", "-"]
    assert cells["stopped"][-1] == "; ".join(["collapsed: warned at step 1, stopped at 2"] * 2)
    assert cells["warned"][-1] == "; ".join(["looks collapsed: warned at step 1"] * 2)
    assert cells["good"][-1] == "silent; silent"
    assert cells["strangers"][-1] == "; ".join(["at the end: nothing in common"] * 2)
    assert cells["huddled"][-1] == "; ".join(["at the end: nearly collapsed"] * 2)
    assert cells["good"][-2] == cells["strangers"][-2] != "-"
    assert cells["brief"][-1].startswith("silent (shorter than monitor.grace_steps)")


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


def test_a_sweep_goes_on_without_pictures_that_cannot_be_read(tiny_shapes: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_shapes, tmp_path / "data")
    picture = sorted((data / "val2017").iterdir())[0]
    picture.write_text("<html>")
    file = write(tmp_path / "mine.yaml", alternatives={"a": {}})
    words = ["sweep", str(file), "--data-root", str(data), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert picture.name in mistake(*words)
    result = CliRunner().invoke(app, [*words, "--set", "dataset.on_bad_sample=skip"])
    assert result.exit_code == 0, (result.output, result.exception)
    (report,) = json.loads((tmp_path / "out" / "sweep.json").read_text())["alternatives"]["a"]["reports"]
    assert (report["samples"], report["skipped"]) == (19, 1)


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
    assert sweeps.read_sweep(sweep_path("flickr8k-methods"))


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
