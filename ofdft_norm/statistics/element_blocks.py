"""Cuts a ragged batch into one dense (atoms, dim_Z) block for each element.

All atoms of an element carry the same functions, so their coefficients form a matrix; reducing matrices is several
times faster than scattering 150,000 numbers by index. Samples to which all weighers give the same weights are of one
kind: their moments are taken once, unweighted, and counted with each weigher's weight afterwards. Within a block the
atoms are ordered by kind, so that a kind is a range of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.of_data import molecule_index, n_molecules
from ofdft_norm.errors import BatchError


@dataclass(frozen=True)
class ElementBlock:
    """The atoms of one element.

    Attributes:
        columns: Slice of the concatenation over elements that the element owns.
        starts: (atoms,) where each atom's functions start in the batch's flat vectors.
        samples: (atoms,) index of the sample that each atom belongs to.
        atoms_of_kind: Number of atoms in samples of each kind; the atoms are in that order.
    """

    columns: slice
    starts: Tensor
    samples: Tensor
    atoms_of_kind: list[int]

    def gather(self, values: Tensor) -> Tensor:
        """Returns a new (atoms, dim) matrix of a flat per-function field."""
        # whole rows are copied out of a sliding window: no index for every single entry
        dim = self.columns.stop - self.columns.start
        return values.unfold(0, dim, 1).index_select(0, self.starts)


@dataclass(frozen=True)
class BatchBlocks:
    """A batch of S samples, cut by element and kind.

    Attributes:
        n_samples: S.
        weights: (K, n_kinds) weight that each of K weighers gives to samples of each kind.
        elements: One block for each element of the batch.
    """

    n_samples: int
    weights: Tensor
    elements: list[ElementBlock]


def batch_blocks(batch: Data, basis_info: BasisInfo, weights: Tensor) -> BatchBlocks:
    """Groups a batch's atoms by element, and those by their samples' weights.

    Args:
        batch: Batch of S samples with `atom_ind`, `batch` and `coeffs`.
        basis_info: The basis.
        weights: (K, S) weights of K weighers.

    Raises:
        BatchError: If the atoms do not have as many functions in the basis as there are coefficients.
    """
    columns, kind_of_sample = distinct_columns(weights)
    n_kinds = columns.shape[1]
    sample_of_atom = molecule_index(batch, "pos")
    dims = torch.as_tensor(basis_info.basis_dim_per_atom)[batch.atom_ind]
    ends = dims.cumsum(0)
    n_functions = int(ends[-1]) if len(ends) else 0
    if n_functions != len(batch.coeffs):
        raise BatchError(
            f"the batch has {len(batch.coeffs)} coefficients, but in the basis {basis_info} its atoms have "
            f"{n_functions} functions: the samples were made with another basis (config: data.source.basis_info)"
        )
    group = batch.atom_ind if n_kinds == 1 else batch.atom_ind * n_kinds + kind_of_sample[sample_of_atom]
    order = torch.argsort(group, stable=True)
    sizes = torch.bincount(group, minlength=n_kinds * basis_info.n_types).reshape(-1, n_kinds).tolist()
    starts, samples = (ends - dims)[order], sample_of_atom[order]
    elements, begin = [], 0
    for element, atoms_of_kind in enumerate(sizes):
        end = begin + sum(atoms_of_kind)
        first, last = int(basis_info.offsets[element]), int(basis_info.offsets[element + 1])
        if end > begin and last > first:
            elements.append(ElementBlock(slice(first, last), starts[begin:end], samples[begin:end], atoms_of_kind))
        begin = end
    return BatchBlocks(weights.shape[1], columns, elements)


def distinct_columns(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the (K, n_kinds) distinct columns of (K, S) weights, and the (S,) index of each sample's column."""
    if (weights == weights[:, :1]).all():  # the common case
        return weights[:, :1], torch.zeros(weights.shape[1], dtype=torch.int64)
    first_of: dict[bytes, int] = {}  # a tenth of the price of torch.unique(dim=1)
    kinds = [first_of.setdefault(row.tobytes(), len(first_of)) for row in weights.T.contiguous().numpy()]
    kind_of_sample = torch.tensor(kinds)
    columns = weights.new_empty(weights.shape[0], len(first_of))
    columns[:, kind_of_sample] = weights
    return columns, kind_of_sample


def sums_per_sample(blocks: BatchBlocks, values: Tensor, out: Tensor) -> Tensor:
    """Adds up a per-function field over the atoms of each sample.

    Args:
        blocks: The batch's blocks.
        values: (N,) flat field of the batch.
        out: (S, n_basis) zeros, to be filled.

    Returns:
        `out`: entry [s, b] is the sum over the atoms of sample s of function b.
    """
    for block in blocks.elements:
        rows = block.gather(values)
        # adding into a dense matrix and copying is several times faster than adding into a slice of columns
        out[:, block.columns] = values.new_zeros(len(out), rows.shape[1]).index_add_(0, block.samples, rows)
    return out


def composition(batch: Data, basis_info: BasisInfo) -> Tensor:
    """Returns the (n_samples, n_types) float64 number of atoms of each element in each sample."""
    n_samples = n_molecules(batch)
    flat = molecule_index(batch, "pos") * basis_info.n_types + batch.atom_ind
    counts = torch.bincount(flat, minlength=n_samples * basis_info.n_types)
    return counts.reshape(n_samples, basis_info.n_types).to(torch.float64)
