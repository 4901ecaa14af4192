"""Any folder of recordings: a table or one folder a class, folds told or made, and what is refused."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import data_layouts as layouts
import numpy as np
import pytest
import soundfile

from mmvicreg.data.audio_folder import AudioFolder
from mmvicreg.data.folds import make_folds, published_source, sources_by_name
from mmvicreg.data.verify import verify
from mmvicreg.datasets import in_folds, open_dataset, training_samples
from mmvicreg.errors import UserError
from mmvicreg.inputs.decode import read_recording
from mmvicreg.samples import Sample


def table(root: Path, *rows: dict[str, object], present: bool = True) -> Path:
    for number, row in enumerate(rows if present else ()):
        layouts.recording(root / str(row["filename"]), number)
    layouts.write_csv(root / "clips.csv", rows)
    return root


def folders(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        layouts.recording(root / name, number)
    return root


def listed(samples: list[Sample]) -> set[tuple[str, str | None]]:
    return {(sample.id, sample.group) for sample in samples}


def test_a_table_with_folds(tmp_path: Path) -> None:
    rows = [
        {"filename": f"audio/{fold}{take}.wav", "label": label, "fold": fold, "source": f"s{fold}"}
        for fold in (2, 1, 10)
        for take, label in (("a", "rain"), ("b", "dog"))
    ]
    data = AudioFolder(table(tmp_path, *rows))
    assert data.splits() == ("fold1", "fold2", "fold10")
    assert data.classes == ("dog", "rain")
    assert data.notes == ()
    first = data.samples("fold1")
    assert [(s.id, s.label, s.fold, s.group) for s in first] == [
        ("audio/1a.wav", 1, 1, "s1"),
        ("audio/1b.wav", 0, 1, "s1"),
    ]
    assert first[0].audio == tmp_path / "audio" / "1a.wav"


def test_a_table_with_splits_and_columns_of_ones_own(tmp_path: Path) -> None:
    rows = [
        {
            "filename": f"{n}.flac",
            "label": n % 3 + 8,
            "split": split,
            "microphone": "x",
            "class": "x",
            "folds": 1,
        }
        for n, split in enumerate(["train", "train", "train", "test"])
    ]
    data = AudioFolder(table(tmp_path, *rows))
    assert data.splits() == ("train", "test")
    assert not in_folds(data)
    assert data.classes == ("8", "9", "10")
    assert [s.label for s in data.samples("train")] == [0, 1, 2]
    assert any("microphone, class, folds" in note for note in data.notes)  # label and split are there


def test_splits_called_folds_are_folds_and_others_are_not(tmp_path: Path) -> None:
    def data(*splits: str) -> AudioFolder:
        root = tmp_path / splits[0]
        return AudioFolder(table(root, *({"filename": f"{s}.wav", "label": "x", "split": s} for s in splits)))

    folds = data("fold2", "fold10", "fold1")
    assert folds.splits() == ("fold1", "fold2", "fold10")
    assert [sample.fold for sample in folds.samples("all")] == [1, 2, 10]
    assert in_folds(folds)
    named = data("fold-a", "fold-b")
    assert named.splits() == ("fold-a", "fold-b")
    assert not in_folds(named)
    with pytest.raises(UserError, match=r"no split 'train'.*fold-a, fold-b"):
        training_samples(named, split="train", fold=1)


def test_a_table_in_capitals_is_read(tmp_path: Path) -> None:
    """Beside class folders: without it the labels would be theirs, and the folds made."""
    rows = [{"filename": f"dog/{fold}.wav", "label": "rain", "fold": fold} for fold in (1, 2)]
    root = table(tmp_path, *rows)
    (root / "clips.csv").rename(root / "CLIPS.CSV")
    data = AudioFolder(root)
    assert (data.classes, data.splits()) == (("rain",), ("fold1", "fold2"))
    layouts.write_csv(root / "other.csv", rows)
    with pytest.raises(UserError, match=r"2 tables \(CLIPS\.CSV, other\.csv\)"):
        AudioFolder(root)


def test_absolute_names_inside_the_folder_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that a program wrote often have them."""
    root = folders(tmp_path / "data", "x/1.wav", "x/2.wav")
    names = [str(root / "x" / "1.wav"), "x/2.wav"]
    layouts.write_csv(root / "clips.csv", [{"filename": name, "split": f"s{name[-5]}"} for name in names])
    monkeypatch.chdir(tmp_path)
    for place in (root, Path("data")):
        data = AudioFolder(place)
        assert [sample.id for sample in data.samples("all")] == ["x/1.wav", "x/2.wav"]
        assert data.samples("s1")[0].audio == place / "x" / "1.wav"
    layouts.write_csv(
        root / "clips.csv", [{"filename": str(root / "x" / ".." / ".." / "1.wav"), "split": "s"}]
    )
    with pytest.raises(UserError, match="leads outside"):
        AudioFolder(root)
    layouts.write_csv(root / "clips.csv", [{"filename": "/elsewhere/1.wav", "split": "s"}])
    with pytest.raises(
        UserError, match=rf"'/elsewhere/1\.wav' is an absolute path; give it relative to {root}"
    ):
        AudioFolder(root)


def test_recordings_that_the_table_does_not_list_are_told(tmp_path: Path) -> None:
    root = table(tmp_path, *({"filename": f"a/{n}.wav", "label": "x", "label_id": 1} for n in range(3)))
    for name in ("a/more.flac", "other.wav"):
        layouts.recording(root / name)
    (root / "notes.txt").write_text("x")
    notes = AudioFolder(root).notes
    assert any(
        note.endswith("does not list 2 recordings that lie beside it: a/more.flac, other.wav")
        for note in notes
    )
    assert len(AudioFolder(root).samples("all")) == 3


def test_a_table_of_names_alone_trains_and_says_so(tmp_path: Path) -> None:
    data = AudioFolder(table(tmp_path, *({"filename": f"{n}.wav"} for n in range(7))))
    assert data.splits() == tuple(f"fold{n}" for n in range(1, 6))
    assert data.classes == ()
    assert all(sample.label is None for sample in data.samples("all"))
    assert any("no column label" in note for note in data.notes)


def test_one_folder_a_class(tmp_path: Path) -> None:
    names = [f"{label}/{n:02d}.wav" for label in ("dog", "rain") for n in range(10)]
    folders(tmp_path, *names, "dog/deep/er.FLAC")
    (tmp_path / "dog" / "notes.txt").write_text("x")
    (tmp_path / "dog" / "._00.wav").write_text("a Mac left this")
    (tmp_path / ".hidden").mkdir()
    data = AudioFolder(tmp_path)
    assert data.classes == ("dog", "rain")
    assert {s.id for s in data.samples("all")} == {*names, "dog/deep/er.FLAC"}
    for sample in data.samples("all"):
        assert sample.label == ("dog", "rain").index(sample.id.partition("/")[0])
    sizes = [Counter(s.label for s in data.samples(split)) for split in data.splits()]
    assert [size[1] for size in sizes] == [2] * 5
    assert sorted(size[0] for size in sizes) == [2, 2, 2, 2, 3]
    assert any("1 files in" in note for note in data.notes)
    assert any("5 were made of its 21 recordings" in note and "21 sources" in note for note in data.notes)


def test_links_inside_a_class_are_followed_and_broken_ones_are_not_lost(tmp_path: Path) -> None:
    root = folders(tmp_path / "data", "dog/1.wav", "rain/1.wav")
    folders(tmp_path, "more/2.wav", "more/deep/3.wav")
    (root / "dog" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "round").symlink_to(root / "dog")  # would never end
    (root / "rain" / "gone.wav").symlink_to(tmp_path / "unmounted" / "gone.wav")
    samples = {sample.id: sample for sample in AudioFolder(root).samples("all")}
    assert {*samples} == {
        "dog/1.wav", "dog/more/2.wav", "dog/more/deep/3.wav", "rain/1.wav", "rain/gone.wav"
    }  # fmt: skip
    gone = samples["rain/gone.wav"].audio
    assert gone is not None
    with pytest.raises(UserError, match=r"gone\.wav"):
        read_recording(gone, sample_rate=8000)
    (root / "cat").symlink_to(tmp_path / "unmounted" / "cat")
    with pytest.raises(UserError, match=r"links to what is not there: cat; mend or remove"):
        AudioFolder(root)
    (root / "cat").unlink()
    (root / "loose.wav").symlink_to(tmp_path / "unmounted" / "loose.wav")
    with pytest.raises(UserError, match=r"in no class folder \(loose\.wav\)"):
        AudioFolder(root)


def test_folders_of_splits_hold_the_classes(tmp_path: Path) -> None:
    data = AudioFolder(folders(tmp_path, *(f"{s}/{c}/1.wav" for s in ("test", "train") for c in "ab")))
    assert set(data.splits()) == {"train", "test"}
    assert data.classes == ("a", "b")
    assert [s.id for s in data.samples("test")] == ["test/a/1.wav", "test/b/1.wav"]


def test_made_folds_keep_sources_together_and_are_always_the_same(tmp_path: Path) -> None:
    names = [
        f"{word}/{speaker:08x}_nohash_{n}.wav"
        for word in ("yes", "no")
        for speaker in range(12)
        for n in (0, 1)
    ]
    data = AudioFolder(folders(tmp_path / "a", *names))
    place = {
        s.group: {t.fold for t in data.samples("all") if t.group == s.group} for s in data.samples("all")
    }
    assert len(place) == 12
    assert all(len(folds) == 1 for folds in place.values())
    again = AudioFolder(folders(tmp_path / "b", *reversed(names)))
    assert [listed(data.samples(split)) for split in data.splits()] == [
        listed(again.samples(split)) for split in again.splits()
    ]
    seen, held = training_samples(data, split="train", fold=2), data.samples("fold2")
    assert not {s.group for s in seen} & {s.group for s in held}
    assert {s.label for s in held} == {0, 1}


def test_a_column_source_is_believed_before_names(tmp_path: Path) -> None:
    rows = [{"filename": f"x_{n}.wav", "label": "a", "source": f"day{n // 4}"} for n in range(12)]
    data = AudioFolder(table(tmp_path, *rows))
    assert data.splits() == ("fold1", "fold2", "fold3")  # three sources divide into three folds
    for sample in data.samples("all"):
        assert sample.group == f"day{int(sample.id[2:-4]) // 4}"
        assert {s.fold for s in data.samples("all") if s.group == sample.group} == {sample.fold}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("1-100032-A-0.wav", "100032"),
        ("dog/100032-3-0-10.wav", "100032"),
        ("bab36420_nohash_1.wav", "bab36420"),
        ("03-01-05-01-02-01-12.wav", "12"),
        ("2021-03-14-7.wav", None),
        ("kitchen_3.wav", None),
    ],
)
def test_schemes_of_published_names(name: str, source: str | None) -> None:
    assert published_source(name) == source


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["kitchen_1", "kitchen-2", "park 1", "park.A"], ["kitchen", "kitchen", "park", "park"]),
        (["dog_1", "dog_2", "dog_3"], [None] * 3),  # all of a class one source: the names say nothing
        (["7_jackson_0", "7_jackson_1", "7_theo_0"], ["7_jackson", "7_jackson", "7_theo"]),
        (["a", "b1", "12"], [None] * 3),
    ],
)
def test_sources_where_names_say_so(names: list[str], expected: list[str | None]) -> None:
    files = [f"{name}.wav" for name in names]
    wanted = [file if source is None else source for file, source in zip(files, expected, strict=True)]
    assert sources_by_name(files, ["one"] * len(files)) == wanted


def test_made_folds_are_even_over_classes() -> None:
    rng = np.random.default_rng(0)
    labels = [str(label) for label in range(10) for _ in range(40)]
    sources = [f"{label}-{rng.integers(15)}" for label in labels]
    folds = make_folds(sources, labels)
    counts = Counter(zip(folds, labels, strict=True))
    assert all(5 <= counts[fold, label] <= 11 for fold in range(1, 6) for label in set(labels))
    assert len({(fold, source) for fold, source in zip(folds, sources, strict=True)}) == len(set(sources))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"filename": "a.wav", "label": ""}, {"filename": "b.wav", "label": "x"}], r"have a label.*line 2"),
        ([{"filename": "", "label": "x"}], "line 2: the column filename is empty"),
        ([{"filename": "a.wav"}, {"filename": "./a.wav"}], r"line 3 lists a\.wav again \(first in .*line 2"),
        ([{"filename": "../a.wav"}], "leads outside"),
        ([{"filename": "a.wav", "fold": 0}], "the fold '0' is not"),
        ([{"filename": "a.wav", "fold": "one"}], "the fold 'one' is not"),
        ([{"filename": "a.wav", "fold": 1}, {"filename": "b.wav"}], r"have a fold.*line 3"),
        ([{"filename": "a.wav", "fold": 1, "split": "x"}], "both split and fold"),
        ([{"filename": "a.wav", "split": "a+b"}], "cannot be called"),
        ([{"filename": "a.wav", "split": "te/st"}], "cannot be called 'te/st'"),
        ([{"filename": "a.wav", "split": ".."}], "cannot be called"),
        (
            [{"filename": f"{f}.wav", "fold": f, "source": "s"} for f in (1, 2)],
            r"1\.wav in fold1 and 2\.wav in fold2 are of one source, s;",
        ),
        (
            [{"filename": f"1-77-{t}-0.wav", "split": s} for t, s in (("A", "train"), ("B", "test"))],
            r"1-77-A-0\.wav in train and 1-77-B-0\.wav in test are of one source, 77 by their names",
        ),
        (
            [{"filename": f"{n}.wav", "source": "s"} for n in (1, 2)],
            "of one source, which no fold may divide",
        ),
        ([{"path": "a.wav", "filename2": "x"}], "must name its columns, filename among them"),
        (
            [{"filename": "a.wav", "folds": 1}],
            "a column 'folds', which is not read, and none called 'fold': rename",
        ),
        (
            [{"filename": "a.wav", "class": "x"}],
            "a column 'class', which is not read, and none called 'label': rename it",
        ),
        ([{"filename": "a.wav", "Category": "x"}], "'Category', which is not read, and none called 'label'"),
        (
            [{"filename": "a.wav", "label": "x", "group": "g"}],
            "'group', which is not read, and none called 'source'",
        ),
        ([{"filename": "a.wav", "Label": "x"}], "'Label', which is not read, and none called 'label'"),
        (
            [{"filename": f"{split}.wav", "split": split} for split in ("fold1", "test")],
            r"some rows of .* have a fold, but not .*line 3",
        ),
    ],
)
def test_malformed_tables(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    filled = [{key: row.get(key, "") for r in rows for key in r} for row in rows]
    for row in filled:
        if row.get("filename") and ".." not in str(row["filename"]):
            layouts.recording(tmp_path / str(row["filename"]))
    layouts.write_csv(tmp_path / "clips.csv", filled)
    with pytest.raises(UserError, match=message) as caught:
        AudioFolder(tmp_path)
    assert str(tmp_path / "clips.csv") in str(caught.value)


def test_names_that_only_look_like_takes_may_lie_in_two_folds(tmp_path: Path) -> None:
    rows = [{"filename": f"kitchen_{f}.wav", "label": "x", "fold": f} for f in (1, 2)]
    assert AudioFolder(table(tmp_path, *rows)).splits() == ("fold1", "fold2")


def test_missing_files_and_empty_tables(tmp_path: Path) -> None:
    rows = [{"filename": "a.wav", "label": "x"}, {"filename": "sub/b.wav", "label": "y"}]
    table(tmp_path / "a", *rows)
    (tmp_path / "a" / "sub" / "b.wav").unlink()
    with pytest.raises(UserError, match=r"1 of 2 recordings listed in .*sub/b\.wav.*relative to"):
        AudioFolder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for text, message in (
        ("filename,label\n", "has no rows"),
        ("filename,label\na.wav\n", "fewer cells"),
        ('filename,label\na.wav,"x\n', "begins in line 2 is not CSV: unexpected end"),
        (f"filename,fold\na.wav,{'9' * 5000}\n", "line 2: the fold '9+' is not"),
    ):
        (tmp_path / "b" / "x.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            AudioFolder(tmp_path / "b")
    (tmp_path / "b" / "y.csv").write_text("filename\n")
    with pytest.raises(UserError, match=r"2 tables \(x\.csv, y\.csv\)"):
        AudioFolder(tmp_path / "b")


def test_folders_that_are_refused(tmp_path: Path) -> None:
    root = folders(tmp_path / "empty", "dog/1.wav")
    (root / "cat").mkdir()
    (root / "cat" / "readme.md").write_text("x")
    with pytest.raises(UserError, match=r"class folder .*cat holds no recording \(1 other files\)"):
        AudioFolder(root)
    with pytest.raises(UserError, match=r"in no class folder \(loose\.wav\)"):
        AudioFolder(folders(tmp_path / "loose", "dog/1.wav", "loose.wav"))
    with pytest.raises(UserError, match=r"train holds recordings that are in no class folder"):
        AudioFolder(folders(tmp_path / "split", "train/1.wav", "test/a/1.wav"))
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("x")
    with pytest.raises(UserError, match="neither a table"):
        AudioFolder(tmp_path / "words")
    with pytest.raises(UserError, match="needs --data-root DIR"):
        open_dataset("audio-folder")


def test_a_name_that_is_not_utf8_is_refused_when_the_folder_is_opened(tmp_path: Path) -> None:
    """It was trained on, until the first checkpoint wrote the names of all samples down."""
    root = folders(tmp_path, "dog/1.wav", "cat/2.wav")
    (root / "cat" / "2.wav").rename(root / "cat" / os.fsdecode(b"caf\xe9.wav"))
    with pytest.raises(UserError, match=r"recording 'cat/caf\\udce9\.wav' in .* is not UTF-8; rename it"):
        AudioFolder(root)


def test_verify_reads_every_recording(tmp_path: Path) -> None:
    root = folders(tmp_path, *(f"{c}/{n}.wav" for c in "ab" for n in range(5)))
    assert verify("audio-folder", root, progress=False).problems == ()
    (root / "a" / "3.wav").write_text("RIFFwords")
    soundfile.write(root / "b" / "2.wav", np.array([0.1, np.nan]), 8000, subtype="FLOAT")
    shutil.copy(root / "a" / "1.wav", root / "b" / "8.m4a")
    (root / "b" / "8.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    problems = "; ".join(verify("audio-folder", root, progress=False).problems)
    assert all(name in problems for name in ("3.wav", "2.wav", "8.m4a"))
    assert problems.count("replace the file") == 3
