"""What references say of themselves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from ofdft_norm.data.elements import SYMBOLS, atomic_number, formula, symbol
from ofdft_norm.errors import ConfigError
from ofdft_norm.normalization.element_references import LinearReferences
from ofdft_norm.normalization.fit_linear_references import fit_linear_references
from ofdft_norm.normalization.given_references import references_from_values
from ofdft_norm.normalization.reference_summary import FitReport, describe_null_space
from tests.printed_tables import check_printed


def summary_of(compositions, energies=None):
    data = [
        Data(
            z=torch.tensor([z for z, n in composition.items() for _ in range(n)]),
            energy=float(i) if energies is None else energies[i],
            mol_id=f"molecule {i}",
        )
        for i, composition in enumerate(compositions)
    ]
    return fit_linear_references(["energy"], data, 4)["energy"].summary("eV")


def test_alkane_like_ratios_are_named():
    summary = summary_of([{6: n, 1: 4 * n} for n in (1, 2, 3)])
    assert summary.indistinguishable == ["C and H only ever appear as 1:4"]
    assert [e.determined for e in summary.elements] == [False, False]
    assert "C and H only ever appear as 1:4" in str(summary)
    assert (summary.fit.rank, summary.fit.degrees_of_freedom) == (1, 2)


@pytest.mark.parametrize(
    ("compositions", "expected"),
    [
        ([{8: 1, 1: 2}], ["H and O only ever appear as 2:1"]),
        (
            [{6: 1, 1: 2, 8: 1}, {6: 2, 1: 4, 8: 2}],
            ["C and H only ever appear as 1:2", "C and O only ever appear as 1:1"],
        ),
        # hydrogens saturate carbon and oxygen: n(H) = 2 n(C) + n(N)
        ([{6: 1, 1: 2}, {6: 1, 7: 1, 1: 3}, {7: 2, 6: 1, 1: 4}], ["n(H) = 2 n(C) + n(N) in every molecule"]),
        ([{6: 1, 1: 4}, {6: 1, 1: 3}, {8: 1, 1: 2}, {8: 1}], []),
    ],
)
def test_combinations_that_never_vary_are_put_in_words(compositions, expected):
    found = summary_of(compositions).indistinguishable
    assert len(found) == len(expected)
    for text in expected:
        assert text in found or len(expected) > 1  # which of several equivalent pairs are named is free
    if len(expected) > 1:
        assert all("only ever appear as" in text for text in found)


@given(st.integers(1, 30), st.integers(1, 30))
def test_any_fixed_ratio_is_found(a, b):
    text = describe_null_space(torch.tensor([[float(b), -float(a)]]) / math.hypot(a, b), [6, 1])
    divisor = math.gcd(a, b)
    assert text == [f"C and H only ever appear as {a // divisor}:{b // divisor}"]


def test_irrational_combinations_are_shown_as_numbers():
    assert describe_null_space(torch.tensor([[1.0, -math.sqrt(2), 0.25]], dtype=torch.float64), [6, 1, 8]) == [
        "n(H) = 0.707107 n(C) + 0.176777 n(O) in every molecule"
    ]


def test_the_table_holds_values_errors_counts_and_the_worst_molecules():
    rng = np.random.default_rng(0)
    compositions = [{6: int(c), 1: int(h)} for c, h in rng.integers(1, 9, (30, 2))]
    energies = [-37.8 * c[6] - 0.5 * c[1] + 0.01 * rng.normal() for c in compositions]
    energies[17] += 5.0
    summary = summary_of(compositions, energies)
    hydrogen, carbon = summary.elements
    assert (hydrogen.symbol, carbon.symbol, carbon.determined) == ("H", "C", True)
    assert carbon.n_molecules == 30
    assert carbon.n_atoms == sum(c[6] for c in compositions)
    assert 0 < carbon.standard_error < 1
    assert len(summary.fit.worst) == 10
    worst = summary.fit.worst[0]
    assert (worst.index, worst.name) == (17, "molecule 17")
    assert worst.formula == formula([6] * compositions[17][6] + [1] * compositions[17][1])
    lines = str(summary).splitlines()
    assert lines[0].split() == ["element", *("reference", "[eV]"), *("std.", "error", "[eV]"), "atoms", "molecules"]
    check_printed(str(summary), data=r"[A-Z][a-z]?|molecule \d+")
    assert lines[1].split()[:2] == ["H", f"{hydrogen.value:.6f}"]
    assert any("rank 2 of 2" in line and "28 degrees of freedom" in line for line in lines)
    assert any(line.startswith("molecule 17") for line in lines)


def test_given_values_say_that_no_fit_is_known():
    summary = references_from_values({"H": -0.5, "O": 0.0}).summary()
    assert [(e.symbol, e.value, e.standard_error) for e in summary.elements] == [("H", -0.5, None), ("O", 0.0, None)]
    assert "no fit is known" in str(summary)
    check_printed(str(summary), data="H|O")
    assert LinearReferences().summary().elements == []


def test_reports_survive_plain_types_and_later_keys():
    report = FitReport(target="energy", n_samples=3, atomic_numbers=[1], standard_errors=[0.5])
    assert FitReport.from_plain(report.to_plain()) == report
    assert FitReport.from_plain({**report.to_plain(), "of_a_later_version": 1}) == report


def test_symbols_and_numbers_are_inverse():
    assert len(SYMBOLS) == len(set(SYMBOLS)) == 118
    assert [atomic_number(symbol(z)) for z in range(1, 119)] == list(range(1, 119))
    # independent of the table's layout
    assert [symbol(z) for z in (1, 10, 26, 57, 71, 72, 86, 92, 118)] == [
        "H",
        "Ne",
        "Fe",
        "La",
        "Lu",
        "Hf",
        "Rn",
        "U",
        "Og",
    ]
    with pytest.raises(ConfigError, match=r"unknown element 'cl'.*did you mean 'Cl'"):
        atomic_number("cl")
    with pytest.raises(ConfigError, match=r"atomic number 0: expected 1 \.\.\. 118"):
        symbol(0)
