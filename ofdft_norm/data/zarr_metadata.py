"""What a zarr array says of itself, checked before a codec is built or memory is reserved.

Metadata come from files of unknown origin. A codec's name would choose which code of numcodecs runs (its ``pickle``
codec runs whatever the file says), and a shape how much memory is asked for. Zarr v2 metadata are checked here; those
of zarr v3 are translated into them first.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt

from ofdft_norm.errors import OFDFTNormError

COMPRESSORS = ("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd")
"""Compressors that are built for a file; all of them only turn bytes into bytes."""

FILTERS = ("adler32", "crc32", "fletcher32", "shuffle")
"""Filters that are built for a file: checksums, and the order of bytes."""

MAX_ARRAY_BYTES = 2**32
"""Largest array, and largest chunk, that is read: 100 SCF iterations of 1e6 basis functions are a fifth of it."""

MAX_CHUNKS = 2**20
"""Largest number of chunks of one array that is read."""

# fixed-size numbers, booleans, times and texts; no objects, no structures
_DTYPE = re.compile(r"[<>|][biufcmMSU]\d+(\[\w+\])?")


class ZarrError(OFDFTNormError):
    """A zarr group, or an array of it, cannot be read as it is; callers say which file."""


@dataclass(frozen=True)
class ArrayMetadata:
    """How an array is stored.

    Attributes:
        shape: The array's shape.
        chunks: The shape of every chunk; those at the end are filled up.
        dtype: Type of the entries.
        order: ``C`` or ``F``, the order of the entries in a chunk.
        decoders: Codecs in the order of decoding.
        fill_value: What a chunk that was not written holds, as the file says it.
        prefix: What the name of a chunk starts with.
        separator: What stands between its numbers.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: npt.DTypeLike
    order: Any
    decoders: tuple[Any, ...]
    fill_value: Any
    prefix: str = ""
    separator: str = "."

    @property
    def grid(self) -> list[range]:
        """The indices of the chunks along each axis."""
        return [range(math.ceil(length / chunk)) for length, chunk in zip(self.shape, self.chunks, strict=True)]

    def chunk_name(self, index: tuple[int, ...]) -> str:
        """Returns the name of a chunk beside the metadata.

        Args:
            index: Index of the chunk along each axis.
        """
        numbers = [str(i) for i in index]
        if self.prefix:
            return self.separator.join([self.prefix, *numbers])
        return self.separator.join(numbers) or "0"

    def filled(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Returns an array of the fill value.

        Args:
            shape: Shape of the array.

        Raises:
            ZarrError: If the fill value does not fit the type.
        """
        try:
            fill = np.zeros((), self.dtype) if self.fill_value is None else np.array(self.fill_value).astype(self.dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise ZarrError(f"fill value {self.fill_value!r} of an array of {self.dtype}: {error}") from error
        if fill.shape:
            raise ZarrError(f"fill value {self.fill_value!r}: expected a single value")
        return np.full(shape, fill, dtype=self.dtype)


def parse_json(content: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        content: Bytes of UTF-8.

    Raises:
        ZarrError: If the text is none.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ZarrError(f"metadata are no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ZarrError(f"metadata are a JSON {type(value).__name__}, expected an object")
    return value


def parse_v2(meta: Mapping[str, Any]) -> ArrayMetadata:
    """Reads the content of a ``.zarray`` file.

    Args:
        meta: Its JSON.

    Returns:
        The metadata, with codecs built.

    Raises:
        ZarrError: If a key is missing or malformed, or a codec or type is not among those that are read.
    """
    missing = {"shape", "chunks", "dtype", "order", "compressor", "filters", "fill_value"} - meta.keys()
    if missing:
        raise ZarrError(f"metadata lack {sorted(missing)}")
    if meta.get("zarr_format", 2) != 2:
        raise ZarrError(f"zarr_format is {meta['zarr_format']!r}, expected 2")
    order, separator = meta["order"], meta.get("dimension_separator", ".")
    if order not in ("C", "F") or separator not in (".", "/"):
        raise ZarrError(f"order {order!r}, dimension_separator {separator!r}: expected 'C' or 'F', and '.' or '/'")
    shape, chunks, dtype = _lengths(meta, "shape", 0), _lengths(meta, "chunks", 1), _dtype(meta["dtype"])
    if len(shape) != len(chunks):
        raise ZarrError(f"shape {list(shape)} and chunks {list(chunks)} have different lengths")
    filters = meta["filters"] or []
    if not isinstance(filters, list):
        raise ZarrError(f"filters are {filters!r}, expected a list")
    stages = [_codec(config, FILTERS, "filter") for config in filters]
    if meta["compressor"] is not None:
        stages.append(_codec(meta["compressor"], COMPRESSORS, "compressor"))
    parsed = ArrayMetadata(shape, chunks, dtype, order, tuple(reversed(stages)), meta["fill_value"], "", separator)
    _check_sizes(parsed, dtype.itemsize)
    return parsed


def _check_sizes(meta: ArrayMetadata, item: int) -> None:
    """Refuses sizes that no label or statistics have, before anything of that size is asked for."""
    for what, lengths in (("shape", meta.shape), ("chunks", meta.chunks)):
        if math.prod(lengths) * item > MAX_ARRAY_BYTES:
            raise ZarrError(f"{what} {list(lengths)} of {item} bytes each: expected at most {MAX_ARRAY_BYTES} bytes")
    n_chunks = math.prod(len(indices) for indices in meta.grid)
    if n_chunks > MAX_CHUNKS:
        raise ZarrError(f"chunks {list(meta.chunks)} divide {list(meta.shape)} into {n_chunks}, at most {MAX_CHUNKS}")


def _lengths(meta: Mapping[str, Any], key: str, least: int) -> tuple[int, ...]:
    values = meta[key]
    if not isinstance(values, list) or len(values) > 32 or any(type(v) is not int or v < least for v in values):
        raise ZarrError(f"{key} is {str(values)[:100]}, expected a list of whole numbers, {least} or more")
    return tuple(values)


def _dtype(text: Any) -> np.dtype[Any]:
    if isinstance(text, str) and _DTYPE.fullmatch(text):
        try:
            dtype = np.dtype(text)
        except TypeError:
            dtype = np.dtype("V")
        if dtype.itemsize > 0:
            return dtype
    raise ZarrError(
        f"dtype is {str(text)[:100]!r}, expected numbers, booleans or texts of fixed size, such as '<f8': arrays of "
        "Python objects and structures are not read"
    )


def _codec(config: Any, allowed: tuple[str, ...], what: str) -> Any:
    """Builds a codec whose name is in the list; the name alone decides which code runs."""
    name = config.get("id") if isinstance(config, dict) else config
    if not isinstance(name, str) or name not in allowed:
        raise ZarrError(f"{what} {str(name)[:100]!r} is not read: it could run code; expected one of {list(allowed)}")
    try:
        return numcodecs.get_codec(config)
    except Exception as error:  # each codec checks its own settings in its own way
        raise ZarrError(f"{what} {str(config)[:200]}: {type(error).__name__}: {error}") from error


# --- zarr v3 ----------------------------------------------------------------------------------------------------------

_V3_DTYPES = {
    "bool": "b1",
    **{f"int{8 * size}": f"i{size}" for size in (1, 2, 4, 8)},
    **{f"uint{8 * size}": f"u{size}" for size in (1, 2, 4, 8)},
    **{f"float{8 * size}": f"f{size}" for size in (2, 4, 8)},
    **{f"complex{8 * size}": f"c{size}" for size in (8, 16)},
}
# names of texts of fixed size, and bytes for each letter
_V3_TEXTS = {"fixed_length_utf32": ("U", 4), "null_terminated_bytes": ("S", 1)}
_NATIVE = {"little": "<", "big": ">"}


def parse_v3(meta: Mapping[str, Any]) -> ArrayMetadata:
    """Reads the content of an array's ``zarr.json``, as far as zarr v2 has the same.

    Args:
        meta: Its JSON.

    Returns:
        The metadata, with codecs built.

    Raises:
        ZarrError: If they are malformed, or use what zarr v2 has not, such as shards or texts of variable length.
    """
    try:
        codecs = [(codec["name"], codec.get("configuration") or {}) for codec in meta["codecs"]]
        if not codecs or codecs[0][0] != "bytes":
            raise ZarrError(f"codecs {[name for name, _ in codecs]}: expected 'bytes' first; write it as zarr v2")
        endian = _NATIVE[codecs[0][1].get("endian", sys.byteorder)]
        grid, keys = meta["chunk_grid"], meta["chunk_key_encoding"]
        if grid["name"] != "regular" or keys["name"] not in ("default", "v2"):
            raise ZarrError(f"chunk grid {grid['name']!r} with keys {keys['name']!r}; write the group as zarr v2")
        default = keys["name"] == "default"
        separator = (keys.get("configuration") or {}).get("separator", "/" if default else ".")
        parsed = parse_v2(
            {
                "shape": meta["shape"],
                "chunks": grid["configuration"]["chunk_shape"],
                "dtype": _v3_dtype(meta["data_type"], endian),
                "order": "C",
                "compressor": None,
                "filters": None,
                "fill_value": meta["fill_value"],
                "dimension_separator": separator,
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ZarrError(f"zarr v3 metadata lack something: {type(error).__name__}: {error}") from error
    decoders = tuple(_v3_codec(name, configuration) for name, configuration in reversed(codecs[1:]))
    return replace(parsed, decoders=decoders, prefix="c" if default else "")


def _v3_dtype(data_type: Any, endian: str) -> str:
    if isinstance(data_type, str):
        return f"{endian}{_V3_DTYPES.get(data_type, data_type)}"
    letter, size = _V3_TEXTS.get(data_type["name"], ("V", 1))
    return f"{endian}{letter}{int(data_type['configuration']['length_bytes']) // size}"


def _v3_codec(name: Any, configuration: dict[str, Any]) -> Any:
    name = str(name).removeprefix("numcodecs.")
    # blosc and zstd read their settings from the compressed bytes; zarr v3 names those settings differently
    settings = {} if name in ("blosc", "gzip", "zstd") else configuration
    return _codec({**settings, "id": name}, COMPRESSORS + FILTERS, "codec")
