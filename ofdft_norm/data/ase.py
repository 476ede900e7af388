"""Frames of extended XYZ files, ASE databases and other files of ASE as samples of energies and forces."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torch_geometric.data import Data

from ofdft_norm.data.dataset import Transform, compose, read_file_states
from ofdft_norm.data.files import import_optional
from ofdft_norm.data.sources import SampleCheck, SampleDataset, Source, find_files, list_paths
from ofdft_norm.data.split import PARTS, Parts, SplitConfig, refuse_doubles, split_randomly
from ofdft_norm.errors import ConfigError, LabelFileError, SplitError, did_you_mean
from ofdft_norm.units import EnergyUnit

_PART_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class FrameFile:
    """The frames of a file, kept in memory; for a database, the identifiers of its rows. Pickled without frames."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_database = Path(path).suffix.lower() == ".db"
        self._state: list[tuple[int, int]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "frames"}

    def list_files(self) -> list[Path]:
        """Returns the file, and the file with the latest changes of an SQLite database in WAL mode."""
        log = Path(f"{self.path}-wal")
        return [Path(self.path), log] if self.is_database and log.exists() and log.stat().st_size else [Path(self.path)]

    def _find_state(self) -> list[tuple[int, int]]:
        return [(found.st_size, found.st_mtime_ns) for found in map(os.stat, self.list_files())]

    def has_changed(self) -> bool:
        """Returns whether the file has another size or time of modification than when it was read."""
        return self._state is not None and self._state != self._find_state()

    def _refuse_change(self) -> None:
        if self.has_changed():
            raise LabelFileError(f"{self.path}: has changed since its frames were counted: call setup again")

    @cached_property
    def frames(self) -> list[Any]:
        """All frames."""
        self._refuse_change()
        frames: list[Any] = []
        with _name_frame(lambda: f"{self.path}@{len(frames)}"):
            if self.is_database:
                rows = import_optional("ase.db", "ase").connect(self.path).select(include_data=False, columns=["id"])
                frames.extend(row.id for row in rows)
            elif Path(self.path).suffix.lower() in (".xyz", ".extxyz"):
                frames.extend(_read_xyz(self.path))
            else:  # by default, ASE takes the text after an @ in the name as an index
                iread = import_optional("ase.io", "ase").iread
                frames.extend(iread(self.path, index=":", do_not_split_by_at_sign=True))
        self._state = self._find_state()  # last: closing a database in WAL mode writes to it
        return frames

    def __getitem__(self, index: int) -> Any:
        """Returns a frame as `ase.Atoms`."""
        if index >= len(self.frames):
            raise LabelFileError(f"{self.path}@{index}: it has {len(self.frames)} frames (config: data.source.paths)")
        if not self.is_database:
            return self.frames[index]
        self._refuse_change()
        with _name_frame(lambda: f"{self.path}@{index}"):
            database = import_optional("ase.db", "ase").connect(self.path)
            return database.get_atoms(self.frames[index], add_additional_information=True)


def _read_xyz(path: str) -> Iterator[Any]:
    """Reads frames one by one: ASE's reader does not locate damage in a file. Blank lines may separate frames."""
    read = import_optional("ase.io", "ase").read
    with open(path, "rb") as file:
        for number, line in (lines := enumerate(file, 1)):
            count = line.strip()
            if not count:
                continue
            if not count.isdigit() or int(count) == 0:
                what = f"begins with {count.decode(errors='replace')!r:.60}, expected the number of atoms of a frame"
                raise LabelFileError(f"{path}:{number}: {what} (config: data.source.paths)")
            rest = [text for _, text in islice(lines, int(count) + 1)]
            if sum(1 for text in rest[1:] if text.strip()) < int(count):
                raise EOFError("the file ends within this frame")
            yield read(StringIO(b"".join([line, *rest]).decode()), format="extxyz", index=0)


@contextmanager
def _name_frame(where: Callable[[], str]) -> Iterator[None]:
    """Names the frame in all errors of ASE's readers."""
    try:
        yield
    except (LabelFileError, ImportError):
        raise
    except Exception as error:
        what = f"{where()}: ASE cannot read this: {type(error).__name__}: {error} (config: data.source.paths)"
        raise LabelFileError(what) from error


@dataclass(frozen=True)
class Frames(Sequence[Any]):
    """Some frames (``path@index``) of files, as `ase.Atoms`."""

    members: Sequence[str]
    files: Mapping[str, FrameFile]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: Any) -> Any:
        path, _, frame = self.members[index].rpartition("@")
        return self.files[path][int(frame)]


class ASEDataset(SampleDataset):
    """Frames of files as samples; see `ASEFiles`."""

    def _name(self, index: int) -> str:
        return self.samples.members[index]

    def state(self, contents: bool = False) -> dict[str, Any]:
        """Describes the raw samples in plain data; see `MoleculeDataset.state`."""
        files = self.samples.files
        numbers = {path: i for i, path in enumerate(sorted(files))}
        places = (member.rpartition("@") for member in self.samples.members)
        return {
            "files": read_file_states([file for path in numbers for file in files[path].list_files()], contents),
            "samples": [f"{numbers[path]}@{index}" for path, _, index in places],
            "check": repr(self.check),
        }


def is_atoms(value: Any) -> bool:
    """Returns whether a value is an `ase.Atoms`, without importing ASE."""
    return any(f"{kind.__module__}.{kind.__qualname__}" == "ase.atoms.Atoms" for kind in type(value).__mro__)


@dataclass(frozen=True)
class AtomsCheck(SampleCheck):
    """Also converts `ase.Atoms`; `keys` are the names of their energy, forces and stress."""

    keys: tuple[str | None, str | None, str | None] = ("energy", "forces", "stress")

    def __call__(self, sample: Any, where: str) -> Data:
        """Returns the validated sample; see `SampleCheck`."""
        return super().__call__(self._convert(sample, where) if is_atoms(sample) else sample, where)

    def _convert(self, atoms: Any, where: str) -> Data:
        """Returns the sample of a frame; results of its calculator count if they belong to its geometry."""
        if len(atoms) == 0:
            raise LabelFileError(f"{where}: has no atoms: leave the frame out (config: data.source.paths)")
        sample = Data(
            pos=np.array(atoms.positions, dtype=np.float64),
            cell=np.array(atoms.cell, dtype=np.float64)[None],
            pbc=torch.from_numpy(np.array(atoms.pbc))[None],
            mol_id=where,
            config_type=str(_find_info(atoms).get("config_type", "")),
            has_energy_label=torch.tensor([True]),
        )
        sample[self.atomic_numbers] = np.array(atoms.numbers, dtype=np.int64)
        labels = [("energy", self.energy, (1,)), ("forces", self.forces, (len(atoms), 3))]
        if atoms.pbc.all():
            labels.append(("stress", self.stress, (6,)))
        for (setting, name, shape), key in zip(labels, self.keys, strict=False):
            if name is None or key is None:
                continue
            known = _find_values(atoms, setting)
            if key in known:
                sample[name] = np.array(known[key], dtype=np.float64)
            elif not self.labelled:
                sample[name] = torch.full(shape, torch.nan, dtype=torch.float64)
                sample.has_energy_label = torch.tensor([False])
            else:
                sizes = {int(np.prod(shape)), 9} if setting == "stress" else {int(np.prod(shape))}
                fitting = sorted(k for k, value in known.items() if np.size(value) in sizes)
                has = f"it has {fitting}{did_you_mean(key, fitting)}" if fitting else "it has no value of this shape"
                config = f"(config: data.source.{setting}; of wrapped data {setting}_field)"
                raise LabelFileError(f"{where}: lacks {key!r}; {has} {config}")
        return sample


def _find_values(atoms: Any, setting: str) -> dict[str, Any]:
    """Returns the numbers of a frame, of its row in a database, and of its calculator, by name."""
    values = dict(atoms.arrays if setting == "forces" else atoms.info)
    for name in ("key_value_pairs", "data"):  # entries of a database row
        values.update(atoms.info.get(name, {}))
    if atoms.calc is not None:
        results = {name: atoms.calc.get_property(name, atoms, allow_calculation=False) for name in atoms.calc.results}
        values.update({name: value for name, value in results.items() if value is not None})
    numeric = (int, float, np.ndarray, np.generic)
    return {k: v for k, v in values.items() if isinstance(v, numeric) and np.asarray(v).dtype.kind in "iuf"}


def _find_info(atoms: Any) -> dict[str, Any]:
    """Returns the entries of `info`, and the key-value pairs of a database row."""
    return {**atoms.info, **atoms.info.get("key_value_pairs", {})}


def _find_regular_file(path: str) -> list[str]:
    return [path] if os.path.isfile(path) else []  # a pipe would wait for a writer


class ASEFiles(Source):
    """Energies, forces and stress in extended XYZ files, ASE databases, or any other files that ASE reads.

    A sample has `atomic_numbers`, `pos` [angstrom], `energy`, `forces` [energy per angstrom], `cell`, `pbc`, the
    `config_type` of its `info`, and as `mol_id` its frame, ``data.xyz@17``: frame 17, counted from 0. With `stress` it
    has (1, 6) `stress` [energy per angstrom^3] in ASE's order and sign, NaN for frames that are not periodic in all
    three directions. Frames are kept in memory; rows of a database are read when they are asked for.

    Attributes:
        paths: Files or glob patterns: all frames, or the frames to train on.
        val: Files to validate on; None: a part of `paths`.
        test: Files to test on; None: a part of `paths`, or nothing if `val` is given.
        split_key: Entry of `info` with ``train``, ``val`` or ``test`` for each frame; None: `data.split` divides.
        energy: Name of the energy among a frame's results or in its `info`.
        forces: Name of the forces among a frame's results or `arrays`; None: there are none.
        unit: Unit of the energies; ASE's own unit is eV.
        keep_in_memory: Whether each normalised sample is kept after it was first read.
        stress: Name of the stress among a frame's results or in its `info`; None: there is none.
    """

    paths: str | Sequence[str]
    val: str | Sequence[str] | None = None
    test: str | Sequence[str] | None = None
    split_key: str | None = None
    energy: str = "energy"
    forces: str | None = "forces"
    unit: EnergyUnit = "eV"
    keep_in_memory: bool = False
    stress: str | None = None
    length_unit = "angstrom"
    energy_field = "energy"
    energy_is_total = True
    _files: dict[str, FrameFile] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.split_key is not None and (self.val is not None or self.test is not None):
            raise ConfigError("data.source has a split_key, and files for val or test: give only one of them")

    forces_field = property(lambda self: None if self.forces is None else "forces")
    stress_field = property(lambda self: None if self.stress is None else "stress")

    def parts(self, split: SplitConfig) -> Parts:
        """Returns the frames of train, val and test: by files, by `split_key`, or at random."""
        frames = self._list_frames()
        if self.split_key is not None:
            parts = self._divide_by_key(self.split_key, frames["train"])
        elif self.val is not None or self.test is not None:
            parts = frames
        elif split.file is not None:
            raise ConfigError("data.split.file lists label files, not frames: give data.source.val, test or split_key")
        else:
            parts = split_randomly(frames["train"], split, str(self.paths))
        return {part: members for part, members in parts.items() if members}

    def everything(self) -> list[str]:
        """Returns all frames."""
        return [member for members in self._list_frames().values() for member in members]

    def isolated_atoms(self) -> dict[str, tuple[int, float]]:
        """Returns number and energy of single atoms without periodic images, or with ``config_type=IsolatedAtom``."""
        check, members, found = AtomsCheck("energy", keys=(self.energy, None, None)), self.everything(), {}
        for member, atoms in zip(members, Frames(members, self._files), strict=True):
            if len(atoms) == 1 and (not atoms.pbc.any() or _find_info(atoms).get("config_type") == "IsolatedAtom"):
                sample = check(atoms, member)
                found[member] = int(sample.atomic_numbers[0]), float(sample.energy)
        return found

    def open(self, part: str, members: Sequence[str], transforms: Sequence[Transform]) -> Dataset:
        """Returns the data set of some frames; in the part "all", frames may lack energy and forces."""
        paths = {member.rpartition("@")[0] for member in members}
        files = {path: self._files.setdefault(path, FrameFile(path)) for path in paths}
        keys, fields = (self.energy, self.forces, self.stress), (self.energy_field, self.forces_field)
        check = AtomsCheck(*fields, labelled=part != "all", stress=self.stress_field, keys=keys)
        return ASEDataset(Frames(members, files), check, part, compose(transforms))

    def release(self) -> None:
        """Frees the frames."""
        self._files.clear()

    def split_identity(self, split: SplitConfig) -> str:
        """Identifies the files and settings that determine the split."""
        files = [[os.path.abspath(path) for path in list_paths(paths)] for paths in (self.paths, self.val, self.test)]
        return f"({files}, {self.split_key!r}, {split!r})"

    def _list_frames(self) -> Parts:
        """Returns the frames of the files that are given for each part, in the files' order."""
        given = zip(PARTS, (self.paths, self.val, self.test), strict=True)
        files = {part: find_files(paths, _find_regular_file, "regular file") for part, paths in given}
        refuse_doubles(files, "data.source")
        for path in (path for found in files.values() for path in found):
            if path not in self._files or self._files[path].has_changed():
                self._files[path] = FrameFile(path)
            if not self._files[path].frames:
                raise LabelFileError(f"{path}: has no frame (config: data.source.paths)")
        counts = {path: len(self._files[path].frames) for found in files.values() for path in found}
        return {part: [f"{path}@{i}" for path in found for i in range(counts[path])] for part, found in files.items()}

    def _divide_by_key(self, key: str, members: Sequence[str]) -> Parts:
        parts: Parts = {part: [] for part in PARTS}
        for member, atoms in zip(members, Frames(members, self._files), strict=True):
            info = _find_info(atoms)
            part = _PART_NAMES.get(str(info.get(key)).lower())
            if part is None:
                what = f"info[{key!r}] is {info.get(key)!r}, expected 'train', 'val' or 'test'; it has {sorted(info)}"
                raise SplitError(f"{member}: {what}{did_you_mean(key, info)} (config: data.source.split_key)")
            parts[part].append(member)
        if not parts["train"]:
            raise SplitError(f"{self.paths}: no frame has info[{key!r}] = 'train' (config: data.source.split_key)")
        return parts
