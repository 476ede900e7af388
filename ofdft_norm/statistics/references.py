"""Reference energies of a fit: their names, their gradients, and the least-squares problem of each.

Rows are reduced to the R factor of a QR decomposition, and factors stack (TSQR): normal equations would square the
condition number. So 1e-6 hartree are kept in energies of 1e5.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis import BasisInfo

Array = npt.NDArray[np.float64]
CountBy = Literal["molecule", "sample"]

# A fit makes all of them for each weigher, and statistics carry these names. `linear_ref` counts every molecule once,
# with the mean of its samples, `linear_ref_by_sample` every sample.
ATOM_REFERENCES = ("atom_ref", "scalar_atom_ref")
LINEAR_REFERENCES = ("linear_ref", "linear_ref_by_sample")
REFERENCES = (*ATOM_REFERENCES, *LINEAR_REFERENCES)

# Singular values below this fraction of the largest are zero. R factors of element counts carry rounding of a few
# float64 ulps for any number of rows, so the limit does not grow with it.
RCOND = 1e-12


def name_linear_reference(count_by: CountBy) -> str:
    """Returns the name of the linear references that count each molecule, or each sample, once."""
    return LINEAR_REFERENCES[0] if count_by == "molecule" else LINEAR_REFERENCES[1]


def make_reference_gradient(name: str, gbar: Array, basis_info: BasisInfo) -> Array:
    """Returns the (n_basis,) gradient of a reference with respect to the coefficients; gbar is the mean gradient."""
    if name == "atom_ref":
        return gbar
    return np.where((basis_info.l_per_basis_func == 0) & (name == "scalar_atom_ref"), gbar, 0.0)


def reduce_rows(rows: Array) -> Array:
    """Returns the (width, width) R factor of (n, width) rows, with a diagonal >= 0; columns of zeros stay zero."""
    used = rows.any(0)
    triangle: Array = np.linalg.qr(rows[:, used], mode="r")  # type: ignore[assignment]
    factor = np.zeros((rows.shape[1], rows.shape[1]))
    factor[: len(triangle), used] = triangle * np.where(triangle.diagonal() < 0, -1.0, 1.0)[:, None]
    return factor


def reduce_linear_problem(compositions: Array, energy: Array) -> Array:
    """Reduces the fit of energies E to compositions N to a matrix (n_types + 1, n_types + 1).

    The first rows are [H | h] with H = (N^T N)^(1/2), which is unique for every rank: min |H x - h| has the solutions
    of min |N x - E|. The last row holds the norm of the part of E that no reference reaches.
    """
    n = compositions.shape[1]
    u, s, vt = np.linalg.svd(compositions, full_matrices=False)
    kept = s > RCOND * s[0]
    reached = u[:, kept].T @ energy
    reduced = np.zeros((n + 1, n + 1))
    reduced[:n, :n] = vt.T @ (s[:, None] * vt)
    reduced[:n, n] = vt[kept].T @ reached
    reduced[n, n] = np.linalg.norm(energy - u[:, kept] @ reached)
    return reduced


def compute_linear_residual(energy_factor: Array, values: Array) -> tuple[float, float]:
    """Returns mean and population standard deviation of E - N.values, from `reduce_rows` of weighted [1 | N | E]."""
    turned = energy_factor @ np.concatenate([[0.0], -values, [1.0]])
    return float(turned[0] / energy_factor[0, 0]), float(np.linalg.norm(turned[1:]) / energy_factor[0, 0])


class LeastSquaresSolution(NamedTuple):
    """Minimum-norm solution of a least-squares problem."""

    x: Array  # (n,)
    rank: int
    condition_number: float  # largest over smallest singular value that counts
    null_space: Array  # (n - rank, n) orthonormal combinations that the data do not determine
    covariance: Array  # (n, n) pseudo-inverse of A^T A: times the residual variance the covariance of x


def solve_least_squares(left: Array, right: Array, ridge: float = 0.0) -> LeastSquaresSolution:
    """Minimises |left x - right|^2 + (ridge s_max)^2 |x|^2, s_max the largest singular value of `left`."""
    u, s, vt = np.linalg.svd(left, full_matrices=left.shape[0] < left.shape[1])
    largest = float(s[0]) if len(s) else 0.0
    rank = int((s > RCOND * largest).sum())
    # singular values descend: rows of vt beyond the rank span the null space
    row_space, s, u = vt[:rank], s[:rank], u[:, :rank]
    return LeastSquaresSolution(
        x=row_space.T @ (s / (s**2 + (ridge * largest) ** 2) * (u.T @ right)),
        rank=rank,
        condition_number=largest / float(s[-1]) if rank else float("nan"),
        null_space=vt[rank:],
        covariance=row_space.T @ ((1 / s**2)[:, None] * row_space),
    )


def fit_reference(
    name: str, factor: Array, n_types: int, with_bias: bool = True, ridge: float = 0.0
) -> tuple[Array, float, LeastSquaresSolution]:
    """Fits one of `REFERENCES` to the `reduce_rows` of rows [1 | composition | energy | slopes of ATOM_REFERENCES].

    The reference is E_ref = gradient.p + sum_atoms t_Z + t_global: returns (n_types,) t_z, t_global and the solution.
    """
    composition, energy = factor[:, 1 : 1 + n_types], factor[:, 1 + n_types]
    if name in LINEAR_REFERENCES:
        problem = reduce_linear_problem(composition, energy)
        solution = solve_least_squares(problem[:-1, :-1], problem[:-1, -1], ridge)
    else:
        left = np.column_stack([composition, factor[:, 0]]) if with_bias else composition
        solution = solve_least_squares(left, energy - factor[:, 2 + n_types + ATOM_REFERENCES.index(name)])
    solution.x[:n_types][~composition.any(axis=0)] = 0.0  # no atoms: exactly 0, without the SVD's rounding
    return solution.x[:n_types], float(solution.x[n_types:].sum()), solution
