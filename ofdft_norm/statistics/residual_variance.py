"""Streaming variance of an energy around a linear reference that is known only at the end.

The residual r = E - gbar.P - t.n of a sample (P: coefficients added up per dimension, n: composition) is linear in
x = (E, n, P), so its mean and variance follow from the mean and the co-moments of x. E is first reduced by a
composition reference t0 fitted to the first rows: the co-moments are then of the size of the residual, not of the
energy, and 1e-6 hartree on top of 1e5 survive. States of different t0 merge after a change of basis.

State: (1 + 1 + d + d*d + n_types + 1,) flat: weight, mean (d), co-moments (d, d), t0 (n_types + 1), with
d = 1 + n_types + n_basis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ofdft_norm.statistics.least_squares import merge_r_factors, solve_r_factor


class ResidualVariance:
    """Functional core for states of one size; holds no data.

    Args:
        n_types: Number of elements.
        n_basis: Number of functions over all elements.
    """

    def __init__(self, n_types: int, n_basis: int) -> None:
        self.n_types = n_types
        self.n_columns = 1 + n_types + n_basis
        self.size = 1 + self.n_columns + self.n_columns**2 + n_types + 1

    def empty(self) -> Tensor:
        """Returns the state of no sample."""
        return torch.zeros(self.size, dtype=torch.float64)

    def _pack(self, weight: Tensor, mean: Tensor, comoments: Tensor, offset: Tensor) -> Tensor:
        return torch.cat([weight.reshape(1), mean, comoments.reshape(-1), offset])

    def _unpack(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        d = self.n_columns
        return state[0], state[1 : 1 + d], state[1 + d : 1 + d + d * d].reshape(d, d), state[1 + d + d * d :]

    def offset_of(self, counts: Tensor, energy: Tensor) -> Tensor:
        """Returns the (n_types + 1,) composition reference of some rows (the constant last)."""
        rows = torch.cat([counts, torch.ones_like(energy[:, None]), energy[:, None]], dim=1)
        factor = merge_r_factors(rows, self.n_types + 1)
        return solve_r_factor(factor[:, :-1], factor[:, -1:]).x[:, 0]

    def of_rows(self, energy: Tensor, counts: Tensor, sums: Tensor, offset: Tensor) -> Tensor:
        """Returns the state of rows of weight 1.

        Args:
            energy: (S,) [hartree].
            counts: (S, n_types).
            sums: (S, n_basis) coefficients added up over the atoms.
            offset: (n_types + 1,) composition reference.
        """
        reduced = energy - counts @ offset[:-1] - offset[-1]
        x = torch.cat([reduced[:, None], counts, sums], dim=1)
        mean = x.mean(0)
        x -= mean
        return self._pack(x.new_tensor(len(x)), mean, x.T @ x, offset)

    def _rebased(self, state: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Changes E - t0_old.(n, 1) into E - t0_new.(n, 1)."""
        total, mean, comoments, old = self._unpack(state)
        change = old - offset
        if not change.any():
            return total, mean, comoments
        transform = torch.eye(self.n_columns, dtype=torch.float64)
        transform[0, 1 : 1 + self.n_types] = change[:-1]
        mean = transform @ mean
        mean[0] += change[-1]
        return total, mean, transform @ comoments @ transform.T

    def offset(self, state: Tensor) -> Tensor:
        """Returns the (n_types + 1,) composition reference that a state's energies are reduced by."""
        return self._unpack(state)[3]

    def add(self, state: Tensor, other: Tensor, weight: float) -> None:
        """Merges `other`, reduced by the same composition reference and counted with `weight`, into `state`."""
        total_a, mean_a, comoments_a, offset_a = self._unpack(state)
        total_b, mean_b, comoments_b, offset_b = self._unpack(other)
        total = total_a + weight * total_b
        delta = mean_b - mean_a
        share = weight * total_b / total
        comoments_a.add_(comoments_b, alpha=weight).addr_(delta, delta * (total_a * share))
        mean_a.add_(delta * share)
        offset_a.copy_(offset_b)
        total_a.copy_(total)

    def merge(self, states: Tensor) -> Tensor:
        """Merges (n, size) states by Chan's update of means and co-moments."""
        filled = [state for state in states if state[0] > 0]
        if not filled:
            return self.empty()
        merged = filled[0].clone()
        for other in filled[1:]:
            offset = self.offset(merged)
            self.add(merged, self._pack(*self._rebased(other, offset), offset), 1.0)
        return merged

    def residual(self, state: Tensor, gbar: Tensor, t: Tensor) -> tuple[float, float]:
        """Returns mean and population standard deviation of E - gbar.P - t.(n, 1) [hartree].

        Args:
            state: (size,).
            gbar: (n_basis,) gradient of the reference.
            t: (n_types + 1,) energies of the elements and the constant.
        """
        total, mean, comoments = self._rebased(state, t)
        direction = torch.cat([torch.ones(1, dtype=torch.float64), torch.zeros(self.n_types).double(), -gbar])
        variance = float(direction @ comoments @ direction) / float(total)
        return float(direction @ mean), max(variance, 0.0) ** 0.5
