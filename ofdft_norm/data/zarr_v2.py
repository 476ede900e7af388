"""Reads small zarr v2 arrays out of a directory or a zip file.

Label files and statistics are dozens of tiny arrays. The zarr library spends 1 to 2 ms on opening each of them,
reading the bytes takes a hundredth of that; a data set of 1e5 label files is read in minutes here, in half an hour
there. What this reader does not know (zarr v3 groups, object arrays) it hands to the library.
"""

from __future__ import annotations

import itertools
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
import zarr


class ZarrReader:
    """Read access to the arrays of one zarr group, by name; use as a context manager.

    Args:
        path: A ``.zarr`` directory or a ``.zarr.zip`` file.

    Raises:
        FileNotFoundError: If nothing is there.
        zipfile.BadZipFile: If a zip file is truncated or is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path} does not exist")
        self._zip = None if self.path.is_dir() else zipfile.ZipFile(self.path)
        self._metadata: dict[str, dict[str, Any]] = {}
        self._zip_store: zarr.storage.ZipStore | None = None

    def __enter__(self) -> ZarrReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._zip is not None:
            self._zip.close()
        if self._zip_store is not None:
            self._zip_store.close()

    def _bytes(self, key: str) -> bytes | None:
        if self._zip is not None:
            return self._zip.read(key) if key in self._zip.NameToInfo else None
        file = self.path / key
        return file.read_bytes() if file.is_file() else None

    def _keys(self) -> Iterator[str]:
        if self._zip is not None:
            yield from self._zip.namelist()
        else:
            for file in self.path.rglob("*"):
                if file.is_file():
                    yield file.relative_to(self.path).as_posix()

    def arrays(self) -> list[str]:
        """Returns the names of all arrays, sorted."""
        if self._is_v3():
            members = self._library_group().members(max_depth=None)
            return sorted(name for name, member in members if isinstance(member, zarr.Array))
        return sorted(key.removesuffix("/.zarray") for key in self._keys() if key.endswith("/.zarray"))

    def attributes(self, group: str = "") -> dict[str, Any]:
        """Returns the attributes of a group, empty where it has none."""
        if self._is_v3():
            return dict(self._library_group(group).attrs)
        content = self._bytes(f"{group}/.zattrs" if group else ".zattrs")
        return {} if content is None else dict(json.loads(content))

    def _is_v3(self) -> bool:
        return self._bytes(".zgroup") is None and self._bytes("zarr.json") is not None

    def _array_metadata(self, name: str) -> dict[str, Any]:
        if name not in self._metadata:
            content = self._bytes(f"{name}/.zarray")
            if content is None:
                raise KeyError(name)
            self._metadata[name] = json.loads(content)
        return self._metadata[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an array; raises KeyError if there is none of that name."""
        if self._is_v3():
            return tuple(self._library_array(name).shape)
        return tuple(self._array_metadata(name)["shape"])

    def _library_group(self, group: str = "") -> zarr.Group:
        if self._zip is None:
            return zarr.open_group(str(self.path), mode="r", path=group)
        if self._zip_store is None:
            self._zip_store = zarr.storage.ZipStore(self.path, mode="r")
        return zarr.open_group(self._zip_store, mode="r", path=group)

    def _library_array(self, name: str) -> Any:
        return self._library_group()[name]

    def read(self, name: str, row: int | None = None) -> npt.NDArray[Any]:
        """Reads a whole array, or one row of it.

        Args:
            name: The array's name inside the group, such as ``"of_labels/spatial/coeffs"``.
            row: Index along the first axis; only the chunks that hold it are read.

        Returns:
            The array in memory, writable.

        Raises:
            KeyError: If there is no array of that name.
            ValueError: If a chunk does not have the length that the metadata gives it.
        """
        if self._is_v3():
            array = self._library_array(name)
            return np.asarray(array[...] if row is None else array[row])
        meta = self._array_metadata(name)
        if meta["order"] != "C" or meta["filters"] or np.dtype(meta["dtype"]).hasobject:
            array = self._library_array(name)
            return np.asarray(array[...] if row is None else array[row])
        if row is None:
            return self._read_chunks(name, meta, [range(math.ceil(s / c)) for s, c in _axes(meta)], 0)
        n_rows, chunk_rows = meta["shape"][0], meta["chunks"][0]
        if not 0 <= row < n_rows:
            raise IndexError(f"{self.path}: row {row} of {name!r}, which has {n_rows}")
        first = row // chunk_rows
        ranges = [range(first, first + 1), *(range(math.ceil(s / c)) for s, c in list(_axes(meta))[1:])]
        return self._read_chunks(name, meta, ranges, first * chunk_rows)[row - first * chunk_rows]

    def _read_chunks(self, name: str, meta: dict[str, Any], ranges: list[range], first_row: int) -> npt.NDArray[Any]:
        """Decodes the chunks of `ranges` (one range of chunk indices per axis) and joins them."""
        shape, chunks, dtype = list(meta["shape"]), meta["chunks"], np.dtype(meta["dtype"])
        if ranges:
            shape[0] = min(meta["shape"][0], ranges[0].stop * chunks[0]) - first_row
        fill = dtype.type() if meta["fill_value"] is None else np.array(meta["fill_value"]).astype(dtype)
        out = np.full(shape, fill, dtype=dtype)
        codec = numcodecs.get_codec(meta["compressor"]) if meta["compressor"] else None
        separator = meta.get("dimension_separator", ".")
        for index in itertools.product(*ranges):
            content = self._bytes(f"{name}/{separator.join(map(str, index)) or '0'}")
            if content is None:
                continue  # a chunk that was never written holds the fill value
            decoded = np.frombuffer(content if codec is None else codec.decode(content), dtype=dtype)
            if decoded.size != math.prod(chunks):
                raise ValueError(f"chunk {index} of {name!r} has {decoded.size} entries, expected {math.prod(chunks)}")
            starts = [i * c for i, c in zip(index, chunks, strict=True)]
            if starts:
                starts[0] -= first_row
            target = tuple(slice(a, a + c) for a, c in zip(starts, chunks, strict=True))
            kept = tuple(slice(0, out[target].shape[axis]) for axis in range(len(chunks)))
            out[target] = decoded.reshape(chunks)[kept]
        return out


def _axes(meta: dict[str, Any]) -> Iterator[tuple[int, int]]:
    return zip(meta["shape"], meta["chunks"], strict=True)
