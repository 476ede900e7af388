"""Streaming mean and variance of an energy around a linear reference that is known only at the end.

The residual of a sample is r = E - b.P - t.(1, n), with P its coefficients added up per dimension and n its
composition. What depends on (1, n) is kept as an R factor, the rest as co-moments. For rows A = (1, n) and
Y = (E - s.P, E - s_0.P, E, P) the state holds

    R and Q^T Y of A = Q R,   and   C = (Y - Q Q^T Y)^T (Y - Q Q^T Y).

Sums of squares of any r follow from it: |Q^T Y c - R t|^2 + c^T C c. Two states merge by a QR of their stacked R; what
that rotates out of the top rows goes to C. It is Chan's update, with the mean replaced by a fit to the composition:
E enters C as what composition does not explain, so 1e-6 hartree on top of 1e5 survive.

s is an early guess of the slope b, s_0 the same for l = 0 only. Columns reduced by them keep b.P, which may be 1e6
times larger than the residual, from cancelling in C, too; any s gives the same result but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

N_BASES = 3  # E - s.P, E - s_0.P, E

# The co-moments are symmetric: their upper triangle is made from strips of this many rows.
_STRIP = 128


@dataclass(frozen=True)
class _Parts:
    """Views of one state: R (p, p), Q^T Y (p, d), C (d, d), s (n_basis,)."""

    r: Tensor
    y: Tensor
    comoments: Tensor
    slope: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return self.r, self.y, self.comoments, self.slope

    @property
    def empty(self) -> bool:
        return float(self.r[0, 0]) == 0


class ResidualVariance:
    """Functional core; holds no data.

    A state is one (p + d + 1, p + d) float64 tensor with p = 1 + n_types and d = 3 + n_basis.

    Args:
        offsets: (n_types + 1,) where each element's functions begin, and the end.
        is_scalar: (n_basis,) bool: where l = 0.
    """

    def __init__(self, offsets: Sequence[int], is_scalar: Tensor) -> None:
        self.functions = [slice(int(first), int(last)) for first, last in pairwise(offsets)]
        self.p = len(offsets)
        self.is_scalar = is_scalar
        self.n_basis = len(is_scalar)
        self.d = N_BASES + self.n_basis
        self.shape = (self.p + self.d + 1, self.p + self.d)

    def _parts(self, state: Tensor) -> _Parts:
        p = self.p
        top = state[:p]
        return _Parts(top[:, :p], top[:, p:], state[p:-1, p:], state[-1, p + N_BASES :])

    def _bases(self, slope: Tensor) -> Tensor:
        """Returns the (3, n_basis) slopes by which the first three columns of Y are reduced."""
        return torch.stack([slope, torch.where(self.is_scalar, slope, 0.0), torch.zeros_like(slope)])

    def of_rows(self, counts: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """Returns the state of S rows of weight 1.

        Args:
            counts: (S, n_types).
            y: (S, 3 + n_basis), overwritten: two columns of any content, energies [hartree], and coefficients added up
                over the atoms, 0 for elements without atoms.
            slope: (n_basis,) guess of the reference's gradient.
        """
        state = y.new_zeros(self.shape)
        parts = self._parts(state)
        a = torch.cat([torch.ones_like(counts[:, :1]), counts], dim=1)
        if len(a) < self.p:
            a, y = (torch.cat([x, x.new_zeros(self.p - len(a), x.shape[1])]) for x in (a, y))
        energies, sums = y[:, :N_BASES], y[:, N_BASES:]
        torch.sub(energies[:, -1:], sums @ self._bases(slope).T, out=energies)
        q, parts.r[:] = torch.linalg.qr(a)
        torch.mm(q.T, y, out=parts.y)
        y.addmm_(q, parts.y, alpha=-1)
        # energies are large: a second projection takes out what rounding left of them
        again = q.T @ energies
        energies -= q @ again
        parts.y[:, :N_BASES] += again
        self._add_products(parts.comoments, y, counts)
        parts.slope[:] = slope
        return state

    def _add_products(self, comoments: Tensor, y: Tensor, counts: Tensor) -> None:
        """Fills in y^T y, but for the functions of elements that do not occur."""
        ranges = [slice(0, N_BASES)]
        for functions, occurs in zip(self.functions, counts.any(0).tolist(), strict=True):
            if occurs:
                ranges.append(slice(N_BASES + functions.start, N_BASES + functions.stop))
        strips = [
            slice(i, min(i + _STRIP, r.stop)) for r in joined_ranges(ranges) for i in range(r.start, r.stop, _STRIP)
        ]
        for k, left in enumerate(strips):
            for right in joined_ranges(strips[k:]):
                products = y[:, left].T @ y[:, right]
                comoments[left, right] = products
                comoments[right, left] = products.T

    def add(self, state: Tensor, other: Tensor, weight: float = 1.0) -> None:
        """Merges `other`, counted with `weight`, into `state`, in place."""
        a, b = self._parts(state), self._parts(other)
        if b.empty or weight == 0:
            return
        if a.empty:
            state[: self.p] = other[: self.p] * weight**0.5
            state[self.p : -1] = other[self.p : -1] * weight
            state[-1] = other[-1]
            return
        slope = torch.where(a.slope != 0, a.slope, b.slope)  # 0: these functions had not come when it was guessed
        if not torch.equal(slope, a.slope):
            rebased = self._rebased(a, slope)
            for old, new in zip(a.tensors(), rebased.tensors(), strict=True):
                old.copy_(new)
        b = self._rebased(b, slope)
        q, r = torch.linalg.qr(torch.cat([a.r, b.r * weight**0.5]), mode="complete")
        rotated = q.T @ torch.cat([a.y, b.y * weight**0.5])
        a.r.copy_(r[: self.p])
        a.y.copy_(rotated[: self.p])
        left_over = rotated[self.p :]
        a.comoments.add_(b.comoments, alpha=weight).addmm_(left_over.T, left_over)

    def _rebased(self, parts: _Parts, slope: Tensor) -> _Parts:
        """Changes the slope by which the energy columns are reduced."""
        if torch.equal(parts.slope, slope):
            return parts
        change = torch.eye(self.d, dtype=torch.float64)
        change[N_BASES:, :N_BASES] = (self._bases(parts.slope) - self._bases(slope)).T
        return _Parts(parts.r, parts.y @ change, change.T @ parts.comoments @ change, slope)

    def merge(self, states: Tensor) -> Tensor:
        """Merges (n, ...) states, first to last."""
        merged = states[0].clone()
        for other in states[1:]:
            self.add(merged, other)
        return merged

    def residual(self, state: Tensor, slope: Tensor, t: Tensor, t_global: float) -> tuple[float, float]:
        """Returns mean and population standard deviation of E - slope.P - t.n - t_global [hartree].

        Args:
            state: Of at least one row.
            slope: (n_basis,) gradient of the reference.
            t: (n_types,) energies of the elements.
            t_global: The constant.
        """
        parts = self._parts(state)
        rest = slope - self._bases(parts.slope)
        base = int(rest.square().sum(1).argmin())  # the column that leaves least to subtract
        direction = torch.zeros(self.d, dtype=torch.float64)
        direction[base] = 1.0
        direction[N_BASES:] = -rest[base]
        top = parts.y @ direction - parts.r @ torch.cat([t.new_tensor([t_global]), t])
        weight = float(parts.r[0, 0]) ** 2
        square = float(top[1:].square().sum() + direction @ parts.comoments @ direction)
        return float(top[0] / parts.r[0, 0]), (max(square, 0.0) / weight) ** 0.5


def joined_ranges(ranges: Sequence[slice]) -> list[slice]:
    """Joins ascending ranges of which one begins where the other ends."""
    joined: list[slice] = []
    for r in ranges:
        if joined and joined[-1].stop == r.start:
            joined[-1] = slice(joined[-1].start, r.stop)
        else:
            joined.append(r)
    return joined
