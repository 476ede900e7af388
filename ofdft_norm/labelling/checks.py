"""Checks of finished labels that do not depend on how the labels were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ofdft_norm.labelling.density_fit import FitMethod
from ofdft_norm.labelling.geometries import Array, LabellingError
from ofdft_norm.labelling.labels import TARGETS, KohnShamLabels
from ofdft_norm.settings import Positive, Settings
from ofdft_norm.tables import format_rows

_SMALLEST_CHANGE = 1e-5  # hartree: changes of energies below it are not compared with gradients


class CheckTolerances(Settings):
    """Limits of the checks; the defaults are those of density fits by least squares, which lose electrons."""

    electrons: Positive = 0.01  # largest |w.p - N| / N (0.004 in the initial guess of F2)
    fit_residual: Positive = 1e-4  # largest Coulomb self-energy of a residual density [hartree per electron]
    kinetic_shift: Positive = 0.05  # largest |T_of - T_KS| of the converged density [hartree] (0.01 for F2O2)
    finite_difference: Positive = 0.01  # largest relative error of an energy change that gradients predict

    config_key = "labels"

    @classmethod
    def for_fit(cls, density_fit: FitMethod) -> CheckTolerances:
        """Returns the defaults for a method of `fit_densities`."""
        return cls(electrons=1e-10, kinetic_shift=1.0) if density_fit == "constrained" else cls()


@dataclass(frozen=True)
class CheckReport:
    """The largest errors of the labels of a molecule."""

    mol_id: str
    n_labelled: int
    electrons: float  # |w.p - N| / N
    fit_residual: float  # Coulomb self-energy of the residual density [hartree per electron]
    kinetic_shift: float  # T_of - T_KS of the converged density [hartree], kinetic label minus Kohn-Sham kinetic energy
    finite_difference: float  # relative error of an energy change that gradients predict


def check_labels(labels: KohnShamLabels, tolerances: CheckTolerances | None = None) -> CheckReport:
    """Checks the labels of a molecule; raises LabellingError if a number exceeds its tolerance or is not finite."""
    tolerances = tolerances or CheckTolerances()
    rows, n_electrons = labels.has_energy_label, int(labels.atomic_numbers.sum())
    shifts = (labels.energies["e_kin"] - labels.ks_energies["e_kin"])[rows]
    report = CheckReport(
        mol_id=labels.mol_id,
        n_labelled=int(rows.sum()),
        electrons=float(np.abs(labels.coeffs @ labels.dual_basis_integrals - n_electrons).max()) / n_electrons,
        fit_residual=float(labels.fit_residuals.max()) / n_electrons,
        kinetic_shift=float(shifts[-1]),
        finite_difference=float(_compare_changes(labels).max(initial=0.0)),
    )
    reasons = [
        f"{name} is {abs(getattr(report, name)):.3e}, expected at most {limit:.0e}"
        for name, limit in asdict(tolerances).items()
        if not abs(getattr(report, name)) <= limit  # true for NaN
    ]
    if reasons:
        raise LabellingError(f"labels of molecule {report.mol_id!r} refused: {'; '.join(reasons)} (tolerance options)")
    return report


def _compare_changes(labels: KohnShamLabels) -> Array:
    """Returns the relative errors of energy changes that gradients predict, (g0 + g1)/2 . (p1 - p0), of all targets.

    The changes are those between neighbouring SCF iterations, and between two strengths of each perturbation. Errors
    are divided by the change of the kinetic or of the total energy where that is larger than the target's own: the
    total energy is stationary at the ground state, and the kinetic energy is at some strength of a perturbation.
    Gradients are not projected: a fit by least squares changes the number of electrons, and the kinetic label
    compensates for the energy of the lost ones.
    """
    path, errors = np.flatnonzero(labels.has_energy_label & ~labels.perturbed), []
    pairs = [(labels, path[:-1], labels, path[1:])]
    if labels.compared is not None:
        rows = np.arange(len(labels.compared.coeffs)), np.flatnonzero(labels.perturbed)
        pairs.append((labels.compared, rows[0], labels, rows[1]))
    for first, i, second, j in pairs:
        steps = second.coeffs[j] - first.coeffs[i]
        sizes = [np.abs(second.energies[name][j] - first.energies[name][i]) for name in ("e_kin", "e_tot")]
        for target in labels.gradients:
            energy = TARGETS[target][0]
            changes = second.energies[energy][j] - first.energies[energy][i]
            gradients = 0.5 * (first.gradients[target][i] + second.gradients[target][j])
            size = np.maximum.reduce([np.abs(changes), *sizes])
            compared = ~(size <= _SMALLEST_CHANGE)  # true for NaN
            errors.append(np.abs(np.einsum("kn,kn->k", gradients, steps) - changes)[compared] / size[compared])
    return np.concatenate(errors)


def report_table(reports: Sequence[CheckReport]) -> str:
    """Returns the reports of several molecules as a text table."""
    header = ["molecule", "samples", "|w.p-N|/N", "fit [Ha/N]", "T_of-T_KS [mHa]", "dE error"]
    rows = []
    for r in reports:
        errors = [f"{error:.1e}" for error in (r.electrons, r.fit_residual, r.finite_difference)]
        rows.append([r.mol_id, str(r.n_labelled), *errors[:2], f"{1e3 * r.kinetic_shift:+.1f}", errors[2]])
    return format_rows(header, rows)
