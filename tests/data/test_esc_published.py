"""ESC-50 by name: 2 000 recordings, five folds of fifty classes of eight, and what differs from that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_layouts as layouts
import numpy as np
import pytest
import soundfile

from mmvicreg.data.esc50 import CARD, Esc10, Esc50, Row
from mmvicreg.data.esc50_published import ESC10, TARGETS, published_faults
from mmvicreg.errors import UserError

NOWHERE = Path("nowhere")  # lengths are those of files; what is not there is another fault


def published() -> list[Row]:
    """Rows as the published table has them: names, counts, targets and the column esc10."""
    return [
        Row(
            f"{fold}-{100 * target + take}-A-{target}.wav",
            fold,
            target,
            name,
            str(100 * target + take),
            target in ESC10,
        )
        for fold in range(1, 6)
        for target, name in enumerate(TARGETS)
        for take in range(8)
    ]


def changed(place: int, **values: Any) -> list[Row]:
    rows = published()
    rows[place] = Row(**{**{key: getattr(rows[place], key) for key in Row.__dataclass_fields__}, **values})
    return rows


def faults(rows: list[Row]) -> str:
    return "\n".join(published_faults(rows, NOWHERE, TARGETS))


def test_two_thousand_by_name() -> None:
    assert len(published()) == 2000
    assert published_faults(published(), NOWHERE, TARGETS) == []
    assert len(set(TARGETS)) == 50
    assert {TARGETS[target] for target in ESC10} == {
        *("dog", "rooster", "rain", "sea_waves", "crackling_fire", "crying_baby", "sneezing"),
        *("clock_tick", "helicopter", "chainsaw"),
    }


def test_what_differs_is_named() -> None:
    other = changed(0, category="rooster", filename="1-0-A-1.wav", target=1)
    assert faults(other) == (
        "not 8 recordings of every class in every fold: 7 of dog in fold 1, 9 of rooster in fold 1"
    )
    assert "targets that are not the published ones: cow 2, pig 3" in faults(
        [
            Row(r.filename, r.fold, {2: 3, 3: 2}.get(r.target, r.target), r.category, r.source, r.esc10)
            for r in published()
        ]
    )
    assert faults(changed(9, filename="1-101-A-7.wav")).endswith("as the table does: 1-101-A-7.wav")
    assert faults(changed(9, filename="dog.wav")).endswith("as the table does: dog.wav")
    assert faults(changed(9, source="5")).endswith("1-101-A-1.wav")
    assert "esc10 is not the published one: rooster" in faults(changed(9, esc10=False))
    assert "targets that are not the published ones: violin 0" in faults(changed(0, category="violin"))


def test_a_fold_of_another_size_is_told_by_its_size_alone() -> None:
    assert faults(published()[1:]) == ""


@pytest.mark.parametrize(
    ("rate", "frames", "channels"), [(22050, 110250, 1), (44100, 220500, 2), (44100, 220000, 1)]
)
def test_recordings_brought_to_another_form_are_told(
    tmp_path: Path, rate: int, frames: int, channels: int
) -> None:
    row = published()[0]
    soundfile.write(tmp_path / row.filename, np.zeros((frames, channels)), rate)
    assert published_faults([row], tmp_path, ()) == [
        f"recordings that are not 5 s at 44100 Hz, mono: {row.filename}"
    ]
    soundfile.write(tmp_path / row.filename, np.zeros(220500), 44100)
    assert published_faults([row], tmp_path, ()) == []


def test_a_missing_row_is_refused_with_the_recording_it_leaves_out(tmp_path: Path) -> None:
    rows = layouts.esc_rows()
    layouts.esc(tmp_path, rows)
    layouts.write_csv(tmp_path / "meta" / "esc50.csv", rows[:7] + rows[8:])
    left_out = str(rows[7]["filename"])
    for reader in (Esc50, Esc10):
        with pytest.raises(
            UserError,
            match=rf"does not list 1 recordings of its folds .*{left_out}.*put the missing rows back",
        ):
            reader(tmp_path)
    (tmp_path / "audio" / left_out).rename(tmp_path / "audio" / "elsewhere.wav")
    assert len(Esc50(tmp_path).samples("all")) == len(rows) - 1


@pytest.mark.parametrize(("column", "value"), [("fold", 1), ("target", 7)])
def test_a_whole_fold_or_class_may_be_left_out(tmp_path: Path, column: str, value: int) -> None:
    """All but fold 1, for a search that is not to see it; a table of some classes over the whole folder."""
    rows = layouts.esc_rows()
    layouts.esc(tmp_path, rows)
    chosen = [row for row in rows if row[column] != value]
    layouts.write_csv(tmp_path / "meta" / "esc50.csv", chosen)
    assert len(Esc50(tmp_path).samples("all")) == len(chosen) < len(rows)


def test_the_card_names_its_licence() -> None:
    assert CARD.licence.startswith("CC BY-NC")
    (archive,) = CARD.files
    assert archive.checksum == "not published / not checked"


def test_the_real_part_is_as_published(unpacked: Callable[[str], Path]) -> None:
    assert Esc10(unpacked("esc10")).faults() == []
