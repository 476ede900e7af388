"""Writes named arrays as zarr v2, so that nothing half-written is ever seen under its name."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

Array = npt.NDArray[Any]


def write_arrays(path: Path, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
    """Writes arrays and attributes into a new zarr v2 directory."""
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    for key, array in arrays.items():
        _write_array(root, key, array)
    (path / ".zattrs").write_text(json.dumps(dict(attributes), indent=1))


def put_array(path: Path, key: str, array: Array) -> None:
    """Writes one array into a directory of statistics: aside, then renamed."""
    parent, _, name = key.rpartition("/")
    group = zarr.open_group(str(path), mode="a", zarr_format=2)
    if parent:
        group.require_group(parent)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as aside:
        _write_array(zarr.open_group(aside, mode="w", zarr_format=2), name, array)
        target = path / key
        if target.exists():
            os.rename(target, Path(aside) / f"{name}.old")
        os.rename(Path(aside) / name, target)


def _write_array(root: zarr.Group, key: str, array: Array) -> None:
    parent, _, name = key.rpartition("/")
    group = root.require_group(parent) if parent else root
    # one chunk, uncompressed: these are small, and every zarr implementation reads them. A chunk that got lost reads as
    # the fill value, NaN, and not as plausible zeros
    target = group.create_array(
        name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=array.shape or (),
        compressors=None,
        fill_value=np.nan if array.dtype.kind == "f" else 0,
        overwrite=True,
        config={"write_empty_chunks": True},
    )
    target[...] = array
