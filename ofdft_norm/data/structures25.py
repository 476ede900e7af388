"""STRUCTURES25's data folders as a source of labels."""

from collections.abc import Sequence
from dataclasses import field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.sources import LabelFiles
from ofdft_norm.data.split import SplitEntry, read_split
from ofdft_norm.errors import BasisError, SplitError
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
        object.__setattr__(self, "paths", [str(folder) for folder in self._folders().values()])

    def _folders(self) -> dict[str, Path]:
        """Returns the folder of label files of each data set."""
        names = [self.dataset] if isinstance(self.dataset, str) else list(self.dataset)
        return {name: Path(self.root).expanduser() / name / self.labels for name in names}

    def basis(self) -> BasisInfo:
        """Reads the basis, or makes it with PySCF; see `basis_info`.

        Exponents that a JSON file lacks come from `dataset_info.yaml`, if that is there and PySCF is installed.
        """
        folder = next(iter(self._folders().values())).parent
        info = folder / "dataset_info.yaml"
        found = [path for path in (folder / "basis_info.json", info) if path.is_file()]
        if self.basis_info != "auto":
            found = [Path(self.basis_info).expanduser()]
        elif not found:
            what = "has neither basis_info.json nor dataset_info.yaml: give a file with the density basis"
            raise BasisError(f"{folder}: {what} (config: data.source.basis_info)")
        if found[0].suffix in (".yaml", ".yml"):
            return _make_basis(found[0], tuple(sorted(self.atomic_numbers)))
        basis_info = BasisInfo.from_json(found[0])
        if basis_info.exponent_per_shell is None and info.is_file() and find_spec("pyscf") is not None:
            made = _make_basis(info, tuple(basis_info.atomic_numbers.tolist()))
            return made if made == basis_info else basis_info
        return basis_info

    def _read_entries(self, file: str) -> dict[str, list[SplitEntry]]:
        entries = read_split(file)
        return {part: [self._locate(entry, file) for entry in of_part] for part, of_part in entries.items()}

    def _locate(self, entry: SplitEntry, file: str) -> SplitEntry:
        """Returns an entry with the path of its label file."""
        folders = self._folders()
        dataset = next(iter(folders)) if entry.dataset is None and len(folders) == 1 else entry.dataset
        if dataset not in folders:
            what = f"belongs to the data set {dataset!r}; expected one of {list(folders)}"
            raise SplitError(f"{file}: the entry {entry.name!r} {what} (config: data.source.dataset)")
        return SplitEntry(str(folders[dataset] / entry.name), None, entry.n_scf_iterations)


@lru_cache(maxsize=8)
def _make_basis(dataset_info: Path, atomic_numbers: tuple[int, ...]) -> BasisInfo:
    return BasisInfo.from_dataset_info_yaml(dataset_info, atomic_numbers)
