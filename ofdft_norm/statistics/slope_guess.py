"""An early guess of the mean gradient, from a data set's first samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ofdft_norm.statistics.element_blocks import BatchBlocks

# An element's guess is settled when this many of its atoms have been seen.
ATOMS_PER_GUESS = 100


class SlopeGuess:
    """Averages gradients until every element that has come has come often enough; serves rounding alone.

    See `ResidualVariance`, whose results do not depend on the guess but for rounding.

    Args:
        n_basis: Number of functions over all elements.
    """

    def __init__(self, n_basis: int) -> None:
        self._sum = torch.zeros(n_basis, dtype=torch.float64)
        self._count = torch.zeros(n_basis, dtype=torch.float64)

    def update(self, blocks: BatchBlocks, used: Tensor) -> None:
        """Takes in the labelled samples that `used`, (S,) bool, selects, as far as they are of use."""
        if not blocks.has("gradient_label"):
            return
        for k, block in enumerate(blocks.elements):
            columns = block.columns
            if self._count[columns.start] < ATOMS_PER_GUESS:
                rows = blocks.rows("gradient_label")[k][used[block.samples]]
                self._sum[columns] += rows.sum(0)
                self._count[columns] += len(rows)

    def value(self) -> Tensor:
        """Returns the (n_basis,) guess [hartree], 0 for elements that have not come."""
        return torch.nan_to_num(self._sum / self._count.clamp_min(1), 0.0, 0.0, 0.0)
