"""The density fit against dense solutions, and against the orbitals' density."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pyscf")

from ofdft_norm.labelling.density_basis import DensityBasis
from ofdft_norm.labelling.density_fit import DensityFit, fit_densities, solve_constrained, solve_least_squares
from ofdft_norm.labelling.errors import LabellingError
from ofdft_norm.labelling.functional import evaluate_potentials
from ofdft_norm.labelling.kohn_sham import KohnShamTrajectory


def test_constrained_solution_solves_the_kkt_system() -> None:
    generator = np.random.default_rng(2)
    root, right = generator.normal(size=(7, 7)), generator.normal(size=(3, 7))
    constraints, values = generator.normal(size=(2, 7)), generator.normal(size=(3, 2))
    metric = root @ root.T + 0.1 * np.eye(7)
    solutions = solve_constrained(metric, right, constraints, values)
    system = np.block([[metric, constraints.T], [constraints, np.zeros((2, 2))]])
    expected = np.linalg.solve(system, np.concatenate([right, values], axis=1).T).T[:, :7]
    np.testing.assert_allclose(solutions, expected, atol=1e-10)


def test_fit_keeps_electrons_and_external_energy(
    trajectory: KohnShamTrajectory, basis: DensityBasis, fit: DensityFit
) -> None:
    external = [iteration.energies["e_ext"] for iteration in trajectory.iterations]
    np.testing.assert_allclose(fit.coeffs @ basis.integrals, 10.0, atol=1e-10)
    np.testing.assert_allclose(fit.coeffs @ basis.external_potential(), external, atol=1e-9)
    assert (fit.residuals > 0).all()
    assert fit.residuals.max() < 1e-4


def test_least_squares_solution_is_numpys() -> None:
    generator = np.random.default_rng(4)
    root, right = generator.normal(size=(7, 7)), generator.normal(size=(3, 7))
    row, values = generator.normal(size=7), generator.normal(size=3)
    metric = root @ root.T + 0.1 * np.eye(7)
    stacked, sides = np.vstack([metric, row]), np.hstack([right, values[:, None]])
    expected = np.linalg.lstsq(stacked, sides.T, rcond=None)[0].T
    np.testing.assert_allclose(solve_least_squares(metric, right, row, values), expected, atol=1e-10)


def test_least_squares_fit_is_near_the_kohn_sham_energies_and_loses_electrons(
    trajectory: KohnShamTrajectory, basis: DensityBasis, fit: DensityFit
) -> None:
    loose = fit_densities(trajectory, basis, "least_squares")
    assert (loose.residuals <= fit.residuals + 1e-12).all()
    assert 1e-4 < abs(loose.electron_errors[-1]) < 5e-3
    errors = []
    for found in (fit, loose):
        parts = evaluate_potentials(found.coeffs[-1:], basis, found.coulomb_metric, trajectory.grid, "PBE")
        errors.append(
            abs(
                trajectory.iterations[-1].energies["e_electron"]
                - parts.effective_energy[0]
                - trajectory.iterations[-1].energies["e_kin"]
            )
        )
    assert errors[1] < 0.5 * errors[0] < 5e-3
    with pytest.raises(LabellingError, match=r"density_fit: got 'exact', expected one of .*least_squares"):
        fit_densities(trajectory, basis, "exact")


def test_fitted_density_agrees_with_the_orbitals_on_the_grid(
    trajectory: KohnShamTrajectory, basis: DensityBasis, fit: DensityFit
) -> None:
    orbitals = trajectory.mol.eval_gto("GTOval", trajectory.grid.coords)
    exact = np.einsum("pa,ab,pb->p", orbitals, trajectory.iterations[-1].density_matrix, orbitals, optimize=True)
    fitted = basis.mol.eval_gto("GTOval", trajectory.grid.coords)[:, basis.order] @ fit.coeffs[-1]
    # the basis lacks cusps at the nuclei: a hundredth of the electrons is somewhere else
    assert trajectory.grid.weights @ np.abs(fitted - exact) < 0.2
