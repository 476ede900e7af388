"""STRUCTURES25's data folders as a source of labels."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.label_source import LabelFiles
from ofdft_norm.data.split import SplitConfig
from ofdft_norm.data.split_files import read_split_entries
from ofdft_norm.data.structures25 import locate_split
from ofdft_norm.errors import BasisError
from ofdft_norm.settings import AtomicNumber


class Structures25Labels(LabelFiles, kw_only=True):
    """Label files as STRUCTURES25 lays them out: ``<root>/<dataset>/<labels>/*.zarr.zip``.

    Attributes:
        root: Folder of the data sets (STRUCTURES25's ``$DFT_DATA``).
        dataset: Name of the data set, or several that share one basis.
        labels: Name of the folder of label files in each data set.
        basis_info: A JSON file with `atomic_numbers` and `irreps_per_atom`, or a `dataset_info.yaml`, from which PySCF
            makes the basis; ``auto``: `basis_info.json` in the first data set's folder, else its `dataset_info.yaml`.
        atomic_numbers: The elements of a basis made from `dataset_info.yaml`.
        paths: The folders of label files; follows from `root`, `dataset` and `labels`.
    """

    root: str
    dataset: str | Sequence[str]
    labels: str = "labels"
    basis_info: str = "auto"
    atomic_numbers: Sequence[AtomicNumber] = (1, 6, 7, 8, 9)
    paths: str | Sequence[str] = field(init=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", [glob.escape(str(folder)) for folder in self.folders.values()])

    @property
    def folders(self) -> dict[str, Path]:
        """The folder of label files of each data set."""
        names = [self.dataset] if isinstance(self.dataset, str) else list(self.dataset)
        return {name: Path(self.root).expanduser() / name / self.labels for name in names}

    def basis(self) -> BasisInfo:
        """Reads the basis, or makes it with PySCF; see `basis_info`.

        The order within p shells is the label files' (PySCF's where they do not say) unless the JSON file says it.
        Exponents that it lacks come from `dataset_info.yaml`, where that is there and PySCF is installed.

        Raises:
            BasisError: If there is neither file, or it cannot be read.
            ImportError: If PySCF is needed and not installed.
        """
        path = Path(self.basis_info).expanduser() if self.basis_info != "auto" else self._find_basis()
        if path.suffix in (".yaml", ".yml"):
            made = _basis_of(path, tuple(self.atomic_numbers))
            return BasisInfo(**{**made.to_dict(), "p_order": self._p_order()})
        basis_info = BasisInfo.from_json(path, self._p_order)
        described = self._folder / "dataset_info.yaml"
        if basis_info.exponent_per_shell is None and described.is_file() and find_spec("pyscf") is not None:
            return _with_exponents(basis_info, described)
        return basis_info

    @property
    def _folder(self) -> Path:
        return next(iter(self.folders.values())).parent

    def _find_basis(self) -> Path:
        folder = self._folder
        for name in ("basis_info.json", "dataset_info.yaml"):
            if (folder / name).is_file():
                return folder / name
        raise BasisError(
            f"{folder}: has neither basis_info.json nor dataset_info.yaml; give a file with the density basis "
            "(config: data.source.basis_info)"
        )

    def split_files(self, split: SplitConfig) -> tuple[dict[str, list[Path]], dict[Path, int]]:
        """Returns the label files of each part, and the number of SCF iterations of those where the split says it.

        Raises:
            SplitError: If a label file is missing or listed twice, or belongs to another data set.
        """
        if split.file is None:
            return super().split_files(split)
        return locate_split(read_split_entries(Path(split.file)), self.folders, split.file, self.exclude)


@lru_cache(maxsize=8)
def _basis_of(dataset_info: Path, atomic_numbers: tuple[int, ...]) -> BasisInfo:
    """Makes the basis that a `dataset_info.yaml` names."""
    return BasisInfo.from_dataset_info_yaml(dataset_info, sorted(atomic_numbers))


def _with_exponents(basis_info: BasisInfo, dataset_info: Path) -> BasisInfo:
    """Adds exponents to a basis, if it has the shells of the one that `dataset_info.yaml` names."""
    given, made = basis_info.to_dict(), _basis_of(dataset_info, tuple(basis_info.atomic_numbers.tolist())).to_dict()
    rows = [made["atomic_numbers"].index(number) for number in given["atomic_numbers"]]
    if [made["irreps_per_atom"][row] for row in rows] != given["irreps_per_atom"]:
        return basis_info
    return BasisInfo(**given, exponents_per_atom=[made["exponents_per_atom"][row] for row in rows])
