"""Sums over the samples of one molecule, of which the weighted mean is one row of the fit to the composition."""

from __future__ import annotations

import torch
from torch import Tensor


class MoleculeSums:
    """Functional core of tables (rows, K, 1 + n_types + 1 + n_basis); holds no data.

    For each of K weighers a row holds [weight, composition, weight * energy, weight * sums of coefficients]. Rows of
    one molecule add up; their composition is the same in all of them.

    Args:
        n_weighers: K.
        n_types: Number of elements.
        n_basis: Number of functions over all elements.
    """

    def __init__(self, n_weighers: int, n_types: int, n_basis: int) -> None:
        self.n_weighers = n_weighers
        self.n_types = n_types
        self.n_basis = n_basis
        self.width = 2 + n_types + n_basis

    def empty(self) -> Tensor:
        """Returns a table without rows."""
        return torch.zeros(0, self.n_weighers, self.width, dtype=torch.float64)

    def of_samples(
        self, counts: Tensor, values: Tensor, molecule: Tensor, weights_of_kind: Tensor, kind: Tensor
    ) -> Tensor:
        """Adds up samples.

        Args:
            counts: (S, n_types) composition.
            values: (S, 1 + n_basis) energy and sums of coefficients.
            molecule: (S,) index of each sample's molecule, from 0 without gaps.
            weights_of_kind: (K, n_kinds) weights of each kind of samples.
            kind: (S,) index of each sample's kind.
        """
        n_molecules, n_kinds = int(molecule.max()) + 1, weights_of_kind.shape[1]
        group = molecule * n_kinds + kind
        n_samples = torch.bincount(group, minlength=n_molecules * n_kinds).to(torch.float64)
        sums = values.new_zeros(n_molecules * n_kinds, values.shape[1]).index_add_(0, group, values)
        table = values.new_empty(n_molecules, self.n_weighers, self.width)
        table[:, :, 0] = n_samples.view(n_molecules, n_kinds) @ weights_of_kind.T
        of_molecule = counts.new_zeros(n_molecules, self.n_types)
        of_molecule[molecule] = counts
        table[:, :, 1 : 1 + self.n_types] = of_molecule[:, None]
        table[:, :, 1 + self.n_types :] = weights_of_kind @ sums.view(n_molecules, n_kinds, -1)
        return table

    def joined(self, table: Tensor, molecule: Tensor, n_molecules: int) -> Tensor:
        """Adds up the rows of each molecule.

        Args:
            table: (rows, K, width).
            molecule: (rows,) index of each row's molecule.
            n_molecules: Number of molecules.
        """
        if n_molecules == len(table):
            return torch.empty_like(table).index_copy_(0, molecule, table)
        total = table.new_zeros(n_molecules, *table.shape[1:]).index_add_(0, molecule, table)
        composition = slice(1, 1 + self.n_types)
        total[molecule, :, composition] = table[:, :, composition]
        return total

    def mean_rows(self, table: Tensor, weigher: int) -> Tensor:
        """Returns (n, n_types + 1 + 1 + n_basis) rows [composition, 1 | mean energy, mean sums] of used molecules."""
        sums = table[table[:, weigher, 0] > 0, weigher]
        means = sums[:, 1 + self.n_types :] / sums[:, :1]
        return torch.cat([sums[:, 1 : 1 + self.n_types], torch.ones_like(sums[:, :1]), means], dim=1)

    def n_used(self, table: Tensor) -> Tensor:
        """Returns the (K, 1 + n_types) number of molecules of positive weight: all, and those with each element."""
        used = table[:, :, :1] > 0
        return torch.cat([used, used & (table[:, :, 1 : 1 + self.n_types] > 0)], dim=2).sum(0)
