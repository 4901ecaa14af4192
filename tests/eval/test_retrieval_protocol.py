"""The retrieval protocol on runs in memory: sizes, directions, captions, chance, published rows, the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_stubs import StubData, StubEncode, StubRun, recipe, renamed

from mmvicreg.errors import UserError
from mmvicreg.eval import retrieval as protocol
from mmvicreg.eval.retrieval_report import published_rows
from mmvicreg.metrics import chance_recall, recall_at_k, retrieval_ranks
from mmvicreg.samples import Sample


def _scene(
    counts: list[int], *, collapsed: bool = False, seed: int = 0, d: int = 8
) -> tuple[list[Sample], dict[tuple[str, str], Any]]:
    """Samples with so many captions each, and their vectors."""
    rng = np.random.default_rng(seed)
    samples = [
        Sample(id=f"s{i}", captions=tuple(f"caption {j}" for j in range(c))) for i, c in enumerate(counts)
    ]
    images = {s.id: np.ones(d) if collapsed else rng.standard_normal(d) for s in samples}
    texts = {
        s.id: np.array(
            [np.ones(d) if collapsed else images[s.id] + rng.standard_normal(d) for _ in s.captions]
        )
        for s in samples
    }
    return samples, {("trained", "image"): images, ("trained", "text"): texts}


def _run(tmp_path: Path, data: StubData, **changes: Any) -> StubRun:
    return StubRun(tmp_path / "run", recipe("image-text", "shapes", **changes), data)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(run: StubRun, table: Any, **options: Any) -> dict[str, Any]:
        monkeypatch.setattr(protocol, "encode", StubEncode(table))
        return protocol.run(run, **options)

    return call


def test_at_most_the_first_five_captions_count(tmp_path: Path, judge: Any) -> None:
    counts = [5, 7, 6, 5, 3, 1] * 4
    samples, table = _scene(counts)
    run = _run(tmp_path, StubData({"train": [], "test": samples}))
    report = judge(run, table)

    owner = np.repeat(np.arange(24), np.minimum(counts, 5))
    x = np.array([table["trained", "image"][s.id] for s in samples])
    y = np.concatenate([table["trained", "text"][s.id][:5] for s in samples])
    ranks = retrieval_ranks(x.astype(np.float32), y.astype(np.float32), owner)
    for name, found, gallery in (("image_to_text", ranks[0], len(y)), ("text_to_image", ranks[1], len(x))):
        direction = report[name]
        for k in (1, 5, 10):
            assert direction[f"R@{k}"] == pytest.approx(recall_at_k(found, k))
        assert direction["median_rank"] == np.median(found) + 1
        assert direction["mean_rank"] == pytest.approx(found.mean() + 1)
        assert (direction["queries"], direction["gallery"]) == (len(found), gallery)
    assert report["captions"] == len(y)
    assert report["captions_per_image"] == "1 to 5 of each, the first 5 at most"
    recalls = [report[name][f"R@{k}"] for name in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    assert report["rsum"] == pytest.approx(sum(recalls))


def test_the_file_holds_what_was_returned_and_where_it_came_from(
    tmp_path: Path, judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, table = _scene([5] * 12)
    run = _run(tmp_path, StubData({"train": [], "val": samples}))
    report = judge(run, table)
    written = json.loads((run.path / "eval" / "retrieval-val.json").read_text())
    assert written == report
    assert list((run.path / "eval").iterdir()) == [run.path / "eval" / "retrieval-val.json"]
    assert set(written["image_to_text"]) == {
        *("R@1", "R@5", "R@10", "median_rank", "mean_rank", "queries", "gallery", "chance")
    }
    assert {"split": "val", "dataset": "shapes", "protocol": "all", "epoch": 7}.items() <= written.items()
    assert {"space": "embedding", "similarity": "cosine", "method": "vicreg"}.items() <= written.items()
    assert written["command"] == f"mmvicreg eval retrieval {run.path} --split val --protocol all"
    printed = capsys.readouterr().out
    for words in (
        "image to text",
        "text to image",
        "chance",
        "12 images, 60 captions",
        "5 of each",
        "epoch 7",
    ):
        assert words in printed
    assert f"rsum {report['rsum']:.1f}" in printed
    assert "No published row" in printed


def test_a_collapsed_model_gets_chance_printed_and_written(tmp_path: Path, judge: Any) -> None:
    samples, table = _scene([5] * 40, collapsed=True)
    report = judge(_run(tmp_path, StubData({"test": samples})), table)
    for name, gallery, own in (("image_to_text", 200, 5), ("text_to_image", 40, 1)):
        for k in (1, 5, 10):
            assert report[name][f"R@{k}"] == pytest.approx(chance_recall(gallery, own, k))
            assert report[name]["chance"][f"R@{k}"] == pytest.approx(chance_recall(gallery, own, k))
        assert report[name]["mean_rank"] == (gallery - own) / 2 + 1


def test_a_failed_write_leaves_the_earlier_result(
    tmp_path: Path, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, table = _scene([5] * 6)
    run = _run(tmp_path, StubData({"test": samples}))
    judge(run, table)
    file = run.path / "eval" / "retrieval-test.json"
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmvicreg.eval.output.os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*retrieval-test.json: No space left"):
        judge(run, _scene([5] * 6, seed=1)[1])
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("name", ["5k", "1k-5fold"])
def test_the_papers_protocols_need_5000_images(tmp_path: Path, judge: Any, name: str) -> None:
    samples, table = _scene([5] * 9)
    with pytest.raises(UserError, match=rf"--protocol {name} .* 5,000 images, .* has 9; use --protocol all"):
        judge(_run(tmp_path, StubData({"test": samples})), table, protocol=name)
    assert not (tmp_path / "run" / "eval").exists()


def test_unknown_protocol_names_the_nearest(tmp_path: Path, judge: Any) -> None:
    with pytest.raises(UserError, match="unknown protocol '1k-fold'; did you mean '1k-5fold'"):
        judge(_run(tmp_path, StubData({})), {}, protocol="1k-fold")


def test_the_papers_rows_stand_beside_their_own_gallery_alone() -> None:
    data = StubData({}, name="coco", layout="karpathy")
    assert published_rows(data, "test", images=5000, captions=25_000, protocol="all")
    assert not published_rows(data, "test", images=5000, captions=24_999, protocol="all")
    assert not published_rows(data, "test", images=5000, captions=25_000, protocol="1k-5fold")
    assert not published_rows(data, "val", images=5000, captions=25_000, protocol="all")


def test_5k_on_karpathys_coco_prints_the_papers_rows(
    tmp_path: Path, judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, table = _scene([5] * 4999 + [7])
    data = StubData({"train": [], "test": samples}, name="coco", layout="karpathy")
    run = StubRun(tmp_path / "run", recipe("image-text", "shapes", dataset__name="coco"), data)
    report = judge(run, table, protocol="5k")
    assert report["image_to_text"]["queries"] == report["text_to_image"]["gallery"] == 5000
    assert report["image_to_text"]["gallery"] == report["text_to_image"]["queries"] == 25_000
    assert report["captions_per_image"] == "the first 5 of each"
    printed = capsys.readouterr().out
    rows = [line.replace("│", " ").split() for line in printed.splitlines() if "VICReg (paper)" in line]
    assert [row[2:] for row in rows] == [["45.2", "76.1", "84.2"], ["33.6", "62.7", "77.9"]]
    assert "directions put right" in printed

    folds = judge(run, table, protocol="1k-5fold")
    assert "No published row" in capsys.readouterr().out
    for name, made in (("5k", report), ("1k-5fold", folds)):
        assert json.loads((run.path / "eval" / f"retrieval-test-{name}.json").read_text()) == made
    assert json.loads((run.path / "eval" / "retrieval-test.json").read_text()) == folds  # the last one
    parts = []
    for start in range(0, 5000, 1000):
        part = samples[start : start + 1000]
        one = StubRun(tmp_path / "part", run.recipe, StubData({"test": part}, name="coco"))
        parts.append(judge(one, table))
    for name in ("image_to_text", "text_to_image"):
        for key in ("R@1", "R@5", "R@10", "median_rank", "mean_rank"):
            assert folds[name][key] == pytest.approx(np.mean([part[name][key] for part in parts]))
        assert folds[name]["chance"]["R@10"] == pytest.approx(parts[0][name]["chance"]["R@10"])
        assert folds[name]["queries"] == sum(part[name]["queries"] for part in parts)
        assert folds[name]["gallery"] == parts[0][name]["gallery"]
        assert folds[name]["R@1"] > report[name]["R@1"]  # smaller galleries are easier


def test_cocos_own_validation_captions_give_25000_queries(
    tmp_path: Path, judge: Any, real_data: Path
) -> None:
    """5 000 images with 25 014 captions, some with six or seven: the first five of each are 25 000."""
    with gzip.open(real_data / "captions_val2017.json.gz", "rt", encoding="utf-8") as file:
        tree = json.load(file)
    captions: dict[str, list[str]] = {str(image["id"]): [] for image in tree["images"]}
    for annotation in tree["annotations"]:
        captions[str(annotation["image_id"])].append(annotation["caption"])
    assert sum(map(len, captions.values())) == 25_014
    samples = [Sample(id=name, captions=tuple(texts)) for name, texts in captions.items()]
    rng = np.random.default_rng(0)
    table = {
        ("trained", "image"): {s.id: rng.standard_normal(4) for s in samples},
        ("trained", "text"): {s.id: rng.standard_normal((len(s.captions), 4)) for s in samples},
    }
    data = StubData({"train": [], "val": samples}, name="coco", layout="2017")
    run = StubRun(tmp_path / "run", recipe("image-text", "shapes", dataset__name="coco"), data)
    report = judge(run, table, protocol="5k")
    assert report["text_to_image"]["queries"] == report["image_to_text"]["gallery"] == 25_000
    assert report["captions_per_image"] == "the first 5 of each"
    for name in ("image_to_text", "text_to_image"):  # nothing was learned
        assert abs(report[name]["R@10"] - report[name]["chance"]["R@10"]) < 0.2
    folds = judge(run, table, protocol="1k-5fold")
    assert folds["image_to_text"]["gallery"] == 5000


@pytest.mark.parametrize(
    "data",
    [
        StubData({"val": []}, name="coco", layout="2017"),  # also 5 000 images, but others
        StubData({"test": []}, name="flickr30k", layout="karpathy"),
    ],
)
def test_other_sets_of_5000_have_no_published_row(tmp_path: Path, judge: Any, data: StubData) -> None:
    samples, table = _scene([5] * 5000, d=2)
    split = next(iter(data.parts))
    data = StubData({split: samples}, name=data.name, layout=data.layout)
    run = StubRun(tmp_path / "run", recipe("image-text", "shapes", dataset__name=data.name), data)
    assert judge(run, table, protocol="5k")["published"] == []


def test_directions_carry_the_branches_names(tmp_path: Path, judge: Any) -> None:
    samples, table = _scene([1] * 10)
    vectors = table["trained", "image"]
    run = StubRun(
        tmp_path / "run",
        recipe("wave-mel", "tones"),
        StubData({"fold1": samples, "fold2": []}, name="tones"),
    )
    report = judge(run, {("trained", "wave"): vectors, ("trained", "mel"): vectors})
    assert report["wave_to_mel"]["R@1"] == report["mel_to_wave"]["R@1"] == 100
    assert (report["split"], report["captions"], report["seen_in_pretraining"]) == ("fold1", None, False)
    assert judge(run, {("trained", "wave"): vectors, ("trained", "mel"): vectors}, split="all")[
        "seen_in_pretraining"
    ]


def test_an_edge_from_text_to_image_is_judged_the_same(tmp_path: Path, judge: Any) -> None:
    samples, table = _scene([5] * 12)
    run = _run(tmp_path, StubData({"test": samples}))
    tree = run.recipe.model_copy(
        update={"edges": [run.recipe.edges[0].model_copy(update={"a": "text", "b": "image"})]}
    )
    turned = StubRun(tmp_path / "turned", tree, run.data)
    keys = ("image_to_text", "text_to_image")
    first, second = judge(run, table), judge(turned, table)
    assert [first[key] for key in keys] == [second[key] for key in keys]


def test_a_run_that_joins_nothing_different_is_refused(tmp_path: Path, judge: Any) -> None:
    run = _run(tmp_path, StubData({}))
    edge = run.recipe.edges[0].model_copy(update={"a": "image", "b": "image"})
    alone = StubRun(tmp_path / "run", run.recipe.model_copy(update={"edges": [edge]}), run.data)
    with pytest.raises(UserError, match="joins no two different branches"):
        judge(alone, {})


def test_vectors_of_unequal_width_are_refused_with_the_way_out(tmp_path: Path, judge: Any) -> None:
    samples, table = _scene([1] * 4)
    table["trained", "text"] = {key: value[:, :5] for key, value in table["trained", "text"].items()}
    run = _run(tmp_path, StubData({"test": samples}), evaluation__space="representation")
    with pytest.raises(UserError, match=r"representations of 8 and 5 dimensions.*evaluation\.space"):
        judge(run, table)


def test_what_pretraining_saw_is_said(tmp_path: Path, judge: Any, capsys: pytest.CaptureFixture[str]) -> None:
    samples, table = _scene([5] * 6)
    run = _run(tmp_path, StubData({"train": samples, "test": samples}))
    assert not judge(run, table)["seen_in_pretraining"]
    assert "measures memory" not in capsys.readouterr().out
    assert judge(run, table, split="train")["seen_in_pretraining"]
    assert "measures memory" in capsys.readouterr().out


def test_another_data_set_gets_a_file_of_its_own(
    tmp_path: Path, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, table = _scene([5] * 6)
    asked: list[Any] = []

    def opened(name: str, *, root: Path | None) -> StubData:
        asked.append((name, root))
        return StubData({"val": samples}, name=name)

    monkeypatch.setattr("mmvicreg.datasets.open_dataset", opened)
    run = _run(tmp_path, StubData({"test": []}), dataset__eval_split="test")
    report = judge(run, table, dataset="flickr8k", data_root=Path("there"))
    assert asked == [("flickr8k", Path("there"))]
    assert (report["dataset"], report["split"]) == ("flickr8k", "val")
    assert (run.path / "eval" / "retrieval-flickr8k-val.json").is_file()


def test_an_empty_split_and_an_unknown_one_are_refused(tmp_path: Path, judge: Any) -> None:
    run = _run(tmp_path, StubData({"test": []}))
    with pytest.raises(UserError, match="the split 'test' of shapes at somewhere is empty"):
        judge(run, {})
    with pytest.raises(UserError, match="no split 'tset'"):
        judge(run, {}, split="tset")


def test_other_branch_names_show_no_wrong_published_numbers(tmp_path: Path, judge: Any) -> None:
    samples, table = _scene([5] * 8)
    names = {"image": "photo", "text": "text"}
    run = StubRun(
        tmp_path / "run", renamed(recipe("image-text", "shapes"), names), StubData({"test": samples})
    )
    report = judge(run, {**table, ("trained", "photo"): table["trained", "image"]})
    assert "photo_to_text" in report
    assert "text_to_photo" in report
