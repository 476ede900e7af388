"""Streaming least squares by stacked R factors (TSQR): rows come and go, a small triangle stays.

For rows [A | Y] (regressors and right-hand sides) the state keeps R and Q^T Y of A = Q R. Two states merge by one
more QR of their stacked triangles. Normal equations, which square the condition number, are never formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Singular values below this fraction of the largest are zero. R factors of element counts carry rounding of a few
# float64 ulps whatever the number of rows, so the cut does not grow with it.
RCOND = 1e-12


def merge_r_factors(states: Tensor, n_regressors: int) -> Tensor:
    """Merges stacked states (or plain rows) into one.

    Args:
        states: (..., n_regressors + n_targets) rows [A | Y] or R factors of them, any number of leading axes.
        n_regressors: Number of columns of A.

    Returns:
        (n_regressors, n_regressors + n_targets): [R | Q^T Y], the diagonal of R not negative.
    """
    rows = states.reshape(-1, states.shape[-1])
    missing = n_regressors - rows.shape[0]
    if missing > 0:
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
    q, r = torch.linalg.qr(rows[:, :n_regressors])
    # the signs of rows are free: a diagonal >= 0 makes the state the same however the rows came
    sign = torch.where(r.diagonal() < 0, -1.0, 1.0).to(r)[:, None]
    return torch.cat([sign * r, sign * (q.T @ rows[:, n_regressors:])], dim=1)


@dataclass(frozen=True)
class LeastSquaresSolution:
    """Minimum-norm solution of a least-squares problem.

    Attributes:
        x: (n_regressors, n_targets).
        rank: Numerical rank of the regressors.
        condition_number: Largest over smallest singular value that counts.
        null_space: (n_regressors - rank, n_regressors) orthonormal combinations the data cannot tell apart.
        covariance: (n_regressors, n_regressors) pseudo-inverse of A^T A: times the residual variance it is the
            covariance of x.
    """

    x: Tensor
    rank: int
    condition_number: float
    null_space: Tensor
    covariance: Tensor


def solve_r_factor(r: Tensor, qty: Tensor, ridge: float = 0.0) -> LeastSquaresSolution:
    """Solves min |R x - Q^T Y| for the x of minimum norm.

    Args:
        r: (n, n) upper triangle.
        qty: (n, n_targets).
        ridge: Regularisation, relative to the largest singular value of R: adds (ridge * s_max)^2 |x|^2.

    Returns:
        The solution, its rank and conditioning.
    """
    u, s, vt = torch.linalg.svd(r)
    largest = float(s[0]) if len(s) else 0.0
    kept = s > RCOND * largest if largest > 0 else torch.zeros_like(s, dtype=torch.bool)
    safe = torch.where(kept, s, 1.0)
    filtered = torch.where(kept, safe / (safe.square() + (ridge * largest) ** 2), 0.0)
    inverse_square = torch.where(kept, safe.square().reciprocal(), 0.0)
    rank = int(kept.sum())
    return LeastSquaresSolution(
        x=vt.T @ (filtered[:, None] * (u.T @ qty)),
        rank=rank,
        condition_number=largest / float(s[kept][-1]) if rank else float("nan"),
        null_space=vt[~kept],
        covariance=vt.T @ (inverse_square[:, None] * vt),
    )
