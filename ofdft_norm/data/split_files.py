"""Reads splits from YAML, JSON or npz files; pickles are never opened."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ofdft_norm.data.plain_files import read_json, read_yaml
from ofdft_norm.data.split import SPLITS
from ofdft_norm.errors import SplitError

SUFFIXES = (".zarr", ".zarr.zip")


@dataclass(frozen=True)
class SplitEntry:
    """One molecule of a split.

    Attributes:
        name: Its label file.
        dataset: The data set that the label file belongs to, where the split says it.
        n_scf_iterations: Number of SCF iterations in the label file, where the split says it.
    """

    name: str
    dataset: str | None = None
    n_scf_iterations: int | None = None


def read_split_entries(path: Path) -> dict[str, list[SplitEntry]]:
    """Reads which label files belong to which part.

    Args:
        path: A ``.yaml``, ``.yml``, ``.json`` or ``.npz`` file with the keys `train`, `val`, `test`. Entries are names
            of label files, or (data set, label file, number of SCF iterations), as STRUCTURES25 writes them.

    Returns:
        The entries of each part.

    Raises:
        SplitError: If the file is missing, of another kind, or malformed.
    """
    if not path.is_file():
        raise SplitError(f"{path}: no such split file (config: data.split.file)")
    content = _content(path)
    unknown = set(content) - set(SPLITS)
    if unknown or "train" not in content:
        raise SplitError(
            f"{path}: expected the keys {list(SPLITS)}, found {sorted(map(str, content))} (config: data.split.file)"
        )
    for part, entries in content.items():
        if not isinstance(entries, list):
            raise SplitError(f"{path}: {part} is a {type(entries).__name__}, expected a list (config: data.split.file)")
    return {part: [_entry(path, part, entry) for entry in entries] for part, entries in content.items()}


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key].tolist() for key in file.files}
        if path.suffix in (".yaml", ".yml"):
            content = read_yaml(path)
        elif path.suffix == ".json":
            content = read_json(path)
        elif path.suffix in (".pkl", ".pickle"):
            raise SplitError(
                f"{path}: pickles can run code and are never opened; where you trust the file, convert it once with "
                f"`python -c \"import json, pickle; json.dump(pickle.load(open({str(path)!r}, 'rb')), "
                f"open('split.json', 'w'))\"` and give split.json (config: data.split.file)"
            )
        else:
            raise SplitError(f"{path}: splits are read from .yaml, .json and .npz files, not {path.suffix!r}")
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, SplitError):
            raise
        raise SplitError(f"{path}: cannot be read as a split: {error} (config: data.split.file)") from error
    if not isinstance(content, dict):
        raise SplitError(f"{path}: expected a mapping of {list(SPLITS)} to lists, found a {type(content).__name__}")
    return content


def _entry(path: Path, part: str, entry: Any) -> SplitEntry:
    if isinstance(entry, str) and entry.endswith(SUFFIXES):
        return SplitEntry(entry)
    if isinstance(entry, list | tuple) and len(entry) == 3 and all(isinstance(e, str | int) for e in entry):
        dataset, name, n_iterations = map(str, entry)
        if name.endswith(SUFFIXES) and re.fullmatch("0*[1-9][0-9]{0,8}", n_iterations):
            return SplitEntry(name, dataset, int(n_iterations))
    raise SplitError(
        f"{path}: {part} has the entry {entry!r}; expected the name of a label file ({SUFFIXES}), or (data set, "
        "label file, number of SCF iterations) (config: data.split.file)"
    )


def locate_entries(
    parts: Mapping[str, Sequence[SplitEntry]], files: Sequence[Path], exclude: Collection[str], where: str
) -> tuple[dict[str, list[Path]], dict[Path, int]]:
    """Finds the entries of a split among label files.

    An entry of a data set whose name is a folder on the way to some of the files is looked for among those alone. A
    name with folders in it must be the end of a path; a name that is not found is taken as a path of its own.

    Args:
        parts: The entries of each part.
        files: The label files of the source.
        exclude: Names of label files to leave out.
        where: The split file, for messages.

    Returns:
        The label files of each part, and the number of SCF iterations of each that is known.

    Raises:
        SplitError: If an entry fits several label files, or none of its data set.
    """
    datasets = {name for path in files for name in path.parts[:-1]}
    by_name: dict[str, list[Path]] = {}
    for path in files:
        by_name.setdefault(path.name, []).append(path)
    located: dict[str, list[Path]] = {part: [] for part in parts}
    iterations: dict[Path, int] = {}
    for part, entries in parts.items():
        for entry in entries:
            name = Path(entry.name)
            if name.name in exclude:
                continue
            found = [path for path in by_name.get(name.name, []) if path.parts[-len(name.parts) :] == name.parts]
            if entry.dataset in datasets:
                found = [path for path in found if entry.dataset in path.parts[:-1]]
            path = _only(entry, found, entry.dataset in datasets, where)
            located[part].append(path)
            if entry.n_scf_iterations is not None:
                iterations[path] = entry.n_scf_iterations
    return located, iterations


def _only(entry: SplitEntry, found: list[Path], in_dataset: bool, where: str) -> Path:
    if len(found) == 1:
        return found[0]
    if found or in_dataset:
        raise SplitError(
            f"{where}: the entry {entry.name!r} of the data set {entry.dataset!r} fits {len(found)} label files, "
            f"{[str(path) for path in found[:5]]}, expected one: write more of its path (config: data.split.file, "
            "data.source.paths)"
        )
    return Path(entry.name)
