"""Least squares of small, perhaps rank-deficient systems: the solution of minimum norm, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ofdft_norm.errors import ConfigError

# Singular values below this fraction of the largest are zero. R factors of element counts carry rounding of a few
# float64 ulps whatever the number of rows, so the limit does not grow with it.
RCOND = 1e-12

DRIVERS = ("gels", "gelsy", "gelsd", "gelss")


@dataclass(frozen=True)
class LeastSquaresSolution:
    """Minimum-norm solution of a least-squares problem.

    Attributes:
        x: (n,).
        rank: Numerical rank of the regressors.
        condition_number: Largest over smallest singular value that counts.
        null_space: (n - rank, n) orthonormal combinations the data cannot tell apart.
        covariance: (n, n) pseudo-inverse of A^T A: times the residual variance it is the covariance of x.
    """

    x: Tensor
    rank: int
    condition_number: float
    null_space: Tensor
    covariance: Tensor


def solve_least_squares(
    left: Tensor, right: Tensor, ridge: float = 0.0, solver: str | None = None
) -> LeastSquaresSolution:
    """Solves min |left x - right| for the x of minimum norm.

    Args:
        left: (m, n).
        right: (m,).
        ridge: Regularisation, relative to the largest singular value of `left`: adds (ridge s_max)^2 |x|^2.
        solver: None: the singular value decomposition that rank and covariance come from; ``numpy``:
            `numpy.linalg.lstsq`; else a LAPACK driver of `torch.linalg.lstsq`: gels, gelsy, gelsd or gelss. A ridge is
            always solved by the first.

    Returns:
        The solution, its rank and conditioning.

    Raises:
        ConfigError: If there is no such solver.
    """
    u, s, vt = torch.linalg.svd(left, full_matrices=left.shape[0] < left.shape[1])
    u = u[:, : len(s)]
    largest = float(s[0]) if len(s) else 0.0
    kept = s > RCOND * largest if largest > 0 else torch.zeros_like(s, dtype=torch.bool)
    rank = int(kept.sum())
    # singular values come in descending order: rows of vt beyond the rank span the null space
    row_space, s, u = vt[:rank], s[:rank], u[:, :rank]
    if ridge > 0 or solver is None:
        x = row_space.T @ (s / (s.square() + (ridge * largest) ** 2) * (u.T @ right))
    elif solver == "numpy":
        x = torch.from_numpy(np.linalg.lstsq(left.numpy(), right.numpy(), rcond=RCOND)[0])
    else:
        check_driver(solver)
        # within the row space every driver has full column rank to solve: torch's gelsy misjudges the rank of singular
        # triangles, and gels takes full rank for granted
        projected = torch.linalg.lstsq(left @ row_space.T, right[:, None], driver=solver).solution
        x = row_space.T @ projected[:, 0]
    return LeastSquaresSolution(
        x=x,
        rank=rank,
        condition_number=largest / float(s[-1]) if rank else float("nan"),
        null_space=vt[rank:],
        covariance=row_space.T @ (s.square().reciprocal()[:, None] * row_space),
    )


def check_driver(driver: str) -> None:
    """Refuses a LAPACK driver that `torch.linalg.lstsq` does not know.

    Args:
        driver: Name of the driver; None: PyTorch's choice.

    Raises:
        ConfigError: With those that it knows.
    """
    if driver not in DRIVERS:
        raise ConfigError(f"driver = {driver!r}: expected one of {list(DRIVERS)} or None (argument driver)")
