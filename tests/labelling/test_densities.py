"""The density basis, the fit to it, and energies of densities with their derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyscf")

from ofdft_norm import BasisInfo
from ofdft_norm.labelling import KohnShamLabels
from ofdft_norm.labelling.density_fit import external_potential, integrate_basis, solve_fit
from ofdft_norm.labelling.functional import evaluate_potentials, integrate_functionals
from ofdft_norm.labelling.kohn_sham import KohnShamTrajectory
from tests.labelling.conftest import WATER

FUNCTIONALS = {"e_xc": "PBE", "e_lda": "LDA,VWN", "e_kinapbe": "GGA_K_APBE"}


def test_functions_are_in_the_order_of_the_basis(mol: Any) -> None:
    basis_info = BasisInfo.from_atomic_numbers_with_even_tempered_basis([1, 8], "6-31G(2df,p)", 2.5)
    names = mol.ao_labels(fmt=False)
    functions = basis_info.basis_function_ind(basis_info.atom_indices(WATER.atomic_numbers))
    assert [atom for atom, *_ in names] == [0] * 116 + [1] * 20 + [2] * 20
    assert ["spdfg".index(shell[-1]) for _, _, shell, _ in names] == basis_info.l_per_basis_func[functions].tolist()
    assert [component for *_, component in names[11:17]] == ["x", "y", "z"] * 2
    assert [component for *_, component in names[35:40]] == ["xy", "yz", "z^2", "xz", "x2-y2"]


def test_integrals_agree_with_quadrature(mol: Any, trajectory: KohnShamTrajectory) -> None:
    grid, integrals = trajectory.grid, integrate_basis(mol)
    values = mol.eval_gto("GTOval", grid.coords)
    smooth = np.abs(integrals) > 0.3
    np.testing.assert_allclose(grid.weights @ values[:, smooth], integrals[smooth], rtol=1e-3)
    np.testing.assert_allclose(grid.weights @ values[:, ~smooth], integrals[~smooth], atol=2e-2)
    distances = np.linalg.norm(grid.coords[:, None] - WATER.positions, axis=-1)
    attraction = -(WATER.atomic_numbers / distances).sum(axis=1)
    expected = (grid.weights * attraction) @ values[:, smooth]
    np.testing.assert_allclose(external_potential(mol)[smooth], expected, rtol=1e-3)


def test_solutions_are_those_of_dense_linear_algebra() -> None:
    generator = np.random.default_rng(2)
    root, right = generator.normal(size=(7, 7)), generator.normal(size=(3, 7))
    rows, values = generator.normal(size=(2, 7)), generator.normal(size=(3, 2))
    metric = root @ root.T + 0.1 * np.eye(7)
    system = np.block([[metric, rows.T], [rows, np.zeros((2, 2))]])
    expected = np.linalg.solve(system, np.concatenate([right, values], axis=1).T).T[:, :7]
    np.testing.assert_allclose(solve_fit(metric, right, rows, values, exactly=True), expected, atol=1e-10)
    expected = np.linalg.lstsq(np.vstack([metric, rows]), np.hstack([right, values]).T, rcond=None)[0].T
    np.testing.assert_allclose(solve_fit(metric, right, rows, values, exactly=False), expected, atol=1e-10)


def test_each_fit_keeps_its_promises(mol: Any, trajectory: KohnShamTrajectory, both: dict[str, KohnShamLabels]) -> None:
    exact, least_squares = both["constrained"], both["least_squares"]
    e_ext = [iteration.energies["e_ext"] for iteration in trajectory.iterations]
    np.testing.assert_allclose(exact.coeffs @ integrate_basis(mol), 10.0, atol=1e-10)
    path = ~exact.perturbed
    np.testing.assert_allclose(exact.coeffs[path] @ external_potential(mol), e_ext, atol=1e-7)
    np.testing.assert_allclose(least_squares.coeffs[path] @ external_potential(mol), e_ext, atol=1e-4)
    assert 1e-4 < abs(least_squares.coeffs[-1] @ integrate_basis(mol) - 10.0) < 5e-3
    assert (least_squares.fit_residuals > 0).all()
    assert (least_squares.fit_residuals <= exact.fit_residuals + 1e-12).all()
    shifts = {fit: (made.energies["e_kin"] - made.ks_energies["e_kin"])[-1] for fit, made in both.items()}
    assert abs(shifts["least_squares"]) < 1e-3 < abs(shifts["constrained"]) < 5e-3
    orbitals = trajectory.mol.eval_gto("GTOval", trajectory.grid.coords)
    density = np.einsum("pa,ab,pb->p", orbitals, trajectory.iterations[-1].density_matrix, orbitals, optimize=True)
    for made in both.values():  # the basis lacks cusps at the nuclei: a hundredth of the electrons is somewhere else
        fitted = mol.eval_gto("GTOval", trajectory.grid.coords) @ made.coeffs[-1]
        assert trajectory.grid.weights @ np.abs(fitted - density) < 0.2


def test_potentials_are_the_derivatives_of_the_energies(
    mol: Any, trajectory: KohnShamTrajectory, labels: KohnShamLabels
) -> None:
    coeffs, step = labels.coeffs[-1], 1e-4
    direction = coeffs * np.random.default_rng(3).uniform(0.5, 1.5, size=coeffs.shape)
    points = np.stack([coeffs, coeffs + step * direction, coeffs - step * direction])
    found = evaluate_potentials(points, mol, trajectory.grid, FUNCTIONALS)
    assert set(found.energies) == set(found.gradients) == {"e_hartree", "e_ext", *FUNCTIONALS}
    for name, energies in found.energies.items():
        expected = (energies[1] - energies[2]) / (2 * step)
        assert found.gradients[name][0] @ direction == pytest.approx(expected, rel=1e-6), name
    blocks = integrate_functionals(points, mol, trajectory.grid, FUNCTIONALS, max_memory_mb=5.0)
    for name in FUNCTIONALS:
        np.testing.assert_allclose(blocks[0][name], found.energies[name], rtol=1e-12)
        np.testing.assert_allclose(blocks[1][name], found.gradients[name], atol=1e-11)
