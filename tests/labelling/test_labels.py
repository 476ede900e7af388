"""Labels of a molecule against each other, the checks that refuse wrong ones, and fits to the density basis."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyscf")

from ofdft_norm.labelling import CheckTolerances, KohnShamLabels, LabellingError, check_labels, report_table
from ofdft_norm.labelling.density_fit import integrate_basis, integrate_external, solve_fit
from ofdft_norm.labelling.functional import evaluate_potentials
from ofdft_norm.labelling.kohn_sham import KohnShamTrajectory
from ofdft_norm.labelling.perturbation import perturb
from tests.labelling.conftest import WATER


def test_energies_add_up_and_are_near_those_of_kohn_and_sham(labels: KohnShamLabels) -> None:
    e, rows = labels.energies, labels.has_energy_label
    np.testing.assert_allclose(e["e_kin_plus_xc"], e["e_kin"] + e["e_xc"])
    np.testing.assert_allclose(e["e_kin_minus_apbe"], e["e_kin"] - e["e_kinapbe"], atol=1e-12)
    np.testing.assert_allclose(e["e_kin"] + e["e_hartree"] + e["e_xc"] + e["e_ext"], e["e_electron"], atol=1e-10)
    for name, tolerance in {"e_tot": 0.0, "e_ext": 1e-4, "e_hartree": 5e-3, "e_xc": 2e-3, "e_kin": 2e-3}.items():
        np.testing.assert_allclose(e[name], labels.ks_energies[name], rtol=0, atol=tolerance)
    assert rows.tolist() == [False, *[True] * (len(labels.coeffs) - 1)]
    assert not any(values[0].any() for values in (*labels.gradients.values(), *e.values()))


def test_gradients_are_the_mixed_potentials_of_earlier_iterations(
    mol: Any, trajectory: KohnShamTrajectory, labels: KohnShamLabels
) -> None:
    functionals, path = {"e_xc": "PBE", "e_kinapbe": "GGA_K_APBE"}, ~labels.perturbed
    potentials = evaluate_potentials(labels.coeffs[path], mol, trajectory.grid, functionals)
    expected = np.zeros_like(labels.coeffs[path])
    for k, iteration in enumerate(trajectory.iterations):
        for weight, potential in zip(iteration.fock_weights, potentials.effective_potential, strict=False):
            expected[k] -= weight * potential
    gradients, w = {name: values[path] for name, values in labels.gradients.items()}, labels.dual_basis_integrals
    np.testing.assert_allclose(gradients["grad_kin"], expected, atol=1e-8)
    np.testing.assert_allclose((expected - gradients["grad_kin_minus_apbe"])[1:], potentials.gradients["e_kinapbe"][1:])
    stationary = gradients["grad_tot"][-1]  # at the converged density, up to a multiple of w
    assert np.abs(stationary - w * (w @ stationary) / (w @ w)).max() < 1e-3


@pytest.mark.parametrize("fit", ["least_squares", "constrained"])
def test_right_labels_pass_the_checks_which_report_the_kinetic_shift(both: dict[str, KohnShamLabels], fit: str) -> None:
    labels = both[fit]
    report = check_labels(labels, CheckTolerances.for_fit(fit))
    shifts = (labels.energies["e_kin"] - labels.ks_energies["e_kin"])[1:]
    assert (report.n_labelled, report.kinetic_shift) == (len(shifts), shifts[-1])
    table = report_table([replace(report, mol_id="a_name_of_many_words_" * 3, kinetic_shift=-0.1745)])
    assert "-174.5" in table
    assert max(map(len, table.splitlines())) <= 80


def test_perturbed_densities_minimise_the_kinetic_energy_in_their_potential(
    mol: Any, trajectory: KohnShamTrajectory, labels: KohnShamLabels
) -> None:
    """The Fock matrix, its potential and the energies again, by quadrature and by PySCF."""
    assert labels.perturbed.tolist() == [False, True, True, True, *[False] * (len(trajectory.iterations) - 1)]
    (found, _), added = perturb(trajectory, mol, np.array([0.1]), "bent")
    grid, orbital_mol, density = trajectory.grid, trajectory.mol, found.density_matrix
    orbitals, functions = (m.eval_gto("GTOval", grid.coords) for m in (orbital_mol, mol))
    coeffs = np.linalg.solve(mol.intor("int1e_ovlp"), added[0])
    assert coeffs.std() == pytest.approx(0.1, rel=0.2)
    potential = functions @ coeffs
    np.testing.assert_allclose((grid.weights * potential) @ functions, added[0], atol=2e-2)
    fock = trajectory.fock + np.einsum("p,pa,pb->ab", grid.weights * potential, orbitals, orbitals, optimize=True)
    overlap = orbital_mol.intor("int1e_ovlp")
    commutator = fock @ density @ overlap
    np.testing.assert_allclose(commutator, commutator.T, atol=5e-3)
    np.testing.assert_allclose(density @ overlap @ density, 2 * density, atol=1e-10)
    effective, energies = trajectory.mean_field.get_veff(orbital_mol, density), found.energies
    assert energies["e_xc"] == pytest.approx(float(effective.exc), abs=1e-9)
    assert energies["e_hartree"] == pytest.approx(float(effective.ecoul), abs=1e-9)
    # row 1 has the same potential; the last iterations' potentials are equal to convergence
    w, difference = labels.dual_basis_integrals, labels.gradients["grad_kin"][1] - labels.gradients["grad_kin"][-1]
    difference += added[0]
    assert np.abs(difference - w * (w @ difference) / (w @ w)).max() < 1e-3


def test_perturbations_spread_from_the_ground_state_and_follow_from_the_name(
    mol: Any, trajectory: KohnShamTrajectory, labels: KohnShamLabels
) -> None:
    steps = labels.coeffs[labels.perturbed] - labels.coeffs[-1]
    distances = np.sqrt(np.einsum("km,mn,kn->k", steps, mol.intor("int1e_ovlp"), steps))
    assert (np.diff(distances) < 0).all()
    assert 0.1 < distances[0] < 1.0
    assert distances[-1] < 0.05
    assert (labels.energies["e_tot"][labels.perturbed] > labels.energies["e_tot"][-1]).all()
    potentials = [perturb(trajectory, mol, np.array([0.1]), name)[1] for name in ("a", "a", "b")]
    np.testing.assert_array_equal(potentials[0], potentials[1])
    assert np.abs(potentials[0] - potentials[2]).max() > 0.01


def test_kinetic_functionals_are_those_of_textbooks(
    mol: Any, trajectory: KohnShamTrajectory, labels: KohnShamLabels
) -> None:
    """Thomas and Fermi, von Weizsaecker, and APBE (Constantin et al., Phys. Rev. Lett. 106, 186406).

    T = int tau F(s): F = 1; F = 5 s^2 / 3; F = 1 + kappa - kappa / (1 + mu s^2 / kappa).
    """
    rho, *gradient = np.asarray(mol.eval_gto("GTOval_sph_deriv1", trajectory.grid.coords)) @ labels.coeffs[-1]
    positive = rho > 1e-12
    squared, rho = sum(g[positive] ** 2 for g in gradient), rho[positive]
    tau = 0.3 * (3 * np.pi**2) ** (2 / 3) * rho ** (5 / 3)
    s2 = squared / (2 * np.cbrt(3 * np.pi**2 * rho) * rho) ** 2
    kappa, mu = 0.804, 0.23889
    enhancements = {"tf": (1.0, 1e-9), "vw": (5 * s2 / 3, 1e-6)}
    enhancements["apbe"] = 1 + kappa - kappa / (1 + mu * s2 / kappa), 1e-9
    for name, (factor, tolerance) in enhancements.items():
        found = labels.energies["e_kinapbe" if name == "apbe" else f"e_kin_{name}"][-1]
        assert found == pytest.approx(trajectory.grid.weights[positive] @ (tau * factor), rel=tolerance), name


@pytest.mark.parametrize(
    "error", ["iteration", "missing term", "order in a shell", "nan", "grad_tot", "no potential", "other sign"]
)
def test_checks_refuse_planted_errors(labels: KohnShamLabels, error: str) -> None:
    good = labels.gradients["grad_kin"]
    p_shells = good.copy()
    p_shells[:, 11:35] = good[:, 11:35].reshape(len(good), 8, 3)[..., [1, 2, 0]].reshape(len(good), 24)
    added = np.where(labels.perturbed[:, None], good - good[-1], 0.0)  # the potential of a perturbation
    bad = {
        "iteration": np.concatenate([good[:1], good[2:], good[-1:]]),
        "missing term": labels.gradients["grad_kin_plus_xc"],
        "order in a shell": p_shells,
        "nan": np.where(np.arange(len(good))[:, None] == 2, np.nan, good),
        "no potential": good - added,
        "other sign": good - 2 * added,
    }
    wrong = {"grad_kin": bad[error]} if error in bad else {error: -labels.gradients[error]}
    with pytest.raises(LabellingError, match=r"'bent' refused: finite_difference is .*expected at most 1e-02"):
        check_labels(replace(labels, gradients=wrong))


def test_checks_refuse_lost_electrons_bad_fits_and_shifted_energies(both: dict[str, KohnShamLabels]) -> None:
    labels, limits = both["constrained"], CheckTolerances.for_fit("constrained")
    for wrong, tolerances, message in [
        (replace(labels, coeffs=labels.coeffs * (1 + 1e-6)), limits, "electrons is"),
        (replace(labels, fit_residuals=labels.fit_residuals + 0.1), limits, "fit_residual is"),
        (labels, replace(limits, kinetic_shift=1e-5), "kinetic_shift is .*expected at most 1e-05"),
    ]:
        with pytest.raises(LabellingError, match=message):
            check_labels(wrong, tolerances)


FUNCTIONALS = {"e_xc": "PBE", "e_lda": "LDA,VWN", "e_kinapbe": "GGA_K_APBE"}


def test_integrals_agree_with_quadrature(mol: Any, trajectory: KohnShamTrajectory) -> None:
    grid, integrals = trajectory.grid, integrate_basis(mol)
    values = mol.eval_gto("GTOval", grid.coords)
    smooth = np.abs(integrals) > 0.3
    np.testing.assert_allclose(grid.weights @ values[:, smooth], integrals[smooth], rtol=1e-3)
    np.testing.assert_allclose(grid.weights @ values[:, ~smooth], integrals[~smooth], atol=2e-2)
    distances = np.linalg.norm(grid.coords[:, None] - WATER.positions, axis=-1)
    attraction = -(WATER.atomic_numbers / distances).sum(axis=1)
    expected = (grid.weights * attraction) @ values[:, smooth]
    np.testing.assert_allclose(integrate_external(mol)[smooth], expected, rtol=1e-3)


def test_each_fit_keeps_its_promises(mol: Any, trajectory: KohnShamTrajectory, both: dict[str, KohnShamLabels]) -> None:
    exact, least_squares = both["constrained"], both["least_squares"]
    e_ext = [iteration.energies["e_ext"] for iteration in trajectory.iterations]
    np.testing.assert_allclose(exact.coeffs @ integrate_basis(mol), 10.0, atol=1e-10)
    path = ~exact.perturbed
    np.testing.assert_allclose(exact.coeffs[path] @ integrate_external(mol), e_ext, atol=1e-7)
    np.testing.assert_allclose(least_squares.coeffs[path] @ integrate_external(mol), e_ext, atol=1e-4)
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
    blocks = evaluate_potentials(points, mol, trajectory.grid, FUNCTIONALS, max_memory_mb=5.0)
    for name in FUNCTIONALS:
        np.testing.assert_allclose(blocks.energies[name], found.energies[name], rtol=1e-12)
        np.testing.assert_allclose(blocks.gradients[name], found.gradients[name], atol=1e-11)
