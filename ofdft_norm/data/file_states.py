"""How label files are recognised as unchanged, and what is remembered of them while they are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ofdft_norm.data.files import written_whole
from ofdft_norm.data.label_files import read_n_scf_iterations
from ofdft_norm.errors import StatisticsError

# Fewer files than this are opened faster than one thinks of where to remember them.
REMEMBER_FROM = 1000


def file_states(paths: Sequence[Path], contents: bool = False) -> list[tuple[str, Any, Any]]:
    """Returns name, size and modification time of label files, or a digest of their contents.

    Names are relative to the folder that holds all of them, so that a copy which keeps times (``rsync -a``), and a
    linked folder, are the same label set. Each folder is listed once: 1e5 files take a second on a local disk. A
    ``.zarr`` directory counts with all files below it, links followed.

    Args:
        paths: The files.
        contents: Read and hash the files, instead of trusting size and modification time.

    Raises:
        StatisticsError: If a file does not exist.
    """
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]) if paths else ""
    listed: dict[str, dict[str, os.DirEntry[str]]] = {}
    states: list[tuple[str, Any, Any]] = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            place = os.path.abspath(folder)
            listed[folder] = {entry.name: entry for entry in os.scandir(place)} if os.path.isdir(place) else {}
        entry = listed[folder].get(name)
        if entry is None:
            raise StatisticsError(f"{path}: no such label file (config: data.source)")
        for file in [entry.path] if not entry.is_dir() else _files_below(entry.path):
            name = os.path.relpath(file, root)
            if contents:
                states.append((name, hashlib.sha256(Path(file).read_bytes()).hexdigest(), None))
            else:
                status = os.stat(file)
                states.append((name, status.st_size, status.st_mtime_ns))
    return states


def _files_below(folder: str) -> list[str]:
    return sorted(
        os.path.join(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names
    )


def scf_iteration_counts(
    paths: Sequence[Path], folder: Path | None = None, remember_from: int = REMEMBER_FROM
) -> list[int]:
    """Returns the number of SCF iterations of each label file.

    Opening 1e5 files takes minutes; the numbers are remembered in `folder`, under a digest of the files' names, sizes
    and modification times. Where the folder cannot be written, nothing is remembered.

    Args:
        paths: Label files.
        folder: Where to remember; None: nowhere.
        remember_from: Fewer files than this are opened every time.

    Returns:
        One number for each file.

    Raises:
        LabelFileError: If a file is missing or unreadable.
    """
    if folder is None or len(paths) < remember_from:
        return [read_n_scf_iterations(path) for path in paths]
    try:
        digest = hashlib.sha256(json.dumps(file_states(paths)).encode()).hexdigest()
    except (OSError, StatisticsError):  # a missing file: reading it says which, and what to do
        return [read_n_scf_iterations(path) for path in paths]
    path = folder / f"scf_iterations_{digest[:32]}.npy"
    counts = _remembered(path, len(paths))
    if counts is None:
        counts = [read_n_scf_iterations(p) for p in paths]
        _remember(counts, path)
    return counts


def _remembered(path: Path, n: int) -> list[int] | None:
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return counts.tolist() if counts.shape == (n,) and counts.dtype == np.int64 else None


def _remember(counts: list[int], path: Path) -> None:
    try:
        with written_whole(path) as unfinished, unfinished.open("wb") as file:
            np.save(file, np.array(counts, dtype=np.int64))
    except OSError:
        return  # the statistics' cache, in the same folder, warns
