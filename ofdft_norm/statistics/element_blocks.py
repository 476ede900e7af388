"""Cuts a ragged batch into dense (atoms, dim_Z) blocks: one for each element and each kind of sample.

All atoms of an element carry the same functions, so their coefficients form a matrix; reducing matrices is several
times faster than scattering 150,000 numbers by index. Samples to which all weighers give the same weights are of one
kind: their moments are taken once, unweighted, and counted with each weigher's weight afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.of_data import molecule_index, n_molecules


@dataclass
class ElementBlock:
    """The atoms of one element in samples of one kind.

    Attributes:
        element: Index of the element in the basis.
        columns: Slice of the concatenation over elements that the element owns.
        entries: (atoms, dim) index of every function in the batch's flat vectors.
        samples: (atoms,) index of the sample that each atom belongs to.
    """

    element: int
    columns: slice
    entries: Tensor
    samples: Tensor


@dataclass
class SampleKind:
    """Samples of the same weights: (K,) `weights`, and the blocks of their atoms."""

    weights: Tensor
    samples: Tensor
    blocks: list[ElementBlock] = field(default_factory=list)


def sample_kinds(batch: Data, basis_info: BasisInfo, weights: Tensor) -> list[SampleKind]:
    """Groups a batch's samples by their weights, and the atoms of each group by element.

    Args:
        batch: Batch of S samples with `atom_ind`, `batch` and `basis_function_ind`.
        basis_info: The basis.
        weights: (K, S) weights of K weighers.

    Returns:
        One entry for each distinct column of `weights` that is not zero throughout.
    """
    kinds, kind_of_sample = distinct_columns(weights)
    atom_ind = batch.atom_ind
    sample_of_atom = molecule_index(batch, "pos")
    dims = torch.as_tensor(basis_info.basis_dim_per_atom)[atom_ind]
    starts = dims.cumsum(0) - dims
    group = kind_of_sample[sample_of_atom] * basis_info.n_types + atom_ind
    order = torch.argsort(group, stable=True)
    sizes = torch.bincount(group, minlength=len(kinds) * basis_info.n_types).tolist()

    begin = 0
    for g, size in enumerate(sizes):
        if size and kinds[g // basis_info.n_types].weights.any():
            element = g % basis_info.n_types
            atoms = order[begin : begin + size]
            first, last = int(basis_info.offsets[element]), int(basis_info.offsets[element + 1])
            entries = starts[atoms, None] + torch.arange(last - first)
            block = ElementBlock(element, slice(first, last), entries, sample_of_atom[atoms])
            kinds[g // basis_info.n_types].blocks.append(block)
        begin += size
    return [kind for kind in kinds if kind.weights.any()]


def distinct_columns(weights: Tensor) -> tuple[list[SampleKind], Tensor]:
    """Groups samples by equal columns of the (K, S) weights; returns the groups and the (S,) group of each sample."""
    if (weights == weights[:, :1]).all():  # the common case, at a tenth of the price of unique
        samples = torch.arange(weights.shape[1])
        return [SampleKind(weights[:, 0], samples)], torch.zeros_like(samples)
    columns, kind_of_sample = torch.unique(weights, dim=1, return_inverse=True)
    kinds = [SampleKind(columns[:, k], (kind_of_sample == k).nonzero().squeeze(1)) for k in range(columns.shape[1])]
    return kinds, kind_of_sample


def sums_per_sample(kind: SampleKind, values: Tensor, n_samples: int, n_basis: int) -> Tensor:
    """Adds up a per-function field over the atoms of each sample.

    Args:
        kind: The samples' blocks.
        values: (N,) flat field of the batch.
        n_samples: Number of samples of the batch.
        n_basis: Number of functions over all elements.

    Returns:
        (n_samples, n_basis): entry [s, b] is the sum over the atoms of sample s of function b; zero for samples of
        another kind.
    """
    sums = values.new_zeros(n_samples, n_basis)
    for block in kind.blocks:
        sums[:, block.columns].index_add_(0, block.samples, values.take(block.entries))
    return sums


def composition(batch: Data, basis_info: BasisInfo) -> Tensor:
    """Returns the (n_samples, n_types) float64 number of atoms of each element in each sample."""
    n_samples = n_molecules(batch)
    flat = molecule_index(batch, "pos") * basis_info.n_types + batch.atom_ind
    counts = torch.bincount(flat, minlength=n_samples * basis_info.n_types)
    return counts.reshape(n_samples, basis_info.n_types).to(torch.float64)
