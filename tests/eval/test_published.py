"""The paper's tables as data."""

from __future__ import annotations

import pytest

from mmvicreg.errors import UserError
from mmvicreg.eval.published import Table, published, published_numbers


def test_all_fourteen_tables_are_there_and_whole() -> None:
    assert published_numbers() == list(range(1, 15))
    for number in published_numbers():
        assert published(number).table == number


def test_table_3_has_its_directions_put_right_and_says_so() -> None:
    table = published(3)
    assert table.corrected
    assert any("heading" in note for note in table.notes)
    # caption retrieval (image-to-text) is the easier direction: one of five captions suffices
    for row in table.rows:
        for k in ("R@1", "R@5", "R@10"):
            assert float(table.value(row.method, f"image_to_text {k}") or 0) > float(
                table.value(row.method, f"text_to_image {k}") or 0
            )
    assert table.value("VSE++", "image_to_text R@1") == 41.3
    assert table.value("VICReg", "text_to_image R@10") == 77.9


def test_table_6_is_esc50() -> None:
    values = {row.method: row.values for row in published(6).rows}
    assert values == {"Supervised baseline": [72.7], "Barlow Twins": [75.4], "VICReg": [78.4]}


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"no published table 15. Known: 1, 2"):
        published(15)
    with pytest.raises(KeyError, match="R@2"):
        published(3).value("VICReg", "image_to_text R@2")


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="A has 1 values, not 2"):
        Table.model_validate(
            {
                "table": 1,
                "title": "",
                "source": "",
                "metric": "",
                "corrected": False,
                "columns": ["x", "y"],
                "rows": [{"method": "A", "values": [1.0]}],
            }
        )
