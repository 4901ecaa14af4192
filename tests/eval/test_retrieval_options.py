"""What `eval retrieval` can be told: space, similarity, search, and the ranking as a file of ids."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_stubs import StubData, StubEncode, StubRun, recipe

from mmvicreg.errors import UserError
from mmvicreg.eval import output, ranking
from mmvicreg.eval import retrieval as protocol
from mmvicreg.eval.retrieval_report import file_name
from mmvicreg.metrics import RankCounts, retrieval_ranks
from mmvicreg.metrics.approximate import Search
from mmvicreg.samples import Sample

D = 6


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StubRun, StubEncode, dict[str, Any]]:
    """Twelve pictures with COCO's ids and five to seven captions each, their vectors of unequal length."""
    rng = np.random.default_rng(0)
    samples, images, texts = [], {}, {}
    for i in range(12):
        count = 5 + i % 3
        ids = tuple(str(1000 * i + j) for j in range(count))
        samples.append(
            Sample(id=str(391 + 7 * i), captions=tuple(f"no. {j}" for j in range(count)), caption_ids=ids)
        )
        images[samples[-1].id] = rng.standard_normal(D) * (1 + i)
        texts[samples[-1].id] = images[samples[-1].id] + 9 * rng.standard_normal((count, D))
    vectors = {("trained", "image"): images, ("trained", "text"): texts}
    encode = StubEncode(vectors)
    monkeypatch.setattr(protocol, "encode", encode)
    run = StubRun(tmp_path / "run", recipe("image-text", "shapes"), StubData({"test": samples}))
    return run, encode, vectors


def arrays(run: StubRun, vectors: dict[Any, Any]) -> tuple[Any, Any, Any]:
    samples = run.data.samples("test")
    x = np.array([vectors["trained", "image"][s.id] for s in samples], np.float32)
    y = np.concatenate([vectors["trained", "text"][s.id][:5] for s in samples]).astype(np.float32)
    return x, y, np.repeat(np.arange(len(samples)), 5)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_the_similarity_asked_for_ranks_and_is_told(
    scene: Any, similarity: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, vectors = scene
    report = protocol.run(run, similarity=similarity)
    x, y, owner = arrays(run, vectors)
    expected = retrieval_ranks(x, y, owner, similarity=similarity)
    assert report["image_to_text"]["mean_rank"] == pytest.approx(expected[0].mean() + 1)
    assert report["text_to_image"]["mean_rank"] == pytest.approx(expected[1].mean() + 1)
    assert report["similarity"] == similarity
    assert f"{similarity} in embedding space" in capsys.readouterr().out
    assert f"--similarity {similarity}" in report["command"]


def test_another_reading_than_the_recipes_does_not_take_its_file(scene: Any) -> None:
    run, encode, _ = scene
    own = protocol.run(run)
    protocol.run(run, space="representation", similarity="dot")
    assert encode.spaces == {"embedding", "representation"}
    assert {file.name for file in (run.path / "eval").iterdir()} == {
        "retrieval-test.json",
        "retrieval-test-representation-dot.json",
    }
    assert json.loads((run.path / "eval" / "retrieval-test.json").read_text()) == own
    protocol.run(run, space="embedding", similarity="cosine")  # the recipe's, by name
    assert len(list((run.path / "eval").iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "search", "name"),
    [
        ({}, "auto", "retrieval-test.json"),
        ({}, "exact", "retrieval-test.json"),
        ({"protocol": "5k"}, "auto", "retrieval-test-5k.json"),
        ({"protocol": "1k-5fold"}, "auto", "retrieval-test-1k-5fold.json"),
        (
            {"dataset": "coco", "protocol": "5k", "similarity": "dot"},
            "faiss",
            "retrieval-coco-test-5k-embedding-dot-faiss.json",
        ),
        ({}, "faiss", "retrieval-test-faiss.json"),
    ],
)
def test_no_variant_takes_anothers_file(
    tmp_path: Path, changes: dict[str, str], search: str, name: str
) -> None:
    run = StubRun(tmp_path / "run", recipe("image-text", "shapes"))
    own = {"dataset": "shapes", "protocol": "all", "space": "embedding", "similarity": "cosine"}
    data = StubData({}, name=changes.get("dataset", "shapes"))
    assert file_name(run, data, {**own, **changes}, "test", search=search) == name


def test_the_export_is_the_ranking_by_cocos_ids(scene: Any, tmp_path: Path) -> None:
    run, _, vectors = scene
    file = tmp_path / "deeper" / "ranking.json"
    protocol.run(run, export=file, export_depth=60)
    tree = json.loads(file.read_text())
    assert set(tree) == {"i2t", "t2i"}
    x, y, _ = arrays(run, vectors)
    x, y = (v / np.linalg.norm(v.astype(float), axis=1, keepdims=True) for v in (x, y))
    samples = run.data.samples("test")
    images = [int(s.id) for s in samples]
    captions = [int(name) for s in samples for name in s.caption_ids[:5]]
    scores = x @ y.T
    for i, image in enumerate(images):
        assert tree["i2t"][str(image)] == [captions[j] for j in np.argsort(-scores[i])]
    for j, caption in enumerate(captions):
        assert tree["t2i"][str(caption)] == [images[i] for i in np.argsort(-scores[:, j])]
    assert (len(tree["i2t"]), len(tree["t2i"])) == (12, 60)


def test_recall_of_the_exported_ranking_is_the_reports(scene: Any, tmp_path: Path) -> None:
    """Judged as ECCV Caption's package judges COCO 5K: a right id among the first K."""
    run, _, _ = scene
    report = protocol.run(run, export=tmp_path / "ranking.json", export_depth=10)
    tree = json.loads((tmp_path / "ranking.json").read_text())
    right: dict[str, dict[int, set[int]]] = {"i2t": {}, "t2i": {}}
    for sample in run.data.samples("test"):
        right["i2t"][int(sample.id)] = {int(name) for name in sample.caption_ids}
        right["t2i"] |= {int(name): {int(sample.id)} for name in sample.caption_ids[:5]}
    for way, name in (("i2t", "image_to_text"), ("t2i", "text_to_image")):
        found = {int(query): ids for query, ids in tree[way].items()}
        assert all(len(ids) == 10 for ids in found.values())
        for k in (1, 5, 10):
            recall = np.mean([bool(set(found[query][:k]) & ids) for query, ids in right[way].items()])
            assert report[name][f"R@{k}"] == pytest.approx(100 * recall)


def test_captions_without_ids_are_numbered_after_their_picture(scene: Any, tmp_path: Path) -> None:
    run, _, vectors = scene
    named = [Sample(id=f"{i}.jpg", captions=s.captions) for i, s in enumerate(run.data.samples("test"))]
    for (_, branch), table in vectors.items():
        assert branch in ("image", "text")
        table |= {f"{i}.jpg": table[s.id] for i, s in enumerate(run.data.samples("test"))}
    plain = StubRun(run.path, run.recipe, StubData({"test": named}))
    protocol.run(plain, export=tmp_path / "ranking.json", export_depth=1)
    tree = json.loads((tmp_path / "ranking.json").read_text())
    assert list(tree["i2t"]) == [f"{i}.jpg" for i in range(12)]
    assert list(tree["t2i"])[:6] == ["0.jpg#0", "0.jpg#1", "0.jpg#2", "0.jpg#3", "0.jpg#4", "1.jpg#0"]


def test_a_ranking_of_two_captions_with_one_id_is_refused(scene: Any, tmp_path: Path) -> None:
    run, _, _ = scene
    samples = run.data.samples("test")
    twin = Sample(id=samples[1].id, captions=samples[1].captions, caption_ids=(*samples[0].caption_ids, "1"))
    run = StubRun(run.path, run.recipe, StubData({"test": [samples[0], twin]}))
    with pytest.raises(UserError, match="captions; several of them have the id 0"):
        protocol.run(run, export=tmp_path / "ranking.json")
    assert not (tmp_path / "ranking.json").exists()


def test_an_export_that_is_there_is_left_alone(scene: Any, tmp_path: Path) -> None:
    run, encode, _ = scene
    file = tmp_path / "ranking.json"
    file.write_text("mine")
    with pytest.raises(UserError, match=r"ranking.json exists; remove it"):
        protocol.run(run, export=file)
    assert file.read_text() == "mine"
    assert not encode.spaces  # nothing was encoded for it


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file/ranking.json", "Not a directory"), ("new/" + 300 * "x", "File name too long")],
)
def test_an_export_that_cannot_be_written_is_refused_before_encoding(
    scene: Any, tmp_path: Path, name: str, reason: str
) -> None:
    run, encode, _ = scene
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=f"cannot write .*{name}: {reason}"):
        protocol.run(run, export=tmp_path / name)
    assert not encode.spaces
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]  # nothing is left of the attempt


def test_an_export_into_a_folder_of_another_is_refused_before_encoding(
    scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, encode, _ = scene

    def denied(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # root may write anywhere, so no folder of the test's own would do
    monkeypatch.setattr(output.tempfile, "NamedTemporaryFile", denied)
    with pytest.raises(UserError, match=r"cannot write .*ranking\.json: Permission denied"):
        protocol.run(run, export=tmp_path / "ranking.json")
    assert not encode.spaces


def test_sounds_have_no_ranking_of_captions(tmp_path: Path) -> None:
    run = StubRun(tmp_path / "run", recipe("wave-mel", "tones"), StubData({"fold1": []}, name="tones"))
    with pytest.raises(UserError, match="--export is the ranking of one edge between pictures and captions"):
        protocol.run(run, export=tmp_path / "ranking.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "embeding"}, "unknown space 'embeding'; did you mean 'embedding'"),
        ({"similarity": "cosin"}, "unknown similarity 'cosin'; did you mean 'cosine'"),
        ({"search": "fais"}, "unknown search 'fais'; did you mean 'faiss'"),
        ({"export_depth": 0}, "--export-depth must be at least 1"),
    ],
)
def test_misspelt_options_are_named(scene: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        protocol.run(scene[0], **options)


def test_the_papers_protocols_need_five_captions(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, _ = scene
    samples = run.data.samples("test")
    short = Sample(id=samples[3].id, captions=samples[3].captions[:4])
    data = StubData({"test": [*samples[:3], short, *samples[4:]]})
    monkeypatch.setattr("mmvicreg.eval.retrieval_samples.FULL", 12)
    run = StubRun(run.path, run.recipe, data)
    with pytest.raises(
        UserError, match=rf"1 images of .* have fewer, first '{short.id}' with 4; use --protocol all"
    ):
        protocol.run(run, protocol="5k")
    assert protocol.run(run)["captions"] == 59


def test_faiss_is_used_above_a_million_or_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for installed, chosen in ((True, "faiss"), (False, "exact")):
        monkeypatch.setattr(ranking, "faiss_installed", lambda installed=installed: installed)
        assert ranking.choose_search("auto", 1_000_000, visible=True) == "exact"
        assert capsys.readouterr().err == ""
        assert ranking.choose_search("auto", 1_000_001, visible=True) == chosen
        assert "1,000,001 candidates" in capsys.readouterr().err
        assert ranking.choose_search("exact", 9_000_000, visible=True) == "exact"
    with pytest.raises(UserError, match=r"--search faiss needs FAISS: pip install 'mmvicreg\[faiss\]'"):
        ranking.check_search("faiss")


def test_a_search_by_faiss_gives_the_exact_report_and_says_how_it_was_found(
    scene: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss", reason="needs FAISS: pip install 'mmvicreg[faiss]'")
    run, _, _ = scene
    exact = protocol.run(run)
    found = protocol.run(run, search="faiss")
    for name in ("image_to_text", "text_to_image"):
        assert found[name].pop("search") == {
            **{"index": "IVF1,Flat", "probes": 1, "found": 100.0},
            "depth": 60 if name == "image_to_text" else 12,
        }
        assert found[name] == exact[name]
    assert "searched by FAISS (IVF1,Flat, nprobe 1)" in capsys.readouterr().out


def test_ranks_that_a_search_did_not_reach_are_left_out_of_the_figures() -> None:
    better, nobody = np.array([0, 3, 100]), np.zeros(3, np.int64)
    for known, median in (([True, True, False], 4.0), ([True, False, False], None)):
        counts = RankCounts(better, nobody, nobody + 1, np.array(known))
        found = [(counts, Search("IVF9,Flat", 3, 100, 98.5))]
        report = protocol.Direction(found, [5000], [nobody + 1]).report()
        assert report["median_rank"] == median
        assert report["mean_rank"] is None
        assert report["R@5"] == pytest.approx(200 / 3)
        assert report["search"] == {"index": "IVF9,Flat", "probes": 3, "depth": 100, "found": 98.5}
