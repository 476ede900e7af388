"""Writes named arrays as zarr v2, into a folder or a zip file.

Statistics are hundreds of tiny arrays, for each of which the zarr library takes some milliseconds. A file system that
is busy takes as long for each file that is made: a zip file is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ofdft_norm.data.files import write_zip, written_whole

Array = npt.NDArray[Any]

_GROUP = json.dumps({"zarr_format": 2}).encode()


def write_arrays(path: Path, arrays: Mapping[str, Array], attributes: Mapping[str, Any], replace: bool = False) -> None:
    """Writes arrays and attributes, whole or not at all: into a zip file if it is named so, else into a folder.

    Args:
        path: Where.
        arrays: By name.
        attributes: Of the root.
        replace: Whether a folder that is not empty is replaced.
    """
    files = {".zattrs": json.dumps(dict(attributes), indent=1).encode()}
    for key, array in arrays.items():
        files |= {f"{group}.zgroup": _GROUP for group in _groups(key)}
        files |= {f"{key}/{name}": content for name, content in _array_files(array).items()}
    if is_zip(path):
        write_zip(path, files)
        return
    with written_whole(path, replace) as unfinished:
        _write_files(unfinished, files)


def put_array(path: Path, key: str, array: Array) -> None:
    """Writes one array into a folder of statistics: a reader finds the former one, or this one.

    Args:
        path: The folder.
        key: Key of the array.
        array: Its values.
    """
    with written_whole(path / key, replace=True, beside=path) as unfinished:
        _write_files(unfinished, _array_files(array))
        missing = [group for group in _groups(key) if not (path / group / ".zgroup").exists()]
        _write_files(path, {f"{group}.zgroup": _GROUP for group in missing})


def is_zip(path: Path) -> bool:
    """Whether statistics of this name are one zip file.

    Args:
        path: A path that may not exist yet.
    """
    return path.suffix == ".zip"


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _groups(key: str) -> list[str]:
    """Returns the groups that an array stands in, the root first, each as the beginning of a name."""
    parts = key.split("/")[:-1]
    return ["".join(f"{part}/" for part in parts[:depth]) for depth in range(len(parts) + 1)]


def _array_files(array: Array) -> dict[str, bytes]:
    """Returns the files of an array by name.

    One chunk, uncompressed: these are small, and every zarr implementation reads them. A chunk that got lost reads as
    the fill value, NaN, and not as plausible zeros.
    """
    described = {
        "zarr_format": 2,
        "shape": array.shape,
        "chunks": [max(length, 1) for length in array.shape],
        "dtype": array.dtype.str,
        "fill_value": "NaN" if array.dtype.kind == "f" else 0,
        "order": "C",
        "compressor": None,
        "filters": None,
    }
    chunk = ".".join("0" * array.ndim) or "0"
    return {".zarray": json.dumps(described).encode(), **({chunk: array.tobytes()} if array.size else {})}
