"""How label files are recognised as unchanged, and what is remembered of them while they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ofdft_norm.data.files import writable_by_others, write_text, written_whole
from ofdft_norm.data.label_files import read_n_scf_iterations
from ofdft_norm.errors import StatisticsError

# Fewer files than this are opened faster than one thinks of where to remember them.
REMEMBER_FROM = 1000

_N_THREADS = min(32, 4 * (os.cpu_count() or 1))


def file_states(
    paths: Sequence[Path], contents: bool = False, folder: Path | None = None
) -> list[tuple[str, Any, Any]]:
    """Returns name, size and modification time of label files, or a digest of their contents.

    Names are relative to the folder that holds all of them, so that a copy which keeps times (``rsync -a``), and a
    linked folder, are the same label set. Each folder is listed once: 1e5 files take a second on a local disk. A
    ``.zarr`` directory counts with all files below it, links followed.

    A value that was changed while size and modification time were kept is seen by the contents alone. Files are read in
    parallel threads, and their digests are remembered: a file is read again when its size, its time of modification or
    of change of status, or its place on the disk (inode) differ. No program can set the time of change of status back.

    Args:
        paths: The files.
        contents: Read and hash the files, instead of trusting size and modification time.
        folder: Where digests are remembered; None: nowhere.

    Raises:
        StatisticsError: If a file does not exist.
    """
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]) if paths else ""
    files = _all_files(paths)
    names = [os.path.relpath(file, root) for file in files]
    if contents:
        return [(name, digest, None) for name, digest in zip(names, _digests(files, folder), strict=True)]
    return [(name, *_status(file)[:2]) for name, file in zip(names, files, strict=True)]


def _all_files(paths: Sequence[Path]) -> list[str]:
    """Returns the label files, with directories replaced by the files below them."""
    listed: dict[str, dict[str, os.DirEntry[str]]] = {}
    files: list[str] = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            place = os.path.abspath(folder)
            listed[folder] = {entry.name: entry for entry in os.scandir(place)} if os.path.isdir(place) else {}
        entry = listed[folder].get(name)
        if entry is None or not (entry.is_file() or entry.is_dir()):
            raise StatisticsError(f"{path}: no such label file (config: data.source)")
        files += [entry.path] if entry.is_file() else _files_below(entry.path)
    return files


def _files_below(folder: str) -> list[str]:
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:  # a link to a folder above it
            folders.clear()
        seen.add(place)
        found += [os.path.join(parent, name) for name in names]
    return sorted(found)


def _status(file: str) -> tuple[int | None, int | None, int, int]:
    """Returns size, times of modification and of change of status, and inode; None for a link that leads nowhere."""
    try:
        status = os.stat(file)
    except OSError:
        return None, None, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _digests(files: Sequence[str], folder: Path | None) -> list[str | None]:
    name = hashlib.sha256(os.fsencode("\0".join(sorted({os.path.dirname(file) for file in files})))).hexdigest()
    path = None if folder is None else folder / f"label_digests_{name[:32]}.json"
    known: dict[str, list[Any]] = {} if path is None else _remembered_digests(path)
    found = {file: known[file] for file in files if file in known and known[file][:-1] == list(_status(file))}
    unknown = [file for file in dict.fromkeys(files) if file not in found]
    with ThreadPoolExecutor(_N_THREADS) as pool:  # reading and hashing leave Python's lock to the others
        found.update(zip(unknown, pool.map(_status_and_digest, unknown), strict=True))
    if path is not None and unknown:
        with contextlib.suppress(OSError, UnicodeError):  # the statistics' cache, in the same folder, warns
            write_text(path, json.dumps(found))
    return [found[file][-1] for file in files]


def _status_and_digest(file: str) -> list[Any]:
    status = _status(file)
    content = Path(file).read_bytes() if os.path.isfile(file) else None  # a pipe would wait for a writer
    return [*status, None if content is None else hashlib.sha256(content).hexdigest()]


def _remembered_digests(path: Path) -> dict[str, list[Any]]:
    if writable_by_others(path):
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    is_known = isinstance(content, dict) and all(isinstance(e, list) and len(e) == 5 for e in content.values())
    return content if is_known else {}


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
    if writable_by_others(path):
        return None
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
