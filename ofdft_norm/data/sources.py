"""Sources of samples: the base class, label files, packed labels, npz files of samples; and the check of a sample."""

import copy
import glob
import hashlib
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Batch, Data

from ofdft_norm.data.basis import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.data.dataset import MoleculeDataset, OFDataset, Transform, apply_transform, compose
from ofdft_norm.data.files import EMBEDDED, read_plain
from ofdft_norm.data.label_file import LARGEST_LABEL, read_header
from ofdft_norm.data.packed import META, PackedDataset, PackedSet, find_remaining_transforms
from ofdft_norm.data.sample import (
    PER_FUNCTION,
    RAW,
    VOIGT,
    JoinedDataset,
    OFData,
    convert_to_data,
    find_periodic_directions,
    get_field,
    is_sample,
    join_samples,
    list_fields,
    read_items,
)
from ofdft_norm.data.split import (
    BY_FOLDERS,
    SUFFIXES,
    Parts,
    SplitConfig,
    SplitEntry,
    locate_entries,
    make_list_error,
    read_split,
    refuse_doubles,
    split_randomly,
)
from ofdft_norm.errors import BasisError, BatchError, ConfigError, LabelFileError, NormalizationError, did_you_mean
from ofdft_norm.settings import Settings


class Source(Settings):
    """Base class of sources: lists the members (label files, frames, ...) of each part, and opens their data sets.

    Attributes:
        keep_in_memory: Whether each normalised sample is kept after it was first read.
        unit: Unit of the stored energies; None: that of the data module.
        length_unit: Unit of positions.
        energy_field: Field of the samples with the energy.
        forces_field: Field with forces; None: there are none.
        stress_field: Field with the stress; None: there is none.
        atomic_numbers_field: Field with atomic numbers.
        energy_key: Name of the learned energy in the files; None: there is no choice.
        gradient_key: Name of its gradient.
        energy_is_total: Whether the energy is the total energy of a molecule.
    """

    config_key = "data.source"
    # not annotated: no fields of the dataclass. Subclasses override them by fields, attributes or properties
    keep_in_memory = False
    unit = cast("str | None", None)
    length_unit = "bohr"
    energy_field = "energy_label"
    forces_field = cast("str | None", None)
    stress_field = cast("str | None", None)
    atomic_numbers_field = "atomic_numbers"
    energy_key = cast("str | None", None)
    gradient_key = cast("str | None", None)
    energy_is_total = False

    def prepare_data(self) -> None:
        """Downloads missing data; Lightning calls this in one process."""

    def setup(self, stage: str | None, trainer: Any) -> None:
        """Prepares for a stage of a run."""

    def teardown(self, stage: str | None) -> None:
        """Ends a stage of a run."""

    def basis(self) -> BasisInfo | None:
        """Returns the density basis; None for samples without density coefficients."""
        return None

    def parts(self, split: SplitConfig) -> Parts:
        """Returns the members of train, val and test; parts without members are left out."""
        raise NotImplementedError

    def everything(self) -> list[str]:
        """Returns all members, without a split."""
        raise NotImplementedError

    def open(self, part: str, members: Sequence[str], transforms: Sequence[Transform]) -> Dataset:
        """Returns the data set of some members, with a method `elements`; the part "all" needs no labels."""
        raise NotImplementedError

    def isolated_atoms(self) -> dict[str, tuple[int, float]]:
        """Returns atomic number and energy [`unit`] of each member that is an isolated atom."""
        return {}

    def split_identity(self, split: SplitConfig) -> str | None:
        """Identifies the settings that determine a split; None: the split of a checkpoint is not used again."""
        return None

    def loader(self, part: str) -> DataLoader | None:
        """Returns a wrapped data module's own loader of a part."""
        return None

    def is_set_up(self, part: str) -> bool:
        """Returns whether a part can be read now; a wrapped data module is set up for each stage of a run."""
        return True

    def release(self) -> None:
        """Closes open files; the next use reads them again."""


def list_paths(paths: str | Sequence[str] | None) -> list[str]:
    """Returns one or several paths as a list, with the home folder written out."""
    return list(map(os.path.expanduser, [] if paths is None else [paths] if isinstance(paths, str) else paths))


def find_files(patterns: str | Sequence[str] | None, find: Callable[[str], Sequence[str]], kind: str) -> list[str]:
    """Returns the files that `find` returns for each path or match of a pattern; `kind` names them in the error."""
    files: list[str] = []
    for pattern in list_paths(patterns):
        before = len(files)
        for path in [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern)):
            files += find(str(Path(path)))
        if len(files) == before:
            raise ConfigError(f"{pattern}: no {kind} there (config: data.source.paths)")
    return files


class LabelFiles(Source):
    """Label files in STRUCTURES25's layout, one molecule each.

    Attributes:
        paths: Folders (all ``*.zarr`` and ``*.zarr.zip`` in them), files, or glob patterns.
        basis_info: JSON file with `atomic_numbers` and `irreps_per_atom`.
        energy_key: Which energy below ``of_labels/energies`` is learned.
        gradient_key: Its gradient below ``of_labels/spatial``.
        limit_scf_iterations: SCF iterations to use: s >= 0: from s on; s < 0: the last -s; a list: these
            (negative ones count from the last); None: all.
        keep_initial_guess: Whether iteration 0, which has no label, is part of the data set: added to the above, or
            left out of it.
        exclude: Names of label files to leave out.
        keep_in_memory: Whether each normalised sample is kept after it was first read.
    """

    paths: str | Sequence[str]
    basis_info: str
    energy_key: str = "e_kin"
    gradient_key: str = "grad_kin"
    limit_scf_iterations: int | Sequence[int] | None = None
    keep_initial_guess: bool = True
    exclude: Sequence[str] = ()
    keep_in_memory: bool = False
    unit = "hartree"
    # number of SCF iterations of label files, if the split file states it
    _scf_iterations: dict[str, int] = field(init=False, default_factory=dict, repr=False, compare=False)

    def basis(self) -> BasisInfo:
        """Reads the basis."""
        return BasisInfo.from_json(self.basis_info)

    def _list_files(self) -> Iterable[str]:
        return set(find_files(self.paths, _find_label_files, "label file (*.zarr, *.zarr.zip)"))

    def _read_geometry(self, path: str) -> Hashable | None:
        """Returns the geometry of a label file, to compare; None: it cannot be read."""
        with suppress(LabelFileError):  # reported when the file is used
            header = read_header(path)
            return header.atomic_numbers.tobytes(), header.pos.tobytes()
        return None

    def _read_entries(self, file: str) -> dict[str, list[SplitEntry]]:
        return read_split(file)

    def parts(self, split: SplitConfig) -> Parts:
        """Returns the label files of train, val and test.

        Raises:
            SplitError: If a label file is listed twice or copies another one, or an entry fits no or several files.
        """
        files, where = self._select_files(), split.file or str(self.paths)
        if split.file is None:
            parts = split_randomly(files, split, where)
        else:
            parts, iterations = locate_entries(self._read_entries(split.file), files, self.exclude, where)
            self._scf_iterations.update(iterations)
        refuse_doubles(parts, where, self._read_geometry)
        return parts

    def everything(self) -> list[str]:
        """Returns all label files."""
        files = self._select_files()
        refuse_doubles({"all": files}, str(self.paths), self._read_geometry)
        return files

    def _select_files(self) -> list[str]:
        """Returns the label files that are not excluded, in sorted order."""
        found, excluded = self._list_files(), set(self.exclude)
        if unknown := sorted(excluded.difference(map(os.path.basename, found))):
            raise ConfigError(f"exclude has {unknown}, no label files of these names (config: data.source.exclude)")
        kept = [path for path in found if os.path.basename(path) not in excluded] if excluded else found
        return sorted(kept, key=BY_FOLDERS)

    def open(self, part: str, members: Sequence[str], transforms: Sequence[Transform]) -> Dataset:
        """Returns the data set of some label files; raises SplitError if one does not exist."""
        # a named pipe is neither a file nor a folder
        if missing := [path for path in members if not os.path.isfile(path) and not os.path.isdir(path)]:
            raise make_list_error(str(self.paths), f"missing label files of the {part} split", missing)
        counts = [self._scf_iterations[path] for path in members if path in self._scf_iterations]
        known = counts if len(counts) == len(members) else None
        return OFDataset(members, self.basis(), **self._collect_options(transforms), n_scf_iterations=known)

    def _collect_options(self, transforms: Sequence[Transform]) -> dict[str, Any]:
        names = ("energy_key", "gradient_key", "limit_scf_iterations", "keep_initial_guess")
        return {"transform": compose(transforms), **dict(zip(names, attrgetter(*names)(self), strict=True))}

    def split_identity(self, split: SplitConfig) -> str:
        """Identifies paths, exclusions, settings of the split, and the content of a split file."""
        paths = list(map(os.path.abspath, list_paths(self.paths)))
        content = Path(split.file).read_bytes() if split.file is not None and os.path.isfile(split.file) else b""
        return f"({paths}, {sorted(self.exclude)}, {split!r}, {hashlib.sha256(content).hexdigest()!r})"


def _find_label_files(path: str) -> list[str]:
    if path.endswith(SUFFIXES):
        return [path]
    names = os.listdir(path) if os.path.isdir(path) else []
    return [os.path.join(path, name) for name in names if name.endswith(SUFFIXES)]


def _find_packed_set(path: str) -> list[str]:
    return [os.path.abspath(path)] if os.path.isfile(os.path.join(path, META)) else []


class PackedLabels(LabelFiles):
    """Label files that `ofdft-norm pack` packed into one or several sets.

    Molecules keep the names of their label files, for splits and `exclude`: a random split of a packed folder equals
    that of the folder. Pre-transforms that were applied before packing are not applied again; they must be the first of
    `data.pre_transforms`, apart from changes of basis.

    Attributes:
        paths: Folders of packed sets, or glob patterns.
        basis_info: JSON file that the sets' own basis must equal; None: no check.
        verify: Whether all arrays are read first, and compared with their checksums.
        energy_key, ..., keep_in_memory: See `LabelFiles`.
    """

    basis_info: str | None = None  # type: ignore[assignment]
    verify: bool = False
    _opened: list[PackedSet] = field(init=False, default_factory=list, repr=False, compare=False)
    # number of the set and index of each molecule, by the path of its label file in the set's folder
    _places: dict[str, tuple[int, int]] = field(init=False, default_factory=dict, repr=False, compare=False)

    def release(self) -> None:
        """Closes the packed sets."""
        self._opened.clear()
        self._places.clear()

    def sets(self) -> list[PackedSet]:
        """Opens the packed sets; raises ConfigError if a pattern matches none, BasisError for another basis."""
        if self._opened:
            return self._opened
        sets, places = [], {}
        for i, folder in enumerate(dict.fromkeys(find_files(self.paths, _find_packed_set, f"packed set ({META})"))):
            sets.append(PackedSet(folder, self.verify))
            for molecule, name in enumerate(sets[i].names()):
                places[os.path.join(folder, name)] = i, molecule
        if self.basis_info is not None and (given := BasisInfo.from_json(self.basis_info)) != sets[0].basis_info:
            what = f"{sets[0].folder}: was packed in the basis {sets[0].basis_info}, but {self.basis_info} has {given}"
            raise BasisError(f"{what} (config: data.source.basis_info)")
        self._opened.extend(sets)
        self._places.update(places)
        return sets

    def basis(self) -> BasisInfo:
        """Returns the basis that the labels were packed with."""
        return self.sets()[0].basis_info

    def _list_files(self) -> Iterable[str]:
        self.sets()
        return self._places

    def _read_geometry(self, path: str) -> Hashable | None:
        found = self._places.get(path)  # None: refused when it is opened
        return found and tuple(array.tobytes() for array in self._opened[found[0]].geometry(found[1]))

    def open(self, part: str, members: Sequence[str], transforms: Sequence[Transform]) -> Dataset:
        """Returns the data set of some molecules; raises SplitError if one is in no set."""
        sets = self.sets()
        if missing := sorted(set(members).difference(self._places)):
            raise make_list_error(f"the {part} split", "molecules that are not in the packed sets", missing)
        molecules: dict[int, list[int]] = defaultdict(list)
        for i, molecule in map(self._places.__getitem__, members):
            molecules[i].append(molecule)
        meta, where = sets[0].meta, str(sets[0].folder)
        remaining = find_remaining_transforms(transforms, meta["applied"], where, meta["coordinates"])
        return PackedDataset(sets, molecules, **self._collect_options(remaining))


class EmbeddedLabels(PackedLabels):
    """The labels that come with the package: small molecules of H, C, N, O, F, PBE/6-31G(2df,p).

    Five molecules have many geometries of 300 K, the others one. The default split holds out geometries of the five
    (`val`, `test`) and molecules of one geometry (`test_molecules`); other settings of the split divide at random.

    Attributes:
        energy_key: Which energy is learned: ``e_kin`` or ``e_kin_plus_xc``.
        gradient_key: Its gradient: ``grad_kin`` or ``grad_kin_plus_xc``.
        limit_scf_iterations, ..., keep_in_memory: See `LabelFiles`.
    """

    paths: str | Sequence[str] = field(init=False, default=str(EMBEDDED))
    basis_info: str | None = field(init=False, default=None)
    keep_in_memory: bool = True

    def parts(self, split: SplitConfig) -> Parts:
        """Returns the parts of the set's own split file if the settings of the split are the defaults."""
        if split != SplitConfig():
            return super().parts(split)
        selected, parts = self._select_files(), {}
        files = dict(zip(map(os.path.basename, selected), selected, strict=True))
        for part, names in read_plain(EMBEDDED / "split.yaml").items():
            parts[part] = list(map(files.__getitem__, filter(files.__contains__, names)))
        return parts


# --- samples of other kinds -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleCheck:
    """Validates samples of other classes when they are read, and converts them to PyG's `Data`.

    With `labelled` an energy, forces and stress are required; with a basis coefficients. The stress becomes (1, 6).
    """

    energy: str = "energy_label"
    forces: str | None = None
    atomic_numbers: str = "atomic_numbers"
    labelled: bool = True
    basis_info: BasisInfo | None = None
    stress: str | None = None

    def __call__(self, sample: Any, where: str) -> Data:
        """Returns a shallow copy in which the checked fields are tensors; `where` names the sample.

        Raises BatchError, with sample, field, value and expectation, if a field is missing, has another shape, or
        numbers that are not real and finite. Labels are not checked where `has_energy_label` is false.
        """
        name = get_field(sample, "mol_id")
        where = where if name is None or str(name) in where else f"{where} (molecule {name!r})"
        if not is_sample(sample):
            raise BatchError(f"{where} is a {type(sample).__name__}, expected a Data of PyG (config: data.source)")
        if "normalized" in list_fields(sample):
            raise NormalizationError(f"{where} is normalised already: wrap the raw data sets (config: data.source)")
        data = copy.copy(convert_to_data(sample))
        fields = data._store  # classes of other packages may log fields that are set in another way
        numbers = self._check_atomic_numbers(fields, where)
        flag, of_atoms = fields.get("has_energy_label"), (len(numbers), 3)
        has_label = flag is None or bool(torch.as_tensor(flag).all())
        # field, shape, and the setting that names it if it is required
        checks: list[tuple[str | None, tuple[int, ...] | None, str]] = [("pos", of_atoms, ""), ("cell", None, "")]
        if has_label:
            settings = ("energy_field", "forces_field") if self.labelled else ("", "")
            checks += [(self.energy, (), settings[0]), (self.forces, of_atoms, settings[1])]
        if self.basis_info is not None:
            n_basis = _add_indices(fields, numbers, self.basis_info, where)
            names = [name for name in PER_FUNCTION if has_label or name != "gradient_label"]
            checks += [(name, (n_basis,), "basis_info" if name == "coeffs" else "") for name in names]
        for name, shape, setting in checks:
            if name is not None and (setting or name in fields):
                value = _check_numbers(fields, name, shape, where, setting)
                fields[name] = value if value.is_floating_point() else value.to(torch.float64)
        if self.stress is not None:
            periodic = bool(find_periodic_directions(data).all())
            wanted = has_label and periodic and (self.labelled or self.stress in fields)
            nan = torch.full((1, 6), torch.nan, dtype=torch.float64)
            fields[self.stress] = _check_stress(fields, self.stress, where) if wanted else nan
        return data

    def _check_atomic_numbers(self, fields: Any, where: str) -> Tensor:
        field = "z" if self.atomic_numbers not in fields and "z" in fields else self.atomic_numbers
        value = fields[field] = _check_numbers(fields, field, None, where, "atomic_numbers_field")
        bad = (value < 1) | (value > MAX_ATOMIC_NUMBER) | (value != value.to(torch.int64))
        if value.ndim != 1 or not len(value) or bad.any():
            found = f"field {field!r} has shape {tuple(value.shape)} and the wrong values {value[bad].tolist()[:5]}"
            expected = f"expected atomic numbers 1 ... {MAX_ATOMIC_NUMBER} (config: data.source.atomic_numbers_field)"
            raise BatchError(f"{where}: {found}, {expected}")
        return value


def _add_indices(fields: Any, numbers: Tensor, basis_info: BasisInfo, where: str) -> int:
    """Compares the indices of atoms and functions with the basis, or adds them; returns the number of functions."""
    atom_ind = basis_info.atom_indices(numbers.numpy(), where)
    functions = basis_info.basis_function_ind(atom_ind)
    for name, expected in (("atom_ind", atom_ind), ("basis_function_ind", functions)):
        if name not in fields:
            fields[name] = torch.from_numpy(expected)
        elif not np.array_equal(torch.as_tensor(fields[name]).numpy(), expected):
            raise BatchError(f"{where}: field {name!r} contradicts {basis_info} (config: data.source.basis_info)")
    fields.setdefault("basis_info", basis_info)
    return len(functions)


def _check_numbers(fields: Any, field: str, shape: tuple[int, ...] | None, where: str, setting: str) -> Tensor:
    """Returns a field as a tensor of finite real numbers; shape (): one number in any shape; None: any shape."""
    config = f"(config: data.source{setting and '.'}{setting})"
    if field not in fields:
        known = sorted(fields.keys())
        raise BatchError(f"{where}: lacks the field {field!r}; it has {known}{did_you_mean(field, known)} {config}")
    value = fields[field]
    if not isinstance(value, Tensor):
        try:
            array = np.atleast_1d(np.asarray(value))
        except ValueError:  # lists of different lengths
            array = np.array([None])
        if array.dtype.kind not in "biuf":
            raise BatchError(f"{where}: field {field!r} is {value!r:.60}, expected a tensor of real numbers {config}")
        value = torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
    fits = shape is None or (value.numel() == 1 if shape == () else tuple(value.shape) == shape)
    if value.is_complex() or not fits:
        found = f"field {field!r} has dtype {value.dtype} and shape {tuple(value.shape)}"
        expected = "one number, real" if shape == () else f"real numbers of shape {shape or 'any'}"
        raise BatchError(f"{where}: {found}, expected {expected} {config}")
    bad = ~(value.abs() <= LARGEST_LABEL)  # true for NaN
    if bad.any():
        entry = bad.nonzero()[0].tolist()
        found = f"field {field!r} is {value[tuple(entry)].item()} at entry {entry}"
        expected = f"expected finite numbers of at most {LARGEST_LABEL:g}, or has_energy_label False"
        raise BatchError(f"{where}: {found}, {expected} {config}")
    return value


def _check_stress(fields: Any, field: str, where: str) -> Tensor:
    """Returns the stress of a sample, six numbers in ASE's order or a tensor of nine, as (1, 6)."""
    value = _check_numbers(fields, field, None, where, "stress_field")
    if value.numel() not in (6, 9):
        expected = "expected 6 numbers (xx, yy, zz, yz, xz, xy) or 3 x 3 (config: data.source.stress_field)"
        raise BatchError(f"{where}: field {field!r} has shape {tuple(value.shape)}, {expected}")
    return (value.reshape(3, 3)[VOIGT] if value.numel() == 9 else value).reshape(1, 6)


@dataclass(eq=False, repr=False)
class SampleDataset(JoinedDataset):
    """Samples of any map-style data set, validated and transformed when they are read; `what` names the data set."""

    samples: Any
    check: SampleCheck
    what: str
    transform: Transform | None = None
    indices: Any = None  # those of the samples to use; None: all

    def __post_init__(self) -> None:
        if isinstance(self.samples, list):  # the caller may change the list after statistics were fitted
            self.samples = list(self.samples)
        self.indices = range(len(self.samples)) if self.indices is None else self.indices

    def __len__(self) -> int:
        return len(self.indices)

    def _name(self, index: int) -> str:
        return f"sample {index} of {self.what}"

    def __getitems__(self, samples: Sequence[int]) -> Any:
        """Reads samples as one batch."""
        indices = [self.indices[i] for i in samples]
        found = read_items(self.samples, indices)
        if not isinstance(self.samples, MoleculeDataset):  # which validates its own samples
            found = found.to_data_list() if isinstance(found, Batch) else found
            found = [self.check(sample, self._name(i)) for sample, i in zip(found, indices, strict=True)]
            found = join_samples(found)
        return apply_transform(self.transform, found)

    def elements(self) -> set[int]:
        """Returns the atomic numbers that occur; reads and checks all samples, which may lack labels."""
        if isinstance(self.samples, MoleculeDataset):
            return self.samples.elements()
        check, found = replace(self.check, labelled=False), set[int]()
        for i in self.indices:
            sample = check(self.samples[i], self._name(i))
            found.update(sample.get(check.atomic_numbers, sample.get("z")).long().tolist())
        return found


class SampleFile(Source):
    """Samples without labels in an npz file, to predict on: the concatenated arrays of all samples.

    The file has `n_atoms` (n_samples,); `pos` (n_atoms_of_all, 3) [bohr]; `atomic_numbers` (n_atoms_of_all,);
    `coeffs` (n_basis_of_all,); and optionally `dual_basis_integrals` (n_basis_of_all,) [electrons], `mol_id`
    (n_samples,) and `coordinates`, the name of the coordinates of coefficients and integrals: ``raw`` (the default) for
    the density basis itself, or a name of `ofdft_norm.transforms`.

    Attributes:
        path: The npz file.
        basis_info: JSON file with the density basis: `atomic_numbers` and `irreps_per_atom`.
        keep_in_memory: Whether each normalised sample is kept after it was first read.
    """

    path: str
    basis_info: str
    keep_in_memory: bool = False

    def basis(self) -> BasisInfo:
        """Reads the basis."""
        return BasisInfo.from_json(self.basis_info)

    def parts(self, split: SplitConfig) -> Parts:
        """Returns no part: there are no labels to train, validate or test with."""
        return {}

    def everything(self) -> list[str]:
        """Returns the file."""
        return [os.path.expanduser(self.path)]

    def open(self, part: str, members: Sequence[str], transforms: Sequence[Transform]) -> Dataset:
        """Returns the data set of all samples; raises LabelFileError if the file cannot be read or does not fit."""
        basis_info, path = self.basis(), members[0]
        check = SampleCheck(labelled=False, basis_info=basis_info)
        return SampleDataset(_read_samples(path, basis_info), check, path, compose(transforms))


def _read_samples(path: str, basis_info: BasisInfo) -> list[OFData]:
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would wait for a writer
        raise LabelFileError(f"{path}: is no regular file (config: data.source.path)")
    required = ("n_atoms", "pos", "atomic_numbers", "coeffs")
    names = (*required, "dual_basis_integrals", "mol_id", "coordinates")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names if name in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise LabelFileError(f"{path}: cannot be read as an npz file: {error} (config: data.source.path)") from error
    if missing := [name for name in required if name not in arrays]:
        raise LabelFileError(f"{path}: lacks the arrays {missing} (config: data.source.path)")
    n_atoms, numbers = arrays["n_atoms"], arrays["atomic_numbers"]
    ids = arrays.get("mol_id", np.arange(n_atoms.size))
    whole = n_atoms.dtype.kind in "iu" and n_atoms.ndim == 1 and (n_atoms > 0).all()
    if not whole or n_atoms.sum() != numbers.size or ids.shape != n_atoms.shape:
        what = f"'n_atoms' is not one positive integer for each sample, {numbers.size} atoms in all"
        raise LabelFileError(f"{path}: {what} (config: data.source.path)")
    atoms = np.cumsum(n_atoms)[:-1]
    atom_ind = basis_info.atom_indices(numbers, path)
    arrays["atomic_numbers"] = basis_info.atomic_numbers[atom_ind]
    functions = np.cumsum(basis_info.basis_dim_per_atom[atom_ind])[atoms - 1]
    common = {"coordinates": str(arrays.get("coordinates", RAW)), "has_energy_label": torch.tensor([False])}
    split = {"pos": atoms, "atomic_numbers": atoms, "coeffs": functions, "dual_basis_integrals": functions}
    pieces = {name: np.split(arrays[name], where) for name, where in split.items() if name in arrays}
    return [
        OFData(**{name: of_samples[i] for name, of_samples in pieces.items()}, mol_id=str(mol_id), **common)
        for i, mol_id in enumerate(ids.tolist())
    ]
