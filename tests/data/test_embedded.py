"""The labels that come with the package."""

import hashlib
import re
from collections import Counter

import numpy as np
import pytest
import torch

from ofdft_norm import BasisInfo
from ofdft_norm.data.files import EMBEDDED, read_plain
from ofdft_norm.data.packed import PackedDataset, PackedSet


@pytest.fixture(scope="module")
def embedded() -> PackedDataset:
    return PackedDataset([PackedSet(EMBEDDED, verify=True)])


def test_all_molecules_have_finite_labels_and_their_number_of_electrons(embedded: PackedDataset) -> None:
    names = [path.name.split(".")[0] for path in embedded.paths]
    sampled = Counter(name[:-4] for name in names if re.fullmatch(r".*_\d{3}", name))
    assert len(sampled) == 5
    assert min(sampled.values()) >= 24
    assert len(names) - sum(sampled.values()) >= 60
    assert embedded.elements() == set(embedded.basis_info.atomic_numbers.tolist()) == {1, 6, 7, 8, 9}
    assert embedded.basis_info == BasisInfo.from_json(EMBEDDED / "basis_info.json")
    assert embedded.basis_info.exponent_per_shell is not None
    for target in ("kin", "kin_plus_xc"):
        batch = embedded.with_target(target).molecules(range(len(names)))
        for field in ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals", "energy_label", "pos"):
            assert torch.isfinite(batch[field]).all()
            assert batch[field].dtype == torch.float64
        zeros = torch.zeros(batch.num_graphs, dtype=torch.float64)
        electrons = zeros.index_add(0, batch.coeffs_batch, batch.coeffs * batch.dual_basis_integrals)
        expected = zeros.index_add(0, batch.batch, batch.atomic_numbers.double())  # neutral molecules
        assert ((electrons - expected).abs() / expected).max() < 0.01  # least squares loses some
        assert torch.equal(batch.has_energy_label, batch.scf_iteration > 0)
    assert not (batch.perturbed & ~batch.has_energy_label).any()
    provenance = read_plain(EMBEDDED / "provenance.yaml")
    shift = provenance["kinetic_shift"]
    assert -0.01 < shift["lowest"]["value"] < shift["highest"]["value"] < 0.01
    digest = hashlib.sha256((EMBEDDED / "geometries.xyz").read_bytes()).hexdigest()
    assert provenance["geometries"] == {"geometries.xyz": digest}
    assert provenance["n_molecules"] == len(names)
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) < 15e6  # 12 MB in the wheel, which is compressed


@pytest.mark.parametrize("target", ["kin", "kin_plus_xc"])
def test_labels_agree_with_their_gradients(embedded: PackedDataset, target: str) -> None:
    """E(p1) - E(p0) is about (g0 + g1) / 2 . (p1 - p0): between thinned iterations, not to the 1 % of all of them."""
    errors: list[float] = []
    for molecule in range(embedded.n_molecules):
        batch = embedded.with_target(target).molecules([molecule])
        path = batch.has_energy_label & ~batch.perturbed
        energies, n_scf = batch.energy_label[path], len(path)
        gradients, coeffs = (batch[field].reshape(n_scf, -1)[path] for field in ("gradient_label", "coeffs"))
        expected = ((gradients[1:] + gradients[:-1]) * coeffs.diff(dim=0)).sum(dim=1) / 2
        errors += ((expected - energies.diff()).abs() / energies.diff().abs().clamp(min=1e-2)).tolist()
    assert 0 < np.median(errors) < 0.01
    assert max(errors) < 0.1
