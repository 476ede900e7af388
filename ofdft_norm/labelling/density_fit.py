"""Density fitting: coefficients p of the expansion that stands for a density matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ofdft_norm.labelling.density_basis import DensityBasis
from ofdft_norm.labelling.kohn_sham import KohnShamTrajectory

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DensityFit:
    """Fitted densities of all iterations of one molecule.

    Attributes:
        coeffs: (n_iteration, n_basis) p.
        residuals: (n_iteration,) Coulomb self-energy 1/2 (d|d) of what the fit leaves, d = rho_Gamma - rho_p;
            hartree.
        electron_errors: (n_iteration,) w.p - N.
        coulomb_metric: (n_basis, n_basis) (w|w), hartree.
    """

    coeffs: Array
    residuals: Array
    electron_errors: Array
    coulomb_metric: Array


def solve_constrained(metric: Array, right: Array, constraints: Array, values: Array) -> Array:
    """Minimises 1/2 p.W p - b.p under C p = d, for several right-hand sides at once.

    Args:
        metric: (n, n) W, symmetric and positive definite.
        right: (m, n) the vectors b.
        constraints: (c, n) C.
        values: (m, c) the vectors d.

    Returns:
        (m, n) the minimisers.
    """
    # A unit diagonal costs nothing and takes the span of the exponents out of the condition number.
    scale = 1.0 / np.sqrt(np.diag(metric))
    factor = np.linalg.cholesky(metric * scale[:, None] * scale)

    def solve(vectors: Array) -> Array:
        lower = np.linalg.solve(factor, (vectors * scale).T)
        return np.asarray(np.linalg.solve(factor.T, lower).T * scale)

    free, response = solve(right), solve(constraints)
    multipliers = np.linalg.solve(constraints @ response.T, (free @ constraints.T - values).T)
    return np.asarray(free - multipliers.T @ response)


def fit_densities(
    trajectory: KohnShamTrajectory, basis: DensityBasis, constrain_external_energy: bool = True
) -> DensityFit:
    """Fits the density of every iteration.

    p minimises the Coulomb self-energy of the residual density under w.p = N and, by default, under
    v_ext.p = E_ext: for want of cusps at the nuclei, a free fit misses the external energy by 1e-2 hartree.

    Exact electron numbers have a price: the 1e-3 electrons per atom that a free fit loses come back in diffuse
    functions, and the kinetic label, which makes up for the Hartree energy's shift, differs from the Kohn-Sham
    kinetic energy by 1e-3 to 1e-2 hartree (0.13 for F2). The shift is nearly the same in all iterations. To keep
    the Hartree energy too is no cure: its constraint changes with the density, and with it energy differences
    between distant iterations agree ten times worse with the gradients.

    Args:
        trajectory: The Kohn-Sham iterations.
        basis: The density basis of the same molecule.
        constrain_external_energy: Whether to keep the external energy exactly.

    Returns:
        The coefficients and how good they are.
    """
    matrices = [iteration.density_matrix for iteration in trajectory.iterations]
    metric, right = basis.coulomb_metric(), basis.project_density(trajectory.mol, matrices)
    n_electrons = float(trajectory.mol.nelectron)
    constraints, values = [basis.integrals], [[n_electrons] for _ in matrices]
    if constrain_external_energy:
        constraints.append(basis.external_potential())
        values = [[n_electrons, iteration.energies["e_ext"]] for iteration in trajectory.iterations]
    coeffs = solve_constrained(metric, right, np.stack(constraints), np.array(values))
    hartree = np.array([iteration.energies["e_hartree"] for iteration in trajectory.iterations])
    fitted = 0.5 * np.einsum("kn,nm,km->k", coeffs, metric, coeffs, optimize=True)
    residuals = hartree - np.einsum("kn,kn->k", coeffs, right) + fitted
    return DensityFit(coeffs, residuals, coeffs @ basis.integrals - n_electrons, metric)
