"""Data sets over molecules with several samples each (the SCF iterations), and the one over label files."""

import functools
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.transforms import Compose

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.files import hash_file
from ofdft_norm.data.label_file import LabelHeader, MoleculeLabels, read_header, read_molecule
from ofdft_norm.data.sample import (
    PER_FUNCTION,
    RAW,
    JoinedDataset,
    count_molecules,
    join_samples,
    make_batch,
    name_sample,
)
from ofdft_norm.errors import ConfigError, LabelFileError, OFDFTNormError

IntArray = npt.NDArray[np.int64]
Transform = Callable[[Any], Any]


def list_single_transforms(transforms: Iterable[Transform]) -> list[Transform]:
    """Returns transforms in the order of application, with PyG's compositions taken apart."""
    found: list[Transform] = []
    for transform in transforms:
        found += list_single_transforms(transform.transforms) if isinstance(transform, Compose) else [transform]
    return found


def compose(transforms: Iterable[Transform]) -> Transform | None:
    """Returns transforms as one; None for none."""
    singles = list_single_transforms(transforms)
    return None if not singles else singles[0] if len(singles) == 1 else Compose(singles)


def apply_transform(transform: Transform | None, data: Any, config: str = "data.pre_transforms") -> Any:
    """Applies a transform to a sample, or to a whole batch if its attribute `works_on_batches` is true."""
    if transform is None:
        return data
    if isinstance(transform, Compose):
        return functools.reduce(lambda found, part: apply_transform(part, found, config), transform.transforms, data)
    if isinstance(data, Batch) and not getattr(transform, "works_on_batches", False):
        return join_samples([apply_transform(transform, sample, config) for sample in data.to_data_list()])
    try:
        return transform(data)
    except OFDFTNormError:
        raise
    except Exception as error:
        if not hasattr(error, "__notes__"):
            names = list(dict.fromkeys(name_sample(data, i) for i in range(count_molecules(data))))
            error.add_note(f"while transforming the molecules {names[:10]} (config: {config})")
        raise


class ScfSelection:
    """Selects the SCF iterations of a molecule that are samples; see `OFDataset`."""

    def __init__(self, limit: int | Sequence[int] | None = None, keep_initial_guess: bool = True) -> None:
        several = isinstance(limit, Sequence) and not isinstance(limit, str)
        for number in limit if several else [0 if limit is None else limit]:  # type: ignore[union-attr]
            if not isinstance(number, int | np.integer) or isinstance(number, bool):
                raise ConfigError(f"data.source.limit_scf_iterations is {limit!r}, expected null or whole numbers")
        self.limit_scf_iterations = None if limit is None else np.array(limit, dtype=np.int64).tolist()
        self.keep_initial_guess = keep_initial_guess

    def __call__(self, n: int) -> IntArray:
        """Returns the selected iterations of an SCF path of length n."""
        limit = self.limit_scf_iterations
        if limit is None:
            selected = set(range(n))
        elif isinstance(limit, list):
            selected = {i % n for i in limit if -n <= i < n}
        else:
            selected = set(range(limit if limit >= 0 else max(0, n + limit), n))
        selected = selected | {0} if self.keep_initial_guess else selected - {0}
        return np.array(sorted(selected), dtype=np.int64)


class MoleculeDataset(JoinedDataset):
    """Base of data sets over molecules: samples, molecule after molecule, joined and transformed."""

    paths: list[Path]  # (n_molecules,) label files; packed labels: their names below the folder of the set
    other_energies: Sequence[str] = ()  # fields of the samples, such as e_xc, beside `energy_label`

    def __init__(
        self, basis_info: BasisInfo, keys: Sequence[str], transform: Transform | None, selection: ScfSelection
    ) -> None:
        self.basis_info, (self.energy_key, self.gradient_key) = basis_info, keys
        self.transform, self.scf_selection = transform, selection

    @property
    def n_scf_iterations(self) -> IntArray:
        """(n_molecules,) length of each SCF path."""
        raise NotImplementedError

    def elements(self) -> set[int]:
        """Returns the atomic numbers that occur."""
        raise NotImplementedError

    def state(self, contents: bool = False) -> dict[str, Any] | None:
        """Describes the raw samples in plain data; `contents`: label files by their digests, not by size and time."""
        raise NotImplementedError

    def _read_samples(self, molecules: IntArray, iterations: IntArray, fields: Collection[str] | None) -> Any:
        """Returns the untransformed batch of some samples, at least with some fields (None: all)."""
        raise NotImplementedError

    def verify(self) -> None:
        """Raises LabelFileError if packed labels have changed since they were packed."""

    def with_target(self, target: str, energies: Sequence[str] = ()) -> Self:
        """Returns a copy that reads ``e_<target>`` and ``grad_<target>``, and further energies as ``e_<energy>``."""
        other = copy(self)
        other.energy_key, other.gradient_key = f"e_{target}", f"grad_{target}"
        other.other_energies = [f"e_{energy}" for energy in energies]
        return other

    def _select(self, molecule: int, n: int) -> IntArray:
        """Returns the selected iterations of a molecule's SCF path of length n, at least one."""
        selected = self.scf_selection(n)
        if not len(selected):
            what = f"{self.paths[molecule]}: none of its {n} SCF iterations is selected"
            raise LabelFileError(f"{what} (config: data.source.limit_scf_iterations, data.source.exclude)")
        return selected

    @property
    def n_molecules(self) -> int:
        """Number of molecules."""
        return len(self.paths)

    @cached_property
    def _index(self) -> tuple[IntArray, IntArray, IntArray]:
        """Offsets of samples; a table of iterations; for each molecule, place in the table minus index of a sample."""
        # the table has the selected iterations of each length of SCF paths: there are few lengths
        lengths, first, length = np.unique(self.n_scf_iterations, return_index=True, return_inverse=True)
        selected = [np.zeros(0, dtype=np.int64)]
        for n, molecule in zip(lengths.tolist(), first.tolist(), strict=True):
            selected.append(self._select(molecule, n))
        counts = np.array(list(map(len, selected[1:])), dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts[length])]).astype(np.int64)
        return offsets, np.concatenate(selected), (np.cumsum(counts) - counts)[length] - offsets[:-1]

    @property
    def sample_offsets(self) -> IntArray:
        """(n_molecules + 1,) index of each molecule's first sample."""
        return self._index[0]

    def __len__(self) -> int:
        return int(self._index[0][-1])

    def locate(self, samples: Sequence[int] | IntArray) -> tuple[IntArray, IntArray]:
        """Returns molecule and SCF iteration of each sample."""
        indices, (offsets, table, shift) = np.asarray(samples, dtype=np.int64), self._index
        molecules = np.searchsorted(offsets, indices, side="right") - 1
        return molecules, table[indices + shift[molecules]]

    def __getitems__(self, samples: Sequence[int]) -> Any:
        """Reads samples as one batch, transformed."""
        return apply_transform(self.transform, self._read_samples(*self.locate(samples), None))

    def molecules(self, molecules: Sequence[int] | IntArray, fields: Collection[str] | None = None) -> Any:
        """Reads all samples of some molecules as one batch, transformed; other fields than `fields` may be left out."""
        for single in list_single_transforms([] if self.transform is None else [self.transform]):
            # pairs (field that the transform changes, field that it reads for this change); None: it reads all fields
            reads = getattr(single, "reads", None)
            if fields is not None:
                fields = None if reads is None else {*fields, *(other for name, other in reads if name in fields)}
        return apply_transform(self.transform, self._read_molecules(np.asarray(molecules, dtype=np.int64), fields))

    def _read_molecules(self, molecules: IntArray, fields: Collection[str] | None) -> Any:
        ranges = zip(self.sample_offsets[molecules], self.sample_offsets[molecules + 1], strict=True)
        return self._read_samples(*self.locate(np.concatenate([np.arange(a, b) for a, b in ranges])), fields)


class OFDataset(MoleculeDataset):
    """Samples over label files, one for each SCF iteration.

    Args:
        paths: Label files (``.zarr`` directories or ``.zarr.zip`` files), one molecule each.
        basis_info: The density basis of the labels.
        energy_key: Name of the energy below ``of_labels/energies`` that becomes `energy_label`.
        gradient_key: Name of the gradient below ``of_labels/spatial`` that becomes `gradient_label`.
        transform: A transform of samples, e.g. `ProjectGradient()`; see `apply_transform`.
        limit_scf_iterations: The SCF iterations to use, as in STRUCTURES25: a number s >= 0 selects iterations from s
            on, s < 0 the last -s (-1: the converged density), a list the iterations in it (negative ones count from the
            last; the molecule may lack some). None: all.
        keep_initial_guess: Whether iteration 0, which has no energy label, is added to the selected ones, or left out.
        n_scf_iterations: Number of SCF iterations of each file, if known (a split file states it); else the files are
            read once before the data set knows its length.

    Raises:
        ConfigError: If `limit_scf_iterations` is none of these, or `n_scf_iterations` has another length than `paths`.
        LabelFileError: When a file is read: if it is missing or malformed, has no selected iteration, or has another
            geometry than a file of the same `mol_id`.
        BasisError: When a file is read: if the basis lacks one of its elements.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        basis_info: BasisInfo,
        energy_key: str = "e_kin",
        gradient_key: str = "grad_kin",
        transform: Transform | None = None,
        limit_scf_iterations: int | Sequence[int] | None = None,
        keep_initial_guess: bool = True,
        n_scf_iterations: Sequence[int] | None = None,
    ) -> None:
        selection = ScfSelection(limit_scf_iterations, keep_initial_guess)
        super().__init__(basis_info, (energy_key, gradient_key), transform, selection)
        self.paths = [Path(path) for path in paths]
        n = len(self.paths)
        self._n_scf_iterations = np.array([-1] * n if n_scf_iterations is None else n_scf_iterations, dtype=np.int64)
        if len(self._n_scf_iterations) != n:
            raise ConfigError(f"n_scf_iterations has {len(self._n_scf_iterations)} entries for {n} label files")
        self._elements: dict[int, set[int]] = {}
        self._geometries: dict[str, tuple[bytes, Path]] = {}

    @property
    def n_scf_iterations(self) -> IntArray:
        """(n_molecules,) length of each SCF path."""
        self._read_headers(np.flatnonzero(self._n_scf_iterations < 0).tolist())
        return self._n_scf_iterations

    def elements(self) -> set[int]:
        """Returns the atomic numbers that occur; reads the headers of unread files."""
        self._read_headers([molecule for molecule in range(self.n_molecules) if molecule not in self._elements])
        return set().union(*self._elements.values())

    def _read_headers(self, molecules: Sequence[int]) -> None:
        for molecule in molecules:
            self._remember(molecule, read_header(self.paths[molecule]))

    def _remember(self, molecule: int, found: LabelHeader) -> None:
        known = int(self._n_scf_iterations[molecule])
        if known not in (-1, found.n_scf_iterations):
            what = f"{self.paths[molecule]}: has {found.n_scf_iterations} SCF iterations, expected {known}"
            raise LabelFileError(f"{what}: the file has changed, or the split file is wrong (config: data.split.file)")
        self._n_scf_iterations[molecule] = found.n_scf_iterations
        self._elements[molecule] = set(found.atomic_numbers.tolist())

    def state(self, contents: bool = False) -> dict[str, Any]:
        """Describes the raw samples: files (name, and size and time or digest), selected iterations, labels."""
        keys = {"energy_key": self.energy_key, "gradient_key": self.gradient_key}
        return {"files": read_file_states(self.paths, contents), **vars(self.scf_selection), **keys}

    def _read(
        self, molecule: int, iterations: IntArray | Callable[[int], IntArray], fields: Collection[str] | None
    ) -> MoleculeLabels:
        keys = self.energy_key, self.gradient_key
        labels = read_molecule(self.paths[molecule], *keys, iterations, fields, self.other_energies)
        self._remember(molecule, labels)
        # predictions are stored under the name of the molecule, so a name has one geometry
        geometry = hashlib.sha256(labels.pos.tobytes() + labels.atomic_numbers.tobytes()).digest()
        known, file = self._geometries.setdefault(labels.mol_id, (geometry, labels.path))
        if known != geometry:
            what = f"{labels.path}: molecule {labels.mol_id!r} has another geometry than in {file}"
            raise LabelFileError(f"{what}: rename one, or leave it out (config: data.source.exclude)")
        return labels

    def _read_samples(self, molecules: IntArray, iterations: IntArray, fields: Collection[str] | None) -> Any:
        # neighbouring samples of one molecule are read at once
        bounds = np.flatnonzero(np.diff(molecules)) + 1
        runs = zip(np.split(molecules, bounds), np.split(iterations, bounds), strict=True)
        return join_labels([self._read(int(run[0]), of_run, fields) for run, of_run in runs], self.basis_info)

    def _read_molecules(self, molecules: IntArray, fields: Collection[str] | None) -> Any:
        # the number of iterations may not be known yet
        found = [self._read(m, functools.partial(self._select, m), fields) for m in molecules.tolist()]
        return join_labels(found, self.basis_info)


def join_labels(molecules: Sequence[MoleculeLabels], basis_info: BasisInfo) -> Any:
    """Returns the batch of all rows of some molecules' labels."""
    n_rows = [len(labels.rows["coeffs"]) for labels in molecules]
    atom_ind = [basis_info.atom_indices(m.atomic_numbers, f"{m.path}: molecule {m.mol_id!r}") for m in molecules]
    functions = [basis_info.basis_function_ind(indices) for indices in atom_ind]
    for labels, n_basis in zip(molecules, map(len, functions), strict=True):
        if labels.ground_state_coeffs.shape != (n_basis,):
            what = f"{labels.path}: molecule {labels.mol_id!r} has {len(labels.ground_state_coeffs)} coefficients"
            raise LabelFileError(f"{what}, the basis has {n_basis} functions for it (config: data.source.basis_info)")

    def repeat(values: Iterable[npt.NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.concatenate([v for v, n in zip(values, n_rows, strict=True) for _ in range(n)]))

    rows = {k: torch.from_numpy(np.concatenate([m.rows[k].reshape(-1) for m in molecules])) for k in molecules[0].rows}
    per_function = {name: rows.pop(name) for name in PER_FUNCTION if name in rows}
    per_function["ground_state_coeffs"] = repeat(m.ground_state_coeffs for m in molecules)
    per_function["basis_function_ind"] = repeat(functions)
    per_atom = {name: repeat(getattr(m, name) for m in molecules) for name in ("pos", "atomic_numbers")}
    per_atom["atom_ind"] = repeat(atom_ind)
    names = [m.mol_id for m, n in zip(molecules, n_rows, strict=True) for _ in range(n)]
    same = {"basis_info": [basis_info] * len(names), "coordinates": [RAW] * len(names)}
    counts = (np.repeat(list(map(len, of_molecules)), n_rows) for of_molecules in (atom_ind, functions))
    return make_batch(per_atom, per_function, {**rows, "mol_id": names, **same}, *counts)


def read_file_states(paths: Sequence[Path], contents: bool = False) -> list[list[Any]]:
    """Returns for each file, also in folders, its name below the common folder, and size and time, or digest."""
    absolute, files = list(map(os.path.abspath, paths)), []
    root = os.path.commonpath(set(map(os.path.dirname, absolute))) if paths else ""
    for path in absolute:
        if os.path.isdir(path):
            files += sorted(os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names)
        else:
            files.append(path)

    def find(names: Sequence[str]) -> list[Any]:
        return [hash_file(n) if contents else [(s := os.stat(n)).st_size, s.st_mtime_ns] for n in names]

    size = 1 if contents else 256  # a task for each file would take longer than asking for its size
    try:
        with ThreadPoolExecutor() as pool:  # file systems of clusters answer slowly; hashing releases Python's lock
            found = pool.map(find, [files[first : first + size] for first in range(0, len(files), size)])
            states = [state for of_task in found for state in of_task]
    except OSError as error:
        raise LabelFileError(f"{error.filename}: cannot be read: {error.strerror} (config: data.source)") from error
    return [[file.removeprefix(root), state] for file, state in zip(files, states, strict=True)]
