"""Packed labels: a set of molecules as a few large arrays in one folder, which are memory-mapped.

A set has ``meta.json`` and these uncompressed NumPy arrays, one file each; with M molecules and, over all of them, A
atoms, F basis functions, S samples and V = sum of samples x functions::

    names, mol_ids                uint8    UTF-8, one after the other: name of the label file, name of the molecule
    name_offsets, mol_id_offsets  (M + 1,) first byte of the names of each molecule
    atom_offsets, function_offsets, sample_offsets, value_offsets  (M + 1,)
    pos (A, 3) bohr; atomic_numbers (A,)
    dual_basis_integrals (F,)                           the same for all SCF iterations: stored once
    has_energy_label, perturbed (S,) bool; e_* (S,) hartree, float64
    coeffs, grad_* (V,)                                 float64 or float32
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from operator import attrgetter, getitem, itemgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.dataset import MoleculeDataset, ScfSelection, Transform, list_single_transforms
from ofdft_norm.data.files import hash_file, read_plain
from ofdft_norm.data.identity import identify
from ofdft_norm.data.sample import make_batch
from ofdft_norm.errors import BasisError, ConfigError, LabelFileError

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.int64]
Specs = dict[str, tuple[str, str, tuple[int, ...]]]

FORMAT, VERSION = "ofdft_norm packed labels", 3
META = "meta.json"
OFFSETS = ("name", "mol_id", "atom", "function", "sample", "value")

# entries of meta.json that give the arrays their meaning: parts of the checksum
_MEANING = ("version", "basis_info", "targets", "energies", "applied", "coordinates", "dtype", "n_molecules", "arrays")
_AGAIN = "copy the set again, or pack it again with ofdft-norm pack (config: data.source.paths)"
# states of the sets that this process has compared with their checksums
_verified: set[str] = set()


def describe_arrays(targets: Sequence[str], energies: Sequence[str], dtype: str) -> Specs:
    """Returns the axis of each array (atom, function, ...), its dtype and the shape of an entry."""
    floats = np.dtype(dtype).str
    specs: dict[str, tuple[str, str, tuple[int, ...]]] = {
        "names": ("name", "|u1", ()),
        "mol_ids": ("mol_id", "|u1", ()),
        "pos": ("atom", "<f8", (3,)),
        "atomic_numbers": ("atom", "|u1", ()),
        "dual_basis_integrals": ("function", "<f8", ()),
        "has_energy_label": ("sample", "|b1", ()),
        "perturbed": ("sample", "|b1", ()),
        "coeffs": ("value", floats, ()),
    }
    for axis in OFFSETS:
        specs[f"{axis}_offsets"] = "molecule", "<i8", ()
    for name in (*targets, *energies):
        specs[f"e_{name}"] = "sample", "<f8", ()
    for target in targets:
        specs[f"grad_{target}"] = "value", floats, ()
    return specs


def compute_meta_checksum(meta: Mapping[str, Any]) -> str:
    """Returns the digest of a set: of the digests of its arrays and of their meaning."""
    return hashlib.sha256(json.dumps(itemgetter(*_MEANING)(meta), sort_keys=True).encode()).hexdigest()


class PackedSet:
    """Read access to one packed set, checked when it is opened; `verify`: also compared with its checksums."""

    def __init__(self, folder: str | Path, verify: bool = False) -> None:
        self.folder = Path(folder)
        self._open()
        self._check_arrays()
        if verify:
            self.verify()

    def _open(self) -> None:
        """Reads ``meta.json`` and maps the arrays."""
        path = self.folder / META
        try:
            self.meta = meta = read_plain(path)
            if (meta["format"], meta["version"]) != (FORMAT, VERSION):
                raise ValueError(f"another version of ofdft_norm made it: {meta.get('created_by')}")
            if meta["checksum"] != compute_meta_checksum(meta):
                raise ValueError("it does not agree with its own checksum")
            self._specs = describe_arrays(meta["targets"], meta["energies"], meta["dtype"])
            self.basis_info = BasisInfo.from_dict(meta["basis_info"])
        except OSError as error:
            raise LabelFileError(f"{self.folder}: is no packed set ({error}) (config: data.source.paths)") from error
        except (ValueError, LookupError, TypeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise self._make_error(f"{META} describes no packed set: {what}") from error
        self.arrays: dict[str, Array] = {}
        files = {}
        for name, (_, dtype, entry) in self._specs.items():
            try:
                status = os.stat(f"{self.folder}/{name}.npy")
                array = np.load(f"{self.folder}/{name}.npy", mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise self._make_error(f"{name}.npy cannot be read: {error}") from error
            found, expected = (array.dtype.str, array.shape[1:]), (dtype, entry)
            if found != expected or array.ndim != 1 + len(entry) or not array.flags.c_contiguous:
                raise self._make_error(f"{name}.npy has dtype and shape {found}, expected {expected} in C order")
            self.arrays[name] = np.asarray(array)  # still mapped; slices of np.memmap itself take ten times as long
            files[name] = [status.st_size, status.st_mtime_ns]
        self.state: dict[str, Any] = {"checksum": meta["checksum"], "arrays": files}

    def _make_error(self, what: str) -> LabelFileError:
        return LabelFileError(f"{self.folder}: {what}: {_AGAIN}")

    def _check_arrays(self) -> None:
        """Refuses arrays that contradict one another, and positions that are not finite."""
        counts = {}
        lengths: dict[str, set[int]] = {"molecule": {self.meta["n_molecules"] + 1}}
        for name, (axis, _, _) in self._specs.items():
            lengths.setdefault(axis, set()).add(len(self.arrays[name]))
        for axis in OFFSETS:
            offsets = self.arrays[f"{axis}_offsets"]
            counts[axis] = np.diff(offsets)
            fits = len(lengths["molecule"]) == 1 and offsets[0] == 0 and {int(offsets[-1])} == lengths[axis]
            if not fits or (counts[axis] < 1).any():
                raise self._make_error(f"{axis}_offsets.npy does not ascend from 0 to the lengths {lengths[axis]}")
        element = self.basis_info.atom_indices(self.arrays["atomic_numbers"], str(self.folder))
        functions = np.add.reduceat(self.basis_info.basis_dim_per_atom[element], self.arrays["atom_offsets"][:-1])
        if (counts["function"] != functions).any():
            raise self._make_error("function_offsets.npy contradicts the functions of the atoms")
        if (counts["value"] != counts["sample"] * functions).any():
            raise self._make_error("value_offsets.npy contradicts the numbers of samples and functions")
        if not np.isfinite(self.arrays["pos"]).all():
            raise self._make_error("pos.npy has a number that is not finite")

    def verify(self) -> None:
        """Compares all arrays with their checksums, once in a process as long as no file changes."""
        state = json.dumps([str(self.folder.absolute()), self.state])
        if state not in _verified:
            with ThreadPoolExecutor() as pool:
                digests = pool.map(hash_file, [self.folder / f"{name}.npy" for name in self.meta["arrays"]])
            for (name, stated), digest in zip(self.meta["arrays"].items(), digests, strict=True):
                if digest != stated["sha256"]:
                    raise self._make_error(f"{name}.npy has changed: its SHA-256 is not the one in {META}")
        _verified.add(state)

    def names(self) -> list[str]:
        """Returns the names of the label files."""
        offsets, text = self.arrays["name_offsets"].tolist(), self.arrays["names"].tobytes()
        return list(map(bytes.decode, map(text.__getitem__, map(slice, offsets[:-1], offsets[1:]))))

    def geometry(self, molecule: int) -> tuple[Array, Array]:
        """Returns positions (n_atom, 3) [bohr] and atomic numbers of a molecule."""
        atoms = slice(*self.arrays["atom_offsets"][molecule : molecule + 2].tolist())
        return self.arrays["pos"][atoms], self.arrays["atomic_numbers"][atoms]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "state": self.state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state["folder"]
        self._open()  # the same set was checked when it was opened first
        if self.state != state["state"]:
            raise self._make_error("was replaced while it was in use")


class PackedDataset(MoleculeDataset):
    """Samples of one or several packed sets, or of the given molecules of each set.

    The sets must have the same basis, coordinates, applied transforms and dtype. `transform` is applied after the
    transforms of packing; the other arguments are those of `OFDataset`.
    """

    def __init__(
        self,
        sets: Sequence[PackedSet | str | Path],
        molecules: Sequence[Sequence[int] | IntArray] | Mapping[int, Sequence[int]] | None = None,
        energy_key: str = "e_kin",
        gradient_key: str = "grad_kin",
        transform: Transform | None = None,
        limit_scf_iterations: int | Sequence[int] | None = None,
        keep_initial_guess: bool = True,
        other_energies: Sequence[str] = (),
    ) -> None:
        wanted = [(energy_key, "e_", "energy_key"), (gradient_key, "grad_", "gradient_key")]
        for key in other_energies:
            wanted.append((key, "e_", "energy_key"))
        self.sets: list[PackedSet] = []
        self._molecules: list[IntArray] = []
        for i, one in enumerate(sets):
            packed = one if isinstance(one, PackedSet) else PackedSet(one)
            self.sets.append(packed)
            for key, start, setting in wanted:
                if not key.startswith(start) or key not in packed.arrays:
                    known = [name for name in packed.arrays if name.startswith(start)]
                    raise LabelFileError(f"{packed.folder}: lacks {key!r}, has {known} (config: data.source.{setting})")
            for key in ("basis_info", "coordinates", "applied", "dtype"):
                a, b = self.sets[0].meta[key], packed.meta[key]
                if a != b:
                    what = f"{self.sets[0].folder} and {packed.folder} were packed with different {key}: {a} and {b}"
                    raise (BasisError if key == "basis_info" else ConfigError)(f"{what} (config: data.source.paths)")
            chosen = range(packed.meta["n_molecules"]) if molecules is None else molecules[i]
            self._molecules.append(np.array(chosen, dtype=np.int64))
        if not self.sets:
            raise ConfigError("no packed set is given (config: data.source.paths)")
        selection = ScfSelection(limit_scf_iterations, keep_initial_guess)
        super().__init__(self.sets[0].basis_info, (energy_key, gradient_key), transform, selection)
        self.coordinates = str(self.sets[0].meta["coordinates"])
        self.other_energies = other_energies

    def with_target(self, target: str, energies: Sequence[str] = ()) -> Self:
        """Returns a copy that reads other labels; see `MoleculeDataset.with_target`."""
        selection, others = vars(self.scf_selection), [f"e_{energy}" for energy in energies]
        keys = f"e_{target}", f"grad_{target}"
        return type(self)(self.sets, self._molecules, *keys, self.transform, **selection, other_energies=others)

    def __getstate__(self) -> dict[str, Any]:
        """Omits tables that each process makes from the sets."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_index", "_table", "paths")}

    @cached_property
    def paths(self) -> list[Path]:  # type: ignore[override]
        """(n_molecules,) the names of the label files, in the folders of the sets."""
        of_sets = [list(map(packed.folder.joinpath, packed.names())) for packed in self.sets]
        return [paths[m] for paths, own in zip(of_sets, self._molecules, strict=True) for m in own]

    @property
    def n_scf_iterations(self) -> IntArray:
        """(n_molecules,) length of each SCF path."""
        return self._table["sample"][2]

    @cached_property
    def _table(self) -> dict[str, IntArray]:
        """(3, n_molecules) for atoms, functions ...: set, first entry in the set's arrays, number of entries."""
        table = {}
        for axis in OFFSETS[1:]:
            of_sets = []
            for i, (packed, own) in enumerate(zip(self.sets, self._molecules, strict=True)):
                at = packed.arrays[f"{axis}_offsets"]
                of_sets.append(np.stack([np.full(len(own), i), at[own], at[own + 1] - at[own]]))
            table[axis] = np.concatenate(of_sets, axis=1)
        return table

    def elements(self) -> set[int]:
        """Returns the atomic numbers that occur."""
        found: set[int] = set()
        for packed, own in zip(self.sets, self._molecules, strict=True):
            of_molecule = np.zeros(packed.meta["n_molecules"], dtype=bool)
            of_molecule[own] = True
            of_atom = np.repeat(of_molecule, np.diff(packed.arrays["atom_offsets"]))
            found.update(np.unique(packed.arrays["atomic_numbers"][of_atom]).tolist())
        return found

    def state(self, contents: bool = False) -> dict[str, Any]:
        """Describes the raw samples by the states of the sets and the selection."""
        sets = []
        for packed, own in zip(self.sets, self._molecules, strict=True):
            sets.append({**packed.state, "molecules": hashlib.sha256(own.tobytes()).hexdigest()})
        labels = {"energy_key": self.energy_key, "gradient_key": self.gradient_key}
        return {"packed": sets, **vars(self.scf_selection), **labels}

    def verify(self) -> None:
        """Compares all arrays of the sets with their checksums, once in a process."""
        for packed in self.sets:
            packed.verify()

    def _read_samples(self, molecules: IntArray, iterations: IntArray, fields: Collection[str] | None) -> Any:
        """Joins slices of the sets' arrays; no sample is made. Coefficients are always read."""

        def is_wanted(name: str, large: bool = False) -> bool:
            # transforms state which large fields they read, and may read all others
            return fields is None or name in fields or (self.transform is not None and not large)

        places = {axis: entries[:, molecules] for axis, entries in self._table.items()}
        (sets, value, _), sample, n_basis = places["value"], places["sample"], places["function"][2]
        atoms, values = _join_ranges(*places["atom"]), _join_ranges(sets, value + iterations * n_basis, n_basis)
        numbers = self._gather("atomic_numbers", atoms).long()
        atom_ind = self.basis_info.atomic_number_to_atom_index[numbers.numpy()]
        per_atom = {"atomic_numbers": numbers, "atom_ind": torch.from_numpy(atom_ind)}
        if is_wanted("pos"):
            per_atom["pos"] = self._gather("pos", atoms)
        per_function = {"coeffs": self._gather("coeffs", values)}
        if is_wanted("gradient_label", large=True):
            per_function["gradient_label"] = self._gather(self.gradient_key, values)
        if is_wanted("ground_state_coeffs", large=True):
            last = _join_ranges(sets, value + (sample[2] - 1) * n_basis, n_basis)
            per_function["ground_state_coeffs"] = self._gather("coeffs", last)
        if is_wanted("dual_basis_integrals", large=True):
            per_function["dual_basis_integrals"] = self._gather(
                "dual_basis_integrals", _join_ranges(*places["function"])
            )
        if is_wanted("basis_function_ind"):
            per_function["basis_function_ind"] = torch.from_numpy(self.basis_info.basis_function_ind(atom_ind))
        texts = list(map(tuple, places["mol_id"].T.tolist()))  # set, first byte, number of bytes
        names = {(i, at, n): self.sets[i].arrays["mol_ids"][at : at + n].tobytes().decode() for i, at, n in set(texts)}
        others = ("has_energy_label", "perturbed", *self.other_energies)
        stored = {"energy_label": self.energy_key, **dict(zip(others, others, strict=True))}
        per_sample = {
            **{name: self._pick(key, sets, sample[1] + iterations) for name, key in stored.items() if is_wanted(name)},
            "mol_id": list(map(names.__getitem__, texts)),
            "scf_iteration": torch.from_numpy(iterations),
            "basis_info": [self.basis_info] * len(molecules),
            "coordinates": [self.coordinates] * len(molecules),
        }
        return make_batch(per_atom, per_function, per_sample, places["atom"][2], n_basis)

    def _gather(self, name: str, ranges: tuple[int, list[int], list[slice]]) -> Tensor:
        (n, sets, slices), arrays = ranges, list(map(itemgetter(name), map(attrgetter("arrays"), self.sets)))
        # torch's memory: NumPy gets its own from the system more often, which takes longer than the copy
        joined = torch.empty((n, *arrays[0].shape[1:]), dtype=getattr(torch, arrays[0].dtype.name))
        np.concatenate(list(map(getitem, map(arrays.__getitem__, sets), slices)), out=joined.numpy())
        return joined

    def _pick(self, name: str, sets: IntArray, rows: IntArray) -> Tensor:
        """Returns one entry for each sample."""
        values = np.empty(len(rows), dtype=self.sets[0].arrays[name].dtype)
        for i, packed in enumerate(self.sets):
            values[sets == i] = packed.arrays[name][rows[sets == i]]
        return torch.from_numpy(values)


def _join_ranges(sets: IntArray, starts: IntArray, lengths: IntArray) -> tuple[int, list[int], list[slice]]:
    """Returns the number of entries, and sets and slices of ranges, where ranges that follow one another are joined."""
    stops = starts + lengths
    apart = (starts[1:] != stops[:-1]) | (sets[1:] != sets[:-1])
    first, last = np.append(True, apart), np.append(apart, True)
    slices = list(map(slice, starts[first].tolist(), stops[last].tolist()))
    return int(lengths.sum()), sets[first].tolist(), slices


def find_remaining_transforms(
    wanted: Sequence[Transform], applied: Sequence[str], where: str, coordinates: str = ""
) -> list[Transform]:
    """Returns the wanted transforms that packed labels still need.

    The applied transforms must be the first of the wanted ones that keep the basis. A single change of basis to
    `coordinates` is left out: the labels have it.
    """
    singles = list_single_transforms(wanted)
    changes: list[Any] = []
    others: list[Any] = []
    for transform in singles:
        (changes if getattr(transform, "changes_basis", False) else others).append(transform)
    in_place = len(changes) == 1 and getattr(changes[0], "coordinates", None) == coordinates
    if list(map(identify, others[: len(applied)])) != list(applied) or (applied and changes and not in_place):
        what = f"{where}: was packed in the coordinates {coordinates!r} after {len(applied)} other transforms"
        expected = f"which are not the first of {singles}: begin with them, or pack the labels again"
        raise ConfigError(f"{what}, {expected} (config: data.pre_transforms)")
    return others[len(applied) :] if in_place or not changes else singles
