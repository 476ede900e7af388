"""Packed labels as a source of samples."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.label_source import LabelFiles
from ofdft_norm.data.lazy_datasets import LazyDatasets
from ofdft_norm.data.of_dataset import Transform
from ofdft_norm.data.packed import META, PackedSet
from ofdft_norm.data.packed_dataset import PackedDataset, check_alike
from ofdft_norm.data.pre_transforms import not_yet_applied
from ofdft_norm.data.split import refuse_paths
from ofdft_norm.errors import BasisError, ConfigError


class PackedLabels(LabelFiles):
    """Label files that `ofdft-norm pack` packed into one or several sets.

    Molecules keep the names of their label files, for splits and `exclude`: a random split of a packed folder is that
    of the folder. `data.pre_transforms` says what happens to the samples altogether; it must begin with what the sets
    were packed after, and only the rest is applied.

    Attributes:
        paths: Folders of packed sets, or glob patterns.
        basis_info: JSON file that the sets' own basis must equal; None: no check.
        verify: Read all arrays first, and compare them with the digests of when they were packed.
    """

    basis_info: str | None = None  # type: ignore[assignment]
    verify: bool = False

    def sets(self) -> list[PackedSet]:
        """Opens the packed sets.

        Raises:
            ConfigError: If a pattern matches no packed set, or the sets were packed differently.
            LabelFileError: If a set is damaged.
            BasisError: If the sets' basis is not the given one, or they have different ones.
        """
        folders: list[Path] = []
        for pattern in [self.paths] if isinstance(self.paths, str) else list(self.paths):
            # absolute: a checkpoint's split has absolute paths
            found = sorted(Path(os.path.abspath(match)) for match in glob.glob(str(Path(pattern).expanduser())))
            packed = [folder for folder in found if (folder / META).is_file()]
            if not packed:
                raise ConfigError(
                    f"{pattern}: no packed set ({META}) there; make one with ofdft-norm pack (config: "
                    "data.source.paths)"
                )
            folders += [folder for folder in packed if folder not in folders]
        sets = [PackedSet(folder, self.verify) for folder in folders]
        check_alike(sets)
        self._check_basis(sets[0])
        return sets

    def _check_basis(self, packed: PackedSet) -> None:
        if self.basis_info is None:
            return
        given = BasisInfo.from_json(self.basis_info, packed.basis_info.p_order)
        if given != packed.basis_info:
            raise BasisError(
                f"{packed.folder}: was packed in the basis {packed.basis_info}, but {self.basis_info} has {given}; "
                "null takes the packed set's (config: data.source.basis_info)"
            )

    def basis(self) -> BasisInfo:
        """Returns the basis that the labels were packed with."""
        return self.sets()[0].basis_info

    def label_files(self) -> list[Path]:
        """Lists a name for each molecule, sorted: that of its label file, in the packed set's folder.

        Raises:
            ConfigError: If an excluded name is not there.
        """
        return self._label_files(self.sets())

    def _label_files(self, sets: Sequence[PackedSet]) -> list[Path]:
        paths = [packed.folder / name for packed in sets for name in packed.names()]
        excluded = set(self.exclude)
        unknown = excluded - {path.name for path in paths} if excluded else set()
        if unknown:
            raise ConfigError(
                f"exclude names {sorted(unknown)}, which are not among the label files (config: data.source.exclude)"
            )
        return sorted((path for path in paths if path.name not in excluded), key=lambda path: path.parts)

    def datasets(
        self,
        split: Any,
        transform: Transform | None,
        index_dir: Path | None = None,
        files: Mapping[str, Sequence[str]] | None = None,
    ) -> LazyDatasets:
        """Returns the parts of the split; see `LabelFiles.datasets`. The index is not needed."""
        parts = self.split_files(split)[0] if files is None else {p: [Path(f) for f in fs] for p, fs in files.items()}
        sets = self.sets()
        remaining = _remaining(transform, sets)
        return LazyDatasets(parts, lambda part, paths: self._open(sets, paths, remaining, f"the {part} split"))

    def everything(self, transform: Transform | None, index_dir: Path | None = None) -> PackedDataset:
        """Returns the data set of all molecules, without a split."""
        sets = self.sets()
        return self._open(sets, self._label_files(sets), _remaining(transform, sets), "the source")

    def as_stored(self) -> PackedDataset:
        """Returns the data set of all molecules as they were packed."""
        sets = self.sets()
        return self._open(sets, self._label_files(sets), None, "the source")

    def _open(
        self, sets: Sequence[PackedSet], paths: Sequence[Path], transform: Transform | None, where: str
    ) -> PackedDataset:
        places = {p.folder / name: (i, m) for i, p in enumerate(sets) for m, name in enumerate(p.names())}
        missing = [str(path) for path in paths if path not in places]
        refuse_paths(where, "molecules that are not in the packed sets", missing)
        found = [places[path] for path in paths]
        return PackedDataset(
            sets,
            [np.array([m for i, m in found if i == k], dtype=np.int64) for k in range(len(sets))],
            self.energy_key,
            self.gradient_key,
            transform,
            self.limit_scf_iterations,
            self.keep_initial_guess,
        )


def _remaining(transform: Transform | None, sets: Sequence[PackedSet]) -> Transform | None:
    """Returns what of a transform was not applied before the sets were packed."""
    return not_yet_applied(transform, sets[0].meta["pre_transforms"], str(sets[0].folder))
