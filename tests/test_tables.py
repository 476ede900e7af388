"""Text tables against strings laid out by hand."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from ofdft_norm.benchmarks.comparison import Row, print_table
from ofdft_norm.example.prediction import Prediction
from ofdft_norm.example.prediction import table as predictions_table
from ofdft_norm.tables import explained, text_table
from tests.printed_tables import check_printed


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


def test_names_that_make_a_table_wider_than_a_screen_are_cut_in_their_middle() -> None:
    table = text_table(["molecule", "energy"], [["m" * 120 + "end", "-1.5"], ["short", "2"]])
    long, short = table.splitlines()[1:]
    assert len(long) == 100
    assert re.fullmatch(r"m+\.\.\.m+end  +-1\.5", long)
    assert short.split() == ["short", "2"]


def test_what_is_in_the_table_is_explained_once() -> None:
    meanings = {"E": "an energy", "model": "a network", "val": "held out", "atoms": "counted", "absent": "not there"}
    header, rows = ["name", "E [mHa]", "H atoms", "C atoms"], [["val: model", "1", "2", "3"], ["model", "4", "5", "6"]]
    assert explained(header, rows, meanings) == ["E: an energy", "atoms: counted", "val: held out", "model: a network"]
    long = text_table(["a"], [["b"]], meanings={"a": "word " * 40}).splitlines()[2:]
    assert [line[:4] for line in long] == ["  a:", *["    "] * (len(long) - 1)]
    assert max(map(len, long)) <= 100
    assert " ".join(" ".join(long).split()) == f"a: {'word ' * 40}".strip()


def test_benchmarks_have_a_table_for_each_unit(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Row(f"fit of 8,000 samples / bare loader: {'many words ' * 8}", 1.5, 1.0, 1.5, "<= 1.5"),
        Row("peak memory, 100,000 / 10,000 samples", 20.0, 10.0, 2.0, "<= 1.1", "MiB"),
    ]
    print_table(rows)
    printed = capsys.readouterr().out
    check_printed(printed, data="(?:fit|peak).*")
    assert "measured [s]" in printed
    assert "measured [MiB]" in printed


@pytest.mark.parametrize("unit", ["hartree", "eV", "kcal/mol"])
def test_predictions_fit_on_a_screen(unit: str) -> None:
    empty = np.zeros(0)
    prediction = Prediction(
        mol_id="a_molecule_with_a_name_of_many_words_and_a_number_12345",
        scf_iteration=12,
        atomic_numbers=np.array([1]),
        pos=np.zeros((1, 3)),
        energy=-123456.789,
        energy_label=-123450.1,
        gradient=empty,
        forces=empty,
        coordinates="",
        range_excess=14.6,
        range_dimension="C 12d, m = -2",
        unit=unit,
    )
    unknown = dataclasses.replace(
        prediction, mol_id="other", scf_iteration=-1, energy_label=np.nan, range_excess=np.nan, range_dimension=""
    )
    table = predictions_table([prediction, unknown], 10)
    check_printed(table, data="a_mol.*12345|other")
    assert "-123456.789000" in table
