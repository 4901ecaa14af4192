"""``mmvicreg sweep``: alternatives of a recipe, resumable, judged on validation data, one table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sweep_files import SETTINGS, mistake, write
from typer.testing import CliRunner

from mmvicreg.branches.init import settle
from mmvicreg.cli import app
from mmvicreg.config import SeenConfig
from mmvicreg.recipes import load_recipe, recipe_path
from mmvicreg.runs import open_run
from mmvicreg.sweep.file import base_recipe, read_sweep, recipes
from mmvicreg.sweep.finished import Result, changed
from mmvicreg.sweep.table import markdown


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


def test_a_run_that_met_nan_keeps_its_line_and_is_tried_anew_when_it_is_asked_for(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    wild = {"optimizer.lr": 1e30, "optimizer.clip_norm": None}
    file = write(tmp_path / "mine.yaml", alternatives={"wild": {"settings": wild}, "good": {}})
    out = tmp_path / "out"
    words = ["sweep", str(file), "--data-root", str(tiny_shapes), "--out", str(out), "--workers", "0"]
    assert CliRunner().invoke(app, words).exit_code == 0
    alternatives = json.loads((out / "sweep.json").read_text())["alternatives"]
    problem = alternatives["wild"]["problem"]
    assert "NaN or infinity" in problem or "not finite" in problem
    assert CliRunner().invoke(app, [*words, "--only", "good"]).exit_code == 0
    assert json.loads((out / "sweep.json").read_text())["alternatives"] == alternatives

    tree = json.loads((out / "sweep.json").read_text())
    tree["alternatives"]["wild"]["problem"] = "step 1: NaN of a recording that has been mended since"
    (out / "sweep.json").write_text(json.dumps(tree))
    assert CliRunner().invoke(app, [*words, "--only", "wild"]).exit_code == 0
    assert json.loads((out / "sweep.json").read_text())["alternatives"] == alternatives


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
    assert changed(run, asked) == []
    moved = load_recipe(
        recipe_path("image-text", "", "flickr8k-cifar10"),
        settings=[lines[0], "sources.pictures.dataset.root=elsewhere"],
    )
    assert changed(run, moved) == []
    other = load_recipe(
        recipe_path("image-text", "", "flickr8k-cifar10"),
        settings=["branches.image.init=others.pt", lines[1], "sources.pictures.weight=2"],
    )
    assert [line.partition(":")[0] for line in changed(run, other)] == [
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
