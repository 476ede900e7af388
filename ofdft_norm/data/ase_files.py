"""Frames of files that ASE reads as samples of energies and forces, each read when it is asked for."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from ofdft_norm.data.ase_frames import Frames, open_frames
from ofdft_norm.data.checked_samples import check_atomic_numbers, check_numbers
from ofdft_norm.data.file_states import file_states
from ofdft_norm.data.lazy_datasets import LazyDatasets
from ofdft_norm.data.of_dataset import Transform
from ofdft_norm.data.split import SplitConfig, random_split
from ofdft_norm.errors import ConfigError, LabelFileError, SplitError, did_you_mean
from ofdft_norm.settings import Settings
from ofdft_norm.units import EnergyUnit

ENERGY_FIELD, FORCES_FIELD = "energy", "forces"
_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class ASEFiles(Settings):
    """Energies and forces in extended XYZ files, ASE databases, or any other files that ASE reads.

    A sample has `atomic_numbers`, `pos` [angstrom], `energy`, `forces` [energy per angstrom], `cell`, `pbc`, and as
    `mol_id` its place, ``data.xyz@17``: frame 17, counted from 0. A frame is read when it is asked for; of extended XYZ
    files only where frames begin is kept.

    Attributes:
        paths: Files or glob patterns: all frames, or those to train on.
        val: Files to validate on; None: a part of `paths`.
        test: Files to test on; None: a part of `paths`, or nothing where `val` is given.
        split_key: Entry of `info` that says ``train``, ``val`` or ``test`` for each frame; None: `data.split` divides.
        energy: Name of the energy among a frame's results or in its `info`.
        forces: Name of the forces among a frame's results or `arrays`; None: there are none.
        unit: What energies are in; ASE's own unit is eV.
        keep_in_memory: Keep each normalised sample after it was first read.
    """

    paths: str | Sequence[str]
    val: str | Sequence[str] | None = None
    test: str | Sequence[str] | None = None
    split_key: str | None = None
    energy: str = "energy"
    forces: str | None = "forces"
    unit: EnergyUnit = "eV"
    keep_in_memory: bool = False
    config_key = "data.source"
    length_unit: ClassVar[str] = "angstrom"
    energy_field: ClassVar[str] = ENERGY_FIELD
    energy_is_total: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.split_key is not None and (self.val is not None or self.test is not None):
            raise ConfigError("data.source has a split_key and files of their own for val or test: give one of both")

    @property
    def forces_field(self) -> str | None:
        """Field of the samples that holds forces."""
        return None if self.forces is None else FORCES_FIELD

    def prepare_data(self) -> None:
        """The files are there already."""

    def basis(self) -> None:
        """There are no density coefficients."""

    def split_identity(self, split: SplitConfig) -> str:
        """Returns what the split follows from; a checkpoint's split holds for a data module with the same.

        Args:
            split: Settings of a random split.
        """
        files = [[os.path.abspath(p) for p in _listed(paths)] for paths in (self.paths, self.val, self.test)]
        return f"({files}, {self.split_key!r}, {split!r})"

    def datasets(
        self,
        split: SplitConfig,
        transform: Transform | None,
        index_dir: Path | None = None,
        files: Mapping[str, Sequence[str]] | None = None,
    ) -> LazyDatasets:
        """Returns the parts of the split: by files, by `split_key`, or at random.

        Args:
            split: Settings of a random split; not used where files or `split_key` say the parts.
            transform: Applied to each sample.
            index_dir: Where the places of frames in large files are remembered; None: nowhere.
            files: Files of each part, as a checkpoint remembers them; None: `split` decides.

        Raises:
            SplitError: If a part that is to have frames has none, or a frame is of no part.
            ConfigError: If a split file is given, which lists label files.
        """
        frames: dict[str, Frames] = {}
        parts = self._parts(split, frames) if files is None else {k: list(v) for k, v in files.items()}

        def build(part: str, places: Sequence[str]) -> ASEDataset:
            return ASEDataset(places, self.energy, self.forces, transform, frames=frames)

        return LazyDatasets(parts, build)

    def everything(self, transform: Transform | None, index_dir: Path | None = None) -> ASEDataset:
        """Returns the data set of all frames; those without energy or forces are there to be predicted.

        Args:
            transform: Applied to each sample.
            index_dir: Where the places of frames in large files are remembered; None: nowhere.
        """
        frames: dict[str, Frames] = {}
        places = [p for paths in (self.paths, self.val, self.test) for p in _places(paths, frames)]
        return ASEDataset(places, self.energy, self.forces, transform, labelled=False, frames=frames)

    def _parts(self, split: SplitConfig, frames: dict[str, Frames]) -> dict[str, list[str]]:
        if self.split_key is not None:
            return self._parts_by_key(self.split_key, frames)
        if self.val is not None or self.test is not None:
            given = {"train": self.paths, "val": self.val, "test": self.test}
            return {part: _places(paths, frames) for part, paths in given.items()}
        if split.file is not None:
            raise ConfigError(
                "data.split.file lists label files, not frames: give files for each part (config: data.source.val, "
                "data.source.test), or an entry of info that names the part (config: data.source.split_key)"
            )
        places = [Path(place) for place in _places(self.paths, frames)]
        shares = {"train": split.train, "val": split.val, "test": split.test}
        found = random_split(places, shares, split.seed, str(self.paths))
        return {part: [str(place) for place in chosen] for part, chosen in found.items()}

    def _parts_by_key(self, key: str, frames: dict[str, Frames]) -> dict[str, list[str]]:
        parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for place in _places(self.paths, frames):
            path, _, index = place.rpartition("@")
            info = frames[path].info(int(index))
            part = _PARTS.get(str(info.get(key)).lower())
            if part is None:
                raise SplitError(
                    f"{place}: info[{key!r}] is {info.get(key)!r}, expected 'train', 'val' or 'test'; it has "
                    f"{sorted(info)}{did_you_mean(key, info)} (config: data.source.split_key)"
                )
            parts[part].append(place)
        if not parts["train"]:
            raise SplitError(f"{self.paths}: no frame has info[{key!r}] = 'train' (config: data.source.split_key)")
        return parts


class ASEDataset(Dataset[Data]):
    """Frames as samples; see `ASEFiles`.

    Args:
        places: Which frames: ``path@index``, or `ase.Atoms`.
        energy: Name of the energy.
        forces: Name of the forces; None: there are none.
        transform: Applied to each sample.
        labelled: Whether every frame needs energy and forces; else those without have NaN and no `has_energy_label`.
        frames: Files that are open already, by path.
        fields: What energy and forces are called in the samples.
    """

    def __init__(
        self,
        places: Sequence[Any],
        energy: str = "energy",
        forces: str | None = "forces",
        transform: Transform | None = None,
        labelled: bool = True,
        frames: dict[str, Frames] | None = None,
        fields: tuple[str, str] = (ENERGY_FIELD, FORCES_FIELD),
    ) -> None:
        self.places = places
        self.energy, self.forces = energy, forces
        self.transform = transform
        self.labelled = labelled
        self.fields = fields
        self._frames = {} if frames is None else frames

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Data:
        """Reads one frame.

        Raises:
            LabelFileError: If ASE cannot read it.
            BatchError: If it lacks its energy or forces, or has numbers that are not finite, or atoms of no element.
        """
        place = self.places[index]
        if isinstance(place, str):
            path, _, number = place.rpartition("@")
            atoms = open_frames(path, self._frames).atoms(int(number))
        else:
            atoms, place = place, f"structure {index}"
        sample = self._sample(atoms, place)
        return sample if self.transform is None else self.transform(sample)

    def state(self, contents: bool = False, folder: Path | None = None) -> dict[str, Any] | None:
        """Describes in plain types what the samples are; None where they are no files' frames.

        Args:
            contents: Tell files by their contents, not by size and modification time.
            folder: Where digests of contents are remembered; None: nowhere.
        """
        if not all(isinstance(place, str) for place in self.places):
            return None
        parts = [place.rpartition("@") for place in self.places]
        return {
            "files": file_states([Path(path) for path in sorted({path for path, _, _ in parts})], contents, folder),
            "samples": [f"{os.path.basename(path)}@{index}" for path, _, index in parts],
            "energy": self.energy,
            "forces": self.forces,
        }

    def _sample(self, atoms: Any, place: str) -> Data:
        numbers = torch.from_numpy(np.asarray(atoms.numbers, dtype=np.int64))
        check_atomic_numbers(numbers, f"{place}: numbers", "(config: data.source.paths)")
        pos = torch.from_numpy(np.array(atoms.positions, dtype=np.float64))
        check_numbers(pos, (len(numbers), 3), f"{place}: positions", "(config: data.source.paths)")
        values = {
            self.fields[0]: self._label(atoms, place, self.energy, None, "energy"),
            self.fields[1]: None
            if self.forces is None
            else self._label(atoms, place, self.forces, (len(numbers), 3), "forces"),
        }
        found = {name: value for name, value in values.items() if value is not None}
        return Data(
            atomic_numbers=numbers,
            pos=pos,
            cell=torch.from_numpy(np.array(atoms.cell, dtype=np.float64))[None],
            pbc=torch.from_numpy(np.array(atoms.pbc))[None],
            mol_id=place,
            has_energy_label=torch.tensor([all(bool(torch.isfinite(v).all()) for v in found.values())]),
            **found,
        )

    def _label(self, atoms: Any, place: str, key: str, shape: tuple[int, int] | None, setting: str) -> Tensor:
        setting = f"(argument {setting}, config: data.source.{setting})"
        known = _values_of(atoms, per_atom=shape is not None)
        if key not in known:
            if not self.labelled:
                return torch.full(shape or (1,), torch.nan, dtype=torch.float64)
            fitting = sorted(
                name for name, value in known.items() if np.size(value) == (np.prod(shape) if shape else 1)
            )
            has = f"it has {fitting}{did_you_mean(key, fitting)}" if fitting else "it has no other value of its shape"
            raise LabelFileError(f"{place}: lacks {key!r}; {has}; give it, or leave the frame out {setting}")
        value = torch.from_numpy(np.atleast_1d(np.array(known[key], dtype=np.float64)))
        check_numbers(value, shape, f"{place}: {key!r}", setting)
        return value if shape is not None else value.reshape(1)


def _values_of(atoms: Any, per_atom: bool) -> dict[str, Any]:
    """Returns what a frame has to say: its calculator's results, as far as they are of its geometry, and its own."""
    own = dict(atoms.arrays) if per_atom else dict(atoms.info)
    for name in ("key_value_pairs", "data"):  # of a row of a database
        own.update(atoms.info.get(name, {}))
    if atoms.calc is not None:
        results = {name: atoms.calc.get_property(name, atoms, allow_calculation=False) for name in atoms.calc.results}
        own.update({name: value for name, value in results.items() if value is not None})
    return {name: value for name, value in own.items() if _is_numeric(value)}


def _is_numeric(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "iuf" if isinstance(value, int | float | np.ndarray | np.generic) else False


def is_atoms(value: Any) -> bool:
    """Tells whether something is an `ase.Atoms`, without importing ASE.

    Args:
        value: Anything.
    """
    return any(f"{kind.__module__}.{kind.__qualname__}" == "ase.atoms.Atoms" for kind in type(value).__mro__)


def _listed(paths: str | Sequence[str] | None) -> list[str]:
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def _places(paths: str | Sequence[str] | None, frames: dict[str, Frames]) -> list[str]:
    """Returns all frames of some files, in the files' order.

    Raises:
        ConfigError: If a pattern matches no file.
        LabelFileError: If a file has no frame.
    """
    places = []
    for pattern in _listed(paths):
        found = sorted(glob.glob(os.path.expanduser(pattern)))
        if not found:
            raise ConfigError(f"{pattern}: no such file (config: data.source.paths)")
        for path in found:
            n = len(open_frames(path, frames))
            if n == 0:
                raise LabelFileError(f"{path}: has no frame (config: data.source.paths)")
            places += [f"{path}@{index}" for index in range(n)]
    return places
