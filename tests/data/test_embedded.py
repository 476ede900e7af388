"""The labels that come with the package."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest
import torch

from ofdft_norm import BasisInfo
from ofdft_norm.data.dataset import compose
from ofdft_norm.data.files import EMBEDDED, read_yaml
from ofdft_norm.data.packed import PackedDataset, PackedSet
from ofdft_norm.transforms import BasisTransforms, transforms_by_default


@pytest.fixture(scope="module")
def embedded() -> PackedDataset:
    return PackedDataset([PackedSet(EMBEDDED, verify=True)])


def test_all_molecules_have_finite_labels_and_their_number_of_electrons(embedded: PackedDataset) -> None:
    assert embedded.n_molecules == 88
    assert embedded.elements() == set(embedded.basis_info.atomic_numbers.tolist()) == {1, 6, 7, 8, 9}
    assert embedded.basis_info == BasisInfo.from_json(EMBEDDED / "basis_info.json")
    assert embedded.basis_info.exponent_per_shell is not None
    for target in ("kin", "kin_plus_xc"):
        batch = embedded.with_target(target).molecules(range(88))
        for field in ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals", "energy_label", "pos"):
            assert torch.isfinite(batch[field]).all()
            assert batch[field].dtype == torch.float64
        zeros = torch.zeros(batch.num_graphs, dtype=torch.float64)
        electrons = zeros.index_add(0, batch.coeffs_batch, batch.coeffs * batch.dual_basis_integrals)
        expected = zeros.index_add(0, batch.batch, batch.atomic_numbers.double())  # neutral molecules
        assert (electrons - expected).abs().max() < 1e-4
        assert torch.equal(batch.has_energy_label, batch.scf_iteration > 0)
    provenance = read_yaml(EMBEDDED / "provenance.yaml")
    digest = hashlib.sha256((EMBEDDED / "geometries.xyz").read_bytes()).hexdigest()
    assert provenance["geometries"] == [{"file": "geometries.xyz", "sha256": digest}]
    assert provenance["n_molecules"] == 88
    assert provenance["n_labelled"]["total"] == int(batch.has_energy_label.sum())


def test_the_coordinates_are_the_default_ones_of_the_geometry(embedded: PackedDataset) -> None:
    change = transforms_by_default()[0]
    assert embedded.coordinates == change.coordinates
    pytest.importorskip("pyscf")
    stored, back = embedded.molecules([7, 40, 86]), compose([BasisTransforms([]), change])
    assert back is not None
    found: Any = back(embedded.molecules([7, 40, 86]))
    for field in ("coeffs", "gradient_label", "dual_basis_integrals"):
        torch.testing.assert_close(found[field], stored[field], rtol=0, atol=1e-8)


def test_neighbouring_labels_agree_with_their_gradients(embedded: PackedDataset) -> None:
    """E(p1) - E(p0) is (P(g0 + g1) / 2) . (p1 - p0) to 1 %: section 6 of the labels' definition, in any coordinates."""
    batch = transforms_by_default()[1](embedded.molecules(range(88)))
    samples = [s for s in batch.to_data_list() if s.has_energy_label]
    worst = 0.0
    for a, b in itertools.pairwise(samples):
        change = float(b.energy_label - a.energy_label)
        if a.mol_id == b.mol_id and abs(change) > 1e-5:
            expected = float((a.gradient_label + b.gradient_label) @ (b.coeffs - a.coeffs)) / 2
            worst = max(worst, abs(expected - change) / abs(change))
    assert 0 < worst < 0.01
