"""The table of fitted statistics."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    DimensionWiseRescaling,
    HasEnergyLabelSampleWeigher,
    InitialGuessOnlySampleWeigher,
)
from ofdft_norm.normalization.summary import summary_table


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
    found = cells(table, "has_energy_label: atom_ref")
    for cell, name in zip(found[1:4], ("std", "mae", "abs_max"), strict=True):
        assert cell == f"{expected[f'energy_minus_atom_ref/{name}']:.4f} Ha"
    r2 = 1 - (expected["energy_minus_atom_ref/rms"] / expected["energy/std"]) ** 2
    assert float(found[4]) == np.round(r2, 6)
    assert found[5] == "4"
    assert cells(table, "has_energy_label: no reference")[0] == f"{expected['energy/mean']:.4f} Ha"
    before, after = expected["gradient_label/abs_max"].max(), expected["gradient_max_after_atom_ref"].max()
    rescaled = (expected["gradient_max_after_atom_ref"] / (rescaling.lambda_z.numpy() + rescaling.epsilon)).max()
    gradients = table[table.index("largest gradient") :]
    shown = [f"{before:.4f} Ha", f"{1e3 * after:.2f} mHa", f"{1e3 * rescaled:.2f} mHa"]
    assert cells(gradients, "has_energy_label") == shown
    for branch, count in rescaling.branches().items():
        assert f"{count} {branch}" in gradients
    assert f"the {rescaling.branches()['gradient']} lambdas that a gradient sets hang on" in gradients
    older = {key: array for key, array in statistics.to_arrays().items() if "second_" not in key}
    table = summary_table(DatasetStatistics.from_arrays(older), basis_info, rescaling)
    assert "which molecules set lambda is not known" in table


def test_small_energies_are_in_millihartree_and_unknown_ones_dashes() -> None:
    arrays = {
        "w/energy_minus_atom_ref/mean": np.array(-1e-9),
        "w/energy_minus_atom_ref/std": np.array(0.0123456),
        "w/gradient_label/abs_max": np.array([0.5, 2.0]),
        "w/gradient_max_after_atom_ref": np.array([0.4, 0.1]),
    }
    table = summary_table(DatasetStatistics.from_arrays(arrays), BasisInfo([1], ["2x0e"]))
    assert cells(table, "w: atom_ref") == ["0.00 mHa", "12.35 mHa", "-", "-", "-", "-", "-"]
    assert cells(table, "w  ") == ["-", "-", "-"]
    gradients = table[table.index("largest gradient") :]
    assert cells(gradients, "w ") == ["2.0000 Ha", "400.00 mHa", "-"]


def test_without_anything_but_energies() -> None:
    arrays = {"constant/energy/mean": np.array(1.0), "constant/energy/std": np.array(0.5)}
    table = summary_table(DatasetStatistics.from_arrays(arrays), None, None)
    assert "gradient" not in table
    assert cells(table, "constant: no reference")[:2] == ["1.0000 Ha", "500.00 mHa"]
