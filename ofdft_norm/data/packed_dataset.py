"""The data set of samples over packed labels."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofdft_norm.data.joined_batch import make_batch, make_sample
from ofdft_norm.data.of_data import OFData
from ofdft_norm.data.of_dataset import OFDataset, Transform
from ofdft_norm.data.packed import PackedSet
from ofdft_norm.data.scf_iterations import IntArray, ScfSelection
from ofdft_norm.errors import BasisError, ConfigError, LabelFileError

_TORCH = {"<f8": torch.float64, "<f4": torch.float32, "|u1": torch.uint8}
# What the columns of a data set's table of molecules are: index in the packed set; where its entries begin; how many.
_STARTS = ("mol_id", "atom", "function", "sample", "value")
_COUNTS = ("mol_id", "atom", "function")


class _Ranges(NamedTuple):
    """Where entries lie: how many, and in order the index of the set and the slice of its arrays."""

    n_entries: int
    found: list[tuple[int, slice]]


class PackedDataset(OFDataset):
    """Samples of one or several packed sets, as `OFDataset` gives them from label files.

    Copies (pickles, for workers) hold the sets' paths and what is selected of them; each process opens the sets itself.

    Args:
        sets: The packed sets, or their folders; all of the same basis, pre-transforms and dtype.
        molecules: For each set, which molecules to use, and in which order; None: all.
        energy_key: Which packed energy becomes `energy_label`.
        gradient_key: Which packed gradient becomes `gradient_label`.
        transform: Applied to each sample, after what the set was packed with.
        limit_scf_iterations: As for `OFDataset`.
        keep_initial_guess: As for `OFDataset`.

    Raises:
        LabelFileError: If a set is damaged, or lacks the energy or gradient.
        BasisError: If the sets are of different bases.
        ConfigError: If the sets were packed after different pre-transforms, in different coordinates or dtypes.
    """

    def __init__(
        self,
        sets: Sequence[PackedSet | str | Path],
        molecules: Sequence[IntArray] | None = None,
        energy_key: str = "e_kin",
        gradient_key: str = "grad_kin",
        transform: Transform | None = None,
        limit_scf_iterations: int | Sequence[int] | None = None,
        keep_initial_guess: bool = True,
    ) -> None:
        self.sets = [s if isinstance(s, PackedSet) else PackedSet(s) for s in sets]
        check_alike(self.sets)
        for packed in self.sets:
            _check_target(packed, energy_key, gradient_key)
        self.basis_info = self.sets[0].basis_info
        self.coordinates = str(self.sets[0].meta["coordinates"])
        self.energy_key = energy_key
        self.gradient_key = gradient_key
        self.transform = transform
        self._molecules = (
            [np.arange(s.meta["n_molecules"]) for s in self.sets]
            if molecules is None
            else [np.asarray(m, dtype=np.int64) for m in molecules]
        )
        self._limits = (limit_scf_iterations, keep_initial_guess)
        _ = self.selection  # refuses what selects nothing

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what each process finds in the sets themselves."""
        return {k: v for k, v in self.__dict__.items() if k not in ("selection", "_table", "_set_of")}

    @cached_property
    def selection(self) -> ScfSelection:
        """Which SCF iterations of which molecule are the samples."""
        return ScfSelection(self._count("sample"), *self._limits, self._name)

    def _name(self, molecule: int) -> str:
        packed, index = self.sets[self._set_of[molecule]], self._table[molecule, 0]
        return f"{packed.folder}: {packed.name(index)}"

    def _count(self, what: str) -> IntArray:
        return np.concatenate(
            [np.diff(s.arrays[f"{what}_offsets"])[m] for s, m in zip(self.sets, self._molecules, strict=True)]
        )

    @cached_property
    def _set_of(self) -> npt.NDArray[np.int64]:
        """(n_molecules,) the set of each molecule."""
        return np.repeat(np.arange(len(self.sets)), [len(m) for m in self._molecules])

    @cached_property
    def _table(self) -> IntArray:
        """(n_molecules, 9) where each molecule is found in its set (see `_STARTS`), and how much it has."""
        pairs = list(zip(self.sets, self._molecules, strict=True))
        starts = [np.concatenate([s.arrays[f"{axis}_offsets"][m] for s, m in pairs]) for axis in _STARTS]
        counts = [self._count(axis) for axis in _COUNTS]
        return np.stack([np.concatenate(self._molecules), *starts, *counts], axis=1)

    @property
    def paths(self) -> list[Path]:
        """A name for each molecule: that of its label file, in the packed set's folder."""
        names = [packed.names() for packed in self.sets]
        return [
            packed.folder / names[i][m]
            for i, (packed, molecules) in enumerate(zip(self.sets, self._molecules, strict=True))
            for m in molecules.tolist()
        ]

    def state(self, contents: bool = False, folder: Path | None = None) -> dict[str, Any]:
        """Describes the samples by the sets' checksums and what is selected of them; no array is read."""
        return {
            "packed": [packed.meta["checksum"] for packed in self.sets],
            "molecules": [hashlib.sha256(m.tobytes()).hexdigest() for m in self._molecules],
            "limit_scf_iterations": self.selection.limit,
            "keep_initial_guess": self.selection.keep_initial_guess,
            "energy_key": self.energy_key,
            "gradient_key": self.gradient_key,
        }

    def _raw_sample(self, molecule: Any, iteration: Any) -> OFData:
        index, iteration = int(molecule), int(iteration)
        arrays = self.sets[self._set_of[index]].arrays
        _, name, atom, function, sample, value, n_name, n_atom, n_basis = self._table[index].tolist()
        atoms, functions = slice(atom, atom + n_atom), slice(function, function + n_basis)
        values = slice(start := value + iteration * n_basis, start + n_basis)
        row = slice(start := sample + iteration, start + 1)
        numbers = arrays["atomic_numbers"][atoms].astype(np.int64)
        atom_ind = self.basis_info.atomic_number_to_atom_index[numbers]
        fields = {
            "pos": arrays["pos"][atoms].copy(),
            "atomic_numbers": numbers,
            "atom_ind": atom_ind,
            "basis_function_ind": self.basis_info.basis_function_ind(atom_ind),
            "coeffs": arrays["coeffs"][values].copy(),
            "ground_state_coeffs": arrays["ground_state_coeffs"][functions].copy(),
            "gradient_label": arrays[self.gradient_key][values].copy(),
            "dual_basis_integrals": arrays["dual_basis_integrals"][functions].copy(),
            "energy_label": arrays[self.energy_key][row].copy(),
            "has_energy_label": arrays["has_energy_label"][row].copy(),
            "scf_iteration": np.array([iteration]),
        }
        mol_id = arrays["mol_ids"][name : name + n_name].tobytes().decode()
        tensors = {name: torch.from_numpy(value) for name, value in fields.items()}
        same = {"basis_info": self.basis_info, "coordinates": self.coordinates}
        return make_sample(tensors | {"mol_id": mol_id} | same)

    def _raw_batch(self, molecules: IntArray, iterations: IntArray, fields: Collection[str] | None) -> OFData:
        """Joins slices of the sets' arrays; no sample is made. Coefficients are always there."""
        _, name, atom, function, sample, value, n_name, n_atom, n_basis = self._table[molecules].T
        sets = self._set_of[molecules]
        atoms, functions = self._ranges(sets, atom, n_atom), self._ranges(sets, function, n_basis)
        values = self._ranges(sets, value + iterations * n_basis, n_basis)
        numbers = self._gather("atomic_numbers", atoms).long()
        atom_ind = self.basis_info.atomic_number_to_atom_index[numbers.numpy()]
        per_atom = {
            "pos": self._gather("pos", atoms),
            "atomic_numbers": numbers,
            "atom_ind": torch.from_numpy(atom_ind),
        }
        per_function = {
            name: read()
            for name, read in {
                "basis_function_ind": lambda: torch.from_numpy(self.basis_info.basis_function_ind(atom_ind)),
                "coeffs": lambda: self._gather("coeffs", values),
                "ground_state_coeffs": lambda: self._gather("ground_state_coeffs", functions),
                "gradient_label": lambda: self._gather(self.gradient_key, values),
                "dual_basis_integrals": lambda: self._gather("dual_basis_integrals", functions),
            }.items()
            if fields is None or name in fields or name == "coeffs"
        }
        per_sample = {
            "energy_label": self._rows(self.energy_key, sets, sample + iterations),
            "has_energy_label": self._rows("has_energy_label", sets, sample + iterations),
            "mol_id": self._mol_ids(sets, name, n_name),
            "scf_iteration": torch.from_numpy(iterations),
            "basis_info": [self.basis_info] * len(molecules),
            "coordinates": [self.coordinates] * len(molecules),
        }
        return make_batch(per_atom, per_function, per_sample, n_atom, n_basis)

    @staticmethod
    def _ranges(sets: IntArray, starts: IntArray, lengths: IntArray) -> _Ranges:
        """Returns where entries lie; ranges that follow one another are one."""
        stops = starts + lengths
        n = int(lengths.sum())
        apart = (starts[1:] != stops[:-1]) | (sets[1:] != sets[:-1])
        if not apart.all():
            first, last = np.append(True, apart), np.append(apart, True)
            sets, starts, stops = sets[first], starts[first], stops[last]
        return _Ranges(n, list(zip(sets.tolist(), map(slice, starts.tolist(), stops.tolist()), strict=True)))

    def _gather(self, name: str, ranges: _Ranges) -> Tensor:
        arrays = [packed.arrays[name] for packed in self.sets]
        # torch's memory: NumPy's comes fresh from the system more often, which costs more than the copy
        joined = torch.empty((ranges.n_entries, *arrays[0].shape[1:]), dtype=_TORCH[arrays[0].dtype.str])
        np.concatenate([arrays[i][where] for i, where in ranges.found], out=joined.numpy())
        return joined

    def _rows(self, name: str, sets: IntArray, rows: IntArray) -> Tensor:
        """Returns one entry for each sample."""
        values = np.empty(len(rows), dtype=self.sets[0].arrays[name].dtype)
        for i, packed in enumerate(self.sets):
            mine = sets == i
            values[mine] = packed.arrays[name][rows[mine]]
        return torch.from_numpy(values)

    def _mol_ids(self, sets: IntArray, starts: IntArray, lengths: IntArray) -> list[str]:
        arrays = [packed.arrays["mol_ids"] for packed in self.sets]
        found = zip(sets.tolist(), starts.tolist(), (starts + lengths).tolist(), strict=True)
        return [arrays[i][start:stop].tobytes().decode() for i, start, stop in found]


def check_alike(sets: Sequence[PackedSet]) -> None:
    """Refuses to mix sets that are not of one basis, pre-transforms, coordinates and dtype.

    Args:
        sets: Packed sets that are to be read as one.

    Raises:
        BasisError: For different bases.
        ConfigError: For different pre-transforms, coordinates or dtypes, or no set at all.
    """
    if not sets:
        raise ConfigError("no packed set is given (config: data.source.paths)")
    first = sets[0]
    for other in sets[1:]:
        for key in ("basis_info", "pre_transforms", "coordinates", "dtype"):
            if other.meta[key] != first.meta[key]:
                raise (BasisError if key == "basis_info" else ConfigError)(
                    f"{first.folder} and {other.folder}: packed with different {key}: {first.meta[key]} and "
                    f"{other.meta[key]}; pack them alike (config: data.source.paths)"
                )


def _check_target(packed: PackedSet, energy_key: str, gradient_key: str) -> None:
    for key, name, prefix in (("energy_key", energy_key, "e_"), ("gradient_key", gradient_key, "grad_")):
        known = [f"{prefix}{target}" for target in packed.meta["targets"]]
        if name not in known:
            raise LabelFileError(
                f"{packed.folder}: the packed set lacks {name!r}; it has {known}: choose one of them (config: "
                f"data.source.{key}), or pack it with --targets {name.removeprefix(prefix)}"
            )
