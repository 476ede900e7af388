"""An early guess of the mean gradient, from a data set's first samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.of_data import molecule_index

# An element's guess is settled when this many of its atoms have been seen.
ATOMS_PER_GUESS = 100


class SlopeGuess:
    """Averages gradients until every element that has come has come often enough; serves rounding alone.

    See `ResidualVariance`, whose results do not depend on the guess but for rounding.

    Args:
        basis_info: The basis.
    """

    def __init__(self, basis_info: BasisInfo) -> None:
        self._first = torch.as_tensor(basis_info.offsets[:-1])
        self._sum = torch.zeros(basis_info.n_basis, dtype=torch.float64)
        self._count = torch.zeros(basis_info.n_basis, dtype=torch.float64)

    def update(self, batch: Data, used: Tensor) -> None:
        """Takes in the labelled samples of a batch that `used`, (S,) bool, selects, if they are still of use."""
        gradient = batch.get("gradient_label")
        if gradient is None:
            return
        elements = batch.atom_ind[used[molecule_index(batch, "pos")]].unique()
        if (self._count[self._first[elements]] >= ATOMS_PER_GUESS).all():
            return
        of_function = used[molecule_index(batch)]
        index = batch.basis_function_ind[of_function]
        self._sum.index_add_(0, index, gradient.detach()[of_function].to(torch.float64))
        self._count += torch.bincount(index, minlength=len(self._count))

    def value(self) -> Tensor:
        """Returns the (n_basis,) guess [hartree], 0 for elements that have not come."""
        return torch.nan_to_num(self._sum / self._count.clamp_min(1), 0.0, 0.0, 0.0)
