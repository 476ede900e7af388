"""STRUCTURES25's data folders: which label files a split names, and which basis `dataset_info.yaml` stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ofdft_norm.data.split import check_split, refuse_paths
from ofdft_norm.data.split_files import SplitEntry
from ofdft_norm.errors import BasisError, SplitError

_EVEN_TEMPERED = re.compile(r"even_tempered_(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset_info.yaml` says of the bases.

    Attributes:
        orbital_basis: Name of the Kohn-Sham calculation's basis, in PySCF's spelling.
        beta: Ratio of neighbouring exponents of the even-tempered density basis.
    """

    orbital_basis: str
    beta: float


def read_dataset_info(path: Path) -> DatasetInfo:
    """Reads ``kohn_sham.basis`` and ``of_basis_set`` (``even_tempered_2.5``).

    Args:
        path: A data set's `dataset_info.yaml`; its interpolations are not resolved.

    Raises:
        BasisError: If the file cannot be read, lacks one of the keys, or names another kind of density basis.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BasisError(f"{path}: cannot read the bases: {error} (config: data.source.basis_info)") from error
    orbital = _nested(content, "kohn_sham", "basis")
    density = _nested(content, "of_basis_set")
    match = _EVEN_TEMPERED.fullmatch(str(density))
    if not isinstance(orbital, str) or match is None:
        raise BasisError(
            f"{path}: has kohn_sham.basis = {orbital!r} and of_basis_set = {density!r}; expected the name of an "
            "orbital basis and 'even_tempered_<beta>': give the basis as JSON instead (config: data.source.basis_info)"
        )
    return DatasetInfo(orbital, float(match[1]))


def _nested(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def locate_split(
    parts: Mapping[str, Sequence[SplitEntry]],
    folders: Mapping[str, Path],
    where: str,
    exclude: Collection[str] = (),
) -> tuple[dict[str, list[Path]], dict[Path, int]]:
    """Finds the label files that a split names. Each folder is listed once: no file is touched.

    Args:
        parts: The entries of each part.
        folders: The folder of label files of each data set.
        where: The split file, for messages.
        exclude: Names of label files to leave out.

    Returns:
        The label files of each part, in the split's order, and the number of SCF iterations of each that is known.

    Raises:
        SplitError: If a label file is missing, a molecule is listed twice, a data set is unknown, or training is empty.
    """
    names = {dataset: _file_names(folder, dataset) for dataset, folder in folders.items()}
    located: dict[str, list[Path]] = {part: [] for part in parts}
    iterations: dict[Path, int] = {}
    missing = []
    for part, entries in parts.items():
        for entry in entries:
            if entry.name in exclude:
                continue
            dataset = _dataset(entry, folders, where)
            path = folders[dataset] / entry.name
            if entry.name not in names[dataset]:
                missing.append(str(path))
            located[part].append(path)
            if entry.n_scf_iterations is not None:
                iterations[path] = entry.n_scf_iterations
    refuse_paths(where, "missing label files", missing)
    check_split(located, where)
    return located, iterations


def _file_names(folder: Path, dataset: str) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise SplitError(
            f"{folder}: cannot list the label files of data set {dataset!r}: {error.strerror} "
            "(config: data.source.root, data.source.dataset, data.source.labels)"
        ) from error


def _dataset(entry: SplitEntry, folders: Mapping[str, Path], where: str) -> str:
    if entry.dataset is not None and entry.dataset in folders:
        return entry.dataset
    if entry.dataset is None and len(folders) == 1:
        return next(iter(folders))
    raise SplitError(
        f"{where}: the entry {entry.name!r} belongs to the data set {entry.dataset!r}; expected one of {list(folders)} "
        "(a list of several is possible; config: data.source.dataset)"
    )
