"""Reads splits from YAML, JSON or npz files; pickles are never opened."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ofdft_norm.data.split import SPLITS
from ofdft_norm.errors import SplitError


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


def read_split_file(path: Path) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Reads which label files of one data set belong to which part; see `read_split_entries`.

    Returns:
        Names of the label files of each part, and the number of SCF iterations where given.
    """
    parts = read_split_entries(path)
    names = {part: [entry.name for entry in entries] for part, entries in parts.items()}
    known = [entry for entries in parts.values() for entry in entries if entry.n_scf_iterations is not None]
    return names, {entry.name: int(entry.n_scf_iterations or 0) for entry in known}


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
        raise SplitError(f"{path}: expected the keys {list(SPLITS)}, found {sorted(content)} (config: data.split.file)")
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
            content = yaml.safe_load(path.read_text())
        elif path.suffix == ".json":
            content = json.loads(path.read_text())
        elif path.suffix in (".pkl", ".pickle"):
            raise SplitError(
                f"{path}: pickles can run code and are never opened; where you trust the file, convert it once with "
                f"`python -c \"import json, pickle; json.dump(pickle.load(open({str(path)!r}, 'rb')), "
                f"open('split.json', 'w'))\"` and give split.json (config: data.split.file)"
            )
        else:
            raise SplitError(f"{path}: splits are read from .yaml, .json and .npz files, not {path.suffix!r}")
    except (ValueError, yaml.YAMLError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, SplitError):
            raise
        raise SplitError(f"{path}: cannot be read as a split: {error} (config: data.split.file)") from error
    if not isinstance(content, dict):
        raise SplitError(f"{path}: expected a mapping of {list(SPLITS)} to lists, found a {type(content).__name__}")
    return content


def _entry(path: Path, part: str, entry: Any) -> SplitEntry:
    if isinstance(entry, str):
        return SplitEntry(entry)
    if isinstance(entry, list | tuple) and len(entry) == 3 and str(entry[2]).isdecimal() and int(entry[2]) > 0:
        return SplitEntry(str(entry[1]), str(entry[0]), int(entry[2]))
    raise SplitError(
        f"{path}: {part} has the entry {entry!r}; expected the name of a label file, or (data set, label file, "
        "number of SCF iterations)"
    )
