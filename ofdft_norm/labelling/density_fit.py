"""The density basis of a molecule, its integrals, and the fit of density matrices to it.

The basis is even-tempered (`pyscf.df.aug_etb`) and uncontracted. Functions are in PySCF's order, which is the order of
`BasisInfo`: atom after atom, within an atom sorted by l; p functions x, y, z, other shells m = -l ... l.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.files import optional_module
from ofdft_norm.labelling.geometries import LabellingError
from ofdft_norm.labelling.kohn_sham import KohnShamTrajectory

Array = npt.NDArray[np.float64]
FitMethod = Literal["least_squares", "constrained"]
FIT_METHODS: tuple[FitMethod, ...] = get_args(FitMethod)


def build_density_mol(orbital_mol: Any, beta: float = 2.5) -> Any:
    """Builds PySCF's molecule with the density basis of an orbital basis; beta is the ratio of its exponents."""
    df = optional_module("pyscf.df", "labels")
    return df.addons.make_auxmol(orbital_mol, df.aug_etb(orbital_mol, beta=beta))


def integrate_basis(mol: Any) -> Array:
    """Returns w, the integral of each basis function: (2 pi / a)^(3/4) for a normalised s Gaussian, else 0."""
    integrals, start = np.zeros(mol.nao), mol.ao_loc_nr()
    for shell in np.flatnonzero(mol._bas[:, 1] == 0):
        integrals[start[shell]] = (2.0 * np.pi / mol.bas_exp(shell)[0]) ** 0.75
    return integrals


def coulomb_metric(mol: Any) -> Array:
    """Returns (w|w), (n_basis, n_basis) in hartree."""
    return np.asarray(mol.intor("int2c2e", hermi=1))


def external_potential(mol: Any) -> Array:
    """Returns v_ext, the attraction of each basis function to the nuclei, (n_basis,) in hartree."""
    gto = optional_module("pyscf.gto", "labels")
    attraction = gto.intor_cross("int2c2e", mol, gto.fakemol_for_charges(mol.atom_coords()))
    return np.asarray(-(attraction @ mol.atom_charges()))


def project_densities(mol: Any, orbital_mol: Any, density_matrices: list[Array]) -> Array:
    """Returns (w|rho_Gamma), the Coulomb integrals of functions and densities, (n_density, n_basis) [hartree]."""
    three_centre = optional_module("pyscf.df.incore", "labels").aux_e2(orbital_mol, mol, "int3c2e", aosym="s2ij")
    rows, columns = np.tril_indices(orbital_mol.nao)
    weights = np.where(rows == columns, 1.0, 2.0)  # the packed triangle holds every off-diagonal pair once
    return np.stack([gamma[rows, columns] * weights for gamma in density_matrices]) @ three_centre


@dataclass(frozen=True)
class DensityFit:
    """Fitted densities of all iterations of a molecule.

    Attributes:
        coeffs: (n_iteration, n_basis) p.
        residuals: (n_iteration,) Coulomb self-energy 1/2 (d|d) of the residual density d = rho_Gamma - rho_p [hartree].
        coulomb: (n_basis, n_basis) (w|w) [hartree].
    """

    coeffs: Array
    residuals: Array
    coulomb: Array


def fit_densities(trajectory: KohnShamTrajectory, mol: Any, method: FitMethod = "least_squares") -> DensityFit:
    """Fits the density of every iteration.

    p makes the Coulomb self-energy of the residual density small, W p = b, together with the error of the external
    energy, v_ext.p = E_ext: the basis has no cusps at the nuclei, so a fit of the density alone misses that energy by
    1e-2 hartree.

    ``least_squares`` solves W p = b and v_ext.p = E_ext together in the least-squares sense, as M-OFDFT does (Zhang et
    al., arXiv 2309.16578, supplementary section on density fitting). The kinetic label is within 1e-2 hartree of the
    Kohn-Sham kinetic energy. The number of electrons is off by 1e-3 ... 2e-2.

    ``constrained`` minimises the self-energy under w.p = N and v_ext.p = E_ext. The 1e-3 electrons per atom that the
    other fit loses come back in diffuse functions, and the kinetic label is below the Kohn-Sham kinetic energy by 1e-3
    to 1e-2 hartree (0.13 for F2), by nearly the same amount in all iterations. A constraint on the Hartree energy is no
    cure: it changes with the density, and energy differences between distant iterations then agree ten times worse with
    the gradients.
    """
    if method not in FIT_METHODS:
        raise LabellingError(f"density_fit: got {method!r}, expected one of {list(FIT_METHODS)} (option density-fit)")
    iterations = trajectory.iterations
    coulomb, external = coulomb_metric(mol), external_potential(mol)
    right = project_densities(mol, trajectory.mol, [iteration.density_matrix for iteration in iterations])
    e_ext = np.array([iteration.energies["e_ext"] for iteration in iterations])
    if method == "constrained":
        values = np.stack([np.full_like(e_ext, trajectory.mol.nelectron), e_ext], axis=1)
        coeffs = solve_constrained(coulomb, right, np.stack([integrate_basis(mol), external]), values)
    else:
        coeffs = solve_least_squares(coulomb, right, external, e_ext)
    hartree = np.array([iteration.energies["e_hartree"] for iteration in iterations])
    fitted = 0.5 * np.einsum("kn,kn->k", coeffs @ coulomb, coeffs)
    return DensityFit(coeffs, hartree - np.einsum("kn,kn->k", coeffs, right) + fitted, coulomb)


def solve_constrained(metric: Array, right: Array, constraints: Array, values: Array) -> Array:
    """Minimises 1/2 p.W p - b.p under C p = d.

    Shapes: W (n, n), symmetric and positive definite; b (m, n); C (c, n); d (m, c); result (m, n).
    """
    solve = _factorize(metric)
    free, response = solve(right), solve(constraints)
    multipliers = np.linalg.solve(constraints @ response.T, (free @ constraints.T - values).T)
    return np.asarray(free - multipliers.T @ response)


def solve_least_squares(metric: Array, right: Array, row: Array, values: Array) -> Array:
    """Minimises |W p - b|^2 + (v.p - d)^2 for b (m, n) and d (m,).

    With u = W^-1 v and p0 = W^-1 b the minimiser is p0 - (v.p0 - d) / (1 + u.u) W^-1 u: one equation more than unknowns
    moves the solution of the others along a fixed direction.
    """
    solve = _factorize(metric)
    free, response = solve(right), solve(row)
    return np.asarray(free - np.outer((free @ row - values) / (1.0 + response @ response), solve(response)))


def _factorize(metric: Array) -> Callable[[Array], Array]:
    """Returns the function that multiplies vectors, (n,) or the rows of (m, n), by W^-1."""
    # A unit diagonal takes the span of the exponents out of the condition number.
    scale = 1.0 / np.sqrt(np.diag(metric))
    factor = np.linalg.cholesky(metric * scale[:, None] * scale)

    def solve(vectors: Array) -> Array:
        lower = np.linalg.solve(factor, (vectors * scale).T)
        return np.asarray(np.linalg.solve(factor.T, lower).T * scale)

    return solve
