"""Writes named arrays as zarr v2, so that nothing half-written is ever seen under its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from ofdft_norm.data.files import written_whole

Array = npt.NDArray[Any]


def write_arrays(path: Path, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
    """Writes arrays and attributes into a new zarr v2 directory."""
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    for key, array in arrays.items():
        root.require_group(key.rpartition("/")[0])
        _write_array(path / key, array)
    (path / ".zattrs").write_text(json.dumps(dict(attributes), indent=1))


def put_array(path: Path, key: str, array: Array) -> None:
    """Writes one array into a directory of statistics: a reader finds the former one, or this one."""
    with written_whole(path / key, replace=True, beside=path) as unfinished:
        _write_array(unfinished, array)
        zarr.open_group(str(path), mode="a", zarr_format=2).require_group(key.rpartition("/")[0])


def _write_array(path: Path, array: Array) -> None:
    # one chunk, uncompressed: these are small, and every zarr implementation reads them. A chunk that got lost reads as
    # the fill value, NaN, and not as plausible zeros
    target = zarr.create_array(
        str(path),
        shape=array.shape,
        dtype=array.dtype,
        chunks=array.shape or (),
        compressors=None,
        fill_value=np.nan if array.dtype.kind == "f" else 0,
        zarr_format=2,
        config={"write_empty_chunks": True},
    )
    target[...] = array
