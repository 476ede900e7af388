"""Labels of a molecule against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("pyscf")

from ofdft_norm.labelling.checks import check_labels, project
from ofdft_norm.labelling.density_basis import DensityBasis
from ofdft_norm.labelling.errors import KohnShamError, LabellingError
from ofdft_norm.labelling.kohn_sham import KohnShamSettings
from ofdft_norm.labelling.labels import KohnShamLabels, LabelSettings, reparametrize
from ofdft_norm.transforms.natural_reparametrization import natural_coordinates


def test_targets_differ_by_the_potentials(labels: KohnShamLabels) -> None:
    energies, rows = labels.energies, labels.has_energy_label
    np.testing.assert_allclose(energies["e_kin_plus_xc"], energies["e_kin"] + energies["e_xc"])
    parts = energies["e_kin"] + energies["e_hartree"] + energies["e_xc"] + energies["e_ext"]
    np.testing.assert_allclose(parts, energies["e_electron"], atol=1e-10)
    # at the converged density the gradient of the total energy is a multiple of w
    converged = project(labels.gradients["grad_tot"][-1], labels.dual_basis_integrals)
    assert np.abs(converged).max() < 1e-3
    assert not rows[0]
    assert all(np.all(gradient[0] == 0.0) for gradient in labels.gradients.values())
    assert rows[1:].all()


def test_natural_reparametrization_keeps_products_and_makes_the_overlap_one(
    labels: KohnShamLabels, basis: DensityBasis
) -> None:
    overlap = basis.overlap()
    transform = natural_coordinates(overlap)
    natural = reparametrize(labels, transform)
    dual = torch.ones(len(overlap), dtype=torch.bool)
    inverse_root = transform.apply(torch.eye(len(overlap), dtype=torch.float64), dual, inverse=False).numpy()
    unit = inverse_root @ overlap @ inverse_root
    np.testing.assert_allclose(unit, np.eye(len(unit)), atol=1e-10)
    np.testing.assert_allclose(natural.coeffs @ natural.dual_basis_integrals, 10.0, atol=1e-9)
    for target, gradient in labels.gradients.items():
        before = np.einsum("kn,kn->k", labels.coeffs, gradient)
        after = np.einsum("kn,kn->k", natural.coeffs, natural.gradients[target])
        np.testing.assert_allclose(after, before, atol=1e-9)
    plain, transformed = check_labels(labels), check_labels(natural)
    assert transformed.finite_difference == pytest.approx(plain.finite_difference, rel=1e-6)


def test_settings_are_validated() -> None:
    with pytest.raises(LabellingError, match="density_fit: got 'free'"):
        LabelSettings(density_fit="free")
    with pytest.raises(LabellingError, match="grad_kinetic"):
        LabelSettings(targets=("grad_kinetic",))
    with pytest.raises(KohnShamError, match="min_labelled 9 and max_iterations 3"):
        KohnShamSettings(min_labelled=9, max_iterations=3)
    with pytest.raises(KohnShamError, match="damping: got 1"):
        KohnShamSettings(damping=1.0)
