"""``eval finetune``: against a loop written out, subsets of labels, and a run that keeps everything it had."""

from __future__ import annotations

import copy
import functools
import hashlib
import http.server
import json
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_stubs import StubData
from picture_runs import contents, mmvicreg, picture_run, write_pictures
from torch.nn import functional

from mmvicreg.config import InitConfig
from mmvicreg.data.download import Downloader
from mmvicreg.errors import UserError
from mmvicreg.eval import classification, classifier, finetune, subsets
from mmvicreg.eval.classifier import Learner, Reading, train_classifiers
from mmvicreg.eval.labelled import DataOptions, Labelled, labelled_data
from mmvicreg.eval.schedules import Schedule
from mmvicreg.inputs.image import ImageInput
from mmvicreg.runs import Run
from mmvicreg.samples import Sample
from mmvicreg.training.addressing import epoch_order, view_rng
from mmvicreg.training.distributed import World

ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = write_pictures(tmp_path_factory.mktemp("finetune") / "data", train=6, val=2)
    # frozen in pretraining, and fine-tuned all the same
    return picture_run(tmp_path_factory.mktemp("finetune") / "run", root, "branches.image.freeze=batchnorm")


def test_encoder_and_head_take_the_steps_of_a_loop_written_out(run: Run) -> None:
    found = labelled_data(run, DataOptions())
    schedule = Schedule("test", "", 2, 9, 0.1, 0.02, 0.0)
    model = run.model(device="cpu")
    twin = copy.deepcopy(model.branch("image"))
    learner = Learner(model.branch("image"), 3, schedule, device=ALONE.device, seed=1)
    weight, bias = (p.detach().clone().requires_grad_() for p in learner.head.parameters())
    before = {"head": weight.detach().clone()}
    before |= {name: value.clone() for name, value in twin.encoder.state_dict().items()}
    train_classifiers(
        ALONE, [learner], model.inputs["image"], found, schedule, tops=(1,), reading=Reading(1, 0, 8)
    )
    crops = ImageInput(ImageInput.Config(size=32, crop_area=(0.2, 1.0)))
    parameters = [(p, 0.02) for p in twin.encoder.parameters()] + [(weight, 0.1), (bias, 0.1)]
    moving = [torch.zeros_like(p) for p, _ in parameters]
    twin.eval().requires_grad_(True)
    twin.encoder.train()
    for epoch in range(2):
        factor = (1 + math.cos(math.pi * epoch / 2)) / 2
        order = epoch_order(1, epoch, 18)
        for rows in (order[:9], order[9:]):
            item = crops.collate([crops.load(found.train[i], view_rng(1, epoch, int(i), 0)) for i in rows])
            logits = twin.encoder(twin.frontend(item)) @ weight.T + bias
            loss = functional.nll_loss(logits.log_softmax(1), torch.from_numpy(found.train_labels[rows]))
            gradients = torch.autograd.grad(loss, [p for p, _ in parameters])
            with torch.no_grad():
                for (p, rate), buffer, gradient in zip(parameters, moving, gradients, strict=True):
                    buffer.mul_(0.9).add_(gradient)
                    p.sub_(rate * factor * buffer)
    ours = {"head": learner.head.weight.detach(), **model.branch("image").encoder.state_dict()}
    theirs = {"head": weight.detach(), **twin.encoder.state_dict()}
    for name in ours:
        # float32, and batches of nine in BatchNorm: how far rounding grows is the machine's, so it is a part of the way
        way, apart = (float((x - theirs[name]).float().norm()) for x in (before[name], ours[name]))
        assert apart <= 0.05 * way, name


def test_only_the_result_is_written_into_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run.path, besides="eval/finetune-")
    words = ("--epochs", 1, "--batch-size", 9, "--workers", 0, "--device", "cpu", "--baseline")
    assert mmvicreg(monkeypatch, "eval", "finetune", run.path, "--labels", "50%", *words) == 0
    assert contents(run.path, besides="eval/finetune-") == before
    file = run.path / "eval" / "finetune-50percent-val-epochs=1-batch-size=9-baseline.json"
    report = json.loads(file.read_text())
    assert (report["labels"], report["labelled"], report["chosen"][:4]) == ("50%", 9, "50 %")
    assert report["from_scratch_top1"] == report["top1"]  # the weights of this run are its initial ones
    assert (report["schedule"]["encoder_lr"], report["schedule"]["head_lr"]) == (0.01, 0.1)
    printed = " ".join(capsys.readouterr().out.split())
    assert "rates 0.01 and 0.1, cosine to 0" in printed
    assert "from scratch" in printed

    # interrupted the second time: the first result stays, and nothing else comes
    there = contents(run.path)
    monkeypatch.setattr(classifier, "_test", _interrupted)
    assert mmvicreg(monkeypatch, "eval", "finetune", run.path, "--labels", "50%", *words) == 130
    assert contents(run.path) == there


def _interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_a_list_of_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    listed = tmp_path / "mine.txt"
    listed.write_text("train0-1.png\n\nc01/train1-3.png\ntrain/c01/train1-0.png\n")
    words = ("--epochs", 1, "--batch-size", 3, "--workers", 0, "--device", "cpu")
    assert mmvicreg(monkeypatch, "eval", "finetune", run.path, "--labels", listed, *words) == 0
    file = f"finetune-list-mine~{_digest(listed)[:8]}-val-epochs=1-batch-size=3.json"
    report = json.loads((run.path / "eval" / file).read_text())
    assert (report["labelled"], report["classes_without_labels"]) == (3, 1)
    assert "1 classes have no label" in " ".join(capsys.readouterr().out.split())
    listed.write_text("train0-1.png\nn01440764_1.JPEG\n")
    assert mmvicreg(monkeypatch, "eval", "finetune", run.path, "--labels", listed, *words) == 2
    assert "1 of 2 files" in (told := capsys.readouterr().err)
    assert "n01440764_1.JPEG" in told


def test_a_list_of_one_class_teaches_nothing_and_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "one.txt"
    listed.write_text("c01/train1-0.png\nc01/train1-3.png\n")
    monkeypatch.setattr(finetune, "train_run", _interrupted)  # before the work
    assert mmvicreg(monkeypatch, "eval", "finetune", run.path, "--labels", listed, "--device", "cpu") == 2
    told = capsys.readouterr().err
    assert f"all 2 samples of image-folder at {run.recipe.dataset.root}" in told
    assert f"(those listed in {listed}) are of one class, 'c01'" in told


def test_the_baseline_of_a_run_that_began_with_weights_is_not_from_scratch(run: Run) -> None:
    def began(**update: Any) -> Run:
        branch = run.recipe.branches["image"].model_copy(update=update)
        return replace(run, recipe=run.recipe.model_copy(update={"branches": {"image": branch}}))

    assert finetune.baseline_name(run, "image") == "scratch"
    given = began(encoder={**run.recipe.branches["image"].encoder, "weights": "imagenet"})
    for begun in (given, began(init=InitConfig(source="elsewhere"))):
        assert finetune.baseline_name(begun, "image") == "the weights before pretraining"
        training = begun.recipe.training.model_copy(update={"epochs": 0})  # the weights as they are
        as_it_is = replace(begun, recipe=begun.recipe.model_copy(update={"training": training}))
        assert finetune.baseline_name(as_it_is, "image") == "scratch"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_lists_of_one_name_have_results_of_their_own(tmp_path: Path) -> None:
    first, second = (tmp_path / folder / ("labels" * 40 + ".txt") for folder in "ab")
    for path, text in ((first, "x.png"), (second, "y.png")):
        path.parent.mkdir()
        path.write_text(text)
    names = [subsets.list_name(path) for path in (first, second)]
    assert names == [f"{'labels' * 4}~{_digest(path)[:8]}" for path in (first, second)]
    assert names[0] != names[1]


def test_a_published_list_given_as_a_file_has_its_own_rates(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "simclr-few.txt"
    listed.write_bytes(b"train0-1.png\ntrain1-3.png\ntrain2-0.png\n")
    digest = _digest(listed)
    first, second = subsets.LISTS.files
    known = replace(subsets.LISTS, files=(replace(first, sha256=digest), second))
    words = ("--epochs", 1, "--batch-size", 3, "--workers", 0, "--device", "cpu")
    found = []
    for lists in (subsets.LISTS, known):
        monkeypatch.setattr(subsets, "LISTS", lists)
        assert mmvicreg(monkeypatch, "eval", "finetune", run.path, "--labels", listed, *words) == 0
        file = run.path / "eval" / f"finetune-list-simclr-few~{digest[:8]}-val-epochs=1-batch-size=3.json"
        found.append(json.loads(file.read_text()))
    rates = [[report["schedule"][name] for name in ("name", "encoder_lr", "head_lr")] for report in found]
    assert rates == [["other", 0.01, 0.1], ["1%", 0.03, 0.08]]
    assert "the 1 % published with SimCLR" in found[1]["chosen"]


def test_published_rows_do_not_stand_beside_a_result_without_some_pictures(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "simclr-few.txt"
    listed.write_bytes(b"train0-1.png\ntrain1-3.png\ntrain2-0.png\n")
    first, second = subsets.LISTS.files
    known = replace(subsets.LISTS, files=(replace(first, sha256=_digest(listed)), second))
    monkeypatch.setattr(subsets, "LISTS", known)
    monkeypatch.setitem(classification.WHOLE, "image-folder", (3, 18, 6))
    words = ("--labels", listed, "--on-bad-sample", "skip", "--workers", 0, "--device", "cpu")
    picture = Path(str(run.recipe.dataset.root)) / "val" / "c00" / "val0-0.png"
    whole = picture.read_bytes()
    found = []
    for content in (whole, b"damaged"):
        picture.write_bytes(content)
        assert mmvicreg(monkeypatch, "eval", "finetune", run.path, *words) == 0
        file = run.path / "eval" / f"finetune-list-simclr-few~{_digest(listed)[:8]}-val.json"
        found.append(json.loads(file.read_text()))
    picture.write_bytes(whole)
    assert [(report["test"], report["skipped"]) for report in found] == [(6, 0), (5, 1)]
    assert [{row["table"] for row in report["published"]} for report in found] == [{1}, set()]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "names no files"),
        ("a/1.png\nb/2.png\na/1.png\n", "names a/1.png more than once"),
        ("1.png\n", "several training samples are called so"),
        ("a/1.png\nb/1.png\na/1\n", "names one picture twice, as a/1.png and as a/1; leave one"),
        ("a/3.png\nx.png\ny.png\nz.png\nw.png", r"5 of 5 files .* a/3.png, x.png, y.png and 2 more"),
    ],
)
def test_lists_that_do_not_fit(tmp_path: Path, lines: str, message: str) -> None:
    samples = [Sample(id=f"{c}/{i}", image=Path(f"/d/{c}/{i}.png")) for c in "ab" for i in (1, 2)]
    (tmp_path / "list").write_text(lines)
    with pytest.raises(UserError, match=message):
        subsets.rows_of(samples, tmp_path / "list")
    (tmp_path / "list").write_text("b/1.png\na/2.png")
    assert subsets.rows_of(samples, tmp_path / "list").tolist() == [1, 2]
    (tmp_path / "list").write_text("b/1.png\na/2.png", encoding="utf-8-sig")  # as Windows' editors write it
    assert subsets.rows_of(samples, tmp_path / "list").tolist() == [1, 2]


def test_a_list_that_a_spreadsheet_saved_is_told_how_to_be_saved(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("a/1.png\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"list\.txt is not text in UTF-8 .*; save it in UTF-8"):
        subsets.rows_of([Sample(id="a/1.png")], listed)


def test_a_list_in_another_unicode_form_than_the_folder(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    samples = [Sample(id=f"{apart}/{i}.png", image=Path(f"/d/{apart}/{i}.png")) for i in (1, 2)]

    def rows(*names: str) -> list[int]:
        (tmp_path / "list").write_text("\n".join(names), encoding="utf-8")
        return subsets.rows_of(samples, tmp_path / "list").tolist()

    assert rows(f"{composed}/2.png") == rows(f"{apart}/2.png") == [1]
    with pytest.raises(UserError, match="names one picture twice"):
        rows(f"{composed}/2.png", f"{apart}/2.png")
    samples.append(
        Sample(id=f"{composed}/2.png", image=Path(f"/d/{composed}/2.png"))
    )  # a Linux folder may have both
    assert rows(f"{composed}/2.png", f"{apart}/2.png") == [1, 2]


def test_lists_of_pictures_in_folders_inside_their_classes(tmp_path: Path) -> None:
    paths = ["x/s0/0.png", "x/s1/1.png", "x/1.png", "y/s0/0.png", "y/s1/2.png", "y/s2/2.png"]
    samples = [
        Sample(id=f"train/{path}", image=Path("/d/train") / path, label="xy".index(path[0])) for path in paths
    ]

    def rows(*names: str) -> list[int]:
        (tmp_path / "list").write_text("\n".join(names))
        return subsets.rows_of(samples, tmp_path / "list", classes=("x", "y")).tolist()

    assert rows(*paths) == rows(*(sample.id for sample in samples)) == list(range(6))
    assert rows("x/0.png", "y/0.png", "s1/2.png") == [0, 3, 4]
    assert rows("x/1.png") == [2]  # its path, though one further down is called so for short
    with pytest.raises(UserError, match=r"names y/2\.png, and several .* such as train/y/s1/2\.png"):
        rows("y/2.png")
    with pytest.raises(UserError, match=r"are not among .* named by its path, such as train/x/s0/0\.png"):
        rows("y/3.png")


@pytest.mark.parametrize("text", ["0%", "101%", "x%", "-1%", "nan%", "10", "no/such.txt"])
def test_labels_that_mean_nothing(text: str) -> None:
    with pytest.raises(UserError, match="--labels"):
        subsets.parse_labels(text)


def test_drawn_subsets_are_balanced_nested_and_the_same_in_any_order() -> None:
    labels = np.repeat(np.arange(5), [200, 100, 50, 7, 1])
    ids = [f"{i:04d}" for i in range(len(labels))]
    small, large = (subsets.balanced_rows(ids, labels, percent=p) for p in (1.0, 10.0))
    assert np.bincount(labels[small]).tolist() == [2, 1, 1, 1, 1]
    assert np.bincount(labels[large]).tolist() == [20, 10, 5, 1, 1]
    assert set(small) <= set(large)
    mixed = np.random.default_rng(0).permutation(len(labels))
    again = subsets.balanced_rows([ids[i] for i in mixed], labels[mixed], percent=10.0)
    assert {ids[mixed[i]] for i in again} == {ids[i] for i in large}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", folder
        running.shutdown()


def _imagenet() -> Labelled:
    samples = [
        Sample(id=f"n{c}/n{c}_{i}", image=Path(f"/i/n{c}/n{c}_{i}.JPEG"), label=c)
        for c in range(3)
        for i in range(4)
    ]
    data = StubData({"train": samples}, name="imagenet", classes=("n0", "n1", "n2"))
    labels = np.array([sample.label for sample in samples])
    return Labelled(data, True, "train", "val", samples, labels, samples[:1], labels[:1])


def test_imagenets_published_lists_are_fetched_once_and_checked(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = b"n2_1.JPEG\nn0_3.JPEG\n"
    for name in ("1percent.txt", "10percent.txt"):
        (folder / name).write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    files = tuple(replace(file, size=len(text), sha256=digest) for file in subsets.LISTS.files)
    published = subsets.LISTS
    monkeypatch.setattr(subsets, "LISTS", replace(published, files=files))
    downloader = Downloader(mirror=url, progress=False, retries=1)
    choice = subsets.choose_labels(_imagenet(), 1.0, downloader=downloader)
    assert (choice.rows.tolist(), choice.published) == ([3, 9], 1.0)
    (folder / "10percent.txt").unlink()
    assert subsets.choose_labels(_imagenet(), 10.0, downloader=downloader).rows.tolist() == [3, 9]
    drawn = subsets.choose_labels(_imagenet(), 25.0, downloader=downloader)
    assert (len(drawn.rows), drawn.published) == (3, None)

    monkeypatch.setattr(subsets, "LISTS", published)  # what was served is not what is published
    with pytest.raises(UserError, match=r"--labels FILE"):
        subsets.choose_labels(_imagenet(), 1.0, downloader=downloader)
