"""Relaxed geometries, and samples of their normal modes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pyscf")

from ofdft_norm.labelling.geometries import Geometry
from ofdft_norm.labelling.normal_modes import BOLTZMANN, DALTON, _hartree_fock, relax, sample_normal_modes

WATER = Geometry("water", np.array([8, 1, 1]), np.array([[0.0, 0.0, 0.2], [0.0, 1.5, -0.9], [0.0, -1.4, -0.9]]))
FLUORIDE = Geometry("hf", np.array([1, 9]), np.array([[0.0, 0.0, 0.0], [0.3, 0.2, 1.6]]))


@pytest.fixture(scope="module")
def relaxed() -> Geometry:
    return relax(WATER, "STO-3G")


def test_no_force_is_left_at_a_relaxed_geometry(relaxed: Geometry) -> None:
    gradient = _hartree_fock(relaxed, "STO-3G").nuc_grad_method().kernel()
    assert np.abs(gradient).max() < 1e-5
    assert _hartree_fock(relaxed, "STO-3G").e_tot < _hartree_fock(WATER, "STO-3G").e_tot


def test_each_mode_has_its_share_of_the_temperature(relaxed: Geometry) -> None:
    """The mean potential energy of classical harmonic modes is half k T each; the whole molecule does not move."""
    samples = sample_normal_modes(relaxed, 4000, 300.0, "STO-3G")
    assert [sample.mol_id for sample in samples[:2]] == ["water_000", "water_001"]
    steps = np.stack([sample.positions - relaxed.positions for sample in samples])
    hessian = _hartree_fock(relaxed, "STO-3G").Hessian().kernel()
    energies = 0.5 * np.einsum("kiu,ijuv,kjv->k", steps, hessian, steps)
    n_modes = 3
    assert energies.mean() == pytest.approx(n_modes / 2 * BOLTZMANN * 300.0, rel=0.1)
    masses = np.array([15.9994, 1.008, 1.008]) * DALTON
    np.testing.assert_allclose(masses @ steps.transpose(1, 0, 2).reshape(3, -1) / masses.sum(), 0.0, atol=1e-5)
    turned = np.cross(relaxed.positions, masses[:, None] * steps).sum(axis=1) / masses.sum()
    np.testing.assert_allclose(turned, 0.0, atol=1e-4)


def test_samples_follow_from_name_and_geometry_alone(relaxed: Geometry) -> None:
    first = sample_normal_modes(relaxed, 2, 300.0, "STO-3G")
    again = sample_normal_modes(relaxed, 3, 300.0, "STO-3G")
    np.testing.assert_array_equal(first[1].positions, again[1].positions)
    other = sample_normal_modes(replace(relaxed, mol_id="other"), 1, 300.0, "STO-3G")
    assert np.abs(other[0].positions - first[0].positions).max() > 1e-3
    hotter = sample_normal_modes(relaxed, 1, 1200.0, "STO-3G")
    expected = relaxed.positions + 2 * (first[0].positions - relaxed.positions)
    np.testing.assert_allclose(hotter[0].positions, expected, atol=1e-9)


def test_a_linear_molecule_vibrates_along_its_bond() -> None:
    relaxed = relax(FLUORIDE, "STO-3G")
    sample = sample_normal_modes(relaxed, 1, 300.0, "STO-3G")[0]
    bonds = [g.positions[1] - g.positions[0] for g in (relaxed, sample)]
    np.testing.assert_allclose(np.cross(*bonds), 0.0, atol=1e-6)
    assert abs(np.linalg.norm(bonds[0]) - np.linalg.norm(bonds[1])) > 1e-4
