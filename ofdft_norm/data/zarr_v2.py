"""Reads small zarr arrays out of a directory or a zip file.

Label files and statistics are dozens of tiny arrays. The zarr library spends 1 to 2 ms on opening each of them,
reading the bytes takes a hundredth of that; a data set of 1e5 label files is read in minutes here, in half an hour
there. Files are not trusted: `ofdft_norm.data.zarr_metadata` says what is read, and everything else is an error.
"""

from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.zarr_metadata import ArrayMetadata, ZarrError, parse_json, parse_v2, parse_v3

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.bool_]

FILL_VALUES_ATTRIBUTE = "missing_chunks_are_fill_values"
"""A group with this attribute, true, may lack any chunk: its writer leaves out chunks that hold fill values alone."""


class ZarrReader:
    """Read access to the arrays of one zarr group, by name; use as a context manager.

    Args:
        path: A ``.zarr`` directory or a ``.zarr.zip`` file.

    Raises:
        FileNotFoundError: If nothing is there.
        ZarrError: If it is neither a directory nor a readable zip file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path} does not exist")
        self._zip: zipfile.ZipFile | None = None
        self._metadata: dict[str, ArrayMetadata] = {}
        if self.path.is_dir():
            return
        if not self.path.is_file():  # opening a named pipe would wait for a writer
            raise ZarrError("is neither a folder nor a file")
        try:
            self._zip = zipfile.ZipFile(self.path)
        except PermissionError:
            raise
        except Exception as error:  # zipfile raises many types on bytes that are no zip file
            raise ZarrError(f"{type(error).__name__}: {error}") from error

    def __enter__(self) -> ZarrReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._zip is not None:
            self._zip.close()

    def _bytes(self, key: str) -> bytes | None:
        if self._zip is None:
            file = self.path / key
            return file.read_bytes() if file.is_file() else None
        if key not in self._zip.NameToInfo:
            return None
        try:
            return self._zip.read(key)
        except Exception as error:  # damage, encryption, unknown compression: each has its own type
            raise ZarrError(f"{key!r}: {type(error).__name__}: {error}") from error

    def _keys(self) -> Iterator[str]:
        if self._zip is not None:
            yield from self._zip.namelist()
        else:
            for file in self.path.rglob("*"):
                if file.is_file():
                    yield file.relative_to(self.path).as_posix()

    def _json(self, key: str) -> dict[str, Any] | None:
        content = self._bytes(key)
        if content is None:
            return None
        try:
            return parse_json(content)
        except ZarrError as error:
            raise ZarrError(f"{key!r}: {error}") from error

    def _is_v3(self) -> bool:
        return self._bytes(".zgroup") is None and self._bytes("zarr.json") is not None

    def arrays(self) -> list[str]:
        """Returns the names of all arrays, sorted."""
        if not self._is_v3():
            return sorted(key.removesuffix("/.zarray") for key in self._keys() if key.endswith("/.zarray"))
        nodes = [key.removesuffix("/zarr.json") for key in self._keys() if key.endswith("/zarr.json")]
        return sorted(n for n in nodes if (self._json(f"{n}/zarr.json") or {}).get("node_type") == "array")

    def attributes(self, group: str = "") -> dict[str, Any]:
        """Returns the attributes of a group, empty where it has none.

        Args:
            group: Path of the group inside of the archive; empty: the root.
        """
        name = "zarr.json" if self._is_v3() else ".zattrs"
        content = self._json(f"{group}/{name}" if group else name) or {}
        return dict(content.get("attributes", {})) if name == "zarr.json" else content

    def metadata(self, name: str) -> ArrayMetadata:
        """Returns how an array is stored; its codecs are on the list of those that are read.

        Args:
            name: Path of the array inside of the archive.

        Raises:
            KeyError: If there is no array of that name.
            ZarrError: If the metadata are malformed, or ask for what is not read.
        """
        if name not in self._metadata:
            content, parse = self._json(f"{name}/.zarray"), parse_v2
            if content is None:
                content, parse = self._json(f"{name}/zarr.json"), parse_v3
            if content is None:
                raise KeyError(name)
            try:
                self._metadata[name] = parse(content)
            except ZarrError as error:
                raise ZarrError(f"array {name!r}: {error}") from error
        return self._metadata[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an array; raises KeyError if there is none of that name.

        Args:
            name: Path of the array inside of the archive.
        """
        return self.metadata(name).shape

    def read(self, name: str, row: int | None = None, may_lack: Rows | bool = False) -> Array:
        """Reads a whole array, or one row of it.

        Args:
            name: The array's name inside the group, such as ``"of_labels/spatial/coeffs"``.
            row: Index along the first axis; only the chunks that hold it are read.
            may_lack: Whether chunks may be missing, and then hold the fill value: for all of the array, or for each of
                its rows. Where the group has the attribute `FILL_VALUES_ATTRIBUTE`, all may.

        Returns:
            The array in memory, writable.

        Raises:
            KeyError: If there is no array of that name.
            IndexError: If the array has no such row.
            ZarrError: If a chunk is missing, or is not what the metadata say.
        """
        meta = self.metadata(name)
        grid = meta.grid
        if row is None:
            return self._join(name, meta, grid, 0, may_lack)
        if not meta.shape or not 0 <= row < meta.shape[0]:
            raise IndexError(f"{self.path}: row {row} of {name!r}, which has shape {meta.shape}")
        first = row // meta.chunks[0]
        start = first * meta.chunks[0]
        return self._join(name, meta, [range(first, first + 1), *grid[1:]], start, may_lack)[row - start]

    def _join(self, name: str, meta: ArrayMetadata, grid: list[range], first_row: int, may_lack: Rows | bool) -> Array:
        """Decodes chunks (one range of indices per axis) and joins them; memory is asked for when all are decoded."""
        blocks = {index: self._chunk(name, meta, index, may_lack) for index in itertools.product(*grid)}
        shape = meta.shape
        if shape:
            shape = (max(0, min(shape[0], grid[0].stop * meta.chunks[0]) - first_row), *shape[1:])
        if len(blocks) == 1 and shape == meta.chunks:
            block = next(iter(blocks.values()))
            return meta.filled(shape) if block is None else np.array(block, order="C")
        lacks = any(block is None for block in blocks.values())
        out = meta.filled(shape) if lacks else np.empty(shape, dtype=meta.dtype)
        for index, block in blocks.items():
            if block is None:
                continue
            starts = [i * c for i, c in zip(index, meta.chunks, strict=True)]
            if starts:
                starts[0] -= first_row
            target = tuple(slice(a, a + c) for a, c in zip(starts, meta.chunks, strict=True))
            out[target] = block[tuple(slice(0, n) for n in out[target].shape)]
        return out

    def _chunk(self, name: str, meta: ArrayMetadata, index: tuple[int, ...], may_lack: Rows | bool) -> Array | None:
        content: Any = self._bytes(f"{name}/{meta.chunk_name(index)}")
        if content is None:
            allowed = may_lack if isinstance(may_lack, bool) else bool(may_lack[_rows_of(meta, index)].all())
            if allowed or self.attributes().get(FILL_VALUES_ATTRIBUTE) is True:
                return None
            raise ZarrError(
                f"chunk {meta.chunk_name(index)} of array {name!r} is missing: it was lost, or its writer leaves out "
                f"chunks of fill values and does not say so (root attribute {FILL_VALUES_ATTRIBUTE!r}: true)"
            )
        try:
            for decoder in meta.decoders:
                content = decoder.decode(content)
            decoded = np.frombuffer(content, dtype=meta.dtype)
        except Exception as error:  # each codec has its own types for bytes that are not what it wrote
            raise ZarrError(f"chunk {index} of {name!r}: {type(error).__name__}: {error}") from error
        expected = math.prod(meta.chunks)
        if decoded.size != expected:
            raise ZarrError(f"chunk {index} of {name!r} has {decoded.size} entries, expected {expected}")
        if decoded.dtype.kind == "b" and decoded.view(np.uint8).max() > 1:
            raise ZarrError(f"chunk {index} of {name!r} holds booleans other than 0 and 1")
        return decoded.reshape(meta.chunks, order=meta.order)


def _rows_of(meta: ArrayMetadata, index: tuple[int, ...]) -> slice:
    return slice(index[0] * meta.chunks[0], (index[0] + 1) * meta.chunks[0]) if index else slice(None)
