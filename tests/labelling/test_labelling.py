"""Labels from Kohn-Sham calculations: formulas against naive implementations, and the whole against itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

pytest.importorskip("pyscf")

from ofdft_norm.data.pyscf_import import pyscf_module
from ofdft_norm.labelling.checks import CheckTolerances, check_labels, project
from ofdft_norm.labelling.density_basis import DensityBasis, build_density_basis
from ofdft_norm.labelling.density_fit import DensityFit, fit_densities, solve_constrained, solve_least_squares
from ofdft_norm.labelling.errors import KohnShamError, LabelCheckError, LabellingError
from ofdft_norm.labelling.functional import evaluate_potentials, exchange_correlation
from ofdft_norm.labelling.geometries import Geometry
from ofdft_norm.labelling.kohn_sham import KohnShamSettings, KohnShamTrajectory, build_molecule, run_kohn_sham
from ofdft_norm.labelling.labels import KohnShamLabels, LabelSettings, make_labels, reparametrize
from ofdft_norm.transforms.natural_reparametrization import natural_coordinates

Array = npt.NDArray[Any]

# Deliberately without symmetry: a swapped axis must not go unnoticed.
WATER = Geometry("bent", np.array([8, 1, 1]), np.array([[0.1, -0.2, 0.3], [0.4, 1.3, -0.8], [-1.2, -1.0, -0.7]]), "")


@pytest.fixture(scope="module")
def trajectory() -> KohnShamTrajectory:
    return run_kohn_sham(WATER)


@pytest.fixture(scope="module")
def basis(trajectory: KohnShamTrajectory) -> DensityBasis:
    return build_density_basis(trajectory.mol)


@pytest.fixture(scope="module")
def fit(trajectory: KohnShamTrajectory, basis: DensityBasis) -> DensityFit:
    return fit_densities(trajectory, basis)


@pytest.fixture(scope="module")
def labels() -> KohnShamLabels:
    targets = ("grad_kin", "grad_kin_plus_xc", "grad_tot")
    return make_labels(WATER, LabelSettings(natural_reparametrization=False, targets=targets))


# --- Kohn-Sham iterations -----------------------------------------------------------------------------------


def test_every_density_diagonalises_its_recorded_mixture_of_fock_matrices(trajectory: KohnShamTrajectory) -> None:
    mean_field = pyscf_module("dft").RKS(trajectory.mol, xc="PBE")
    mean_field.grids = trajectory.grid
    overlap, core = mean_field.get_ovlp(), mean_field.get_hcore()
    matrices = [iteration.density_matrix for iteration in trajectory.iterations]
    focks = [core + np.asarray(mean_field.get_veff(trajectory.mol, gamma)) for gamma in matrices]

    assert len(trajectory.iterations[0].fock_weights) == 0
    for k, iteration in enumerate(trajectory.iterations[1:], start=1):
        assert len(iteration.fock_weights) == k
        assert iteration.fock_weights.sum() == pytest.approx(1.0, abs=1e-12)
        fock = sum(w * f for w, f in zip(iteration.fock_weights, focks[:k], strict=True))
        commutator = fock @ matrices[k] @ overlap
        np.testing.assert_allclose(commutator, commutator.T, atol=1e-9)


def test_converges_to_the_energy_of_pyscfs_own_loop(trajectory: KohnShamTrajectory) -> None:
    mean_field = pyscf_module("dft").RKS(trajectory.mol, xc="PBE")
    mean_field.grids = trajectory.grid
    mean_field.conv_tol = 1e-10
    assert trajectory.converged
    assert trajectory.iterations[-1].energies["e_tot"] == pytest.approx(mean_field.kernel(), abs=2e-7)


def test_refuses_open_shells_and_elements_without_a_basis_and_reports_failed_convergence() -> None:
    radical = Geometry("hydroxyl", np.array([8, 1]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.8]]))
    with pytest.raises(KohnShamError, match="'hydroxyl' has 9 electrons; expected an even number"):
        run_kohn_sham(radical)
    potassium = Geometry("KH", np.array([19, 1]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 4.2]]))
    with pytest.raises(KohnShamError, match=r"'KH' has the elements \[1, 19\].*lacks.*'6-31G\(2df,p\)'.*option basis"):
        run_kohn_sham(potassium)
    hydrogen = Geometry("H2", np.array([1, 1]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]]))
    with pytest.raises(KohnShamError, match=r"'H2': not converged after 2 iterations.*max_iterations"):
        run_kohn_sham(hydrogen, KohnShamSettings(max_iterations=2, min_labelled=2))


# --- Density basis ------------------------------------------------------------------------------------------


def test_basis_has_the_published_shells() -> None:
    heavy = "11x0e+8x1o+7x2e+4x3o+2x4e"
    for number, dimension, irreps in [
        (1, 20, "6x0e+3x1o+1x2e"),
        (6, 109, "11x0e+8x1o+7x2e+3x3o+2x4e"),
        (7, 116, heavy),
        (8, 116, heavy),
        (9, 116, heavy),
    ]:
        pair = Geometry("pair", np.array([number, number]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 3.0]]))
        basis = build_density_basis(build_molecule(pair, "6-31G(2df,p)"))
        assert basis.n_basis == 2 * dimension
        assert basis.irreps_per_atom == {number: irreps}


def test_shells_are_sorted_and_their_components_run_from_minus_l_to_l(basis: DensityBasis) -> None:
    names = [basis.mol.ao_labels(fmt=False)[i] for i in basis.order]
    momenta = ["spdfg".index(shell[-1]) for _, _, shell, _ in names[:116]]
    assert [atom for atom, *_ in names] == [0] * 116 + [1] * 20 + [2] * 20
    assert momenta == sorted(momenta)
    assert [component for *_, component in names[11:17]] == ["y", "z", "x"] * 2
    assert [component for *_, component in names[35:40]] == ["xy", "yz", "z^2", "xz", "x2-y2"]


def test_integrals_agree_with_quadrature(basis: DensityBasis, trajectory: KohnShamTrajectory) -> None:
    values = basis.mol.eval_gto("GTOval", trajectory.grid.coords)[:, basis.order]
    smooth = np.abs(basis.integrals) > 0.3
    np.testing.assert_allclose(trajectory.grid.weights @ values[:, smooth], basis.integrals[smooth], rtol=1e-4)
    np.testing.assert_allclose(trajectory.grid.weights @ values[:, ~smooth], basis.integrals[~smooth], atol=1e-2)

    distances = np.linalg.norm(trajectory.grid.coords[:, None] - WATER.positions, axis=-1)
    attraction = -(WATER.atomic_numbers / distances).sum(axis=1)
    expected = (trajectory.grid.weights * attraction) @ values[:, smooth]
    np.testing.assert_allclose(basis.external_potential()[smooth], expected, rtol=1e-3)


# --- Density fit --------------------------------------------------------------------------------------------


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
        fit_densities(trajectory, basis, "exact")  # type: ignore[arg-type]


def test_fitted_density_agrees_with_the_orbitals_on_the_grid(
    trajectory: KohnShamTrajectory, basis: DensityBasis, fit: DensityFit
) -> None:
    orbitals = trajectory.mol.eval_gto("GTOval", trajectory.grid.coords)
    exact = np.einsum("pa,ab,pb->p", orbitals, trajectory.iterations[-1].density_matrix, orbitals, optimize=True)
    fitted = basis.mol.eval_gto("GTOval", trajectory.grid.coords)[:, basis.order] @ fit.coeffs[-1]
    # the basis lacks cusps at the nuclei: a hundredth of the electrons is somewhere else
    assert trajectory.grid.weights @ np.abs(fitted - exact) < 0.2


# --- Functionals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("xc", ["PBE", "LDA,VWN"])
def test_potentials_are_the_derivatives_of_the_energies(
    trajectory: KohnShamTrajectory, basis: DensityBasis, fit: DensityFit, xc: str
) -> None:
    generator = np.random.default_rng(3)
    coeffs = fit.coeffs[-1:]
    direction, step = coeffs * generator.uniform(0.5, 1.5, size=coeffs.shape), 1e-4

    def evaluate(p: Array) -> Any:
        return evaluate_potentials(p, basis, fit.coulomb_metric, trajectory.grid, xc)

    here, ahead, behind = evaluate(coeffs), evaluate(coeffs + step * direction), evaluate(coeffs - step * direction)
    for name, gradient in here.gradients.items():
        expected = (ahead.energies[name] - behind.energies[name]) / (2 * step)
        assert (gradient * direction).sum() == pytest.approx(expected[0], rel=1e-6), name
    total = sum(here.energies.values())
    np.testing.assert_allclose(here.effective_energy, total)


def test_energies_agree_with_those_of_the_orbitals(labels: KohnShamLabels) -> None:
    rows = labels.has_energy_label
    for name, tolerance in {"e_ext": 1e-8, "e_hartree": 5e-3, "e_xc": 2e-3, "e_kin": 5e-3}.items():
        np.testing.assert_allclose(labels.energies[name][rows], labels.ks_energies[name][rows], atol=tolerance)


def test_blocks_do_not_change_the_integral(
    trajectory: KohnShamTrajectory, basis: DensityBasis, fit: DensityFit
) -> None:
    whole = exchange_correlation(fit.coeffs[-2:], basis, trajectory.grid, "PBE")
    blocks = exchange_correlation(fit.coeffs[-2:], basis, trajectory.grid, "PBE", max_memory_mb=20.0)
    np.testing.assert_allclose(blocks[0], whole[0], rtol=1e-12)
    np.testing.assert_allclose(blocks[1], whole[1], atol=1e-11)


def test_refuses_hybrid_meta_functionals(trajectory: KohnShamTrajectory, basis: DensityBasis, fit: DensityFit) -> None:
    with pytest.raises(LabellingError, match="'TPSS' is of type MGGA"):
        exchange_correlation(fit.coeffs, basis, trajectory.grid, "TPSS")


# --- Labels and their checks --------------------------------------------------------------------------------


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


def test_labels_pass_their_checks(labels: KohnShamLabels) -> None:
    report = check_labels(labels)
    assert report.n_labelled == labels.has_energy_label.sum() >= 5
    assert report.n_compared >= 6
    assert report.finite_difference < 1e-2
    shifts = (labels.energies["e_kin"] - labels.ks_energies["e_kin"])[1:]
    assert report.kinetic_shift == shifts[-1]
    assert report.kinetic_shift_range == pytest.approx(max(shifts) - min(shifts))
    assert f"T_of - T_KS {1e3 * shifts[-1]:+.1f} mHa" in str(report)
    with pytest.raises(LabelCheckError, match=r"kinetic_shift is .*expected at most 1e-05"):
        check_labels(labels, CheckTolerances(kinetic_shift=1e-5))


def test_a_floor_accepts_what_a_stationary_energy_makes_large(labels: KohnShamLabels) -> None:
    total = dataclasses.replace(labels, gradients={"grad_tot": labels.gradients["grad_tot"]})
    strict = CheckTolerances(finite_difference=1e-3, finite_difference_floor={"grad_tot": 0.0})
    with pytest.raises(LabelCheckError, match="finite_difference is"):
        check_labels(total, strict)
    report = check_labels(total, dataclasses.replace(strict, finite_difference_floor={"grad_tot": 1e-3}))
    assert report.finite_difference <= 1e-3
    wrong = dataclasses.replace(labels, gradients={"grad_tot": -labels.gradients["grad_tot"]})
    with pytest.raises(LabelCheckError, match="finite_difference is"):
        check_labels(wrong)
    with pytest.raises(LabellingError, match=r"targets \['grad_x'\]; expected some of .*finite-difference-floor"):
        CheckTolerances(finite_difference_floor={"grad_x": 1.0})


def _replace_gradient(labels: KohnShamLabels, gradient: Array) -> KohnShamLabels:
    return dataclasses.replace(labels, gradients={"grad_kin": gradient})


@pytest.mark.parametrize("error", ["sign", "iteration", "missing term", "order in a shell", "nan"])
def test_checks_refuse_planted_errors(labels: KohnShamLabels, error: str) -> None:
    good = labels.gradients["grad_kin"]
    p_shells = good.copy()
    p_shells[:, 11:35] = good[:, 11:35].reshape(len(good), 8, 3)[..., [1, 2, 0]].reshape(len(good), 24)
    bad = {
        "sign": -good,
        "iteration": np.concatenate([good[:1], good[2:], good[-1:]]),
        "missing term": labels.gradients["grad_kin_plus_xc"],
        "order in a shell": p_shells,
        "nan": np.where(np.arange(len(good))[:, None] == 2, np.nan, good),
    }[error]
    with pytest.raises(LabelCheckError, match=r"finite_difference is .*expected at most 1e-02.*bent"):
        check_labels(_replace_gradient(labels, bad))


def test_checks_refuse_lost_electrons_bad_fits_and_short_trajectories(labels: KohnShamLabels) -> None:
    with pytest.raises(LabelCheckError, match="electrons is"):
        check_labels(dataclasses.replace(labels, coeffs=labels.coeffs * (1 + 1e-6)))
    with pytest.raises(LabelCheckError, match="fit_residual is"):
        check_labels(dataclasses.replace(labels, fit_residuals=labels.fit_residuals + 0.1))
    with pytest.raises(LabelCheckError, match="expected at least 50"):
        check_labels(labels, CheckTolerances(min_labelled=50))


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
        LabelSettings(density_fit="free")  # type: ignore[arg-type]
    with pytest.raises(LabellingError, match="grad_kinetic"):
        LabelSettings(targets=("grad_kinetic",))
    with pytest.raises(KohnShamError, match="min_labelled 9 and max_iterations 3"):
        KohnShamSettings(min_labelled=9, max_iterations=3)
    with pytest.raises(KohnShamError, match="damping: got 1"):
        KohnShamSettings(damping=1.0)
