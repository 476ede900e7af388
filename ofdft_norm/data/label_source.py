"""Label files as a source of samples."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ofdft_norm.data.basis_info import BasisInfo, POrder
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.data.file_states import scf_iteration_counts
from ofdft_norm.data.lazy_datasets import LazyDatasets
from ofdft_norm.data.of_dataset import OFDataset, Transform
from ofdft_norm.data.p_order import STRUCTURES25_P_ORDER, stated_p_order
from ofdft_norm.data.split import SplitConfig, check_files_exist, check_label_files, check_split, random_split
from ofdft_norm.data.split_files import locate_entries, read_split_entries
from ofdft_norm.data.zarr_v2 import ZarrReader
from ofdft_norm.errors import ConfigError
from ofdft_norm.settings import Settings

TOTAL_ENERGY = "e_tot"  # the energy below of_labels/energies that other programs mean by a molecule's energy


class LabelFiles(Settings):
    """Label files in STRUCTURES25's layout, one molecule each.

    Attributes:
        paths: Folders (all ``*.zarr`` and ``*.zarr.zip`` in them), glob patterns, or files.
        basis_info: JSON file with `atomic_numbers` and `irreps_per_atom`. Where it lacks `p_order`, the order within p
            shells is the first label file's (x, y, z if it does not say: files of STRUCTURES25's code).
        energy_key: Which energy below ``of_labels/energies`` is learned.
        gradient_key: Its gradient below ``of_labels/spatial``.
        limit_scf_iterations: SCF iterations to use: s >= 0 those from s on, s < 0 the last -s, a list those in it
            (negative ones from the end); None: all.
        keep_initial_guess: Whether iteration 0, which has no label, is part of the data set: added to the above, or
            left out of it.
        exclude: Names of label files to leave out.
        keep_in_memory: Keep each normalised sample after it was first read.
    """

    paths: str | Sequence[str]
    basis_info: str
    energy_key: str = "e_kin"
    gradient_key: str = "grad_kin"
    limit_scf_iterations: int | Sequence[int] | None = None
    keep_initial_guess: bool = True
    exclude: Sequence[str] = ()
    keep_in_memory: bool = False
    config_key = "data.source"
    unit: ClassVar[str] = "hartree"  # by their layout

    def prepare_data(self) -> None:
        """Label files are there already."""

    def basis(self) -> BasisInfo:
        """Reads the basis."""
        return BasisInfo.from_json(self.basis_info, self._p_order)

    def _p_order(self) -> POrder:
        """Returns the order within p shells of the first label file that is found."""
        for pattern in [self.paths] if isinstance(self.paths, str) else list(self.paths):
            for match in glob.iglob(str(Path(pattern).expanduser())):
                for path in (path for path in _label_files_at(Path(match)) if path.name not in self.exclude):
                    with ZarrReader(path) as reader:
                        return stated_p_order(reader.attributes(), str(path)) or STRUCTURES25_P_ORDER
        return STRUCTURES25_P_ORDER

    def label_files(self) -> list[Path]:
        """Lists the label files, sorted; see `paths` and `exclude`.

        Raises:
            ConfigError: If a pattern matches nothing, or an excluded file is not there.
        """
        found: set[Path] = set()
        for pattern in [self.paths] if isinstance(self.paths, str) else list(self.paths):
            matches = [Path(match) for match in glob.glob(str(Path(pattern).expanduser()))]
            files = [file for match in matches for file in _label_files_at(match)]
            if not files:
                raise ConfigError(f"{pattern}: no label file (*.zarr, *.zarr.zip) there (config: data.source.paths)")
            found.update(files)
        excluded = set(self.exclude)
        unknown = excluded - {path.name for path in found}
        if unknown:
            raise ConfigError(
                f"exclude names {sorted(unknown)}, which are not among the label files (config: data.source.exclude)"
            )
        return sorted((path for path in found if path.name not in excluded), key=lambda path: path.parts)

    def split_identity(self, split: SplitConfig) -> str:
        """Returns what the split follows from; a checkpoint's split holds for a data module with the same.

        Args:
            split: Settings of the split.
        """
        paths = [self.paths] if isinstance(self.paths, str) else list(self.paths)
        written = None if split.file is None or not Path(split.file).is_file() else Path(split.file).read_bytes()
        digest = hashlib.sha256(written or b"").hexdigest()
        settings = repr(split).replace("SplitConfig", "Split")  # its name in the checkpoints of 0.1.0
        return f"({[os.path.abspath(p) for p in paths]}, {sorted(self.exclude)}, {settings}, {digest!r})"

    def split_files(self, split: SplitConfig) -> tuple[dict[str, list[Path]], dict[Path, int]]:
        """Returns the label files of each part, and the number of SCF iterations of those where the split says it.

        Args:
            split: Settings of the split.

        Raises:
            SplitError: If a label file is reached twice, or an entry of the split fits none or several.
        """
        if split.file is None:
            shares = {"train": split.train, "val": split.val, "test": split.test}
            located = random_split(self.label_files(), shares, split.seed, str(self.paths))
            check_label_files(located, str(self.paths))  # a share of 0 is no mistake: a test trains on nothing
            return located, {}
        entries = read_split_entries(Path(split.file))
        located, iterations = locate_entries(entries, self.label_files(), self.exclude, split.file)
        check_split(located, split.file)
        return located, iterations

    def datasets(
        self,
        split: SplitConfig,
        transform: Transform | None,
        index_dir: Path | None = None,
        files: Mapping[str, Sequence[str]] | None = None,
    ) -> LazyDatasets:
        """Returns the parts of the split; a part's label files are opened when its data set is asked for.

        Args:
            split: Which molecules belong to which part.
            transform: Applied to each sample.
            index_dir: Folder that remembers the number of SCF iterations of many files; None: they are opened.
            files: The label files of each part, where a checkpoint says them; then `split` is not used.

        Raises:
            SplitError: If the split does not fit the label files.
        """
        parts, iterations = self.split_files(split) if files is None else (_as_paths(files), {})

        def build(part: str, paths: list[Path]) -> OFDataset:
            check_files_exist(part, paths, split.file or str(self.paths))
            counts = [iterations[p] for p in paths] if all(p in iterations for p in paths) else None
            return self._dataset(paths, transform, counts or scf_iteration_counts(paths, index_dir))

        return LazyDatasets(parts, build)

    def everything(self, transform: Transform | None, index_dir: Path | None = None) -> OFDataset:
        """Returns the data set of all label files, without a split.

        Args:
            transform: Applied to each sample.
            index_dir: Where the numbers of SCF iterations are remembered; None: nowhere.
        """
        paths = self.label_files()
        check_label_files({"all": paths}, str(self.paths))
        return self._dataset(paths, transform, scf_iteration_counts(paths, index_dir))

    def as_stored(self) -> OFDataset:
        """Returns the data set of all label files as they are, without a split and without transforms."""
        return self.everything(None)

    def _dataset(self, paths: list[Path], transform: Transform | None, counts: Sequence[int]) -> OFDataset:
        return OFDataset(
            paths,
            self.basis(),
            self.energy_key,
            self.gradient_key,
            transform,
            self.limit_scf_iterations,
            self.keep_initial_guess,
            counts,
        )


def _as_paths(files: Mapping[str, Sequence[str]]) -> dict[str, list[Path]]:
    return {part: [Path(file) for file in names] for part, names in files.items()}


def _label_files_at(path: Path) -> Iterator[Path]:
    if path.name.endswith((".zarr", ".zarr.zip")):
        yield path
    elif path.is_dir():
        yield from (p for p in path.iterdir() if p.name.endswith((".zarr", ".zarr.zip")))


class EmbeddedLabels(LabelFiles):
    """The labels that come with the package: small molecules of H, C, N, O, F; see `ofdft_norm.data.embedded_data`."""

    paths: str | Sequence[str] = str(EMBEDDED_DATA / "labels")
    basis_info: str = str(EMBEDDED_DATA / "basis_info.json")
    keep_in_memory: bool = True
