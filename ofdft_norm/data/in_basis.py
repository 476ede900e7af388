"""Samples of one basis, numbered as in another that has the same functions for each of their elements."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch_geometric.transforms import BaseTransform

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import BasisError


class InBasis(BaseTransform):
    """PyG transform: numbers elements and basis functions as another basis does, which has them all.

    A model and a normaliser that were made for H, C, N, O and F so take labels that were made with a basis of O and H:
    coefficients stay what they are, `atom_ind` and `basis_function_ind` change. Works on samples and on batches.

    Args:
        own: The basis that the samples were built with.
        other: The basis to number in.

    Raises:
        BasisError: If an element's functions differ, or the other basis lacks one of the elements.
    """

    works_on_batches = True

    def __init__(self, own: BasisInfo, other: BasisInfo) -> None:
        if not own.is_subset(other):
            raise BasisError(f"the elements of {own} do not all have the same functions in {other}")
        self.other = other
        atom_ind = other.atom_indices(own.atomic_numbers)
        self.atom_ind = torch.from_numpy(atom_ind)
        self.basis_function_ind = torch.from_numpy(other.basis_function_ind(atom_ind))

    def forward(self, data: Any) -> Any:
        """Returns a copy in the other basis; the sample or batch that is given stays as it is."""
        data = copy.copy(data)
        data.atom_ind = self.atom_ind[data.atom_ind]
        data.basis_function_ind = self.basis_function_ind[data.basis_function_ind]
        given = data.get("basis_info")
        if given is not None:  # one for each sample of a batch
            data.basis_info = [self.other] * len(given) if isinstance(given, list) else self.other
        return data
