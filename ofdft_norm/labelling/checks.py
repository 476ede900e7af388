"""Checks on finished labels that do not depend on how they were made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.labelling.errors import LabelCheckError
from ofdft_norm.labelling.labels import TARGETS, MoleculeLabels

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CheckTolerances:
    """What labels must fulfil.

    Attributes:
        electrons: Largest |w.p - N|.
        fit_residual: Largest Coulomb self-energy of a residual density, hartree per electron.
        finite_difference: Largest relative difference between an energy change and the gradient's prediction
            ...
        min_energy_change: ... wherever the energy changes by more than this, hartree.
        min_labelled: Fewest labelled iterations.
    """

    electrons: float = 1e-8
    fit_residual: float = 1e-4
    finite_difference: float = 0.01
    min_energy_change: float = 1e-5
    min_labelled: int = 5


@dataclass(frozen=True)
class CheckReport:
    """The worst numbers of one molecule.

    Attributes:
        mol_id: The molecule.
        n_labelled: Number of labelled iterations.
        electrons: Largest |w.p - N| over all iterations.
        fit_residual: Largest Coulomb self-energy of the residual density, hartree per electron.
        finite_difference: Largest relative error of an energy difference, over all targets.
        n_compared: Number of energy differences large enough to compare.
    """

    mol_id: str
    n_labelled: int
    electrons: float
    fit_residual: float
    finite_difference: float
    n_compared: int

    def __str__(self) -> str:
        return (
            f"{self.mol_id}: {self.n_labelled} labelled iterations, |w.p - N| {self.electrons:.1e}, "
            f"fit residual {self.fit_residual:.1e} Ha per electron, "
            f"finite-difference error {self.finite_difference:.1e} ({self.n_compared} compared)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain Python."""
        return asdict(self)


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
    energies: Array, gradients: Array, coeffs: Array, integrals: Array, min_energy_change: float
) -> Array:
    """Compares energy differences of neighbouring iterations with the trapezoidal rule.

    E(p1) - E(p0) is compared with (P(g0 + g1) / 2).(p1 - p0).

    Args:
        energies: (n,) energies of labelled iterations, hartree.
        gradients: (n, n_basis) their gradients, hartree.
        coeffs: (n, n_basis) their coefficients.
        integrals: (n_basis,) w.
        min_energy_change: Smaller changes are not compared, hartree.

    Returns:
        Relative errors, one for each pair that is compared.
    """
    changes = np.diff(energies)
    projected = project(gradients, integrals)
    predicted = np.einsum("kn,kn->k", 0.5 * (projected[1:] + projected[:-1]), np.diff(coeffs, axis=0))
    compared = np.abs(changes) > min_energy_change
    return np.asarray(np.abs(predicted - changes)[compared] / np.abs(changes)[compared])


def check_labels(labels: MoleculeLabels, tolerances: CheckTolerances | None = None) -> CheckReport:
    """Checks the labels of one molecule.

    Args:
        labels: The labels.
        tolerances: What they must fulfil; the defaults otherwise.

    Returns:
        The worst numbers.

    Raises:
        LabelCheckError: If a number exceeds its tolerance or is not finite; the message carries all of them.
    """
    tolerances = tolerances or CheckTolerances()
    rows, integrals = labels.has_energy_label, labels.dual_basis_integrals
    n_electrons = labels.geometry.n_electrons
    errors = [
        finite_difference_errors(
            labels.energies[TARGETS[target][0]][rows],
            gradients[rows],
            labels.coeffs[rows],
            integrals,
            tolerances.min_energy_change,
        )
        for target, gradients in labels.gradients.items()
    ]
    compared = np.concatenate(errors) if errors else np.zeros(0)
    report = CheckReport(
        mol_id=labels.geometry.mol_id,
        n_labelled=int(rows.sum()),
        electrons=float(np.abs(labels.coeffs @ integrals - n_electrons).max()),
        fit_residual=float(labels.fit_residuals.max()) / n_electrons,
        finite_difference=float(compared.max()) if len(compared) else 0.0,
        n_compared=len(compared),
    )
    _refuse(report, tolerances)
    return report


def _refuse(report: CheckReport, tolerances: CheckTolerances) -> None:
    reasons = [
        f"{name} is {getattr(report, name):.3e}, expected at most {getattr(tolerances, name):.0e}"
        for name in ("electrons", "fit_residual", "finite_difference")
        # written so that NaN fails
        if not getattr(report, name) <= getattr(tolerances, name)
    ]
    if report.n_labelled < tolerances.min_labelled:
        reasons.append(f"n_labelled is {report.n_labelled}, expected at least {tolerances.min_labelled}")
    if reasons:
        raise LabelCheckError(f"labels refused: {'; '.join(reasons)} (tolerance options of the same names). {report}")
