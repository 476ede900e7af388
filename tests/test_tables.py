"""Text tables against strings laid out by hand."""

from __future__ import annotations

from ofdft_norm.tables import text_table


def test_columns_are_two_spaces_apart_and_numbers_are_left_as_they_are() -> None:
    table = text_table(
        ["split", "predictor", "E [mHa]"], [["val", "model", "1e3"], ["validation", "", "0.10"]], n_left=2
    )
    assert table.splitlines() == [
        "split       predictor  E [mHa]",
        "val         model          1e3",
        "validation                0.10",
    ]


def test_lines_end_with_their_last_cell() -> None:
    assert text_table(["", "note"], [["hydrogen", "rare"], ["He", ""]]).splitlines() == [
        "          note",
        "hydrogen  rare",
        "He",
    ]
    assert text_table(["a", "b"], []) == "a  b"
