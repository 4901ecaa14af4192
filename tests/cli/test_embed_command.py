"""``mmvicreg embed``: what it writes is read with numpy alone and is what the protocol ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from picture_runs import write_pictures
from tiny import tiny_recipe, untrained_run

from mmvicreg.cli import main
from mmvicreg.embed import embed
from mmvicreg.encode import encode
from mmvicreg.errors import UserError
from mmvicreg.eval import retrieval
from mmvicreg.runs import Run, open_run

READ = """
import json, sys
import numpy as np
file = np.load(sys.argv[1])
assert not {name.partition(".")[0] for name in sys.modules} & {"torch", "mmvicreg"}
x, y = file["image/vectors"].astype(float), file["text/vectors"].astype(float)
x, y = x / np.linalg.norm(x, axis=1, keepdims=True), y / np.linalg.norm(y, axis=1, keepdims=True)
scores = y @ x.T
own = np.array([list(file["image/ids"]).index(name) for name in file["text/samples"]])
rank = (scores > scores[range(len(own)), own][:, None]).sum(1)
print(json.dumps([float(100 * (rank < k).mean()) for k in (1, 5, 10)]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_shapes: Path) -> Run:
    path = tmp_path_factory.mktemp("embed") / "run"
    recipe = tiny_recipe("image-text", tiny_shapes, "branches.text.encoder.bidirectional=true")
    return open_run(untrained_run(path, recipe).path)


def mmvicreg(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mmvicreg", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_numpy_alone_reads_it_and_ranks_as_the_protocol_does(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deeper" / "test.npz"
    assert mmvicreg(monkeypatch, "embed", run.path, "--out", out) == 0
    assert capsys.readouterr().out.strip() == str(out)
    done = subprocess.run([sys.executable, "-I", "-c", READ, str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = retrieval.run(run)["text_to_image"]
    assert json.loads(done.stdout) == pytest.approx([report[f"R@{k}"] for k in (1, 5, 10)])
    assert list(out.parent.iterdir()) == [out]


def test_ids_are_the_publishers_and_vectors_the_encoders(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "val.npz"
    embed(run, out, split="val", space="representation", captions=2)
    samples = run.dataset().samples("val")
    with np.load(out) as file:
        assert file["image/ids"].tolist() == file["image/samples"].tolist() == [s.id for s in samples]
        assert file["text/ids"].tolist() == [name for s in samples for name in s.caption_ids[:2]]
        assert file["text/samples"].tolist() == [s.id for s in samples for _ in range(2)]
        for branch, width in (("image", 512), ("text", 24)):
            vectors = file[f"{branch}/vectors"]
            assert (vectors.dtype, vectors.shape[1]) == (np.float32, width)
            expected = encode(run.model(), branch, samples, space="representation", captions=2, workers=0)
            np.testing.assert_array_equal(vectors, expected.vectors)
        about = json.loads(str(file["about"]))
    assert {
        "dataset": "shapes",
        "split": "val",
        "space": "representation",
        "epoch": 2,
    }.items() <= about.items()


def test_a_file_that_is_there_is_kept_unless_forced(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "test.npz"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"test.npz exists; give --force"):
        embed(run, out)
    assert out.read_text() == "mine"
    embed(run, out, force=True)
    assert np.load(out)["image/vectors"].shape == (30, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "vectors.csv"), "ends in .npz or .parquet"),
        (("--out", "vectors.npz", "--space", "embeddings"), "unknown space 'embeddings'; did you mean"),
        (("--out", "vectors.npz", "--split", "tset"), "no split 'tset'; did you mean 'test'"),
        (("--out", "vectors.npz", "--dataset", "shape"), "unknown data set 'shape'; did you mean 'shapes'"),
        (("--out", "recipe.yaml/vectors.npz"), "cannot write"),
    ],
)
def test_mistakes_are_one_message_and_status_2(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(run.path)
    monkeypatch.setattr("mmvicreg.embed.encode", None)  # each is refused before any work
    before = sorted(run.path.rglob("*"))
    assert mmvicreg(monkeypatch, "embed", run.path, *words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert sorted(run.path.rglob("*")) == before


def test_branches_that_are_named_or_that_the_data_has_something_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures", train=3, val=2)
    pictures = ("--dataset", "image-folder", "--data-root", tmp_path / "pictures")
    assert mmvicreg(monkeypatch, "embed", run.path, "--out", tmp_path / "a.npz", *pictures) == 0
    assert "has nothing for text to read, left out" in " ".join(capsys.readouterr().err.split())
    assert mmvicreg(monkeypatch, "embed", run.path, "--out", tmp_path / "b.npz", "--branch", "text") == 0
    assert {name.partition("/")[0] for name in np.load(tmp_path / "a.npz")} == {"image", "about"}
    assert {name.partition("/")[0] for name in np.load(tmp_path / "b.npz")} == {"text", "about"}
    for words, message in (
        (("--branch", "text", *pictures), "has nothing for text to read: no captions in any sample"),
        (("--branch", "imgae"), "has no branch 'imgae'; did you mean 'image'? It has image, text."),
    ):
        assert mmvicreg(monkeypatch, "embed", run.path, "--out", tmp_path / "c.npz", *words) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "c.npz").exists()


def test_parquet_without_pyarrow_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmvicreg.embed.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mmvicreg\[parquet\]'"):
        embed(run, tmp_path / "test.parquet")


def test_parquet_holds_what_npz_holds(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'mmvicreg[parquet]'")
    monkeypatch.setattr("mmvicreg.embed._GROUP", 64)  # 150 captions in three groups
    for suffix in ("npz", "parquet"):
        embed(run, tmp_path / f"test.{suffix}", space="representation")
    table = parquet.read_table(tmp_path / "test.parquet")
    arrays = np.load(tmp_path / "test.npz")
    for branch in ("image", "text"):
        rows = [row for row in table.to_pylist() if row["branch"] == branch]
        assert [row["id"] for row in rows] == arrays[f"{branch}/ids"].tolist()
        assert [row["sample"] for row in rows] == arrays[f"{branch}/samples"].tolist()
        vectors = np.array([row["vector"] for row in rows], np.float32)
        np.testing.assert_array_equal(vectors, arrays[f"{branch}/vectors"])
    assert json.loads(table.schema.metadata[b"about"]) == json.loads(str(arrays["about"]))
