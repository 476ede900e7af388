"""Tables and reports of linear references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from ofdft_norm import LinearReferences, fit_linear_references, fit_references_by_dataset
from ofdft_norm.data.elements import formula
from ofdft_norm.normalization.reference_files import references_from_values


def fit(compositions: list[dict[int, int]], energies: Any = None) -> LinearReferences:
    data = [
        Data(
            z=torch.tensor([z for z, n in composition.items() for _ in range(n)]),
            energy=float(i) if energies is None else energies[i],
            mol_id=f"molecule {i}",
        )
        for i, composition in enumerate(compositions)
    ]
    return fit_linear_references(["energy"], data, 4)["energy"]


@pytest.mark.parametrize(
    ("compositions", "undetermined"),
    [
        ([{6: n, 1: 4 * n, 8: 1} for n in (1, 2, 3)], ["H", "C"]),
        ([{8: 1, 1: 2}], ["H", "O"]),
        ([{6: 1, 1: 4}, {6: 1, 1: 3}, {8: 1, 1: 2}, {8: 1}], []),
    ],
)
def test_elements_that_the_data_do_not_determine_are_marked(
    compositions: list[dict[int, int]], undetermined: list[str], caplog: Any
) -> None:
    lines = fit(compositions).summary().splitlines()
    assert [line.split()[0] for line in lines if "not determined alone" in line] == undetermined
    assert ("minimum norm is chosen" in caplog.text) == bool(undetermined)


def table_of(text: str) -> list[list[str]]:
    assert max(map(len, text.splitlines())) <= 80
    return [line.split() for line in text.splitlines()]


def test_the_table_has_values_errors_counts_and_the_worst_molecules() -> None:
    rng = np.random.default_rng(0)
    compositions = [{6: int(c), 1: int(h)} for c, h in rng.integers(1, 9, (30, 2))]
    energies = [-37.8 * c[6] - 0.5 * c[1] + 0.01 * rng.normal() for c in compositions]
    energies[17] += 5.0
    references = fit(compositions, energies)
    report, text = references.fit_report, references.summary("eV")
    assert report is not None
    lines = table_of(text)
    assert lines[0] == ["element", "energy", "[eV]", "std.", "error", "[eV]", "atoms", "samples"]
    for line, z in zip(lines[1:3], (1, 6), strict=True):
        i = report.atomic_numbers.index(z)
        assert float(line[1]) == pytest.approx(float(references.element_references[z]), abs=1e-6)
        assert float(line[2]) == pytest.approx(report.standard_errors[i], rel=0.1)
        assert [int(n) for n in line[3:]] == [sum(c[z] for c in compositions), 30]
    assert "rank 2 of 2" in text
    worst = report.worst[0]
    assert (worst.index, worst.name) == (17, "molecule 17")
    assert worst.formula == formula([6] * compositions[17][6] + [1] * compositions[17][1])
    assert ["molecule", "17", worst.formula] in [line[:3] for line in lines]
    assert len(lines) <= 11


def test_given_values_are_named_as_given() -> None:
    text = references_from_values({"H": -0.5, "O": 0.0}).summary("hartree")
    assert table_of(text)[:3] == [["element", "energy", "[Ha]"], ["H", "-0.500000"], ["O", "0.000000"]]
    assert text.endswith("given values, not fitted")


def test_references_by_data_set_have_a_table_of_shifts() -> None:
    data = [
        Data(z=torch.tensor(z), energy=-float(sum(z)) * factor, level=level)
        for level, factor in (("pbe", 1.0), ("hf", 2.0))
        for z in ([1], [8], [1, 8])
    ]
    text = fit_references_by_dataset(["energy"], data, "level")["energy"].summary("hartree")
    lines = table_of(text)
    assert lines[1] == ["H", "hf", "-1.500000", "-0.500000"]
    assert lines[4] == ["O", "pbe", "-12.000000", "+4.000000"]
    assert text.count("fit on 3 samples: rank 2 of 2") == 2
