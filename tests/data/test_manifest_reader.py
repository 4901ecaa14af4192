"""A user's own pairs, as CSV and as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import data_layouts as layouts
import pytest

from mmvicreg.data.manifest import Manifest
from mmvicreg.errors import UserError
from mmvicreg.samples import fingerprint

Rows = Sequence[Mapping[str, object]]

PICTURES: Rows = (
    {"image": "a.jpg", "caption": "a dog, running", "split": "train"},
    {"image": "b.jpg", "caption": "a cat", "split": "val"},
    {"image": "a.jpg", "caption": "ein Hund läuft", "split": "train"},
)
RECORDINGS: Rows = tuple(
    {"audio": f"{fold}{take}.wav", "label": label, "fold": fold, "group": fold}
    for fold in (2, 1)
    for take, label in (("A", "rain"), ("B", "dog"))
)


def write(root: Path, rows: Rows, kind: str) -> Path:
    for number, row in enumerate(rows):
        if row.get("image"):
            layouts.picture(root / str(row["image"]), number)
        if row.get("audio"):
            layouts.recording(root / str(row["audio"]), number)
    root.mkdir(exist_ok=True)
    path = root / f"manifest.{kind}"
    if kind.lower() == "csv":
        keys = list(dict.fromkeys(key for row in rows for key in row))
        return layouts.write_csv(path, [{key: row.get(key, "") for key in keys} for row in rows])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("by_folder", [True, False])
def test_pictures(tmp_path: Path, kind: str, by_folder: bool) -> None:
    path = write(tmp_path, PICTURES, kind)
    data = Manifest(tmp_path if by_folder else path)
    assert data.splits() == ("train", "val")
    (dog,) = data.samples("train")
    assert dog.captions == ("a dog, running", "ein Hund läuft")
    assert dog.image == tmp_path / "a.jpg"
    assert [sample.id for sample in data.samples("all")] == [
        "a.jpg",
        "b.jpg",
    ]  # whatever the order of the rows


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_recordings_in_folds(tmp_path: Path, kind: str) -> None:
    data = Manifest(write(tmp_path, RECORDINGS, kind))
    assert data.notes == ()
    assert data.splits() == ("fold1", "fold2")
    assert data.classes == ("dog", "rain")
    assert [(s.id, s.label, s.fold, s.group) for s in data.samples("fold1")] == [
        ("1A.wav", 1, 1, "1"),
        ("1B.wav", 0, 1, "1"),
    ]


def test_splits_called_folds_are_folds(tmp_path: Path) -> None:
    """A probe keeps the recordings of a fold together where it chooses its weight decay, by ``Sample.fold``."""
    rows = [{**row, "split": f"fold{row['fold']}"} for row in RECORDINGS]
    for row in rows:
        del row["fold"]
    data = Manifest(write(tmp_path, rows, "csv"))
    assert data.splits() == ("fold1", "fold2")
    assert [sample.fold for sample in data.samples("all")] == [1, 1, 2, 2]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_list_of_captions(tmp_path: Path, kind: str) -> None:
    captions = ["one", "two, or more"]
    row = {"image": "a.jpg", "captions": json.dumps(captions) if kind == "csv" else captions, "id": "x1"}
    (sample,) = Manifest(write(tmp_path, [row], kind)).samples("train")
    assert (sample.id, sample.captions) == ("x1", tuple(captions))


def test_numbers_as_labels_are_ordered_as_numbers(tmp_path: Path) -> None:
    rows = [{"audio": f"{label}.wav", "label": label} for label in (10, 9, 100)]
    data = Manifest(write(tmp_path, rows, "jsonl"))
    assert data.classes == ("9", "10", "100")
    assert [sample.label for sample in data.samples("train")] == [1, 0, 2]
    long = "9" * 5000  # more digits than Python makes a number of
    assert Manifest(write(tmp_path / "long", [{"audio": "a.wav", "label": long}], "csv")).classes == (long,)


def test_recordings_alone_and_absolute_paths(tmp_path: Path) -> None:
    far = layouts.recording(tmp_path / "far" / "x.wav")
    near = tmp_path / "near"
    near.mkdir()
    (sample,) = Manifest(write(near, [{"audio": str(far)}], "csv")).samples("train")
    assert sample.audio == far
    assert Manifest(near).notes == (
        f"{near / 'manifest.csv'} has no column label: a run can be trained on it, and no probe",
    )
    assert sample.label is None


def test_a_byte_order_mark_and_columns_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path, [{"image": "a.jpg", "caption": "x", "photographer": "me"}], "csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    data = Manifest(path)
    assert len(data.samples("train")) == 1
    assert any("photographer" in note for note in data.notes)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "a.jpg", "caption": "  "}], r"line \d.*'a\.jpg' has no caption|caption 1 of 1.*empty"),
        ([{"image": "a.jpg", "split": "train"}], r"'a\.jpg' has no caption"),
        ([{"image": "a.jpg", "caption": "x", "captions": '["y"]'}], "both caption and captions"),
        ([{"image": "a.jpg", "captions": "x"}], "not a JSON list"),
        ([{"image": "a.jpg", "captions": '["x", ""]'}], r"caption 2 of 2 of the picture 'a\.jpg' is empty"),
        ([{"image": "a.jpg", "captoin": "x"}], "unknown column 'captoin'; did you mean 'caption'"),
        ([{"image": "", "caption": "x"}], "neither an image nor an audio|image is not text"),
        ([{"image": "a.jpg", "caption": "x", "split": "a+b"}], "cannot be called"),
        ([{"image": "a.jpg", "caption": "x", "split": "../../evil"}], "cannot be called '../../evil'"),
        ([{"image": "a.jpg", "caption": "x", "split": "te\\st"}], "cannot be called"),
        ([{"image": "a.jpg", "caption": "x", "split": "te\u0007st"}], "cannot be called"),
        ([{"audio": "a.wav", "fold": "one"}], "the fold 'one' is not a whole number"),
        ([{"audio": "a.wav", "fold": 1, "split": "x"}], "both split and fold"),
        (
            [{"audio": "a.wav", "label": "x"}, {"audio": "b.wav"}],
            r"some rows .* have a label, but not .*line",
        ),
        ([{"audio": "a.wav"}, {"audio": "a.wav"}], r"lists the recording 'a\.wav' again"),
        ([{"audio": "a.wav", "id": 1}, {"audio": "b.wav", "id": 1}], "has the id '1' of"),
        (
            [
                {"image": "a.jpg", "caption": "x", "split": "p"},
                {"image": "a.jpg", "caption": "y", "split": "q"},
            ],
            r"the image 'a\.jpg' the split 'q'",
        ),
        (
            [{"audio": f"{f}.wav", "fold": f, "group": "g"} for f in (1, 2)],
            "group 'g' lies in fold 2.*in fold 1",
        ),
        (
            [{"audio": f"{s}.wav", "split": s, "group": "g"} for s in ("train", "test")],
            r"line \d: the group 'g' lies in the split 'test' and, in .*line \d, in the split 'train'",
        ),
        (
            [{"audio": f"{f}-1234-{take}-0.wav", "fold": f} for f, take in ((1, "A"), (2, "B"))],
            r"line \d: 2-1234-B-0\.wav lies in fold 2, and 1-1234-A-0\.wav in fold 1 .* one source, 1234, .*group",
        ),
        (
            [{"audio": f"{s}/0a7c2a8d_nohash_{s}.wav", "split": f"s{s}"} for s in (0, 1)],
            "in the split 's1', and .* in the split 's0' .* one source, 0a7c2a8d",
        ),
        (
            [{"audio": "a/0.wav", "fold": 1}, {"audio": "./a/0.wav", "fold": 2}],
            r"line \d lists the recording '\./a/0\.wav' again \(first in .*line \d\)",
        ),
        (
            [
                {"image": "a.jpg", "caption": "x", "split": "train"},
                {"image": "b/../a.jpg", "caption": "y", "split": "test"},
            ],
            r"line \d gives the image 'b/\.\./a\.jpg' the split 'test', .*line \d 'train'",
        ),
        (
            [{"image": "a.jpg", "audio": f"{s}.wav", "caption": s, "split": s} for s in ("train", "test")],
            r"line \d: the picture '.*a\.jpg' lies in the split 'test'.*line \d, in the split 'train'",
        ),
        (
            [{"image": "a.jpg", "caption": "x", "id": 1}, {"image": "a.jpg", "caption": "y", "id": 2}],
            r"line \d gives the image 'a\.jpg' the id '2', .*line \d '1'.*leave the column out",
        ),
    ],
)
def test_malformed_rows(tmp_path: Path, kind: str, rows: Rows, message: str) -> None:
    path = write(tmp_path, rows, kind)
    with pytest.raises(UserError, match=message) as caught:
        Manifest(path).samples("all")
    assert str(path) in str(caught.value)


def test_a_group_goes_before_what_names_say(tmp_path: Path) -> None:
    layouts.recording(tmp_path / "1-1234-A-0.wav")
    layouts.recording(tmp_path / "2-1234-B-0.wav")
    rows = [{"audio": f"{f}-1234-{t}-0.wav", "fold": f, "group": t} for f, t in ((1, "A"), (2, "B"))]
    assert Manifest(write(tmp_path, rows, "csv")).splits() == ("fold1", "fold2")


def test_one_file_written_in_two_ways_is_one_picture(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "caption": "x"},
        {"image": str(tmp_path / "a.jpg"), "caption": "y", "id": "mine"},
    ]
    (sample,) = Manifest(write(tmp_path, rows, "jsonl")).samples("train")
    assert (sample.id, sample.captions) == ("mine", ("x", "y"))


def test_a_caption_that_is_there_again_is_told(tmp_path: Path) -> None:
    """COCO has pictures of which two people wrote the same, so that it is not refused."""
    path = write(tmp_path, [*PICTURES, {**PICTURES[0], "image": "./a.jpg"}], "csv")
    data = Manifest(path)
    assert data.notes == (f"1 pictures of {path} have a caption twice, which counts twice: a.jpg",)
    assert len(data.samples("train")[0].captions) == 3
    assert Manifest(write(tmp_path / "other", PICTURES, "csv")).notes == ()


def test_missing_files(tmp_path: Path) -> None:
    path = write(tmp_path, PICTURES, "csv")
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 pictures.*b\.jpg.*relative to"):
        Manifest(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "", "has no rows"),
        ("m.csv", "image,caption\n", "has no rows"),
        ("m.csv", "a.jpg,a dog\nb.jpg,a cat\n", "must name its columns"),
        ("m.csv", "image,caption\na.jpg,a dog, running\n", "line 2: more cells than columns"),
        ("m.csv", "image;caption\na.jpg;a dog\n", "separated by ';': save it with commas"),
        ("m.csv", "image\tcaption\na.jpg\ta dog\n", "separated by a tab: save it with commas"),
        ("m.csv", "sep=;\nimage;caption\na.jpg;a dog\n", "Remove the line 'sep='"),
        ("m.csv", "Image, Caption\na.jpg,a dog\n", "in lower case, without spaces"),
        ("m.csv", "image,caption,caption\na.jpg,a dog,test\n", "names the column caption more than once"),
        ("m.csv", 'image,caption,split\na.jpg,x,train\nb.jpg,"tru', "truncated|unexpected end"),
        ("m.csv", "image,caption,split\na.jpg\n", "line 2: fewer cells"),
        ("m.jsonl", '{"image": "a.jpg", "caption": "x"}\n{"image": "b', "line 2 is not JSON"),
        ("m.jsonl", '["a.jpg"]\n', "line 1 is not a JSON object"),
        (
            "m.csv",
            'image,caption\na.jpg,x\nb.jpg,"a dog\nc.jpg,y\n',
            "begins in line 3 is not CSV: unexpected end",
        ),
        ("m.csv", f"image,caption\na.jpg,{'x' * 131_073}\n", "begins in line 2 is not CSV: field larger"),
        (
            "m.csv",
            'image,caption\na.jpg,"a "big" dog"\n',
            "line 2 is not CSV.*one inside of it is written twice",
        ),
        ("m.csv", f"audio,fold\na.wav,{'9' * 5000}\n", "line 2: the fold '9+' is not"),
        (
            "m.csv",
            'image,captions\na.jpg,"[""\\ud83d""]"\n',
            r"line 2: a caption holds half a character, '\\ud83d'",
        ),
        ("m.csv", f"image,captions\na.jpg,{'[' * 100_000}\n", "line 2: captions is not a JSON list"),
        ("m.jsonl", '{"audio": "a.wav", "label": ' + "9" * 5000 + "}\n", "line 1 cannot be read: .*4300"),
        ("m.jsonl", '\n{"audio": ' + "[" * 100_000 + "\n", "line 2 cannot be read: .*recursion"),
        (
            "m.jsonl",
            '{"image": "a.jpg", "caption": "x \\ud83d"}\n',
            r"line 1: a caption holds half .*'\\ud83d'",
        ),
        ("m.jsonl", '{"audio": "caf\\udce9.wav"}\n', "line 1: audio holds half a character"),
        ("m.jsonl", '{"audio": "a.wav", "\\ud83d": 1}\n', "line 1: a key holds half a character"),
        ("m.txt", "x", "neither .csv nor .jsonl"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        Manifest(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_told_which_one_to_take(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text("image,caption\na.jpg,ein Mädchen\n", encoding=encoding)
    with pytest.raises(UserError, match=r"m\.csv cannot be read as a table.*save it in UTF-8"):
        Manifest(path)


def test_whole_characters_beyond_16_bit_are_taken(tmp_path: Path) -> None:
    """JSON writes them as two halves."""
    path = write(tmp_path, [{"image": "a.jpg", "caption": "\N{DOG FACE}"}], "jsonl")
    assert "\\ud83d\\udc36" in path.read_text()
    assert Manifest(path).samples("train")[0].captions == ("\N{DOG FACE}",)


def test_a_manifest_in_capitals_is_found_in_its_folder(tmp_path: Path) -> None:
    write(tmp_path, PICTURES, "CSV")
    assert Manifest(tmp_path).splits() == ("train", "val")


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Manifest(tmp_path / "absent")
    with pytest.raises(UserError, match="looks like coco"):
        Manifest(layouts.coco(tmp_path / "coco"))
    write(tmp_path / "two", RECORDINGS, "csv")
    write(tmp_path / "two", RECORDINGS, "jsonl")
    with pytest.raises(UserError, match="name one of them"):
        Manifest(tmp_path / "two")


def test_rows_in_another_order_are_other_samples(tmp_path: Path) -> None:
    """Without ids, another order of the rows must not pass for what a run was trained on."""
    there = Manifest(write(tmp_path / "a", RECORDINGS, "csv"))
    pairs = zip(RECORDINGS, reversed(RECORDINGS), strict=True)
    turned = [
        row | {"audio": other["audio"]} for row, other in pairs
    ]  # the same folds row by row, of other files
    other = Manifest(write(tmp_path / "b", turned, "csv"))
    assert len(there.samples("fold1")) == len(other.samples("fold1"))
    assert fingerprint(there.samples("fold1")) != fingerprint(other.samples("fold1"))
