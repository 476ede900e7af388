"""Data sets over molecules with several samples each (the SCF iterations), and the one over label files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.transforms import Compose

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.files import file_digest
from ofdft_norm.data.label_file import LabelHeader, MoleculeLabels, read_header, read_molecule
from ofdft_norm.data.sample import RAW, JoinedDataset, join_samples, make_batch, n_molecules, sample_name
from ofdft_norm.errors import ConfigError, LabelFileError, OFDFTNormError

IntArray = npt.NDArray[np.int64]
Transform = Callable[[Any], Any]


class Composed:
    """Several transforms as one; each is applied to the whole batch if it can be."""

    works_on_batches = True

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, data: Any) -> Any:
        """Applies the transforms to a sample or batch."""
        for transform in self.transforms:
            data = apply_transform(transform, data)
        return data


def single_transforms(transforms: Iterable[Transform]) -> list[Transform]:
    """Returns transforms in the order of application, with PyG's and our compositions taken apart."""
    found: list[Transform] = []
    for transform in transforms:
        found += single_transforms(transform.transforms) if isinstance(transform, Compose | Composed) else [transform]
    return found


def compose(transforms: Iterable[Transform]) -> Transform | None:
    """Returns transforms as one; None for none."""
    singles = single_transforms(transforms)
    return None if not singles else singles[0] if len(singles) == 1 else Composed(singles)


def fields_before(transform: Transform | None, fields: Collection[str] | None) -> Collection[str] | None:
    """Returns the fields that a transform needs to give some fields; None: all.

    A transform that changes nothing but fields that are present has an attribute `reads`: pairs of a field that it
    changes, and a field that it reads for that.
    """
    for single in single_transforms([] if transform is None else [transform]):
        reads = getattr(single, "reads", None)
        if fields is None or reads is None:
            return None
        fields = {*fields, *(other for name, other in reads if name in fields)}
    return fields


def apply_transform(transform: Transform | None, data: Any, config: str = "data.pre_transforms") -> Any:
    """Applies a transform to a sample or batch: to the whole batch if its attribute `works_on_batches` is true.

    `config` is the key of the configuration that an error names.
    """
    if transform is None:
        return data
    if isinstance(data, Batch) and not getattr(transform, "works_on_batches", False):
        return join_samples([apply_transform(transform, sample, config) for sample in data.to_data_list()])
    try:
        return transform(data)
    except OFDFTNormError:
        raise
    except Exception as error:
        if not hasattr(error, "__notes__"):
            names = list(dict.fromkeys(sample_name(data, i) for i in range(n_molecules(data))))
            error.add_note(f"while transforming the molecules {names[:10]} (config: {config})")
        raise


class ScfSelection:
    """Selects the SCF iterations of a molecule that are samples; see `OFDataset`.

    Examples:
        >>> ScfSelection(-2, keep_initial_guess=False)(4).tolist()
        [2, 3]
    """

    def __init__(self, limit: int | Sequence[int] | None = None, keep_initial_guess: bool = True) -> None:
        several = isinstance(limit, Sequence) and not isinstance(limit, str)
        for number in limit if several else [0 if limit is None else limit]:  # type: ignore[union-attr]
            if not isinstance(number, int | np.integer) or isinstance(number, bool):
                raise ConfigError(f"data.source.limit_scf_iterations is {limit!r}, expected null or whole numbers")
        self.limit_scf_iterations = None if limit is None else np.array(limit, dtype=np.int64).tolist()
        self.keep_initial_guess = keep_initial_guess

    def __call__(self, n: int, path_of: Callable[[], object] = str) -> IntArray:
        """Returns the selected iterations of an SCF path of length n, at least one; `path_of` finds the file's name."""
        limit = self.limit_scf_iterations
        if limit is None:
            selected = set(range(n))
        elif isinstance(limit, list):
            selected = {i % n for i in limit if -n <= i < n}
        else:
            selected = set(range(limit if limit >= 0 else max(0, n + limit), n))
        selected = selected | {0} if self.keep_initial_guess else selected - {0}
        if not selected:
            keys = "data.source.limit_scf_iterations, data.source.keep_initial_guess, data.source.exclude"
            raise LabelFileError(f"{path_of()}: none of its {n} SCF iterations is selected (config: {keys})")
        return np.array(sorted(selected), dtype=np.int64)


class MoleculeDataset(JoinedDataset):
    """Base of data sets over molecules: samples, molecule after molecule, joined and transformed.

    Subclasses define `paths`, `n_scf_iterations`, `elements`, `state` and `_read_samples`.
    """

    basis_info: BasisInfo
    energy_key: str
    gradient_key: str
    transform: Transform | None
    scf_selection: ScfSelection

    @property
    def paths(self) -> list[Path]:
        """(n_molecules,) the label files; of packed labels their names, in the folder of the set."""
        raise NotImplementedError

    @property
    def n_scf_iterations(self) -> IntArray:
        """(n_molecules,) length of each SCF path."""
        raise NotImplementedError

    def path(self, molecule: int) -> Path:
        """Returns the label file of a molecule."""
        return self.paths[molecule]

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

    def with_target(self, target: str) -> Self:
        """Returns a copy that reads ``e_<target>`` and ``grad_<target>``."""
        return self._with_keys(f"e_{target}", f"grad_{target}")

    def with_energy(self, energy: str) -> Self:
        """Returns a copy that reads ``e_<energy>`` and the same gradient."""
        return self._with_keys(f"e_{energy}", self.gradient_key)

    def _with_keys(self, energy_key: str, gradient_key: str) -> Self:
        other = copy(self)
        other.energy_key, other.gradient_key = energy_key, gradient_key
        return other

    @property
    def n_molecules(self) -> int:
        """Number of molecules."""
        return len(self.paths)

    @cached_property
    def _index(self) -> tuple[IntArray, IntArray, IntArray]:
        """First sample of each molecule; a table of iterations; for each molecule, entry minus sample in the table."""
        # SCF paths of one length have the same iterations, and there are few lengths
        lengths, first, length = np.unique(self.n_scf_iterations, return_index=True, return_inverse=True)
        selected = [np.zeros(0, dtype=np.int64)]
        for n, molecule in zip(lengths.tolist(), first.tolist(), strict=True):
            selected.append(self.scf_selection(n, partial(self.path, molecule)))
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
        indices = np.asarray(molecules, dtype=np.int64)
        return apply_transform(self.transform, self._read_molecules(indices, fields_before(self.transform, fields)))

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
        LabelFileError: When a file is read: if it is missing or malformed, has no selected iteration, or another
            geometry than a file with the same name of the molecule.
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
        self._paths = [Path(path) for path in paths]
        self.basis_info = basis_info
        self.energy_key = energy_key
        self.gradient_key = gradient_key
        self.transform = transform
        self.scf_selection = ScfSelection(limit_scf_iterations, keep_initial_guess)
        n = len(self._paths)
        self._n_scf_iterations = np.array([-1] * n if n_scf_iterations is None else n_scf_iterations, dtype=np.int64)
        if len(self._n_scf_iterations) != n:
            raise ConfigError(f"n_scf_iterations has {len(self._n_scf_iterations)} entries for {n} label files")
        self._elements: dict[int, set[int]] = {}
        self._geometries: dict[str, tuple[bytes, Path]] = {}

    @property
    def paths(self) -> list[Path]:
        """(n_molecules,) the label files."""
        return self._paths

    @property
    def n_scf_iterations(self) -> IntArray:
        """(n_molecules,) length of each SCF path."""
        self._learn(np.flatnonzero(self._n_scf_iterations < 0).tolist())
        return self._n_scf_iterations

    def elements(self) -> set[int]:
        """Returns the atomic numbers that occur; reads the headers of unread files."""
        self._learn([molecule for molecule in range(self.n_molecules) if molecule not in self._elements])
        return set().union(*self._elements.values())

    def _learn(self, molecules: Sequence[int]) -> None:
        for molecule in molecules:
            self._remember(molecule, read_header(self._paths[molecule]))

    def _remember(self, molecule: int, found: LabelHeader | MoleculeLabels) -> None:
        known = int(self._n_scf_iterations[molecule])
        if known not in (-1, found.n_scf_iterations):
            what = f"{self._paths[molecule]}: has {found.n_scf_iterations} SCF iterations, expected {known}"
            raise LabelFileError(f"{what}: the file has changed, or the split file is wrong (config: data.split.file)")
        self._n_scf_iterations[molecule] = found.n_scf_iterations
        self._elements[molecule] = set(found.atomic_numbers.tolist())

    def state(self, contents: bool = False) -> dict[str, Any]:
        """Describes the raw samples: files (name, and size and time or digest), selected iterations, labels."""
        keys = {"energy_key": self.energy_key, "gradient_key": self.gradient_key}
        return {"files": file_states(self._paths, contents), **vars(self.scf_selection), **keys}

    def _read(
        self, molecule: int, iterations: IntArray | Callable[[int], IntArray], fields: Collection[str] | None
    ) -> MoleculeLabels:
        labels = read_molecule(self._paths[molecule], self.energy_key, self.gradient_key, iterations, fields)
        self._remember(molecule, labels)
        # results and samples belong together by name
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
        selections = {m: partial(self.scf_selection, path_of=partial(self.path, m)) for m in molecules.tolist()}
        return join_labels([self._read(m, selections[m], fields) for m in molecules.tolist()], self.basis_info)


def join_labels(molecules: Sequence[MoleculeLabels], basis_info: BasisInfo) -> Any:
    """Returns the batch of all rows of some molecules' labels."""
    n_rows = [len(labels.scf_iteration) for labels in molecules]
    atom_ind = [basis_info.atom_indices(m.atomic_numbers, f"{m.path}: molecule {m.mol_id!r}") for m in molecules]
    functions = [basis_info.basis_function_ind(indices) for indices in atom_ind]
    for labels, own in zip(molecules, functions, strict=True):
        if labels.coeffs.shape[1] != len(own):
            what = f"{labels.path}: molecule {labels.mol_id!r} has {labels.coeffs.shape[1]} coefficients"
            raise LabelFileError(f"{what}, the basis has {len(own)} functions for it (config: data.source.basis_info)")

    def joined(*names: str) -> dict[str, Tensor]:
        arrays = {name: [getattr(m, name).reshape(-1) for m in molecules] for name in names}
        return {name: torch.from_numpy(np.concatenate(own)) for name, own in arrays.items()}

    def repeated(**arrays: list[npt.NDArray[Any]]) -> dict[str, Tensor]:
        lists = {k: [a for a, n in zip(own, n_rows, strict=True) for _ in range(n)] for k, own in arrays.items()}
        return {name: torch.from_numpy(np.concatenate(own)) for name, own in lists.items()}

    of_molecule = {name: [getattr(m, name) for m in molecules] for name in ("pos", "atomic_numbers")}
    ground_states = [m.ground_state_coeffs for m in molecules]
    per_sample = {
        **joined("energy_label", "has_energy_label", "perturbed", "scf_iteration"),
        "mol_id": [m.mol_id for m, n in zip(molecules, n_rows, strict=True) for _ in range(n)],
        "basis_info": [basis_info] * sum(n_rows),
        "coordinates": [RAW] * sum(n_rows),
    }
    read = [name for name in ("gradient_label", "dual_basis_integrals") if getattr(molecules[0], name) is not None]
    return make_batch(
        repeated(**of_molecule, atom_ind=atom_ind),
        repeated(basis_function_ind=functions, ground_state_coeffs=ground_states) | joined("coeffs", *read),
        per_sample,
        np.repeat([len(indices) for indices in atom_ind], n_rows),
        np.repeat([len(f) for f in functions], n_rows),
    )


def file_states(paths: Sequence[Path], contents: bool = False) -> list[list[Any]]:
    """Returns relative name, and size and time of modification or a digest of the content, of label files.

    Names are relative to the folder that holds all files: a copy that keeps times (``rsync -a``) is the same set. A
    ``.zarr`` folder counts with all files below it.
    """
    root = os.path.commonpath([path.absolute().parent for path in paths]) if paths else ""
    files: list[str] = []
    for path in paths:
        below = sorted(os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names)
        files += below if path.is_dir() else [str(path)]
    try:
        with ThreadPoolExecutor() as pool:  # hashing releases Python's lock
            states: list[Any] = list(pool.map(file_digest if contents else os.stat, files))
    except OSError as error:
        raise LabelFileError(f"{error.filename}: cannot be read: {error.strerror} (config: data.source)") from error
    states = states if contents else [[status.st_size, status.st_mtime_ns] for status in states]
    return [[os.path.relpath(file, root), state] for file, state in zip(files, states, strict=True)]
