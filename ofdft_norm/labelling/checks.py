"""Checks on finished labels that do not depend on how they were made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.labelling.density_fit import FitMethod, check_fit_method
from ofdft_norm.labelling.errors import LabelCheckError, LabellingError
from ofdft_norm.labelling.labels import TARGETS, KohnShamLabels
from ofdft_norm.tables import text_table

Array = npt.NDArray[Any]


# Largest error of an energy change, hartree, that is accepted of each target however small the change is. The
# trapezoidal rule is off by the same amount for all targets: by 3e-3 hartree where a first iteration moves the kinetic
# energy by 2 hartree. That is little of a kinetic energy's change, and much of a total energy's, which is stationary.
FLOORS: dict[str, float] = {"grad_kin": 0.0, "grad_kin_plus_xc": 0.0, "grad_tot": 5e-3}


@dataclass(frozen=True)
class CheckTolerances:
    """What labels must fulfil.

    Attributes:
        electrons: Largest |w.p - N|.
        fit_residual: Largest Coulomb self-energy of a residual density, hartree per electron.
        kinetic_shift: Largest |T_of - T_KS|, by which the kinetic label of the converged density differs from the
            Kohn-Sham kinetic energy, hartree.
        finite_difference: Largest relative difference between an energy change and the gradient's prediction
            ...
        min_energy_change: ... wherever the energy changes by more than this, hartree, ...
        finite_difference_floor: ... and the difference is more than this, hartree, for each target.
        min_labelled: Fewest labelled iterations.

    Raises:
        LabellingError: If `finite_difference_floor` names an unknown target.
    """

    electrons: float = 1e-8
    fit_residual: float = 1e-4
    kinetic_shift: float = math.inf
    finite_difference: float = 0.01
    min_energy_change: float = 1e-5
    finite_difference_floor: Mapping[str, float] = field(default_factory=FLOORS.copy)
    min_labelled: int = 5

    def __post_init__(self) -> None:
        unknown = sorted(set(self.finite_difference_floor) - set(TARGETS))
        if unknown:
            raise LabellingError(
                f"finite_difference_floor names the targets {unknown}; expected some of {sorted(TARGETS)} (option "
                "finite-difference-floor)"
            )
        object.__setattr__(self, "finite_difference_floor", {**FLOORS, **self.finite_difference_floor})

    @classmethod
    def of(cls, density_fit: FitMethod) -> CheckTolerances:
        """Returns the defaults for labels of one way of fitting densities.

        Args:
            density_fit: ``constrained`` keeps the number of electrons to rounding; ``least_squares`` loses up to 0.02
                of them in converged densities and 0.1 in initial guesses (measured on water, HCN, F2 and CF4), and
                small changes of its kinetic energy agree with its gradients to 1e-5 hartree only.

        Raises:
            LabellingError: If there is no such way.
        """
        check_fit_method(density_fit)
        if density_fit == "constrained":
            return cls()
        return cls(electrons=0.2, finite_difference_floor={"grad_kin": 1e-5, "grad_kin_plus_xc": 1e-5})


@dataclass(frozen=True)
class CheckReport:
    """The worst numbers of one molecule.

    Attributes:
        mol_id: The molecule.
        n_labelled: Number of labelled iterations.
        electrons: Largest |w.p - N| over all iterations.
        fit_residual: Largest Coulomb self-energy of the residual density, hartree per electron.
        kinetic_shift: T_of - T_KS of the converged density: the kinetic label, which makes up for what the density fit
            does to the other energies, less the Kohn-Sham kinetic energy; hartree.
        kinetic_shift_range: Largest less smallest T_of - T_KS of the labelled iterations, hartree: a shift that all
            iterations share changes neither gradients nor energy differences within the molecule.
        finite_difference: Largest relative error of an energy difference, over all targets; differences are counted as
            no smaller than those of which the target's floor is the tolerated share.
        n_compared: Number of energy differences large enough to compare.
    """

    mol_id: str
    n_labelled: int
    electrons: float
    fit_residual: float
    kinetic_shift: float
    kinetic_shift_range: float
    finite_difference: float
    n_compared: int

    def __str__(self) -> str:
        return (
            f"{self.mol_id}: {self.n_labelled} labelled iterations, |w.p - N| {self.electrons:.1e}, "
            f"fit residual {self.fit_residual:.1e} Ha per electron, "
            f"T_of - T_KS {1e3 * self.kinetic_shift:+.1f} mHa (range {1e3 * self.kinetic_shift_range:.1f}), "
            f"finite-difference error {self.finite_difference:.1e} ({self.n_compared} compared)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain Python."""
        return asdict(self)


_MEANINGS = {
    "labelled": "iterations with a label",
    "electrons": "largest |w.p - N|, by which the density's electrons differ from the molecule's",
    "fit": "largest Coulomb self-energy of what the density fit leaves out, per electron",
    "shift": "T_of - T_KS: kinetic label less Kohn-Sham kinetic energy, of the converged density",
    "range": "largest less smallest shift of the labelled iterations; a common shift moves no gradient",
    "difference": "largest relative error of an energy difference that gradients predict",
    "compared": "energy differences that are large enough to be compared",
}


def report_table(reports: Sequence[CheckReport]) -> str:
    """Returns the reports of several molecules as a text table.

    Args:
        reports: The reports, a row each.
    """
    of_energies = ("fit [Ha]", "shift [mHa]", "range [mHa]", "difference")
    header = ["molecule", "labelled", "electrons", *of_energies, "compared"]
    rows = [
        [
            report.mol_id,
            str(report.n_labelled),
            f"{report.electrons:.1e}",
            f"{report.fit_residual:.1e}",
            f"{1e3 * report.kinetic_shift:+.1f}",
            f"{1e3 * report.kinetic_shift_range:.1f}",
            f"{report.finite_difference:.1e}",
            str(report.n_compared),
        ]
        for report in reports
    ]
    return text_table(header, rows, meanings=_MEANINGS)


def project(gradients: Array, integrals: Array) -> Array:
    """Removes the component along w, which a fixed number of electrons leaves undefined.

    Args:
        gradients: (..., n_basis).
        integrals: (n_basis,) w, in the same coordinates.

    Returns:
        g - w (w.g) / (w.w).
    """
    return np.asarray(gradients - np.multiply.outer(gradients @ integrals, integrals) / (integrals @ integrals))


def finite_difference_errors(
    energies: Array,
    gradients: Array,
    coeffs: Array,
    integrals: Array,
    min_energy_change: float,
    least_change: float = 0.0,
) -> Array:
    """Compares energy differences of neighbouring iterations with the trapezoidal rule.

    E(p1) - E(p0) is compared with (P(g0 + g1) / 2).(p1 - p0).

    Args:
        energies: (n,) energies of labelled iterations, hartree.
        gradients: (n, n_basis) their gradients, hartree.
        coeffs: (n, n_basis) their coefficients.
        integrals: (n_basis,) w.
        min_energy_change: Smaller changes are not compared, hartree.
        least_change: Errors are divided by the change, or by this where the change is smaller, hartree.

    Returns:
        Relative errors, one for each pair that is compared.
    """
    changes = np.diff(energies)
    projected = project(gradients, integrals)
    predicted = np.einsum("kn,kn->k", 0.5 * (projected[1:] + projected[:-1]), np.diff(coeffs, axis=0))
    compared = np.abs(changes) > min_energy_change
    return np.asarray(np.abs(predicted - changes)[compared] / np.maximum(np.abs(changes), least_change)[compared])


def check_labels(labels: KohnShamLabels, tolerances: CheckTolerances | None = None) -> CheckReport:
    """Checks the labels of one molecule.

    Args:
        labels: The labels.
        tolerances: What they must fulfil; otherwise the defaults for constrained density fits.

    Returns:
        The worst numbers.

    Raises:
        LabelCheckError: If a number exceeds its tolerance or is not finite; the message carries all of them.
    """
    tolerances = tolerances or CheckTolerances()
    rows, n_electrons = labels.has_energy_label, labels.geometry.n_electrons
    shifts = (labels.energies["e_kin"] - labels.ks_energies["e_kin"])[rows]
    compared = _finite_differences(labels, tolerances)
    report = CheckReport(
        mol_id=labels.geometry.mol_id,
        n_labelled=int(rows.sum()),
        electrons=float(np.abs(labels.coeffs @ labels.dual_basis_integrals - n_electrons).max()),
        fit_residual=float(labels.fit_residuals.max()) / n_electrons,
        kinetic_shift=float(shifts[-1]) if len(shifts) else 0.0,
        kinetic_shift_range=float(np.ptp(shifts)) if len(shifts) else 0.0,
        finite_difference=float(compared.max()) if len(compared) else 0.0,
        n_compared=len(compared),
    )
    _refuse(report, tolerances)
    return report


def _finite_differences(labels: KohnShamLabels, tolerances: CheckTolerances) -> Array:
    """Returns the relative errors of all energy differences that are compared, of all targets."""
    rows = labels.has_energy_label
    errors = [
        finite_difference_errors(
            labels.energies[TARGETS[target][0]][rows],
            gradients[rows],
            labels.coeffs[rows],
            labels.dual_basis_integrals,
            tolerances.min_energy_change,
            tolerances.finite_difference_floor[target] / tolerances.finite_difference,
        )
        for target, gradients in labels.gradients.items()
    ]
    return np.concatenate(errors) if errors else np.zeros(0)


def _refuse(report: CheckReport, tolerances: CheckTolerances) -> None:
    reasons = [
        f"{name} is {getattr(report, name):.3e}, expected at most {getattr(tolerances, name):.0e}"
        for name in ("electrons", "fit_residual", "kinetic_shift", "finite_difference")
        # written so that NaN fails
        if not abs(getattr(report, name)) <= getattr(tolerances, name)
    ]
    if report.n_labelled < tolerances.min_labelled:
        reasons.append(f"n_labelled is {report.n_labelled}, expected at least {tolerances.min_labelled}")
    if reasons:
        raise LabelCheckError(f"labels refused: {'; '.join(reasons)} (tolerance options of the same names). {report}")
