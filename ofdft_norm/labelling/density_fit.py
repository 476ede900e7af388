"""Density fitting: coefficients p of the expansion that stands for a density matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ofdft_norm.labelling.density_basis import DensityBasis
from ofdft_norm.labelling.errors import LabellingError
from ofdft_norm.labelling.kohn_sham import KohnShamTrajectory

Array = npt.NDArray[np.float64]
FitMethod = Literal["constrained", "least_squares"]
FIT_METHODS: tuple[FitMethod, ...] = get_args(FitMethod)


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
    solve = _inverse(metric)
    free, response = solve(right), solve(constraints)
    multipliers = np.linalg.solve(constraints @ response.T, (free @ constraints.T - values).T)
    return np.asarray(free - multipliers.T @ response)


def solve_least_squares(metric: Array, right: Array, row: Array, values: Array) -> Array:
    """Minimises |W p - b|^2 + (v.p - d)^2, for several right-hand sides at once.

    With u = W^-1 v and p0 = W^-1 b the minimiser is p0 - (v.p0 - d) / (1 + u.u) W^-1 u: one equation more than
    unknowns moves the exact solution of the others along a fixed direction.

    Args:
        metric: (n, n) W, symmetric and positive definite.
        right: (m, n) the vectors b.
        row: (n,) v.
        values: (m,) the numbers d.

    Returns:
        (m, n) the minimisers.
    """
    solve = _inverse(metric)
    free, response = solve(right), solve(row)
    return np.asarray(free - np.outer((free @ row - values) / (1.0 + response @ response), solve(response)))


def _inverse(metric: Array) -> Callable[[Array], Array]:
    """Returns the function that multiplies vectors, (n,) or rows of a matrix, by W^-1."""
    # A unit diagonal costs nothing and takes the span of the exponents out of the condition number.
    scale = 1.0 / np.sqrt(np.diag(metric))
    factor = np.linalg.cholesky(metric * scale[:, None] * scale)

    def solve(vectors: Array) -> Array:
        lower = np.linalg.solve(factor, (vectors * scale).T)
        return np.asarray(np.linalg.solve(factor.T, lower).T * scale)

    return solve


def fit_densities(trajectory: KohnShamTrajectory, basis: DensityBasis, method: FitMethod = "constrained") -> DensityFit:
    """Fits the density of every iteration.

    p makes the Coulomb self-energy of the residual density small, W p = b, together with the external energy,
    v_ext.p = E_ext: for want of cusps at the nuclei, a fit of the density alone misses that by 1e-2 hartree.

    ``constrained`` minimises the self-energy under w.p = N and v_ext.p = E_ext. Exact electron numbers have a price:
    the 1e-3 electrons per atom that a free fit loses come back in diffuse functions, and the kinetic label, which makes
    up for the Hartree energy's shift, is below the Kohn-Sham kinetic energy by 1e-3 to 1e-2 hartree (0.13 for F2). The
    shift is nearly the same in all iterations. To keep the Hartree energy too is no cure: its constraint changes with
    the density, and with it energy differences between distant iterations agree ten times worse with the gradients.

    ``least_squares`` solves W p = b and v_ext.p = E_ext together in the least-squares sense, as M-OFDFT does. The
    kinetic label then is within 1e-3 hartree (F2: 1e-2) of the Kohn-Sham kinetic energy; the price is an electron
    number that is off by 1e-3 ... 2e-2, and gradients that agree with energy differences up to ten times worse.
    Source: Zhang et al., arXiv 2309.16578, supplementary section on density fitting.

    Args:
        trajectory: The Kohn-Sham iterations.
        basis: The density basis of the same molecule.
        method: One of the two.

    Returns:
        The coefficients and how good they are.

    Raises:
        LabellingError: If there is no such method.
    """
    check_fit_method(method)
    matrices = [iteration.density_matrix for iteration in trajectory.iterations]
    metric, right = basis.coulomb_metric(), basis.project_density(trajectory.mol, matrices)
    n_electrons, external = float(trajectory.mol.nelectron), basis.external_potential()
    e_ext = np.array([iteration.energies["e_ext"] for iteration in trajectory.iterations])
    if method == "constrained":
        values = np.stack([np.full_like(e_ext, n_electrons), e_ext], axis=1)
        coeffs = solve_constrained(metric, right, np.stack([basis.integrals, external]), values)
    else:
        coeffs = solve_least_squares(metric, right, external, e_ext)
    hartree = np.array([iteration.energies["e_hartree"] for iteration in trajectory.iterations])
    fitted = 0.5 * np.einsum("kn,nm,km->k", coeffs, metric, coeffs, optimize=True)
    residuals = hartree - np.einsum("kn,kn->k", coeffs, right) + fitted
    return DensityFit(coeffs, residuals, coeffs @ basis.integrals - n_electrons, metric)


def check_fit_method(method: str) -> None:
    """Refuses methods that `fit_densities` does not know.

    Args:
        method: Name of a method.

    Raises:
        LabellingError: With those that there are.
    """
    if method not in FIT_METHODS:
        raise LabellingError(f"density_fit: got {method!r}, expected one of {list(FIT_METHODS)} (option density-fit)")
