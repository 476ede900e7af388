"""The labels that come with the package, read through the package."""

from __future__ import annotations

import torch

from ofdft_norm import BasisInfo, OFDataset, ProjectGradient
from ofdft_norm.data.embedded_data import EMBEDDED_DATA


def embedded(energy_key: str = "e_kin", gradient_key: str = "grad_kin") -> OFDataset:
    paths = sorted((EMBEDDED_DATA / "labels").glob("*.zarr.zip"))
    basis_info = BasisInfo.from_json(EMBEDDED_DATA / "basis_info.json")
    return OFDataset(paths, basis_info, energy_key, gradient_key, ProjectGradient())


def test_all_molecules_load_with_finite_labels_and_their_number_of_electrons() -> None:
    dataset = embedded()
    assert dataset.n_molecules > 80
    elements: set[int] = set()
    for molecule in range(dataset.n_molecules):
        batch = dataset.molecule_batch(molecule)
        name = dataset.paths[molecule].name
        for field in ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals", "energy_label", "pos"):
            assert torch.isfinite(batch[field]).all(), (name, field)
            assert batch[field].dtype == torch.float64
        elements |= set(batch.atomic_numbers.tolist())
        n_samples = len(batch.energy_label)
        electrons = batch.coeffs.new_zeros(n_samples).index_add(
            0, batch.coeffs_batch, batch.coeffs * batch.dual_basis_integrals
        )
        expected = int(batch.atomic_numbers.sum()) // n_samples  # neutral molecules
        assert (electrons - expected).abs().max() < 1e-4, name
        assert batch.mol_id == [name.removesuffix(".zarr.zip")] * n_samples
        assert batch.has_energy_label.tolist() == [iteration > 0 for iteration in batch.scf_iteration.tolist()]
    assert elements == set(dataset.basis_info.atomic_numbers.tolist())


def test_single_samples_equal_the_rows_of_their_molecule() -> None:
    dataset = embedded("e_kin_plus_xc", "grad_kin_plus_xc")
    for molecule in range(0, dataset.n_molecules, 20):
        batch = dataset.molecule_batch(molecule)
        for row in (0, -1):
            first, last = int(dataset.sample_offsets[molecule]), int(dataset.sample_offsets[molecule + 1])
            sample = dataset[first if row == 0 else last - 1]
            own = batch.coeffs_batch == (0 if row == 0 else last - first - 1)
            for field in ("coeffs", "ground_state_coeffs", "dual_basis_integrals"):
                assert torch.equal(sample[field], batch[field][own])
            torch.testing.assert_close(sample.gradient_label, batch.gradient_label[own], rtol=1e-12, atol=1e-12)
            assert torch.equal(sample.energy_label, batch.energy_label[[row]])
