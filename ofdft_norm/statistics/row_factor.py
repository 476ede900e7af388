"""The streamed triangle: the R factor of a QR decomposition stands for all rows that went into it.

For rows X = Q R, whatever is linear in the columns of X has the same sums of squares over R: |X v| = |R v|. Two sets of
rows merge by one more QR of their stacked R (TSQR), so rows come and go and a small triangle stays. Products X^T X,
which would square the condition number, are never formed: 1e-6 hartree on top of 1e5 survive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowLayout:
    """Columns of a row: [1 | composition | energies | sums of coefficients].

    Attributes:
        n_types: Number of elements.
        n_targets: Number of energies.
        n_basis: Number of basis functions over all elements; 0 without density coefficients.
    """

    n_types: int
    n_targets: int = 1
    n_basis: int = 0

    @property
    def composition(self) -> slice:
        """The number of atoms of each element."""
        return slice(1, 1 + self.n_types)

    @property
    def energies(self) -> slice:
        """The energies [hartree]."""
        return slice(1 + self.n_types, 1 + self.n_types + self.n_targets)

    @property
    def sums(self) -> slice:
        """The coefficients, added up over the atoms of each element."""
        return slice(self.energies.stop, self.width)

    @property
    def width(self) -> int:
        """Number of columns."""
        return 1 + self.n_types + self.n_targets + self.n_basis


def row_factor(rows: Tensor, n_columns: int | None = None) -> Tensor:
    """Returns [R | Q^T Y] of rows [A | Y] = [Q R | Y].

    Args:
        rows: (n, width) float64; plain rows, or factors of others, one below the other.
        n_columns: Number of columns of A; None: all of them, nothing is left for Y.

    Returns:
        (n_columns, width); the diagonal of R is not negative, so that equal rows give equal factors. Columns of A that
        are zero throughout (elements that do not occur) take no part; as many rows at the end are zero.
    """
    width = rows.shape[1]
    n = width if n_columns is None else n_columns
    used = rows[:, :n].any(0)
    left = rows[:, :n] if used.all() else rows[:, :n][:, used]
    factor = rows.new_zeros(n, width)
    if n == width:
        triangle = torch.linalg.qr(left, mode="r").R
    else:
        q, triangle = torch.linalg.qr(left)
        factor[: len(triangle), n:] = q.T @ rows[:, n:]
    factor[: len(triangle), torch.cat([used, used.new_zeros(width - n)])] = triangle
    sign = torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(rows)
    factor[: len(sign)] *= sign[:, None]
    return factor
