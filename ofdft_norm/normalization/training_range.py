"""How far coefficients leave the range that the training split's have."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.normalization.float64_module import Float64Module
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics

Array = npt.NDArray[np.float64]

# Symmetry may keep a component of a shell at 0 in all training molecules, to rounding: its range has no width that
# anything could be measured in. It counts as at least this share of the shell's widest component ...
_SMALLEST_SHARE = 1e-2
# ... and, in shells of which all components are 0, of the largest coefficient.
_ROUNDING = 1e-9
# Smaller distances, in units of the width, are the rounding of coefficients that were cast to float32.
_SINGLE_PRECISION = 1e-6


class RangeExcess(NamedTuple):
    """How far samples leave the training range.

    Attributes:
        excess: (n_molecules,) float64, the largest distance of a coefficient from its range, in units of the range's
            width; 0 inside.
        dimension: (n_molecules,) the dimension where that is, an index in the concatenation over elements.
    """

    excess: Tensor
    dimension: Tensor


class TrainingRange(Float64Module):
    """The smallest and the largest coefficient of every dimension in the training split.

    Args:
        lowest: (n_basis,) the smallest ones; -inf where nothing is known.
        highest: (n_basis,) the largest ones; inf where nothing is known.
        width: (n_basis,) what distances from the range are measured in.
    """

    lowest: Tensor
    highest: Tensor
    width: Tensor

    def __init__(self, lowest: Tensor | Array, highest: Tensor | Array, width: Tensor | Array) -> None:
        super().__init__()
        self.register_float64("lowest", lowest)
        self.register_float64("highest", highest)
        self.register_float64("width", width)

    @classmethod
    def from_dataset_statistics(
        cls, statistics: DatasetStatistics, basis_info: BasisInfo, weigher_key: str = "has_energy_label"
    ) -> TrainingRange | None:
        """Takes the range from a data set's statistics; None where they do not have it.

        Args:
            statistics: The statistics.
            basis_info: The basis, which says what is a shell.
            weigher_key: Whose statistics to use.
        """
        if any(f"{weigher_key}/coeffs/{name}" not in statistics for name in ("minimum", "maximum")):
            return None
        lowest, highest = (statistics.load_statistic(weigher_key, f"coeffs/{name}") for name in ("minimum", "maximum"))
        unseen = (lowest == 0) & (highest == 0)  # an element without atoms
        _, first = np.unique(basis_info.basis_func_to_shell, return_index=True)
        widest = np.maximum.reduceat(highest - lowest, first)[basis_info.basis_func_to_shell]
        rounding = _ROUNDING * np.maximum(np.abs(lowest), np.abs(highest)).max()
        width = np.maximum.reduce([highest - lowest, _SMALLEST_SHARE * widest, np.full_like(widest, rounding)])
        return cls(np.where(unseen, -np.inf, lowest), np.where(unseen, np.inf, highest), np.where(unseen, 1.0, width))

    def excess(self, coeffs: Tensor, basis_function_ind: Tensor, molecule: Tensor, n_molecules: int) -> RangeExcess:
        """Returns how far samples leave the range.

        Args:
            coeffs: (n,) coefficients, not normalised.
            basis_function_ind: (n,) the dimension of each.
            molecule: (n,) the molecule of each.
            n_molecules: Number of molecules.

        Example:
            >>> training = TrainingRange(torch.tensor([0.0, -1.0]), torch.tensor([2.0, 1.0]), torch.tensor([2.0, 2.0]))
            >>> training.excess(torch.tensor([1.0, 4.0]), torch.tensor([0, 1]), torch.tensor([0, 0]), 1)
            RangeExcess(excess=tensor([1.5000], dtype=torch.float64), dimension=tensor([1]))
        """
        lowest, highest = self.lowest[basis_function_ind], self.highest[basis_function_ind]
        p = coeffs.detach().to(torch.float64)
        distance = torch.maximum(p - highest, lowest - p).clamp_min(0) / self.width[basis_function_ind]
        distance = distance.masked_fill(distance < _SINGLE_PRECISION, 0)
        excess = distance.new_zeros(n_molecules).scatter_reduce(0, molecule, distance, "amax")
        place = torch.arange(len(p), device=p.device).masked_fill(distance < excess[molecule], len(p))
        first = place.new_full((n_molecules,), len(p)).scatter_reduce(0, molecule, place, "amin")
        return RangeExcess(excess, basis_function_ind[first])
