"""What ``mmvicreg train`` refuses: one message that names the thing, status 2, nothing written."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from PIL import Image
from tiny import as_flags, tiny_recipe

from mmvicreg.cli import main
from mmvicreg.locking import alone_in
from mmvicreg.recipes import dump_recipe, load_recipe, parse_recipe, recipe_path
from mmvicreg.runs import open_run


class Said(NamedTuple):
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``mmvicreg train`` in this process, in an empty folder with an empty cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MMVICREG_DATA", raising=False)

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["mmvicreg", "train", *map(str, arguments)])
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        else:
            status = 0
        return Said(status, *capsys.readouterr())

    return run


def refused(said: Said, *patterns: str) -> None:
    """Status 2, nothing on stdout, and one line beginning ``error:`` at the end, with every pattern in it."""
    assert said.status == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.count("error: ") == 1
    message = said.err[said.err.index("error: ") :]
    assert message.count("\n") == 1
    for pattern in patterns:
        assert re.search(pattern, message), message


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file under ``folder`` with a checksum of its content."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("arguments", "patterns"),
    [
        ("--pair image-txt", [r"unknown pair 'image-txt'; did you mean 'image-text'\?", "wave-mel"]),
        ("--dataset shapes", ["--pair image-text", "--pair wave-mel"]),
        ("--pair image-text --dataset shaps", [r"unknown data set 'shaps'; did you mean 'shapes'\?"]),
        ("--pair image-text --dataset shapes --method vicrg", ["'vicrg'; did you mean 'vicreg'", "simclr"]),
        ("--pair image-text --recipe shaps", [r"no recipe 'shaps'.*did you mean 'shapes'\?", "flickr8k"]),
        ("--pair image-text --recipe no/such.yaml", [r"no/such\.yaml"]),
        ("--pair wave-mel --dataset shapes", ["no recipe 'shapes' for the pair wave-mel", "tones"]),
        (
            "--pair image-text --dataset shapes --set training.epoc=3",
            ["'training.epoc'; did you mean 'epochs'"],
        ),
        ("--pair image-text --dataset shapes --set branches.imge.variance=3", ["did you mean 'image'"]),
        ("--pair image-text --dataset shapes --set epochs", ["--set expects key=value", "'epochs'"]),
        ("--pair image-text --dataset shapes --epochs 0", ["training.epochs"]),
        ("--pair image-text --dataset shapes --batch-size 1", ["training.batch_size"]),
        (
            "--pair image-text --dataset shapes --micro-batch 0",
            [r"training\.micro_batch: .*greater than.* 1"],
        ),
        (
            "--pair image-text --dataset shapes --set training.accumulation_steps=4",
            [r"'training\.accumulation_steps': gradients are not accumulated.*--micro-batch"],
        ),
        (
            "--pair image-text --dataset shapes --accumulate-grad-batches 4",
            [r"gradients are not accumulated.*--micro-batch"],
        ),
        ("--pair image-text --dataset shapes --grad-accum=4", [r"gradients are not accumulated"]),
        ("--pair image-text --dataset shapes --precision fp8", ["training.precision.*bf16"]),
        ("--pair image-text --dataset shapes --seed -1", ["seed"]),
        ("--pair wave-mel --dataset tones --fold x", ["--fold", "'x'"]),
        ("--pair image-text --dataset manifest", ["manifest.*--data-root"]),
        ("--pair image-text --dataset shapes --devices 999", ["--devices 999", r"this machine has \d+"]),
        ("--pair image-text --dataset shapes --devices 0", ["--devices 0"]),
        ("--pair image-text --dataset shapes --device tpu", ["'tpu'.*cpu, cuda"]),
        ("--resume", ["--out|--pair"]),
        ("--resume --out nowhere", ["no run folder at nowhere"]),
        ("--resume --pair wave-mel --dataset tones", ["no run of wave-mel, tones, vicreg under runs"]),
    ],
)
def test_a_mistake_in_the_arguments_is_named(train: Command, arguments: str, patterns: list[str]) -> None:
    refused(train(*arguments.split(), *([] if "--resume" in arguments else ["--out", "run"])), *patterns)
    assert list(Path().iterdir()) == []
    assert not (Path().resolve().parent / "cache").exists()


def test_an_argument_of_the_wrong_type_is_status_2(train: Command) -> None:
    for arguments in (["--epochs", "ten"], ["--pair"], ["--no-such-option"]):
        said = train("--pair", "image-text", *arguments) if arguments != ["--pair"] else train("--pair")
        assert said.status == 2
        assert "Traceback" not in said.err
        assert arguments[0] in said.err


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        ("--pair image-text", "mmvicreg data download coco"),
        ("--pair image-text --dataset flickr8k", "mmvicreg data info flickr8k"),
        ("--pair wave-mel", "mmvicreg data download esc50"),
        ("--pair wave-mel --dataset esc10", "mmvicreg data download esc10"),
        ("--pair image-text --dataset shapes --data-root not/here", "mmvicreg data make shapes"),
    ],
)
def test_missing_data_is_named_with_the_command_that_gets_it(
    train: Command, arguments: str, way_out: str
) -> None:
    place = "not/here" if "not/here" in arguments else "cache/mmvicreg"
    refused(train(*arguments.split(), "--out", "run"), place, way_out)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("pair", "own"),
    [("image-image", "image-text"), ("image-text", "image-image"), ("image-text", "wave-mel")],
)
def test_a_recipe_of_another_pair_is_refused_by_both_names(train: Command, pair: str, own: str) -> None:
    name = {"wave-mel": "tones"}.get(own, "shapes")
    said = train("--pair", pair, "--recipe", recipe_path(own, name, None), "--out", "run")
    refused(said, rf"{name}\.yaml is for the pair {own}, and --pair is {pair}; give --pair {own}")
    assert not Path("run").exists()


def test_data_of_another_pair_is_refused_before_it_is_made(train: Command, tmp_path: Path) -> None:
    recipe = recipe_path("image-text", "shapes", None)
    said = train("--pair", "image-text", "--dataset", "tones", "--recipe", recipe, "--out", "run")
    refused(said, "the data set tones is for wave-mel, not for image-text")
    assert not (tmp_path / "cache").exists()


def test_want_of_memory_is_told_without_a_traceback(train: Command, tiny_shapes: Path) -> None:
    width = 10**13  # more bytes than any machine addresses, so that none tries
    flags = as_flags("image-text", tiny_shapes, f"branches.image.expander.widths=[{width}, 32]")
    refused(train(*flags, "--workers", "0", "--out", "run"), "not enough memory", "--micro-batch")
    assert not Path("run").exists()


def test_data_of_another_kind_or_too_little_leaves_no_run_behind(
    train: Command, tiny_shapes: Path, tiny_tones: Path
) -> None:
    empty = Path("empty")
    empty.mkdir()
    said = train(*as_flags("image-text", tiny_tones), "--out", "run")
    refused(said, str(tiny_tones), "shapes", "--dataset tones")
    refused(train(*as_flags("image-text", empty), "--out", "run"), "empty", "mmvicreg data make shapes")
    said = train(*as_flags("image-text", tiny_shapes, "training.batch_size=81"), "--out", "run")
    refused(said, r"batch of 81 .* \(80 samples of shapes\).*--batch-size")
    said = train(*as_flags("image-text", tiny_shapes, "dataset.train_split=trian"), "--out", "run")
    refused(said, r"no split 'trian'; did you mean 'train'\?")
    said = train(*as_flags("image-text", tiny_shapes, "dataset.eval_split=train+vla"), "--out", "run")
    refused(
        said, r"dataset\.eval_split: shapes .* no split 'vla'; did you mean 'val'\?.*train, val, test, all"
    )
    said = train(*as_flags("wave-mel", tiny_tones), "--fold", "9", "--out", "run")
    refused(said, "no fold 9 in tones", "fold1, fold2, fold3, fold4, fold5")
    said = train(*as_flags("image-text", tiny_shapes), "--fold", "all", "--out", "run")
    refused(said, "shapes is not in folds", "train, val, test")
    said = train(*as_flags("image-text", tiny_shapes, "inputs.text.vocabulary=16"), "--out", "run")
    refused(said, r"inputs\.text\.vocabulary")
    assert not Path("run").exists()


def test_an_objective_that_the_batch_or_the_coefficients_do_not_allow_leaves_no_run_behind(
    train: Command, tiny_shapes: Path
) -> None:
    flags = [*as_flags("image-text", tiny_shapes), "--workers", "0", "--out", "run"]
    said = train(*flags, "--method", "wmse")
    refused(said, "cannot whiten the 32 dimensions of 'image' within batches of 16", "raise the batch size")
    said = train(
        *flags, "--method", "wmse", "--set", "objective.sub_batch=40", "--set", "training.batch_size=64"
    )
    refused(said, "cannot cut a batch of 64 into sub-batches of 40", "set objective.sub_batch to 64")
    zero = [
        f"branches.{branch}.{term}=0" for branch in ("image", "text") for term in ("variance", "covariance")
    ]
    said = train(*flags, *(word for key in [*zero, "edges.0.invariance=0"] for word in ("--set", key)))
    refused(said, "every coefficient of VICReg is 0")
    assert not Path("run").exists()


def test_a_broken_file_is_named_and_the_retry_starts(
    train: Command, tmp_path: Path, tiny_tones: Path
) -> None:
    root = tmp_path / "tones"
    shutil.copytree(tiny_tones, root)
    clip = sorted((root / "audio").glob("2-*.wav"))[0]
    whole = clip.read_bytes()
    flags = [*as_flags("wave-mel", root, "training.epochs=1"), "--out", "run", "--workers", "0"]
    for broken, what in ((whole[:3000], "truncated"), (b"", "recording"), (b"only words", "recording")):
        clip.write_bytes(broken)
        refused(train(*flags), re.escape(clip.name), what)
        assert not Path("run").exists()
    clip.write_bytes(whole)
    said = train(*flags)
    assert said.status == 0, said.err
    assert said.out.strip() == "run"
    assert sorted(Path("run", "checkpoints").glob("*.pt"))


def test_runs_by_fold_are_taken_up_again_by_their_folder_alone(train: Command, tiny_tones: Path) -> None:
    flags = [*as_flags("wave-mel", tiny_tones, "training.epochs=1"), "--workers", "0"]
    assert train(*flags, "--fold", "all", "--out", "set").status == 0
    done = {n: (Path("set") / f"fold{n}" / "recipe.yaml").read_bytes() for n in range(1, 6)}
    for number in (4, 5):
        shutil.rmtree(Path("set") / f"fold{number}")
    said = train("--resume", "--out", "set", "--workers", "0")
    assert said.status == 0, said.err
    assert done == {n: (Path("set") / f"fold{n}" / "recipe.yaml").read_bytes() for n in range(1, 6)}
    assert all(open_run(Path("set") / f"fold{n}").epochs_done == 1 for n in range(1, 6))
    refused(train(*flags, "--fold", "all", "--out", "set/fold1"), "set/fold1 is a run", "another --out")
    refused(train(*flags, "--fold", "²", "--out", "run"), "--fold expects a number")


def test_a_fold_that_has_no_room_is_found_before_the_first_is_trained(
    train: Command, tiny_tones: Path
) -> None:
    flags = [*as_flags("wave-mel", tiny_tones, "training.epochs=1"), "--workers", "0"]
    Path("set/fold3").mkdir(parents=True)
    Path("set/fold3/notes.txt").write_text("mine")
    refused(train(*flags, "--fold", "all", "--out", "set"), "set/fold3 exists and is not empty")
    assert fingerprint(Path("set")).keys() == {"fold3/notes.txt"}


@pytest.mark.parametrize("skip", [(), ("--on-bad-sample", "skip")])
def test_a_manifest_of_another_kind_is_refused_before_a_run_is_made(
    train: Command, tmp_path: Path, tiny_tones: Path, skip: tuple[str, ...]
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    table = tmp_path / "pairs.csv"
    table.write_text("image,caption\na.png,a square\n")
    flags = [*as_flags("wave-mel", tiny_tones, "dataset.name=manifest"), "--data-root", table, *skip]
    said = train(*flags, "--batch-size", 2, "--workers", 0, "--out", "run")
    refused(said, "1 of 1 training samples of manifest have no recording", "'audio' reads, such as 'a.png'")
    assert not Path("run").exists()


def test_the_files_of_a_linked_manifest_lie_beside_the_link(
    train: Command, tmp_path: Path, tiny_shapes: Path
) -> None:
    store, mine = tmp_path / "store", tmp_path / "mine"
    store.mkdir()
    mine.mkdir()
    rows = [{"image": f"{i}.png", "caption": f"a square number {i}"} for i in range(16)]
    (store / "v1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (mine / "pairs.jsonl").symlink_to(store / "v1.jsonl")
    for i in range(16):
        Image.new("RGB", (40, 40), (10 * i, 0, 0)).save(mine / f"{i}.png")
    flags = as_flags("image-text", tiny_shapes, "training.epochs=1", "dataset.name=manifest")
    table = mine / "pairs.jsonl"
    said = train(*flags, "--data-root", table, "--batch-size", 8, "--workers", 0, "--out", "run")
    assert said.status == 0, said.err
    assert open_run(Path("run")).recipe.dataset.root == str(table)


def test_the_newest_runs_by_fold_of_a_kind_are_found_to_be_resumed(train: Command, tiny_tones: Path) -> None:
    flags = [*as_flags("wave-mel", tiny_tones, "training.epochs=1"), "--workers", "0"]
    assert train(*flags, "--fold", "all", "--out", "runs/set").status == 0
    shutil.rmtree("runs/set/fold2")
    other = [*flags, "--method", "barlow_twins", "--out", "runs/other"]
    assert train(*other).status == 0
    said = train(*flags, "--fold", "all", "--resume")
    assert said.status == 0, said.err
    assert said.out.strip() == "runs/set"
    assert (Path("runs/set/fold2") / "checkpoints").is_dir()
    said = train(*flags, "--method", "barlow_twins", "--fold", "all", "--resume")
    refused(said, "runs/other, the newest run of this kind, is not one of runs by fold", "--out")
    refused(train(*flags, "--method", "simclr", "--resume"), "no run of wave-mel, tones, simclr under runs")


def test_a_run_that_is_being_trained_is_not_resumed_beside_it(
    train: Command, tiny_tones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*as_flags("wave-mel", tiny_tones, "training.epochs=1"), "--workers", "0", "--out", "run"]
    assert train(*flags).status == 0
    monkeypatch.setattr("mmvicreg.locking.PATIENCE", 0.3)
    before = fingerprint(Path("run"))
    with alone_in(Path("run"), "holds"):
        refused(train("--resume", "--out", "run"), "another process trains the run in run", "wait for it")
    assert fingerprint(Path("run")) == before
    assert train("--resume", "--out", "run").status == 0


def test_an_occupied_out_is_refused_and_untouched(train: Command, tiny_shapes: Path) -> None:
    flags = as_flags("image-text", tiny_shapes)
    mine = Path("mine")
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    before = fingerprint(mine)
    refused(train(*flags, "--out", mine), "mine exists and is not empty", "another --out")
    assert fingerprint(mine) == before
    run = Path("run")
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(tiny_recipe("image-text", tiny_shapes)))
    before = fingerprint(run)
    refused(train(*flags, "--out", run), "run exists and is not empty", "--resume")
    assert fingerprint(run) == before
    for path in ("mine/thesis.txt", "mine/thesis.txt/run"):
        refused(train(*flags, "--out", path, "--workers", "0"), re.escape(path))
    assert fingerprint(mine) == {"thesis.txt": hashlib.sha256(b"years of work").hexdigest()}


def test_resume_refuses_another_recipe_and_names_the_key(train: Command, tiny_shapes: Path) -> None:
    run = Path("run")
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(tiny_recipe("image-text", tiny_shapes)))
    before = fingerprint(run)
    again = [*as_flags("image-text", tiny_shapes), "--out", "run", "--resume"]
    refused(train(*again, "--set", "training.epochs=9"), r"another recipe \(training\.epochs: 2 -> 9\)")
    refused(train(*again, "--set", "seed=3", "--set", "optimizer.lr=0.5"), "seed: 0 -> 3", r"optimizer\.lr: ")
    refused(train(*again, "--method", "vse"), r"objective\.name: vicreg -> vse")
    assert fingerprint(run) == before


def test_resume_needs_a_run(train: Command, tiny_shapes: Path) -> None:
    Path("notes").mkdir()
    Path("notes", "a.txt").write_text("a")
    refused(train("--resume", "--out", "notes"), "notes is not a run folder", r"recipe\.yaml")
    Path("notes", "recipe.yaml").write_text("pair: [")
    refused_lines = train("--resume", "--out", "notes")
    assert refused_lines.status == 2
    assert "notes/recipe.yaml is not valid YAML" in refused_lines.err
    Path("notes", "recipe.yaml").write_text("pair: image-text\nepochs: 3\n")
    refused(train("--resume", "--out", "notes"), r"notes/recipe\.yaml", "epochs")
    assert fingerprint(Path("notes")).keys() == {"a.txt", "recipe.yaml"}


def test_print_config_is_the_recipe_and_reads_back(train: Command, tmp_path: Path) -> None:
    flags = ["--pair", "wave-mel", "--dataset", "tones", "--epochs", "7", "--batch-size", "24", "--seed", "5",
             "--micro-batch", "5",
             "--method", "barlow_twins", "--fold", "3", "--precision", "fp32", "--data-root", tmp_path / "x",
             "--set", "optimizer.lr=0.25", "--set", "training.epochs=9"]  # fmt: skip
    said = train(*flags, "--print-config")
    assert said.status == 0
    assert said.err == ""
    printed = parse_recipe(yaml.safe_load(said.out), source="stdout")
    expected = load_recipe(
        recipe_path("wave-mel", "tones", None),
        {
            "training.batch_size": 24,
            "training.micro_batch": 5,
            "training.precision": "fp32",
            "seed": 5,
            "objective": "barlow_twins",
            "dataset.fold": 3,
            "dataset.root": str(tmp_path / "x"),
        },
        ["optimizer.lr=0.25", "training.epochs=9"],  # --set beats --epochs 7
    )
    assert printed == expected
    file = tmp_path / "printed.yaml"
    file.write_text(said.out)
    assert train("--pair", "wave-mel", "--recipe", file, "--print-config").out == said.out
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("pair", ["image-text", "wave-mel", "image-image"])
def test_print_config_without_a_data_set_is_the_pairs_own(train: Command, pair: str) -> None:
    named = {"image-text": "coco", "wave-mel": "esc50", "image-image": "imagenet"}[pair]
    said = train("--pair", pair, "--print-config")
    assert yaml.safe_load(said.out)["dataset"]["name"] == named
    assert said.out == train("--pair", pair, "--dataset", named, "--print-config").out


def test_the_installed_command_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmvicreg", "train", "--pair", "image-text", "--dataset", "shaps"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown data set 'shaps'; did you mean 'shapes'?")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_folds_is_another_name_of_fold(train: Command) -> None:
    said = train("--pair", "wave-mel", "--dataset", "tones", "--folds", "2", "--print-config")
    assert yaml.safe_load(said.out)["dataset"]["fold"] == 2
    assert said == train("--pair", "wave-mel", "--dataset", "tones", "--fold", "2", "--print-config")
