"""Distances of coefficients from the range of the training split."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.normalization.base import Float64Module
from ofdft_norm.statistics.store import Array, DatasetStatistics

# By symmetry a component of a shell may be 0 to rounding in all training molecules: its range has no useful width. It
# gets at least this share of the width of the shell's widest component ...
_SMALLEST_SHARE = 1e-2
_ROUNDING = 1e-9  # ... and, in shells with only such components, of the largest coefficient
_SINGLE_PRECISION = 1e-6  # smaller distances, in units of the width, are rounding of coefficients in float32


class RangeExcess(NamedTuple):
    """Distances of samples from the training range."""

    excess: Tensor  # (n_molecules,) float64, the largest of all coefficients, in units of the range's width; 0 inside
    dimension: Tensor  # (n_molecules,) its dimension, an index in the concatenation over elements


class TrainingRange(Float64Module):
    """The smallest and the largest coefficient of every dimension among all training samples; infinite if unknown."""

    lowest: Tensor
    highest: Tensor
    width: Tensor  # unit of distances

    def __init__(self, lowest: Tensor | Array, highest: Tensor | Array, width: Tensor | Array) -> None:
        super().__init__()
        self.register_float64("lowest", lowest)
        self.register_float64("highest", highest)
        self.register_float64("width", width)

    @classmethod
    def from_dataset_statistics(
        cls, statistics: DatasetStatistics, basis_info: BasisInfo, weigher_key: str = "has_energy_label"
    ) -> TrainingRange | None:
        """Reads the range from dataset statistics; None if they lack it.

        A dimension that is 0 in all training samples is bounded by 0; only elements without atoms are unbounded.
        """
        weigher = statistics[weigher_key]
        lowest, highest = weigher.get("coeffs_range/minimum"), weigher.get("coeffs_range/maximum")
        if lowest is None or highest is None or weigher.n_atoms is None:
            return None
        unseen = np.repeat(weigher.n_atoms == 0, basis_info.basis_dim_per_atom)
        lowest, highest = np.where(unseen, 0.0, lowest), np.where(unseen, 0.0, highest)
        _, first = np.unique(basis_info.basis_func_to_shell, return_index=True)
        widest = np.maximum.reduceat(highest - lowest, first)[basis_info.basis_func_to_shell]
        rounding = _ROUNDING * np.maximum(np.abs(lowest), np.abs(highest)).max()
        width = np.maximum.reduce([highest - lowest, _SMALLEST_SHARE * widest, np.full_like(widest, rounding)])
        width = np.where(unseen | (width == 0), 1.0, width)
        return cls(np.where(unseen, -np.inf, lowest), np.where(unseen, np.inf, highest), width)

    def excess(self, coeffs: Tensor, basis_function_ind: Tensor, molecule: Tensor, n_molecules: int) -> RangeExcess:
        """Returns the distances from the range of (n,) coefficients, not normalised, of these dimensions and molecules.

        Examples:
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
