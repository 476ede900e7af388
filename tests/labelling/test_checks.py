"""Checks of labels: good ones pass, planted errors do not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("pyscf")

from ofdft_norm.labelling.checks import CheckTolerances, check_labels, report_table
from ofdft_norm.labelling.errors import LabelCheckError, LabellingError
from ofdft_norm.labelling.labels import KohnShamLabels
from tests.printed_tables import check_printed

Array = npt.NDArray[Any]


def test_labels_pass_their_checks(labels: KohnShamLabels) -> None:
    report = check_labels(labels)
    assert report.n_labelled == labels.has_energy_label.sum() >= 5
    assert report.n_compared >= 6
    assert report.finite_difference < 1e-2
    shifts = (labels.energies["e_kin"] - labels.ks_energies["e_kin"])[1:]
    assert report.kinetic_shift == shifts[-1]
    assert report.kinetic_shift_range == pytest.approx(max(shifts) - min(shifts))
    assert f"T_of - T_KS {1e3 * shifts[-1]:+.1f} mHa" in str(report)
    with_long_name = dataclasses.replace(report, mol_id="a_name_of_many_words_" * 3, kinetic_shift=-0.1745)
    check_printed(report_table([with_long_name]), data=r"a_name.*words_")
    check_printed(report_table([report]), data=report.mol_id)
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
