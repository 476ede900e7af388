"""Text tables against strings laid out by hand."""

import re

import numpy as np

from ofdft_norm.example.predict import TABLE, format_table
from ofdft_norm.tables import WIDTH, format_rows


def test_lines_end_with_their_last_cell():
    rows = [["val", "model", "1e3"], ["all", "", ""]]
    assert format_rows(["split", "predictor", "E [mHa]"], rows, n_left=2).splitlines() == [
        *("split  predictor  E [mHa]", "val    model          1e3", "all")
    ]


def test_names_that_make_a_table_wider_than_a_screen_are_cut_in_their_middle():
    table = format_rows(["molecule", "energy"], [["m" * 120 + "end", "-1.5"], ["short", "2"]])
    long, short = table.splitlines()[1:]
    assert len(long) == WIDTH
    assert re.fullmatch(r"m+\.\.\.m+end  +-1\.5", long)
    assert short.split() == ["short", "2"]


def test_predictions_fit_on_a_screen():
    name = "a_molecule_with_a_name_of_many_words_and_a_number_12345"
    rows = [(name, 12, -123456.789, -123450.1, 14.6, "C 12d, m = -2"), ("other", -1, -1.5, np.nan, np.nan, "")]
    columns = {name: np.array(column) for name, column in zip(TABLE, zip(*rows, strict=True), strict=True)}
    for unit in ("hartree", "eV", "kcal/mol"):
        lines = format_table(columns, unit, 10).splitlines()
        assert max(map(len, lines)) <= WIDTH
        assert "-123456.789000" in lines[1]
