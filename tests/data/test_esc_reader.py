"""ESC-50 and ESC-10: labels, folds, groups, and what is refused."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import data_layouts as layouts
import pytest

from mmvicreg.data.esc50 import CLASSES, Esc10, Esc50
from mmvicreg.errors import UserError


def test_labels_follow_the_targets_present(tmp_path: Path) -> None:
    data = Esc50(layouts.esc(tmp_path))
    assert data.classes == ("dog", "rain", "chainsaw")  # targets 0, 7, 41
    assert data.splits() == ("fold1", "fold2", "fold3", "fold4", "fold5")
    for sample in data.samples("all"):
        assert sample.audio is not None
        assert sample.label is not None
        fold, source, _, target = sample.audio.stem.split("-")
        assert (sample.fold, sample.group) == (int(fold), source)
        assert data.classes[sample.label] == {"0": "dog", "7": "rain", "41": "chainsaw"}[target]
    assert any("30 of ESC-50's 2,000 clips, 3 of 50 classes" in note for note in data.notes)
    assert len(data.samples("fold1+fold3")) == 12


def test_esc10_is_the_part_that_says_so(tmp_path: Path) -> None:
    data = Esc10(layouts.esc(tmp_path))
    assert data.classes == ("rain",)
    assert len(data.samples("all")) == 10
    assert Esc10.alternatives == ("esc50",)


def test_esc10_needs_its_column_and_its_rows(tmp_path: Path) -> None:
    rows = layouts.esc_rows()
    layouts.esc(tmp_path / "none", [{**row, "esc10": False} for row in rows])
    with pytest.raises(UserError, match="never says True"):
        Esc10(tmp_path / "none")
    bare = [{key: value for key, value in row.items() if key != "esc10"} for row in rows]
    layouts.esc(tmp_path / "bare", bare)
    with pytest.raises(UserError, match="lacks the column esc10"):
        Esc10(tmp_path / "bare")
    assert len(Esc50(tmp_path / "bare").samples("all")) == 30


def test_fifty_classes() -> None:
    assert len(CLASSES) == 50


def test_foreign_classes_are_said(tmp_path: Path) -> None:
    data = Esc50(layouts.esc(tmp_path, layouts.esc_rows(((0, "dog"), (1, "theremin")))))
    assert any("theremin" in note for note in data.notes)


def test_fragments_that_names_give_one_source_and_the_table_several_are_told(tmp_path: Path) -> None:
    rows = broken(fold=3, src_file="1-1007-B-7")
    layouts.esc(tmp_path, rows)
    notes = Esc50(tmp_path).notes
    assert any("1 sources have fragments in several folds (1007)" in note for note in notes)
    layouts.esc(tmp_path / "published")
    assert not any("several folds" in note for note in Esc50(tmp_path / "published").notes)


def broken(**changes: object) -> list[dict[str, object]]:
    """The rows with the fourth changed (line 5 of the file)."""
    rows = layouts.esc_rows()
    rows[3] = {**rows[3], **changes}
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (broken(fold="two"), r"line 5: the fold 'two' is not a whole number"),
        (broken(fold="1_0"), r"line 5: the fold '1_0' is not a whole number"),
        (broken(fold="1" * 20), r"line 5: the fold '1+' is not a whole number"),
        (broken(fold=0), r"line 5: the fold 0 is below 1"),
        (broken(target="x"), r"line 5: the target 'x'"),
        (broken(category=""), r"line 5: the column category is empty"),
        (broken(esc10="maybe"), r"line 5: the column esc10 says 'maybe'"),
        (broken(filename="../x.wav"), "leads outside"),
        (broken(fold=3), r"source 1007 lie in fold 1 and, 1-1007-B-7\.wav, in fold 3"),
        (broken(filename="1-1000-A-0.wav"), r"lists 1-1000-A-0\.wav twice"),
        (broken(filename="./1-1000-A-0.wav", src_file="x"), r"lists 1-1000-A-0\.wav twice"),
        (broken(category="wind"), r"calls target 7 'wind', an earlier row 'rain'"),
        (broken(target=8), r"gives 'rain' the target 8, an earlier row 7"),
    ],
)
def test_malformed_rows(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    layouts.esc(tmp_path, rows, audio=False)
    with pytest.raises(UserError, match=message) as caught:
        Esc50(tmp_path)
    assert str(tmp_path / "meta" / "esc50.csv") in str(caught.value)


@pytest.mark.parametrize("column", ["filename", "fold", "target", "category", "src_file"])
def test_missing_columns(tmp_path: Path, column: str) -> None:
    rows = [{key: value for key, value in row.items() if key != column} for row in layouts.esc_rows()]
    layouts.esc(tmp_path, rows, audio=False)
    with pytest.raises(UserError, match=f"lacks the column {column}"):
        Esc50(tmp_path)


def test_truncated_table(tmp_path: Path) -> None:
    path = layouts.esc(tmp_path) / "meta" / "esc50.csv"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match=r"line 31.*truncated"):
        Esc50(tmp_path)
    path.write_text("filename,fold,target,category,esc10,src_file,take\n")
    with pytest.raises(UserError, match="lists no recordings"):
        Esc50(tmp_path)
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="not a CSV table"):
        Esc50(tmp_path)


def test_a_column_named_twice_and_a_comma_that_moves_the_cells(tmp_path: Path) -> None:
    """Neither may decide in silence which fold or source a recording is of."""
    path = layouts.esc(tmp_path) / "meta" / "esc50.csv"
    header, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},fold", f"{first},2", *(f"{row},1" for row in rest)]))
    with pytest.raises(UserError, match=r"esc50\.csv names the column fold more than once"):
        Esc50(tmp_path)
    path.write_text("\n".join(["filename,fold,target,category,src_file", "a.wav,1,0,dog, barking,1000"]))
    with pytest.raises(UserError, match="line 2: more cells than columns"):
        Esc50(tmp_path)


def test_missing_recordings(tmp_path: Path) -> None:
    layouts.esc(tmp_path)
    (tmp_path / "audio" / "2-2007-A-7.wav").unlink()
    with pytest.raises(UserError, match=r"1 of 6 recordings.*2-2007-A-7\.wav.*data download esc50"):
        Esc50(tmp_path).samples("fold2")


def test_other_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="looks like coco"):
        Esc50(layouts.coco(tmp_path / "coco"))
    (tmp_path / "silent" / "meta").mkdir(parents=True)
    layouts.write_csv(tmp_path / "silent" / "meta" / "esc50.csv", layouts.esc_rows())
    with pytest.raises(UserError, match="the folder audio/"):
        Esc50(tmp_path / "silent")
    with pytest.raises(UserError, match=r"no such folder.*mmvicreg data download esc50 --data-root"):
        Esc50(tmp_path / "absent")


def test_real_esc10(unpacked: Callable[[str], Path]) -> None:
    root = unpacked("esc10")
    ten, fifty = Esc10(root), Esc50(root)
    assert ten.notes == ()
    assert fifty.notes == ("400 of ESC-50's 2,000 clips, 10 of 50 classes",)
    assert set(ten.classes) < CLASSES
    with (root / "meta" / "esc50.csv").open(newline="") as file:
        table = {row["filename"]: row for row in csv.DictReader(file)}
    for data in (ten, fifty):
        assert [len(data.samples(split)) for split in data.splits()] == [80] * 5
        for sample in data.samples("all"):
            row = table[sample.id]
            assert sample.label is not None
            assert (data.classes[sample.label], str(sample.fold)) == (row["category"], row["fold"])
