"""The table of fitted statistics."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    DimensionWiseRescaling,
    HasEnergyLabelSampleWeigher,
    InitialGuessOnlySampleWeigher,
)
from ofdft_norm.normalization.summary import summary_table
from tests.printed_tables import check_printed


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(name))
    return re.split(r"\s{2,}", line.strip())[1:]


def test_every_number_of_the_table(basis_info: BasisInfo, scf_samples: Any, naive: Any) -> None:
    molecules = [[8, 1, 1], [6, 1, 1, 1, 1], [6, 8], [1, 1], [6, 6, 1, 1], [8, 8]]
    samples = scf_samples(basis_info, np.random.default_rng(0), molecules, n_scf=4)
    statistics = DatasetStatistics.from_dataset(
        None,
        samples,
        basis_info,
        [ConstantSampleWeigher(), HasEnergyLabelSampleWeigher()],
        initial_guess_sample_weighers=[InitialGuessOnlySampleWeigher()],
        progress=False,
    )
    rescaling = DimensionWiseRescaling.from_dataset_statistics(statistics, basis_info)
    table = summary_table(statistics, basis_info, rescaling)
    expected = naive(samples, basis_info, [float(s.has_energy_label) for s in samples])
    counts = [expected["n_samples"], expected["n_molecules"], *expected["n_atoms"]]
    assert cells(table, "weigher") == ["samples", "molecules", "H atoms", "C atoms", "O atoms"]
    assert cells(table, "has_energy_label ") == [str(n) for n in counts]
    assert cells(table, "initial_guess_only ")[:2] == ["6", "-"]
    check_printed(table, data=r".*_label|constant|initial_guess_only|molecule.*")
    of_labels = table[table.index("has_energy_label [Ha]") :]
    assert cells(of_labels, "has_energy_label [Ha]")[:4] == ["mean", "std", "MAE", "max |.|"]
    found = cells(of_labels, "atom_ref")
    for cell, name in zip(found[1:4], ("std", "mae", "abs_max"), strict=True):
        assert cell == f"{expected[f'energy_minus_atom_ref/{name}']:.5f}"
    r2 = 1 - (expected["energy_minus_atom_ref/rms"] / expected["energy/std"]) ** 2
    assert float(found[4]) == np.round(r2, 6)
    assert found[5] == "4"
    assert cells(of_labels, "no reference")[0] == f"{expected['energy/mean']:.5f}"
    before, after = expected["gradient_label/abs_max"].max(), expected["gradient_max_after_atom_ref"].max()
    rescaled = (expected["gradient_max_after_atom_ref"] / (rescaling.lambda_z.numpy() + rescaling.epsilon)).max()
    gradients = table[table.index("largest gradient") :]
    assert cells(gradients, "largest gradient")[0] == "as labelled"
    assert gradients.startswith("largest gradient [Ha]  ")
    assert cells(gradients, "has_energy_label") == [f"{value:.5f}" for value in (before, after, rescaled)]
    for branch, count in rescaling.branches().items():
        assert cells(gradients, branch) == [str(count)]
    assert f"the {rescaling.branches()['gradient']} lambdas that a gradient sets hang on" in gradients
    older = {key: array for key, array in statistics.to_arrays().items() if "second_" not in key}
    table = summary_table(DatasetStatistics.from_arrays(older), basis_info, rescaling)
    assert "which molecules set lambda is not known" in table


def test_each_column_has_one_unit_and_unknown_energies_are_dashes() -> None:
    arrays = {
        "w/energy_minus_atom_ref/mean": np.array(-1e-9),
        "w/energy_minus_atom_ref/std": np.array(0.0123456),
        "w/gradient_label/abs_max": np.array([0.5, 2.0]),
        "w/gradient_max_after_atom_ref": np.array([0.4, 0.1]),
    }
    table = summary_table(DatasetStatistics.from_arrays(arrays), BasisInfo([1], ["2x0e"]))
    assert cells(table, "atom_ref") == ["0.00000", "0.01235", "-", "-", "-", "-", "-"]
    assert cells(table, "w  ") == ["-", "-", "-"]
    gradients = table[table.index("largest gradient") :]
    assert cells(gradients, "w ") == ["2.00000", "0.40000", "-"]


def test_without_anything_but_energies() -> None:
    arrays = {"constant/energy/mean": np.array(1.0), "constant/energy/std": np.array(0.5)}
    table = summary_table(DatasetStatistics.from_arrays(arrays), None, None)
    assert "gradient" not in table
    assert cells(table, "no reference")[:2] == ["1.00000", "0.50000"]


@pytest.mark.parametrize(("std", "r2"), [(0.5, "0.960000"), (1e-13, "-"), (0.0, "-")])
def test_nothing_is_explained_where_all_energies_are_equal(std: float, r2: str) -> None:
    arrays = {
        "constant/energy/mean": np.array(-40.0),
        "constant/energy/std": np.array(std),
        "constant/energy_minus_linear_ref/mean": np.array(0.0),
        "constant/energy_minus_linear_ref/rms": np.array(0.1),
    }
    assert r2 in cells(summary_table(DatasetStatistics.from_arrays(arrays), None, None), "linear_ref")


@pytest.mark.parametrize(("unit", "mean"), [("eV", "-123456.7891"), ("kcal/mol", "-123456.79")])
def test_many_elements_and_other_units_fit_on_a_screen(unit: str, mean: str) -> None:
    n = 20
    arrays = {
        "a_weigher_with_a_long_name_times_another_one/n_samples": np.array(123_456_789),
        "a_weigher_with_a_long_name_times_another_one/n_atoms": np.arange(n) + 12_345_678,
        "a_weigher_with_a_long_name_times_another_one/energy/mean": np.array(-123456.78912),
        "a_weigher_with_a_long_name_times_another_one/energy/std": np.array(123456.78912),
    }
    basis_info = BasisInfo(list(range(1, n + 1)), ["1x0e"] * n)
    table = summary_table(DatasetStatistics.from_arrays(arrays, {"unit": unit}), basis_info)
    check_printed(table, data="a_w.*e")
    atoms = [cell for line in table.splitlines() if line.startswith("a_w") for cell in line.split()]
    assert [cell for cell in atoms if cell.startswith("12,345,")] == [f"{12_345_678 + i:,}" for i in range(n)]
    assert cells(table, "no reference")[0] == mean
