"""STRUCTURES25's data folders: which label files a split names, and which basis `dataset_info.yaml` stands for."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ofdft_norm.data.split import check_split, refuse_paths
from ofdft_norm.data.split_files import SplitEntry
from ofdft_norm.errors import SplitError


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
