"""Labels of a molecule against each other, and the checks that refuse wrong ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyscf")

from ofdft_norm.errors import ConfigError
from ofdft_norm.labelling import (
    CheckTolerances,
    KohnShamLabels,
    KohnShamSettings,
    LabellingError,
    LabelSettings,
    check_labels,
    report_table,
)
from ofdft_norm.labelling.functional import evaluate_potentials
from ofdft_norm.labelling.kohn_sham import KohnShamTrajectory
from ofdft_norm.labelling.labels import TARGETS


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
    functionals = {"e_xc": "PBE", "e_kinapbe": "GGA_K_APBE"}
    potentials = evaluate_potentials(labels.coeffs, mol, trajectory.grid, functionals)
    expected = np.zeros_like(labels.coeffs)
    for k, iteration in enumerate(trajectory.iterations):
        for weight, potential in zip(iteration.fock_weights, potentials.effective_potential, strict=False):
            expected[k] -= weight * potential
    gradients, w = labels.gradients, labels.dual_basis_integrals
    np.testing.assert_allclose(gradients["grad_kin"], expected, atol=1e-8)
    np.testing.assert_allclose((expected - gradients["grad_kin_minus_apbe"])[1:], potentials.gradients["e_kinapbe"][1:])
    stationary = gradients["grad_tot"][-1]  # at the converged density, up to a multiple of w
    assert np.abs(stationary - w * (w @ stationary) / (w @ w)).max() < 1e-3


@pytest.mark.parametrize("fit", ["least_squares", "constrained"])
def test_energy_changes_follow_from_the_gradients(both: dict[str, KohnShamLabels], fit: str) -> None:
    labels = both[fit]
    e_kin, p = labels.energies["e_kin"], labels.coeffs
    for target, (name, _) in TARGETS.items():
        energies, gradients = labels.energies[name], labels.gradients[target]
        for k in range(1, len(p) - 1):
            predicted = (gradients[k] + gradients[k + 1]) / 2 @ (p[k + 1] - p[k])
            assert abs(predicted - (energies[k + 1] - energies[k])) < 2e-3 * abs(e_kin[k + 1] - e_kin[k]) + 1e-7
    report = check_labels(labels, CheckTolerances.for_fit(fit))
    shifts = (e_kin - labels.ks_energies["e_kin"])[1:]
    assert (report.n_labelled, report.kinetic_shift) == (len(shifts), shifts[-1])
    assert report.kinetic_shift_range == pytest.approx(max(shifts) - min(shifts))
    table = report_table([replace(report, mol_id="a_name_of_many_words_" * 3, kinetic_shift=-0.1745)])
    assert "-174.5" in table
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize("error", ["iteration", "missing term", "order in a shell", "nan", "grad_tot"])
def test_checks_refuse_planted_errors(labels: KohnShamLabels, error: str) -> None:
    good = labels.gradients["grad_kin"]
    p_shells = good.copy()
    p_shells[:, 11:35] = good[:, 11:35].reshape(len(good), 8, 3)[..., [1, 2, 0]].reshape(len(good), 24)
    bad = {
        "iteration": np.concatenate([good[:1], good[2:], good[-1:]]),
        "missing term": labels.gradients["grad_kin_plus_xc"],
        "order in a shell": p_shells,
        "nan": np.where(np.arange(len(good))[:, None] == 2, np.nan, good),
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


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (LabelSettings, {"density_fit": "free"}, r"labels\.density_fit = 'free'"),
        (LabelSettings, {"targets": ["grad_kinetic"]}, r"labels\.targets.*grad_kinetic"),
        (LabelSettings, {"beta": 0.9}, r"labels\.beta = 0\.9"),
        (KohnShamSettings, {"min_labelled": 9, "max_iterations": 3}, "min_labelled = 9 and labels.max_iterations = 3"),
        (KohnShamSettings, {"grid_level": 99}, r"labels\.grid_level = 99"),
    ],
)
def test_settings_are_validated(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**settings)
