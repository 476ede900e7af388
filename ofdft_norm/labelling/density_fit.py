"""The density basis of a molecule, its integrals, and the fit of density matrices to it.

The basis is even-tempered (`pyscf.df.aug_etb`) and uncontracted. Functions are in PySCF's order, which is the order of
`BasisInfo`: atom after atom, within an atom sorted by l; p functions x, y, z, other shells m = -l ... l.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ofdft_norm.data.files import import_optional
from ofdft_norm.labelling.geometries import Array
from ofdft_norm.labelling.kohn_sham import KohnShamIteration

FitMethod = Literal["least_squares", "constrained"]


def build_density_mol(orbital_mol: Any, beta: float = 2.5) -> Any:
    """Builds PySCF's molecule with the density basis of an orbital basis; beta is the ratio of its exponents."""
    df = import_optional("pyscf.df", "labels")
    return df.addons.make_auxmol(orbital_mol, df.aug_etb(orbital_mol, beta=beta))


def integrate_basis(mol: Any) -> Array:
    """Returns w, the integral of each basis function: (2 pi / a)^(3/4) for a normalised s Gaussian, else 0."""
    integrals, start = np.zeros(mol.nao), mol.ao_loc_nr()
    for shell in np.flatnonzero(mol._bas[:, 1] == 0):
        integrals[start[shell]] = (2.0 * np.pi / mol.bas_exp(shell)[0]) ** 0.75
    return integrals


def integrate_coulomb(mol: Any) -> Array:
    """Returns (w|w), (n_basis, n_basis) in hartree."""
    return np.asarray(mol.intor("int2c2e", hermi=1))


def integrate_external(mol: Any) -> Array:
    """Returns v_ext, the attraction of each basis function to the nuclei, (n_basis,) in hartree."""
    gto = import_optional("pyscf.gto", "labels")
    attraction = gto.intor_cross("int2c2e", mol, gto.fakemol_for_charges(mol.atom_coords()))
    return np.asarray(-(attraction @ mol.atom_charges()))


def fit_densities(
    densities: Sequence[KohnShamIteration], orbital_mol: Any, mol: Any, method: FitMethod
) -> tuple[Array, Array]:
    """Fits densities; returns p, (n_density, n_basis), and residuals, (n_density,) in hartree.

    The residual is 1/2 (d|d), the Coulomb self-energy of d = rho_Gamma - rho_p. p makes it small, W p = b, and also the
    error of the external energy, v_ext.p = E_ext: the basis has no cusps at the nuclei, so a fit of the density alone
    misses that energy by 1e-2 hartree.

    ``least_squares`` solves W p = b and v_ext.p = E_ext together in the least-squares sense, as M-OFDFT does (Zhang et
    al., arXiv 2309.16578, supplementary section on density fitting). The kinetic label is within 1e-2 hartree of the
    Kohn-Sham kinetic energy. The number of electrons is off by 1e-3 ... 2e-2.

    ``constrained`` minimises the self-energy under w.p = N and v_ext.p = E_ext. The kinetic label is below the
    Kohn-Sham kinetic energy by 1e-3 to 1e-2 hartree (0.13 for F2), by nearly the same amount in all iterations.
    """
    coulomb, external = integrate_coulomb(mol), integrate_external(mol)
    three_centre = import_optional("pyscf.df.incore", "labels").aux_e2(orbital_mol, mol, "int3c2e", aosym="s2ij")
    pairs = np.tril_indices(orbital_mol.nao)
    weights = np.where(pairs[0] == pairs[1], 1.0, 2.0)  # the packed triangle holds every off-diagonal pair once
    right = np.stack([density.density_matrix[pairs] * weights for density in densities]) @ three_centre
    e_ext, hartree = (np.array([d.energies[name] for d in densities]) for name in ("e_ext", "e_hartree"))
    exactly = method == "constrained"
    rows = np.stack([external, integrate_basis(mol)][: 1 + exactly])
    values = np.stack([e_ext, np.full_like(e_ext, orbital_mol.nelectron)][: 1 + exactly], axis=1)
    coeffs = solve_fit(coulomb, right, rows, values, exactly)
    fitted = 0.5 * np.einsum("kn,kn->k", coeffs @ coulomb, coeffs)
    return coeffs, hartree - np.einsum("kn,kn->k", coeffs, right) + fitted


def solve_fit(metric: Array, right: Array, rows: Array, values: Array, exactly: bool) -> Array:
    """Minimises 1/2 p.W p - b.p under C p = d, or |W p - b|^2 + |C p - d|^2.

    Shapes: W (n, n), symmetric and positive definite; b (m, n); C (c, n); d (m, c); result (m, n). Both minimisers are
    p0 - R (C R + E)^-1 (C p0 - d) for p0 = W^-1 b, the first with R = W^-1 C^T and E = 0, the second with R = W^-2 C^T
    and the unit matrix E: a few equations more than unknowns move the solution along fixed directions.
    """
    linalg = import_optional("scipy.linalg", "labels")
    scale = 1.0 / np.sqrt(np.diag(metric))  # takes the span of the exponents out of the condition number
    factor = linalg.cho_factor(metric * scale[:, None] * scale)

    def solve(vectors: Array) -> Array:
        return np.asarray(scale * linalg.cho_solve(factor, (scale * vectors).T).T)

    free, response = solve(right), solve(rows) if exactly else solve(solve(rows))
    system = rows @ response.T + (0.0 if exactly else np.eye(len(rows)))
    return np.asarray(free - np.linalg.solve(system, (free @ rows.T - values).T).T @ response)
