"""The molecules of a sample or batch, as far as a change of basis depends on them: geometry and basis."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.of_data import molecule_index, n_molecules, sample_name
from ofdft_norm.errors import BatchError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Molecule:
    """Geometry and basis of one molecule; densities do not count.

    Attributes:
        name: For messages.
        pos: (n_atom, 3) [bohr].
        atomic_numbers: (n_atom,).
        basis_info: The density basis.
        functions: (n_basis,) index of each basis function in the concatenation over elements.
        overlap: (n_basis, n_basis) of the density basis, where the sample brings it.
        integrals: (n_basis,) of the basis functions [electrons], where the sample has them in the density basis.
    """

    name: str
    pos: Array
    atomic_numbers: npt.NDArray[np.int64]
    basis_info: BasisInfo
    functions: npt.NDArray[np.int64]
    overlap: Array | None = None
    integrals: Array | None = None

    @cached_property
    def key(self) -> str:
        """Digest of everything that changes of basis depend on."""
        parts = [self.pos, self.atomic_numbers, self.functions, *([] if self.overlap is None else [self.overlap])]
        digest = hashlib.sha1(self.basis_info.fingerprint().encode(), usedforsecurity=False)
        for part in parts:
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    @cached_property
    def functions_per_atom(self) -> npt.NDArray[np.int64]:
        """(n_atom,) numbers of basis functions."""
        return self.basis_info.basis_dim_per_atom[self.basis_info.atom_indices(self.atomic_numbers, self.name)]


def molecules_of(data: Data, with_integrals: bool = False) -> list[tuple[Molecule, slice]]:
    """Returns the molecules of a sample or batch, each with the range of its basis functions.

    Consecutive samples of one geometry, the SCF iterations of a molecule, share one `Molecule`.

    Args:
        data: With `pos`, `atomic_numbers`, `basis_function_ind` and `basis_info`.
        with_integrals: Whether `dual_basis_integrals` are those of the density basis, to compare them.

    Raises:
        BatchError: If a field is missing or has a wrong length.
    """
    found: list[tuple[Molecule, slice]] = []
    for molecule, functions in _each(data, with_integrals):
        known = found and found[-1][0].key == molecule.key
        found.append((found[-1][0] if known else molecule, functions))
    return found


def _each(data: Data, with_integrals: bool) -> Iterator[tuple[Molecule, slice]]:
    atoms = _ranges(data, "pos")
    pos = _array(data, "pos" if data.get("pos_float64") is None else "pos_float64").astype(np.float64, copy=False)
    numbers, functions = _array(data, "atomic_numbers"), _array(data, "basis_function_ind")
    ranges = _function_ranges(data, len(functions))
    overlaps = _overlaps(data, ranges)
    integrals = _array(data, "dual_basis_integrals") if with_integrals and "dual_basis_integrals" in data else None
    for i, (own, where) in enumerate(zip(atoms, ranges, strict=True)):
        yield (
            Molecule(
                name=str(sample_name(data, i) or f"sample {i}"),
                pos=pos[own],
                atomic_numbers=numbers[own],
                basis_info=_basis_info(data, i),
                functions=functions[where],
                overlap=overlaps[i],
                integrals=None if integrals is None else integrals[where],
            ),
            where,
        )


def _array(data: Data, field: str) -> npt.NDArray:
    value = data.get(field)
    if not isinstance(value, Tensor):
        raise BatchError(
            f"a change of basis needs the field {field!r}, which the sample lacks: build samples with "
            "OFData.construct_new, or leave the transform out (config: data.pre_transforms)"
        )
    return value.detach().cpu().numpy()


def _basis_info(data: Data, sample: int) -> BasisInfo:
    given = data.get("basis_info")
    basis_info = given[sample] if isinstance(given, list) else given
    if not isinstance(basis_info, BasisInfo):
        raise BatchError(
            "a change of basis needs the field 'basis_info', which the sample lacks: build samples with "
            "OFData.construct_new, or leave the transform out (config: data.pre_transforms)"
        )
    return basis_info


def _ranges(data: Data, field: str) -> list[slice]:
    counts = torch.bincount(molecule_index(data, field).cpu(), minlength=n_molecules(data))
    ends = counts.cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _function_ranges(data: Data, n_functions: int) -> list[slice]:
    if n_molecules(data) == 1:  # a sample without coefficients has a change of basis, too
        return [slice(0, n_functions)]
    return _ranges(data, "coeffs")


def _overlaps(data: Data, ranges: list[slice]) -> list[Array | None]:
    """Returns each molecule's own overlap, from matrices that PyG joined in whatever shape."""
    if data.get("overlap_matrix") is None:
        return [None] * len(ranges)
    flat = _array(data, "overlap_matrix").astype(np.float64, copy=False).reshape(-1)
    sizes = [r.stop - r.start for r in ranges]
    ends = np.cumsum([n * n for n in sizes])
    if len(flat) != ends[-1]:
        raise BatchError(
            f"field 'overlap_matrix' has {len(flat)} entries, expected {ends[-1]}: (n_basis, n_basis) for each "
            f"molecule, which have {sizes} functions"
        )
    return [flat[end - n * n : end].reshape(n, n) for n, end in zip(sizes, ends, strict=True)]
