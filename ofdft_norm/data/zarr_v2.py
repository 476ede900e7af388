"""Reads and writes groups of small zarr v2 arrays, in a folder or a zip file, several times faster than zarr."""

import functools
import itertools
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numcodecs
import numpy as np
import numpy.typing as npt

from ofdft_norm.data.files import write_whole, write_zip
from ofdft_norm.errors import OFDFTNormError

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.bool_]

# codecs from bytes to bytes; other codecs of numcodecs (pickle) run code from a file
CODECS = {"adler32", "blosc", "bz2", "crc32", "fletcher32", "gzip", "lz4", "lzma", "shuffle", "zlib", "zstd"}
# numbers, booleans, times and texts of fixed size; no Python objects, no structures
_DTYPE = re.compile(r"[<>|][biufcmMSU]\d+(\[\w+\])?")

# local header of a zip member: signature, flags, method, length of the name, length of the extra field
_LOCAL = struct.Struct("<4s2xHH16xHH")
_PLAIN_FLAGS = 0x808  # UTF-8 names, sizes behind the data; others mean encryption or patches


class ZarrError(OFDFTNormError):
    """A zarr group, or an array of it, cannot be read; callers add the file's name."""


@contextmanager
def _name_errors(what: str) -> Iterator[None]:
    try:
        yield
    except ZarrError as error:
        raise ZarrError(f"{what}: {error}") from error
    except Exception as error:  # zipfile and each codec have types of their own for bytes that they did not write
        raise ZarrError(f"{what}: {type(error).__name__}: {error}") from error


class _Stored(NamedTuple):
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: npt.DTypeLike
    order: Any
    decoders: list[Any]
    fill_value: Any
    separator: str

    def decode(self, content: Any) -> Array:
        for decoder in self.decoders:
            content = decoder.decode(content)
        block = np.frombuffer(content, dtype=self.dtype).reshape(self.chunks, order=self.order)
        if block.dtype.kind == "b" and block.view(np.uint8).max() > 1:
            raise ZarrError("has booleans other than 0 and 1")
        return block


class ZarrGroup(AbstractContextManager["ZarrGroup"]):
    """Read access to the arrays of a zarr v2 group (folder or zip file) by name; a context manager."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        self._stored: dict[str, _Stored] = {}
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path} does not exist")
        if not self.path.is_dir():
            with _name_errors("cannot be opened"):
                if not self.path.is_file():  # opening a named pipe would wait for a writer
                    raise ZarrError("is neither a folder nor a file")
                self._zip = zipfile.ZipFile(self.path)

    def __exit__(self, *error: object) -> None:
        if self._zip is not None:
            self._zip.close()

    def _read_bytes(self, key: str) -> bytes | None:
        if self._zip is None:
            file = self.path / key
            return file.read_bytes() if file.is_file() else None
        entry = self._zip.NameToInfo.get(key)
        return None if entry is None else _read_member(self._zip, entry) or self._zip.read(entry)

    def arrays(self) -> list[str]:
        """Returns the names of all arrays, sorted."""
        files = self.path.rglob(".zarray")
        keys = self._zip.namelist() if self._zip else [file.relative_to(self.path).as_posix() for file in files]
        return sorted(key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray"))

    def __contains__(self, name: str) -> bool:
        with suppress(KeyError):
            self._metadata(name)
        return name in self._stored

    def attributes(self) -> dict[str, Any]:
        """Returns the attributes of the root, empty if it has none."""
        with _name_errors("attributes"):
            return dict(json.loads(self._read_bytes(".zattrs") or b"{}"))

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an array; raises KeyError if there is none of that name."""
        return self._metadata(name).shape

    def _metadata(self, name: str) -> _Stored:
        if name not in self._stored:
            with _name_errors(f"array {name!r}"):
                content = self._read_bytes(f"{name}/.zarray")
                if content is not None:
                    self._stored[name] = _parse(content)
        return self._stored[name]

    def read(self, name: str, row: int | None = None, may_lack: Rows | bool = False) -> Array:
        """Reads an array, or one row of it, for which only the chunks of that row are read.

        `may_lack`: whether missing chunks hold the fill value (for the whole array, or for each of its rows); else a
        missing chunk is an error. Raises KeyError if there is no array of that name.
        """
        stored = self._metadata(name)
        chunks = stored.chunks
        with _name_errors(f"array {name!r}"):
            grid = [range(math.ceil(n / c)) for n, c in zip(stored.shape, chunks, strict=True)]
            wanted: list[Any] = [slice(n) for n in stored.shape]
            if row is not None:
                grid[0] = range(row // chunks[0], row // chunks[0] + 1)
                wanted[0] = row % chunks[0]
            out = np.zeros([len(places) * c for places, c in zip(grid, chunks, strict=True)], dtype=stored.dtype)
            content: bytes | None = None
            block: Array = np.zeros(0)
            slices = [[slice(i * c, (i + 1) * c) for i in range(len(g))] for g, c in zip(grid, chunks, strict=True)]
            for index, where in zip(itertools.product(*grid), itertools.product(*slices), strict=True):
                key = stored.separator.join(map(str, index)) or "0"
                previous, content = content, self._read_bytes(f"{name}/{key}")
                if content is not None:
                    if content != previous:  # equal chunks, as of integrals in all SCF iterations, are decoded once
                        block = stored.decode(content)
                    out[where] = block
                    continue
                rows = slice(index[0] * chunks[0], (index[0] + 1) * chunks[0]) if index else slice(None)
                if not (may_lack if isinstance(may_lack, bool) else may_lack[rows].all()):
                    raise ZarrError(f"lacks the chunk {key!r}")
                if stored.fill_value is not None:
                    out[where] = stored.fill_value
        return out[(*wanted, ...)]


def _read_member(archive: Any, entry: zipfile.ZipInfo) -> bytes | None:
    """Reads a stored or deflated member with one read; returns None for other members, which zipfile reads."""
    name, extra = entry.filename.encode(), len(entry.extra)
    start = _LOCAL.size + len(name) + extra
    archive.fp.seek(entry.header_offset)
    content = archive.fp.read(start + entry.compress_size)
    header = (b"PK\3\4", entry.flag_bits, entry.compress_type, len(name), extra)
    if entry.flag_bits & ~_PLAIN_FLAGS or len(content) < start or _LOCAL.unpack_from(content) != header:
        return None
    found, content = content[_LOCAL.size : _LOCAL.size + len(name)], content[start:]
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, entry.file_size + 1)
    elif entry.compress_type != zipfile.ZIP_STORED:
        return None
    whole = found == name and len(content) == entry.file_size and zlib.crc32(content) == entry.CRC
    return content if whole else None


@functools.lru_cache(maxsize=1024)  # most label files of a data set have equal metadata
def _parse(content: bytes) -> _Stored:
    """Checks the content of a ``.zarray`` file and builds its codecs."""
    meta = json.loads(content)
    shape, chunks, fill = tuple(meta["shape"]), tuple(meta["chunks"]), meta["fill_value"]
    if not all(type(n) is int and n >= 0 for n in shape) or not all(type(n) is int and n > 0 for n in chunks):
        raise ZarrError(f"shape {shape} and chunks {chunks}, expected whole numbers")
    if not _DTYPE.fullmatch(meta["dtype"]):
        raise ZarrError(f"dtype is {meta['dtype']!r}, expected numbers, booleans or texts of fixed size")
    codecs = [*(meta["filters"] or []), *filter(None, [meta["compressor"]])]
    unknown = [codec["id"] for codec in codecs if codec["id"] not in CODECS]
    if unknown:
        raise ZarrError(f"codecs {unknown} are not read, expected some of {sorted(CODECS)}")
    decoders = [numcodecs.get_codec(dict(codec)) for codec in reversed(codecs)]
    separator = meta.get("dimension_separator", ".")
    return _Stored(shape, chunks, np.dtype(meta["dtype"]), meta["order"], decoders, fill, separator)


def write_zarr_arrays(
    path: str | Path,
    arrays: Mapping[str, Array],
    attributes: Mapping[str, Any],
    replace: bool = False,
    by_row: Collection[str] = (),
) -> None:
    """Writes arrays and attributes as zarr v2, whole or not at all: a zip file if `path` ends in .zip, else a folder.

    Arrays named in `by_row` have a compressed chunk for each row. `replace`: also replaces a folder with content.
    """
    group = json.dumps({"zarr_format": 2}).encode()
    files = {".zgroup": group, ".zattrs": json.dumps(dict(attributes), indent=1).encode()}
    for name, array in arrays.items():
        files |= {f"{parent.as_posix()}/.zgroup": group for parent in list(Path(name).parents)[:-1]}
        files |= {f"{name}/{key}": content for key, content in _encode_array(array, name in by_row).items()}
    if Path(path).suffix == ".zip":
        write_zip(path, files)
        return
    with write_whole(path, replace) as unfinished:
        for name, content in files.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).write_bytes(content)


def _encode_array(array: Array, by_row: bool) -> dict[str, bytes]:
    # byte shuffling gathers signs and exponents, the only part of converged coefficients that can be compressed
    blosc = numcodecs.Blosc(cname="zstd", clevel=9, shuffle=numcodecs.Blosc.SHUFFLE) if by_row else None
    meta = {
        "zarr_format": 2,
        "shape": list(array.shape),
        "chunks": [1 if blosc and axis == 0 else max(n, 1) for axis, n in enumerate(array.shape)],
        "dtype": array.dtype.str,
        # a lost chunk is NaN in other programs, and not a plausible 0
        "fill_value": {"f": "NaN", "U": "", "S": ""}.get(array.dtype.kind, 0),
        "order": "C",
        "compressor": blosc and blosc.get_config(),
        "filters": None,
    }
    chunks = {}
    if blosc and array.size:
        chunks = {f"{i}.0": bytes(blosc.encode(np.ascontiguousarray(row))) for i, row in enumerate(array)}
    elif array.size:
        chunks = {".".join("0" * array.ndim) or "0": array.tobytes()}
    return {".zarray": json.dumps(meta).encode(), **chunks}
