"""Sources of samples: the base class, label files, packed labels, npz files of samples; and the check of a sample."""

from __future__ import annotations

import copy
import glob
import hashlib
import os
import zipfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Batch, Data

from ofdft_norm.data.basis import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.data.dataset import MoleculeDataset, OFDataset, Transform, apply_transform, compose
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.label_file import LARGEST_LABEL, read_header
from ofdft_norm.data.packed import META, PackedDataset, PackedSet, remaining_transforms
from ofdft_norm.data.sample import (
    PER_FUNCTION,
    RAW,
    JoinedDataset,
    OFData,
    as_data,
    field_names,
    get_field,
    is_sample,
    join_samples,
)
from ofdft_norm.data.split import (
    SUFFIXES,
    Parts,
    SplitConfig,
    SplitEntry,
    locate_entries,
    random_split,
    read_split,
    refuse_copies,
    refuse_members,
    refuse_missing,
    refuse_repeated,
)
from ofdft_norm.errors import BasisError, BatchError, ConfigError, LabelFileError, NormalizationError, did_you_mean
from ofdft_norm.settings import Settings

GeometryOf = Callable[[str], Hashable | None]


class Source(Settings):
    """Base class of sources: names the members (label files, frames, ...) of each part, and opens data sets of them.

    Attributes:
        keep_in_memory: Whether each normalised sample is kept after it was first read.
        unit: Unit of the stored energies; None: that of the data module.
        length_unit: Unit of positions.
        energy_field: Field of the samples with the energy.
        forces_field: Field with forces; None: there are none.
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
    atomic_numbers_field = "atomic_numbers"
    energy_key = cast("str | None", None)
    gradient_key = cast("str | None", None)
    energy_is_total = False

    def prepare_data(self) -> None:
        """Downloads what is missing; Lightning calls this in one process."""

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

    def split_identity(self, split: SplitConfig) -> str | None:
        """Identifies the settings that a split follows from; None: the split of a checkpoint is not used again."""
        return None

    def loader(self, part: str) -> DataLoader | None:
        """Returns a wrapped data module's own loader of a part."""
        return None

    def release(self) -> None:
        """Closes what is open: the next use looks at the files again."""


def listed(paths: str | Sequence[str] | None) -> list[str]:
    """Returns one or several paths as a list, with the home folder written out."""
    return [os.path.expanduser(p) for p in ([] if paths is None else [paths] if isinstance(paths, str) else paths)]


def find_paths(pattern: str) -> list[str]:
    """Returns the file or folder of this very name, else the sorted matches of a glob pattern."""
    found = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern))
    return [str(Path(path)) for path in found]


class LabelFiles(Source):
    """Label files in STRUCTURES25's layout, one molecule each.

    Attributes:
        paths: Folders (all ``*.zarr`` and ``*.zarr.zip`` in them), files, or glob patterns.
        basis_info: JSON file with `atomic_numbers` and `irreps_per_atom`.
        energy_key: Which energy below ``of_labels/energies`` is learned.
        gradient_key: Its gradient below ``of_labels/spatial``.
        limit_scf_iterations: SCF iterations to use: s >= 0 those from s on, s < 0 the last -s, a list those in it
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
    # number of SCF iterations of label files, where the split file states it
    _scf_iterations: dict[str, int] = field(init=False, default_factory=dict, repr=False, compare=False)

    def basis(self) -> BasisInfo:
        """Reads the basis."""
        return BasisInfo.from_json(self.basis_info)

    def _list_files(self) -> tuple[list[str], GeometryOf]:
        """Returns the label files, and a function that reads a label file's geometry."""
        found: set[str] = set()
        for pattern in listed(self.paths):
            files = [file for path in find_paths(pattern) for file in _label_files_at(path)]
            if not files:
                raise ConfigError(f"{pattern}: no label file (*.zarr, *.zarr.zip) there (config: data.source.paths)")
            found.update(files)
        return self._without_excluded(found), _read_geometry

    def _without_excluded(self, found: set[str]) -> list[str]:
        excluded = set(self.exclude)
        unknown = sorted(excluded - {os.path.basename(path) for path in found})
        if unknown:
            raise ConfigError(
                f"exclude has {unknown}, which are not among the label files (config: data.source.exclude)"
            )
        kept = (path for path in found if os.path.basename(path) not in excluded)
        return sorted(kept, key=lambda path: Path(path).parts)

    def _read_entries(self, file: str) -> dict[str, list[SplitEntry]]:
        return read_split(file)

    def parts(self, split: SplitConfig) -> Parts:
        """Returns the label files of train, val and test.

        Raises:
            SplitError: If a label file is reached twice, is a copy of another one, or fits no or several entries.
        """
        files, geometry_of = self._list_files()
        where = str(self.paths) if split.file is None else split.file
        if split.file is None:
            parts = random_split(files, split, where)
        else:
            parts, iterations = locate_entries(self._read_entries(split.file), files, self.exclude, where)
            self._scf_iterations.update(iterations)
        refuse_repeated(parts, where)
        refuse_copies(parts, geometry_of, where)
        return {part: paths for part, paths in parts.items() if paths}

    def everything(self) -> list[str]:
        """Returns all label files."""
        files, geometry_of = self._list_files()
        refuse_repeated({"all": files}, str(self.paths))
        refuse_copies({"all": files}, geometry_of, str(self.paths))
        return files

    def open(self, part: str, members: Sequence[str], transforms: Sequence[Transform]) -> Dataset:
        """Returns the data set of some label files; raises SplitError if one does not exist."""
        refuse_missing(part, members, str(self.paths))
        counts = [self._scf_iterations.get(path, -1) for path in members]
        return OFDataset(
            members,
            self.basis(),
            self.energy_key,
            self.gradient_key,
            compose(transforms),
            self.limit_scf_iterations,
            self.keep_initial_guess,
            None if -1 in counts else counts,
        )

    def split_identity(self, split: SplitConfig) -> str:
        """Identifies paths, exclusions, settings of the split, and the content of a split file."""
        paths = [os.path.abspath(path) for path in listed(self.paths)]
        content = Path(split.file).read_bytes() if split.file is not None and os.path.isfile(split.file) else b""
        return f"({paths}, {sorted(self.exclude)}, {split!r}, {hashlib.sha256(content).hexdigest()!r})"


def _label_files_at(path: str) -> Iterator[str]:
    if not path.endswith(SUFFIXES) and os.path.isdir(path):
        yield from (os.path.join(path, name) for name in os.listdir(path) if name.endswith(SUFFIXES))
    elif path.endswith(SUFFIXES):
        yield path


def _read_geometry(path: str) -> Hashable | None:
    with suppress(LabelFileError):  # reported when the file is used
        header = read_header(path)
        return header.atomic_numbers.tobytes(), header.pos.tobytes()
    return None


class PackedLabels(LabelFiles):
    """Label files that `ofdft-norm pack` packed into one or several sets.

    Molecules keep the names of their label files, for splits and `exclude`: a random split of a packed folder is that
    of the folder. Pre-transforms that the sets were packed with are not applied again; they must be the first of
    `data.pre_transforms`, apart from changes of basis.

    Attributes:
        paths: Folders of packed sets, or glob patterns.
        basis_info: JSON file that the sets' own basis must equal; None: no check.
        verify: Whether all arrays are read first, and compared with their digests.
        energy_key, ..., keep_in_memory: See `LabelFiles`.
    """

    basis_info: str | None = None  # type: ignore[assignment]
    verify: bool = False
    _opened: list[PackedSet] = field(init=False, default_factory=list, repr=False, compare=False)
    # set and index of each molecule by the path of its label file in the set's folder
    _places: dict[str, tuple[PackedSet, int]] = field(init=False, default_factory=dict, repr=False, compare=False)

    def release(self) -> None:
        """Closes the packed sets."""
        self._opened.clear()
        self._places.clear()

    def sets(self) -> list[PackedSet]:
        """Opens the packed sets; raises ConfigError if a pattern matches none, BasisError for another basis."""
        if self._opened:
            return self._opened
        folders: list[str] = []
        for pattern in listed(self.paths):
            found = [os.path.abspath(path) for path in find_paths(pattern)]
            packed = [folder for folder in found if os.path.isfile(os.path.join(folder, META))]
            if not packed:
                raise ConfigError(
                    f"{pattern}: no packed set ({META}) there; make one with ofdft-norm pack (config: "
                    "data.source.paths)"
                )
            folders += [folder for folder in packed if folder not in folders]
        sets = [PackedSet(folder, self.verify) for folder in folders]
        if self.basis_info is not None and (given := BasisInfo.from_json(self.basis_info)) != sets[0].basis_info:
            raise BasisError(
                f"{folders[0]}: was packed in the basis {sets[0].basis_info}, but {self.basis_info} has {given}; null "
                "takes the packed set's basis (config: data.source.basis_info)"
            )
        self._opened.extend(sets)
        for one in sets:
            self._places.update({os.path.join(one.folder, name): (one, m) for m, name in enumerate(one.names())})
        return sets

    def basis(self) -> BasisInfo:
        """Returns the basis that the labels were packed with."""
        return self.sets()[0].basis_info

    def _list_files(self) -> tuple[list[str], GeometryOf]:
        self.sets()
        return self._without_excluded(set(self._places)), self._geometry_of

    def _geometry_of(self, member: str) -> Hashable | None:
        found = self._places.get(member)  # None: refused when it is opened
        return found and tuple(array.tobytes() for array in found[0].geometry(found[1]))

    def open(self, part: str, members: Sequence[str], transforms: Sequence[Transform]) -> Dataset:
        """Returns the data set of some molecules; raises SplitError if one is in no set."""
        sets = self.sets()
        missing = [member for member in members if member not in self._places]
        refuse_members(f"the {part} split", "molecules that are not in the packed sets", missing)
        located = [self._places[member] for member in members]
        meta, where = sets[0].meta, str(sets[0].folder)
        return PackedDataset(
            sets,
            [np.array([m for found, m in located if found is packed], dtype=np.int64) for packed in sets],
            self.energy_key,
            self.gradient_key,
            compose(remaining_transforms(transforms, meta["applied"], where, meta["coordinates"])),
            self.limit_scf_iterations,
            self.keep_initial_guess,
        )


class EmbeddedLabels(PackedLabels):
    """The labels that come with the package: small molecules of H, C, N, O, F, PBE/6-31G(2df,p).

    Attributes:
        energy_key: Which energy is learned: ``e_kin`` or ``e_kin_plus_xc``.
        gradient_key: Its gradient: ``grad_kin`` or ``grad_kin_plus_xc``.
        limit_scf_iterations, ..., keep_in_memory: See `LabelFiles`.
    """

    paths: str | Sequence[str] = field(init=False, default=str(EMBEDDED))
    basis_info: str | None = field(init=False, default=None)
    keep_in_memory: bool = True


# --- samples of other kinds -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleCheck:
    """Validates samples where they enter, and converts them to PyG's `Data`.

    Samples need atomic numbers; with `labelled` an energy and, if they have a field, forces; with a basis coefficients.
    """

    energy: str = "energy_label"
    forces: str | None = None
    atomic_numbers: str = "atomic_numbers"
    labelled: bool = True
    basis_info: BasisInfo | None = None

    def __call__(self, sample: Any, where: str) -> Data:
        """Returns a shallow copy in which the checked fields are tensors; `where` names the sample.

        Raises BatchError, with sample, field, value and expectation, if a field is missing, has another shape, or
        numbers that are not real and finite. Labels are not checked where `has_energy_label` is false.
        """
        name = get_field(sample, "mol_id")
        where = where if name is None or str(name) in where else f"{where} (molecule {name!r})"
        if not is_sample(sample):
            raise BatchError(
                f"{where} is a {type(sample).__name__}, expected a torch_geometric.data.Data (config: data.source)"
            )
        if "normalized" in field_names(sample):
            raise NormalizationError(f"{where} is normalised already: wrap the raw data sets (config: data.source)")
        data = copy.copy(as_data(sample))
        numbers = self._check_atomic_numbers(data, where)
        flag, of_atoms = data.get("has_energy_label"), (len(numbers), 3)
        labelled = flag is None or bool(torch.as_tensor(flag).all())
        # field, shape, and the setting that names it if it is required
        checks: list[tuple[str | None, tuple[int, ...] | None, str]] = [("pos", of_atoms, ""), ("cell", None, "")]
        if labelled:
            settings = ("energy_field", "forces_field") if self.labelled else ("", "")
            checks += [(self.energy, (), settings[0]), (self.forces, of_atoms, settings[1])]
        if self.basis_info is not None:
            n_basis = _add_indices(data, numbers, self.basis_info, where)
            names = [name for name in PER_FUNCTION if labelled or name != "gradient_label"]
            checks += [(name, (n_basis,), "basis_info" if name == "coeffs" else "") for name in names]
        for name, shape, setting in checks:
            if name is not None and (setting or name in data):
                value = _check_numbers(data, name, shape, where, setting)
                data[name] = value if value.is_floating_point() else value.to(torch.float64)
        return data

    def _check_atomic_numbers(self, data: Data, where: str) -> Tensor:
        field = "z" if self.atomic_numbers not in data and "z" in data else self.atomic_numbers
        value = data[field] = _check_numbers(data, field, None, where, "atomic_numbers_field")
        bad = (value < 1) | (value > MAX_ATOMIC_NUMBER) | (value != value.to(torch.int64))
        if value.ndim != 1 or not len(value) or bad.any():
            raise BatchError(
                f"{where}: field {field!r} has shape {tuple(value.shape)} and the wrong values "
                f"{value[bad].tolist()[:5]}, expected atomic numbers 1 ... {MAX_ATOMIC_NUMBER} (config: "
                "data.source.atomic_numbers_field)"
            )
        return value


def _add_indices(data: Data, numbers: Tensor, basis_info: BasisInfo, where: str) -> int:
    """Compares the indices of atoms and functions with the basis, or adds them; returns the number of functions."""
    atom_ind = basis_info.atom_indices(numbers.numpy(), where)
    functions = basis_info.basis_function_ind(atom_ind)
    for name, expected in (("atom_ind", atom_ind), ("basis_function_ind", functions)):
        if name not in data:
            data[name] = torch.from_numpy(expected)
        elif not np.array_equal(torch.as_tensor(data[name]).numpy(), expected):
            raise BatchError(f"{where}: field {name!r} contradicts {basis_info} (config: data.source.basis_info)")
    if "basis_info" not in data:
        data.basis_info = basis_info
    return len(functions)


def _check_numbers(data: Data, field: str, shape: tuple[int, ...] | None, where: str, setting: str) -> Tensor:
    """Returns a field as a tensor of finite real numbers; shape (): one number in any shape; None: any shape."""
    config = f"(config: data.source{setting and '.'}{setting})"
    if field not in data:
        known = field_names(data)
        raise BatchError(f"{where}: lacks the field {field!r}; it has {known}{did_you_mean(field, known)} {config}")
    value = data[field]
    if not isinstance(value, Tensor):
        try:
            array = np.atleast_1d(np.asarray(value))
        except ValueError:  # lists of different lengths
            array = np.array([None])
        if array.dtype.kind not in "biuf":
            raise BatchError(f"{where}: field {field!r} is {value!r:.60}, expected a tensor of real numbers {config}")
        value = torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
    if value.is_complex():
        raise BatchError(f"{where}: field {field!r} has dtype {value.dtype}, expected real numbers {config}")
    if shape is not None and (value.numel() != 1 if shape == () else tuple(value.shape) != shape):
        expected = shape or "one number"
        raise BatchError(f"{where}: field {field!r} has shape {tuple(value.shape)}, expected {expected} {config}")
    bad = ~(value.abs() <= LARGEST_LABEL)  # true for NaN
    if bad.any():
        entry = bad.nonzero()[0].tolist()
        raise BatchError(
            f"{where}: field {field!r} is {value[tuple(entry)].item()} at entry {entry}, expected finite numbers of at "
            f"most {LARGEST_LABEL:g}: correct it, leave the sample out, or set has_energy_label to False {config}"
        )
    return value


class SampleDataset(JoinedDataset):
    """Samples of any map-style data set, validated and transformed when they are read; `what` names the data set."""

    def __init__(
        self,
        samples: Any,
        check: SampleCheck,
        what: str,
        transform: Transform | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        self.samples = samples
        self.check = check
        self.what = what
        self.transform = transform
        self.indices = range(len(samples)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def _name(self, index: int) -> str:
        return f"sample {index} of {self.what}"

    def __getitems__(self, samples: Sequence[int]) -> Any:
        """Reads samples as one batch."""
        return apply_transform(self.transform, self._read([self.indices[i] for i in samples]))

    def _read(self, indices: list[int]) -> Any:
        several = getattr(self.samples, "__getitems__", None)
        found = [self.samples[i] for i in indices] if several is None else several(indices)
        if isinstance(self.samples, MoleculeDataset):  # validates what it reads
            return found
        found = found.to_data_list() if isinstance(found, Batch) else found
        return join_samples([self.check(sample, self._name(i)) for sample, i in zip(found, indices, strict=True)])

    def elements(self) -> set[int] | None:
        """Returns the atomic numbers that occur, without their check; None if that takes a pass over files."""
        if isinstance(self.samples, MoleculeDataset):
            return self.samples.elements()
        if not isinstance(self.samples, Sequence):
            return None
        found: set[int] = set()
        for sample in (self.samples[i] for i in self.indices):
            fields = (get_field(sample, name) for name in (self.check.atomic_numbers, "z", "numbers"))
            numbers = next((values for values in fields if values is not None), ())
            found.update(np.unique(np.asarray(numbers)).astype(int).tolist())
        return found


class SampleFile(Source):
    """Samples without labels in an npz file, to predict on: the concatenated arrays of all samples.

    The file has `n_atoms` (n_samples,); `pos` (n_atoms_of_all, 3) [bohr]; `atomic_numbers` (n_atoms_of_all,);
    `coeffs` (n_basis_of_all,); and optionally `dual_basis_integrals` (n_basis_of_all,) [electrons], `mol_id`
    (n_samples,) and `coordinates`, one word for the coordinates of coefficients and integrals: ``raw`` (the density
    basis as it is, also where it is missing), or those of `ofdft_norm.transforms`.

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
        samples = _split_arrays(_read_arrays(path), basis_info, path)
        check = SampleCheck(labelled=False, basis_info=basis_info)
        return SampleDataset(samples, check, path, compose(transforms))


_REQUIRED = ("n_atoms", "pos", "atomic_numbers", "coeffs")
_OPTIONAL = ("dual_basis_integrals", "mol_id", "coordinates")


def _read_arrays(path: str) -> dict[str, npt.NDArray[Any]]:
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would wait for a writer
        raise LabelFileError(f"{path}: is no regular file (config: data.source.path)")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*_REQUIRED, *_OPTIONAL) if name in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise LabelFileError(f"{path}: cannot be read as an npz file: {error} (config: data.source.path)") from error
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing:
        raise LabelFileError(
            f"{path}: lacks the arrays {missing}; expected {list(_REQUIRED)}, and perhaps {list(_OPTIONAL)} (config: "
            "data.source.path)"
        )
    return arrays


def _split_arrays(arrays: dict[str, npt.NDArray[Any]], basis_info: BasisInfo, path: str) -> list[OFData]:
    """Returns the samples that concatenated arrays hold."""
    n_atoms, numbers = arrays["n_atoms"], arrays["atomic_numbers"]
    ids = arrays.get("mol_id", np.arange(n_atoms.size))
    whole = n_atoms.dtype.kind in "iu" and n_atoms.ndim == 1 and (n_atoms > 0).all()
    if not whole or n_atoms.sum() != numbers.size or ids.shape != n_atoms.shape:
        raise LabelFileError(
            f"{path}: 'n_atoms' is not one positive integer for each sample, {numbers.size} atoms in all (config: "
            "data.source.path)"
        )
    atoms = np.cumsum(n_atoms)[:-1]
    functions = np.cumsum(basis_info.basis_dim_per_atom[basis_info.atom_indices(numbers, path)])[atoms - 1]
    coordinates = str(arrays.get("coordinates", RAW))
    split = {"pos": atoms, "atomic_numbers": atoms, "coeffs": functions, "dual_basis_integrals": functions}
    pieces = {name: np.split(arrays[name], where) for name, where in split.items() if name in arrays}
    samples = []
    for i, mol_id in enumerate(ids.tolist()):
        fields: dict[str, Any] = {name: of_samples[i] for name, of_samples in pieces.items()}
        try:
            samples.append(OFData.construct_new(basis_info, **fields, mol_id=str(mol_id), coordinates=coordinates))
        except LabelFileError as error:
            raise LabelFileError(f"{path}: {error}") from None
    return samples
