"""The baseline of composition and exchange-correlation energy, on planted weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import Normalizer
from ofdft_norm.example.xc_baseline import CompositionAndXC, read_xc_energies


def test_planted_weights_come_back(basis_info: Any, make_sample: Any, make_batch: Any) -> None:
    rng = np.random.default_rng(0)
    weights = np.array([0.5, 30.0, 60.0, -1.2, 0.25])  # of H, C, O, of E_xc, and the constant
    samples, xc_energies = [], {}
    for i in range(20):
        numbers = rng.choice([1, 6, 8], 1 + i % 4).tolist()
        sample = make_sample(basis_info, rng, numbers, mol_id=f"molecule_{i // 2}", scf_iteration=i)
        xc = float(rng.normal() * 10)
        counts = [numbers.count(z) for z in (1, 6, 8)]
        sample.energy_label = torch.tensor([weights @ [*counts, xc, 1.0]], dtype=torch.float64)
        if i == 3:
            sample.has_energy_label = torch.tensor([False])
            sample.energy_label = torch.tensor([1e6], dtype=torch.float64)
        else:
            xc_energies[f"molecule_{i // 2}", i] = xc
        samples.append(sample)
    batch = make_batch([Normalizer().normalize(sample) for sample in samples])
    baseline = CompositionAndXC.fitted(xc_energies, [batch], Normalizer(), basis_info.n_types)
    np.testing.assert_allclose(baseline.weights, weights, rtol=1e-8)
    energies, gradients = baseline(batch)
    labelled = batch.has_energy_label
    np.testing.assert_allclose(energies[labelled], [float(s.energy_label) for s in samples if s.has_energy_label])
    assert torch.isnan(energies[~labelled]).all()
    assert torch.isnan(gradients).all()


def test_energies_are_those_of_the_label_files(tmp_path: Any, labelled_molecules: Any, labels: Any) -> None:
    molecules = labelled_molecules(tmp_path / "molecules")
    datamodule = molecules.datamodule()
    found = read_xc_energies(datamodule)
    assert found is not None
    assert {name for name, _ in found} == {path.name.split(".")[0] for path in molecules.labels.iterdir()}
    assert all(-100 < energy < -10 for energy in found.values())
    assert ("nitromethane", 0) not in found  # the initial guess has no label

    labels.write("water.zarr.zip", (8, 1, 1), 3)
    (tmp_path / "basis_info.json").write_text(json.dumps(labels.basis_info.to_dict()))
    from ofdft_norm.config import LabelFiles

    without = molecules.datamodule(source=LabelFiles(str(labels.folder / "*.zip"), str(tmp_path / "basis_info.json")))
    assert read_xc_energies(without) is None
    assert pytest.approx(found["methyl_nitrite", 3]) != found["nitromethane", 3]
