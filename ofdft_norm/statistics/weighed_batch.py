"""A batch as all accumulators read it: samples weighed, coefficients as one dense matrix for each element.

All atoms of an element carry the same functions, so their coefficients form a matrix; reducing matrices is several
times faster than scattering 150,000 numbers by index. Samples to which all weighers give the same weights form a group:
their sums are taken once, unweighted, and counted with each weigher's weight afterwards. Within a matrix the atoms are
ordered by group, so that a group is a range of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.data.of_data import get_field, molecule_index, n_molecules, sample_name, scf_iteration
from ofdft_norm.errors import BatchError, StatisticsError
from ofdft_norm.statistics.reading import MOLECULE_INDEX, SAMPLE_INDEX
from ofdft_norm.statistics.row_factor import RowLayout


@dataclass(frozen=True)
class ElementAtoms:
    """The atoms of one element.

    Attributes:
        columns: Slice of the concatenation over elements that the element owns.
        starts: (atoms,) where each atom's functions start in the batch's flat vectors.
        samples: (atoms,) sample that each atom belongs to.
        atoms_per_group: Number of atoms in samples of each group; the atoms are in that order.
    """

    columns: slice
    starts: Tensor
    samples: Tensor
    atoms_per_group: list[int]


class WeighedBatch:
    """S samples with the weights of K weighers.

    Args:
        batch: A batch or sample, on any device; with a basis it has `atom_ind` and `coeffs`, without one
            `atomic_numbers`.
        weights: (K, S) weights.
        basis_info: The density basis; None: samples that have energies alone.
        energy_fields: Names of the energies.
        max_atomic_number: Largest atomic number of samples without a basis.

    Attributes:
        data: The batch, on the CPU.
        weights: (K, S).
        group_weights: (K, G) the distinct columns of `weights`.
        group: (S,) group of each sample.
        layout: Columns of `rows`.
        composition: (S, n_types) float64 number of atoms of each element of the basis, or by atomic number from 1 on.
        elements: The atoms of each element that occurs; empty without a basis.

    Raises:
        BatchError: If the atoms do not have as many functions in the basis as there are coefficients.
        StatisticsError: If there is no basis, and an atom of a sample of positive weight is no element.
    """

    def __init__(
        self,
        batch: Data,
        weights: Tensor,
        basis_info: BasisInfo | None,
        energy_fields: Sequence[str] = ("energy_label",),
        max_atomic_number: int = MAX_ATOMIC_NUMBER,
    ) -> None:
        self.data = on_cpu(batch)
        self.weights = weights
        self.group_weights, self.group = distinct_columns(weights)
        self._basis_info = basis_info
        self.energy_fields = tuple(energy_fields)
        self._sample_of_atom = molecule_index(self.data, "pos")
        self._coefficients: list[Tensor] | None = None
        self.elements: list[ElementAtoms] = []
        if basis_info is None:
            n_types, columns = max_atomic_number, self._element_columns(max_atomic_number)
            self.layout = RowLayout(n_types, len(self.energy_fields))
        else:
            n_types, columns = basis_info.n_types, self.data.atom_ind
            self.layout = RowLayout(n_types, len(self.energy_fields), basis_info.n_basis)
        self.composition = count_elements(self._sample_of_atom, columns, weights.shape[1], n_types)
        if basis_info is not None:
            self._sort_atoms(basis_info)

    def _element_columns(self, largest: int) -> Tensor:
        """Returns the column of each atom's element; atoms of samples of weight 0 may be anything, and count as H."""
        numbers = self.data.atomic_numbers.long()
        used = self.weights.any(0)[self._sample_of_atom]
        bad = (used & ((numbers < 1) | (numbers > largest))).nonzero().squeeze(1)
        if len(bad):
            atom = int(bad[0])
            raise StatisticsError(
                f"{self.sample_place(int(self._sample_of_atom[atom]))} has the atomic number {int(numbers[atom])}; "
                f"expected 1 ... {largest}"
            )
        return torch.where(used, numbers, 1) - 1

    def _sort_atoms(self, basis_info: BasisInfo) -> None:
        n_groups = self.group_weights.shape[1]
        atom_ind = self.data.atom_ind
        dims = torch.as_tensor(basis_info.basis_dim_per_atom)[atom_ind]
        self.n_functions = int(dims.sum())
        self._check_length("coeffs")
        place = atom_ind * n_groups + self.group[self._sample_of_atom]
        sizes = torch.bincount(place, minlength=basis_info.n_types * n_groups).view(-1, n_groups).tolist()
        order = torch.argsort(place, stable=True)
        starts, samples = (dims.cumsum(0) - dims)[order], self._sample_of_atom[order]
        begin = 0
        for element, atoms_per_group in enumerate(sizes):
            end = begin + sum(atoms_per_group)
            columns = slice(int(basis_info.offsets[element]), int(basis_info.offsets[element + 1]))
            if end > begin and columns.stop > columns.start:
                self.elements.append(ElementAtoms(columns, starts[begin:end], samples[begin:end], atoms_per_group))
            begin = end

    # --- density coefficients -------------------------------------------------------------------------------------

    def _check_length(self, field: str) -> None:
        n_values = self.data[field].shape[0]
        if n_values != self.n_functions:
            raise BatchError(
                f"a batch has {n_values} values of {field!r}, but in the basis {self._basis_info} its atoms have "
                f"{self.n_functions} functions: the samples were made with another basis, or lack some values "
                "(config: data.source.basis_info)"
            )

    def matrices(self, field: str) -> list[Tensor]:
        """Returns the (atoms, dim) float64 matrix of a field for each of `elements`, in memory of its own.

        Args:
            field: A per-function field, or `initial_guess_delta`: `coeffs` minus `ground_state_coeffs`.

        Raises:
            BatchError: If the samples lack the field, or it has another length than the coefficients.
        """
        values = field_values(self.data, field)
        for name in stored_fields(field):
            self._check_length(name)
        # whole rows are copied out of a sliding window: no index for every single entry
        return [values.unfold(0, e.columns.stop - e.columns.start, 1)[e.starts] for e in self.elements]

    def coefficients(self) -> list[Tensor]:
        """Returns ``matrices("coeffs")``, kept for whoever asks next: not to be changed."""
        if self._coefficients is None:
            self._coefficients = self.matrices("coeffs")
        return self._coefficients

    # --- rows of energies -----------------------------------------------------------------------------------------

    def rows(self) -> Tensor:
        """Returns the (S, width) rows [1 | composition | energies | sums of coefficients], see `RowLayout`.

        Raises:
            BatchError: If the samples lack an energy.
        """
        layout, n_samples = self.layout, self.weights.shape[1]
        rows = torch.zeros(n_samples, layout.width, dtype=torch.float64)
        rows[:, 0] = 1
        rows[:, layout.composition] = self.composition
        rows[:, layout.energies] = self._energies()
        matrices = self.coefficients() if self.elements else []
        for element, matrix in zip(self.elements, matrices, strict=True):
            # adding into a dense matrix and copying is several times faster than adding into a slice of columns
            sums = matrix.new_zeros(n_samples, matrix.shape[1]).index_add_(0, element.samples, matrix)
            rows[:, layout.sums.start + element.columns.start : layout.sums.start + element.columns.stop] = sums
        return rows

    def _energies(self) -> Tensor:
        values = []
        for name in self.energy_fields:
            energy = get_field(self.data, name)
            if energy is None:
                raise BatchError(
                    f"fitting reference energies needs the field {name!r}, which the samples lack "
                    "(config: data.source.energy_field)"
                )
            if energy.numel() != len(self.group):
                raise BatchError(
                    f"the field {name!r} has shape {tuple(energy.shape)} for {len(self.group)} samples, expected one "
                    "number for each"
                )
            values.append(energy.detach().reshape(-1).to(torch.float64))
        return torch.stack(values, dim=1)

    # --- samples --------------------------------------------------------------------------------------------------

    @cached_property
    def molecules(self) -> Tensor:
        """The (S,) int64 keys of the samples' molecules."""
        return molecule_keys(self.data)

    @cached_property
    def iterations(self) -> Tensor:
        """The (S,) int64 SCF iterations of the samples; -1 where they have none."""
        found = get_field(self.data, "scf_iteration")
        return torch.full_like(self.group, -1) if found is None else found.detach().reshape(-1).long()

    def sample_place(self, sample: int) -> str:
        """Says which sample this is, for messages.

        Args:
            sample: Which sample of the batch, from 0.
        """
        index = get_field(self.data, SAMPLE_INDEX)
        iteration = scf_iteration(self.data, sample)
        where = f"sample {sample} of its batch" if index is None else f"sample {int(index[sample])}"
        if sample_name(self.data, sample) is None and iteration is None:
            return where
        where += "" if iteration is None else f", SCF iteration {iteration}"
        return f"molecule {sample_name(self.data, sample)!r} ({where})"

    def refuse_non_finite(self, field: str, weights: Tensor) -> None:
        """Raises if a sample of positive weight has a value that is not finite.

        Args:
            field: Name of the field: one value for each sample, or one for each function.
            weights: (K, S).

        Raises:
            StatisticsError: Naming sample, molecule, field and value.
        """
        if field in self.energy_fields:
            values, sample_of_value = self.data[field].detach().reshape(-1), torch.arange(len(self.group))
        else:
            values, sample_of_value = field_values(self.data, field), molecule_index(self.data)
        bad = (~torch.isfinite(values) & weights.any(0)[sample_of_value]).nonzero().reshape(-1)
        if len(bad):
            entry = int(bad[0])
            raise StatisticsError(
                f"{self.sample_place(int(sample_of_value[entry]))}: field {field!r} is {float(values[entry])}; "
                "statistics need finite numbers: correct the label, mark it by has_energy_label=False, or give the "
                "sample weight 0 (config: data.statistics.weighers)"
            )


def on_cpu(batch: Data) -> Data:
    """Returns the batch, or a copy of it on the CPU if its atoms lie elsewhere.

    Args:
        batch: A batch on any device.
    """
    index = get_field(batch, "atom_ind")
    index = batch.atomic_numbers if index is None else index
    return batch if index.device.type == "cpu" else copy(batch).cpu()  # PyG moves a batch in place


def distinct_columns(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the (K, G) distinct columns of (K, S) weights, and the (S,) index of each sample's column.

    Args:
        weights: (K, S) weights of K weighers.
    """
    if (weights == weights[:, :1]).all():  # the common case
        return weights[:, :1], torch.zeros(weights.shape[1], dtype=torch.int64)
    first_of: dict[bytes, int] = {}  # a tenth of the price of torch.unique(dim=1)
    group = torch.tensor([first_of.setdefault(row.tobytes(), len(first_of)) for row in weights.T.contiguous().numpy()])
    columns = weights.new_empty(weights.shape[0], len(first_of))
    columns[:, group] = weights
    return columns, group


def count_elements(sample_of_atom: Tensor, column_of_atom: Tensor, n_samples: int, n_types: int) -> Tensor:
    """Returns the (n_samples, n_types) float64 number of atoms of each element in each sample.

    Args:
        sample_of_atom: (n_atom,).
        column_of_atom: (n_atom,) index of each atom's element, 0 ... n_types - 1.
        n_samples: Number of samples.
        n_types: Number of elements.
    """
    counts = torch.bincount(sample_of_atom * n_types + column_of_atom, minlength=n_samples * n_types)
    return counts.reshape(n_samples, n_types).to(torch.float64)


def stored_fields(field: str) -> tuple[str, ...]:
    """Returns the field itself, or for the derived `initial_guess_delta` the two of which it is the difference.

    Args:
        field: Name of a field.
    """
    return ("coeffs", "ground_state_coeffs") if field == "initial_guess_delta" else (field,)


def field_values(batch: Data, field: str) -> Tensor:
    """Returns the flat (N,) float64 values of a field, or of the derived `initial_guess_delta`.

    Args:
        batch: Raw samples.
        field: Name of a field.

    Raises:
        BatchError: If the samples lack it.
    """
    for name in stored_fields(field):
        if get_field(batch, name) is None:
            raise BatchError(f"statistics of {field!r} need the field {name!r}, which the samples lack")
    values = [batch[name].detach().to(torch.float64) for name in stored_fields(field)]
    return values[0] - values[1] if len(values) == 2 else values[0]


def molecule_keys(batch: Data) -> Tensor:
    """Returns an (S,) int64 key for each sample: equal for samples of one molecule, however they are batched.

    A key is a hash of the molecule's name, its elements and its positions in their order, the same in every process:
    two molecules that merely share a name (two data sets read together) keep different keys. Samples without `mol_id`
    are molecules of their own. Where the fit knows the molecules, their indices are the keys.

    Args:
        batch: Raw samples.
    """
    known = get_field(batch, MOLECULE_INDEX)
    if known is not None:
        return known
    n_samples = n_molecules(batch)
    if get_field(batch, "mol_id") is None:
        index = get_field(batch, SAMPLE_INDEX)
        # negative: never a hash
        return (
            torch.from_numpy(np.random.default_rng().integers(-(2**62), 0, n_samples)) if index is None else -1 - index
        )
    n_atoms = torch.bincount(molecule_index(batch, "pos").cpu(), minlength=n_samples)
    ends = n_atoms.cumsum(0).tolist()
    columns = [batch.atomic_numbers.detach().cpu().to(torch.float64)[:, None]]
    if get_field(batch, "pos") is not None:
        columns.append(batch.pos.detach().cpu().to(torch.float64) + 0.0)  # + 0.0 turns -0.0 into 0.0
    table = torch.cat(columns, dim=1).numpy()
    names = [batch.mol_id] if isinstance(batch.mol_id, str) else batch.mol_id
    keys = []
    for name, begin, end in zip(names, [0, *ends], ends, strict=False):
        text = str(name).encode()
        digest = hashlib.blake2b(len(text).to_bytes(4, "little") + text + table[begin:end].tobytes(), digest_size=8)
        keys.append(int.from_bytes(digest.digest(), "little") >> 1)
    return torch.tensor(keys)
