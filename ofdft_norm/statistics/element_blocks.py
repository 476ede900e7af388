"""Cuts ragged batches into one dense (atoms, dim_Z) block for each element.

All atoms of an element carry the same functions, so their coefficients form a matrix; reducing matrices is several
times faster than scattering 150,000 numbers by index. Samples to which all weighers give the same weights are of one
kind: their moments are taken once, unweighted, and counted with each weigher's weight afterwards. Within a block the
atoms are ordered by kind, so that a kind is a range of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.lazy_batch import parts
from ofdft_norm.data.of_data import molecule_index, n_molecules
from ofdft_norm.errors import BatchError
from ofdft_norm.statistics.molecule_keys import molecule_keys
from ofdft_norm.statistics.workspace import Workspace


@dataclass(frozen=True)
class ElementBlock:
    """The atoms of one element.

    Attributes:
        columns: Slice of the concatenation over elements that the element owns.
        starts: (atoms,) where each atom's functions start in the batches' flat vectors, joined.
        samples: (atoms,) index of the sample that each atom belongs to.
        atoms_of_kind: Number of atoms in samples of each kind; the atoms are in that order.
    """

    columns: slice
    starts: Tensor
    samples: Tensor
    atoms_of_kind: list[int]

    @property
    def dim(self) -> int:
        """Number of functions of each atom."""
        return self.columns.stop - self.columns.start


class BatchBlocks:
    """Batches of S samples together, cut by element and kind.

    Attributes:
        batches: The batches, on the CPU.
        weights: (K, S) weights that each of K weighers gives to the samples.
        weights_of_kind: (K, n_kinds) the same for each kind of samples.
        composition: (S, n_types) float64 number of atoms of each element in each sample.
        n_functions: Number of functions of all atoms of each batch.
        elements: One block for each element that occurs.
    """

    def __init__(
        self,
        batches: Sequence[Data],
        weights: Tensor,
        weights_of_kind: Tensor,
        composition: Tensor,
        n_functions: list[int],
        elements: list[ElementBlock],
        basis_info: BasisInfo,
        workspace: Workspace,
    ) -> None:
        self.batches = batches
        self.weights = weights
        self.weights_of_kind = weights_of_kind
        self.composition = composition
        self.n_functions = n_functions
        self.elements = elements
        self._basis_info = basis_info
        self._workspace = workspace
        self._rows: dict[str, list[Tensor]] = {}

    def has(self, field: str) -> bool:
        """Tells whether all samples have a field."""
        return all(field in batch for batch in self.batches)

    def check_length(self, field: str) -> None:
        """Refuses a batch that has not one value of a field for each function of its atoms.

        Raises:
            BatchError: Naming both numbers.
        """
        for batch, n_functions in zip(self.batches, self.n_functions, strict=True):
            n_values = sum(part.shape[0] for part in parts(batch, field))
            if n_values != n_functions:
                raise BatchError(
                    f"a batch has {n_values} values of {field!r}, but in the basis {self._basis_info} its atoms "
                    f"have {n_functions} functions: the samples were made with another basis, or lack some values "
                    "(config: data.source.basis_info)"
                )

    def batch_of(self, sample: int) -> tuple[Data, int]:
        """Returns the batch that holds a sample, and the sample's place in it."""
        for batch in self.batches:
            if sample < n_molecules(batch):
                break
            sample -= n_molecules(batch)
        return batch, sample

    @cached_property
    def molecule_keys(self) -> Tensor:
        """The (S,) int64 keys of the samples' molecules."""
        return molecule_keys(*self.batches)

    def energies(self) -> Tensor:
        """Returns the (S,) float64 energy labels [hartree]."""
        return torch.cat([batch.energy_label.detach().reshape(-1).to(torch.float64) for batch in self.batches])

    def rows(self, field: str) -> list[Tensor]:
        """Returns a field's (atoms, dim) float64 matrix of each element, kept for whoever asks next: not to be changed.

        Raises:
            BatchError: If the samples lack the field.
        """
        if field not in self._rows:
            self._rows[field] = self._gathered(field)
        return self._rows[field]

    def pop_rows(self, field: str) -> list[Tensor]:
        """Returns the same matrices for the caller to overwrite."""
        return self._rows.pop(field) if field in self._rows else self._gathered(field)

    def _gathered(self, field: str) -> list[Tensor]:
        for batch in self.batches:
            stored = stored_fields(batch, field)
        if len(stored) == 2:
            minuends, subtrahends = self.rows(stored[0]), self.pop_rows(stored[1])
            return [torch.sub(x, y, out=y) for x, y in zip(minuends, subtrahends, strict=True)]
        self.check_length(field)
        values = self._joined(field)
        # whole rows are copied out of a sliding window: no index for every single entry
        return [
            self._workspace.select(f"{field} {block.columns.start}", values.unfold(0, block.dim, 1), block.starts)
            for block in self.elements
        ]

    def _joined(self, field: str) -> Tensor:
        """Returns all batches' values of a field in one (N,) float64 vector."""
        values = [part.detach() for batch in self.batches for part in parts(batch, field)]
        if len(values) == 1:
            return values[0].to(torch.float64)
        return self._workspace.cat("joined", values)


def batch_blocks(
    batches: Sequence[Data], basis_info: BasisInfo, weights: Tensor, workspace: Workspace | None = None
) -> BatchBlocks:
    """Groups the atoms of batches by element, and those by their samples' weights.

    Args:
        batches: Batches (or single samples) of S samples together, with `atom_ind` and `coeffs`, on any device.
        basis_info: The basis.
        weights: (K, S) weights of K weighers.
        workspace: Memory for the blocks' rows: they are valid until it is given to the next ones.

    Raises:
        BatchError: If the atoms do not have as many functions in the basis as there are coefficients.
    """
    batches = [on_cpu(batch) for batch in batches]
    weights_of_kind, kind_of_sample = distinct_columns(weights)
    n_kinds = weights_of_kind.shape[1]
    atom_ind = torch.cat([batch.atom_ind for batch in batches])
    sample_of_atom = joined_molecule_index(batches)
    dims = torch.as_tensor(basis_info.basis_dim_per_atom)[atom_ind]
    ends = dims.cumsum(0)
    counts = count_elements(sample_of_atom, atom_ind, weights.shape[1], basis_info.n_types)
    if n_kinds == 1:
        group, sizes = atom_ind, counts.sum(0, keepdim=True).T
    else:
        group = atom_ind * n_kinds + kind_of_sample[sample_of_atom]
        sizes = counts.new_zeros(n_kinds, counts.shape[1]).index_add_(0, kind_of_sample, counts).T
    order = torch.argsort(group, stable=True)
    starts, samples = (ends - dims)[order], sample_of_atom[order]
    elements, begin = [], 0
    for element, atoms_of_kind in enumerate(sizes.to(torch.int64).tolist()):
        end = begin + sum(atoms_of_kind)
        first, last = int(basis_info.offsets[element]), int(basis_info.offsets[element + 1])
        if end > begin and last > first:
            elements.append(ElementBlock(slice(first, last), starts[begin:end], samples[begin:end], atoms_of_kind))
        begin = end
    n_functions = [int(of_batch.sum()) for of_batch in dims.split([len(batch.atom_ind) for batch in batches])]
    blocks = BatchBlocks(
        batches, weights, weights_of_kind, counts, n_functions, elements, basis_info, workspace or Workspace()
    )
    blocks.check_length("coeffs")
    return blocks


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


def sums_per_sample(blocks: BatchBlocks, place: Tensor, out: Tensor) -> Tensor:
    """Adds up the coefficients over the atoms of each sample.

    Args:
        blocks: The batches' blocks.
        place: (S,) row of `out` where each sample's sums go.
        out: (rows, n_basis) zeros, to be filled.

    Returns:
        `out`: entry [place[s], b] is the sum over the atoms of sample s of function b.
    """
    for block, rows in zip(blocks.elements, blocks.rows("coeffs"), strict=True):
        # adding into a dense matrix and copying is several times faster than adding into a slice of columns
        out[:, block.columns] = rows.new_zeros(len(out), rows.shape[1]).index_add_(0, place[block.samples], rows)
    return out


def joined_molecule_index(batches: Sequence[Data]) -> Tensor:
    """Returns, for every atom of several batches, the index of its sample among all of theirs."""
    firsts = accumulate((n_molecules(batch) for batch in batches), initial=0)
    indices = [molecule_index(batch, "pos") + first for batch, first in zip(batches, firsts, strict=False)]
    return torch.cat(indices)


def composition(batch: Data, basis_info: BasisInfo) -> Tensor:
    """Returns the (n_samples, n_types) float64 number of atoms of each element in each sample."""
    return count_elements(molecule_index(batch, "pos"), batch.atom_ind, n_molecules(batch), basis_info.n_types)


def count_elements(sample_of_atom: Tensor, atom_ind: Tensor, n_samples: int, n_types: int) -> Tensor:
    """Returns the (n_samples, n_types) float64 number of atoms of each element in each sample."""
    counts = torch.bincount(sample_of_atom * n_types + atom_ind, minlength=n_samples * n_types)
    return counts.reshape(n_samples, n_types).to(torch.float64)


def on_cpu(batch: Data) -> Data:
    """Returns the batch, or a copy of it on the CPU if its atoms lie elsewhere."""
    return batch if batch.atom_ind.device.type == "cpu" else copy(batch).cpu()  # PyG moves a batch in place


def stored_fields(batch: Data, field: str) -> tuple[str, ...]:
    """Returns the field itself, or for the derived `initial_guess_delta` the two of which it is the difference.

    Raises:
        BatchError: If the samples lack one of them.
    """
    names = ("coeffs", "ground_state_coeffs") if field == "initial_guess_delta" else (field,)
    for name in names:
        if name not in batch:
            raise BatchError(f"statistics of {field!r} need the field {name!r}, which the samples lack")
    return names


def field_values(batch: Data, field: str) -> Tensor:
    """Returns the flat (N,) float64 values of a field, or of the derived `initial_guess_delta`."""
    values = [batch[name].detach().to(torch.float64) for name in stored_fields(batch, field)]
    return values[0] - values[1] if len(values) == 2 else values[0]
