"""Geometries with density coefficients in one npz file, to predict on."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.lazy_datasets import LazyDatasets
from ofdft_norm.data.of_data import OFData
from ofdft_norm.data.of_dataset import Transform
from ofdft_norm.data.split import SplitConfig
from ofdft_norm.errors import LabelFileError
from ofdft_norm.settings import Settings

_REQUIRED = ("pos", "atomic_numbers", "coeffs", "n_atoms")
_OPTIONAL = ("dual_basis_integrals", "mol_id", "coordinates")


class SampleFile(Settings):
    """Samples without labels in an npz file, one after the other: their arrays are concatenated.

    The file holds `n_atoms` (n_samples,); `pos` (n_atoms_of_all, 3) [bohr]; `atomic_numbers` (n_atoms_of_all,);
    `coeffs` (n_basis_of_all,), in the basis and coordinates that the model was trained in; and optionally
    `dual_basis_integrals` (n_basis_of_all,) [electrons], `mol_id` (n_samples,) and `coordinates`, one word that says
    what the coefficients are given in (``raw``: the density basis as it is; else as in `ofdft_norm.transforms`).

    Attributes:
        path: The npz file.
        basis_info: JSON file with the density basis: `atomic_numbers` and `irreps_per_atom`.
        keep_in_memory: Keep each normalised sample after it was first asked for.
    """

    path: str
    basis_info: str
    keep_in_memory: bool = False
    config_key = "data.source"

    def prepare_data(self) -> None:
        """The file is there already."""

    def basis(self) -> BasisInfo:
        """Reads the basis."""
        return BasisInfo.from_json(self.basis_info)

    def split_identity(self, split: SplitConfig) -> None:
        """There is no split.

        Args:
            split: Not used.
        """

    def datasets(
        self,
        split: SplitConfig,
        transform: Transform | None,
        index_dir: Path | None = None,
        files: Mapping[str, Sequence[str]] | None = None,
    ) -> LazyDatasets:
        """Returns no part: there are no labels to train, validate or test with.

        Args:
            split: Not used.
            transform: Not used.
            index_dir: Not used.
            files: Not used.
        """
        return LazyDatasets({}, lambda part, content: content)

    def everything(self, transform: Transform | None, index_dir: Path | None = None) -> SampleFileDataset:
        """Returns the data set of all samples.

        Args:
            transform: Applied to each sample.
            index_dir: Not used.
        """
        return SampleFileDataset(self.path, self.basis(), transform)


class SampleFileDataset(Dataset[OFData]):
    """The samples of an npz file; see `SampleFile`.

    Args:
        path: The file.
        basis_info: The density basis.
        transform: Applied to each sample.

    Raises:
        LabelFileError: If the file cannot be read, lacks an array, or has one of the wrong shape.
    """

    def __init__(self, path: str, basis_info: BasisInfo, transform: Transform | None = None) -> None:
        self.path = os.fspath(path)
        self.basis_info = basis_info
        self.transform = transform
        self.arrays = _read(self.path)
        n_atoms = self.arrays["n_atoms"]
        self.atom_offsets = np.concatenate([[0], np.cumsum(n_atoms)])
        self._check("pos", (int(self.atom_offsets[-1]), 3))
        self._check("atomic_numbers", (int(self.atom_offsets[-1]),))
        sizes = basis_info.basis_dim_per_atom[basis_info.atom_indices(self.arrays["atomic_numbers"], self.path)]
        self.basis_offsets = np.concatenate([[0], np.cumsum(sizes)])[self.atom_offsets]
        self._check("coeffs", (int(self.basis_offsets[-1]),))
        if "dual_basis_integrals" in self.arrays:
            self._check("dual_basis_integrals", (int(self.basis_offsets[-1]),))
        if "mol_id" in self.arrays:
            self._check("mol_id", (len(n_atoms),))

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        array = self.arrays[name]
        if array.shape != shape:
            raise LabelFileError(
                f"{self.path}: array {name!r} has shape {array.shape}, expected {shape} for the {len(self)} samples of "
                f"'n_atoms' in the basis {self.basis_info} (config: data.source.path, data.source.basis_info)"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise LabelFileError(
                f"{self.path}: array {name!r} holds NaN or infinite numbers (config: data.source.path)"
            )

    def __len__(self) -> int:
        return len(self.arrays["n_atoms"])

    def __getitem__(self, index: int) -> OFData:
        """Returns one sample, in float64."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a file of {len(self)}")
        index = index % len(self)
        atoms = slice(*self.atom_offsets[index : index + 2])
        functions = slice(*self.basis_offsets[index : index + 2])
        integrals = self.arrays.get("dual_basis_integrals")
        names = self.arrays.get("mol_id")
        sample = OFData.construct_new(
            self.basis_info,
            self.arrays["pos"][atoms].astype(np.float64),
            self.arrays["atomic_numbers"][atoms],
            self.arrays["coeffs"][functions].astype(np.float64),
            dual_basis_integrals=None if integrals is None else integrals[functions].astype(np.float64),
            mol_id=str(index if names is None else names[index]),
        )
        if "coordinates" in self.arrays:
            sample.coordinates = str(self.arrays["coordinates"])
        else:
            del sample.coordinates  # the file leaves it to the user
        return sample if self.transform is None else self.transform(sample)


def _read(path: str) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*_REQUIRED, *_OPTIONAL) if name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise LabelFileError(f"{path}: cannot be read as an npz file: {error} (config: data.source.path)") from error
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing:
        raise LabelFileError(
            f"{path}: lacks the arrays {missing}; expected {list(_REQUIRED)} and optionally {list(_OPTIONAL)} "
            "(config: data.source.path)"
        )
    n_atoms = arrays["n_atoms"]
    if n_atoms.ndim != 1 or n_atoms.dtype.kind not in "iu" or not (n_atoms > 0).all():
        raise LabelFileError(
            f"{path}: 'n_atoms' is to be one positive integer for each sample (config: data.source.path)"
        )
    return arrays
