from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm.data.zarr_metadata import ZarrError
from ofdft_norm.data.zarr_v2 import ZarrReader

COMPRESSORS = [None, numcodecs.Blosc(cname="zstd", shuffle=numcodecs.Blosc.SHUFFLE), numcodecs.Zlib(level=1)]
DTYPES = ["<f8", "<f4", "<i8", "|u1", "|b1", "<U5", ">f8"]


def random_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    values = rng.integers(0, 100, size=shape)
    return (values % 2 == 0) if dtype == "|b1" else values.astype(dtype)


def write(path: Path, values: np.ndarray, chunks: tuple[int, ...], compressor: Any, separator: str = ".") -> None:
    store = zarr.storage.ZipStore(path, mode="w") if path.suffix == ".zip" else zarr.storage.LocalStore(path)
    root = zarr.open_group(store, mode="w", zarr_format=2)
    array = root.create_array(
        "group/values",
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks,
        compressors=compressor,
        chunk_key_encoding={"name": "v2", "separator": separator},
    )
    array[...] = values
    store.close()


@st.composite
def arrays(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
    chunks = tuple(draw(st.integers(1, max(1, n) + 1)) for n in shape)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return random_values(rng, shape, draw(st.sampled_from(DTYPES))), chunks


@given(
    array=arrays(),
    compressor=st.sampled_from(COMPRESSORS),
    suffix=st.sampled_from([".zarr", ".zarr.zip"]),
    separator=st.sampled_from([".", "/"]),
)
def test_arrays_and_rows_equal_what_the_library_reads(
    array: tuple[np.ndarray, tuple[int, ...]], compressor: Any, suffix: str, separator: str, tmp_path_factory: Any
) -> None:
    values, chunks = array
    path = tmp_path_factory.mktemp("zarr") / f"file{suffix}"
    write(path, values, chunks, compressor, separator)
    store = zarr.storage.ZipStore(path, mode="r") if suffix.endswith("zip") else zarr.storage.LocalStore(path)
    expected = zarr.open_group(store, mode="r")["group/values"]
    with ZarrReader(path) as reader:
        assert reader.arrays() == ["group/values"]
        assert reader.shape("group/values") == values.shape
        read = reader.read("group/values", may_lack=True)
        assert read.dtype == expected.dtype
        assert read.flags.writeable
        np.testing.assert_array_equal(read, expected[...])
        np.testing.assert_array_equal(read, values)
        for row in range(len(values) if values.ndim else 0):
            np.testing.assert_array_equal(reader.read("group/values", row=row, may_lack=True), expected[row])
        for row in (-1, len(values)) if values.ndim else ():
            with pytest.raises(IndexError, match="group/values"):
                reader.read("group/values", row=row)
    store.close()


@pytest.mark.parametrize("fill", [0.0, 7.5, "NaN", "Infinity", None])
@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
def test_a_chunk_that_was_never_written_holds_the_fill_value(fill: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "file.zarr"
    values = np.arange(12.0).reshape(4, 3)
    write(path, values, (1, 2), None)
    chunk = path / "group/values"
    metadata = json.loads((chunk / ".zarray").read_text())
    (chunk / ".zarray").write_text(json.dumps({**metadata, "fill_value": fill}))
    (chunk / "2.1").unlink()
    if suffix == ".zarr.zip":
        path = Path(shutil.make_archive(str(tmp_path / "file.zarr"), "zip", path))
    expected = values.copy()
    expected[2, 2] = 0.0 if fill is None else float(fill)
    rows = np.array([False, False, True, False])
    with ZarrReader(path) as reader:
        for may_lack in (True, rows):
            np.testing.assert_array_equal(reader.read("group/values", may_lack=may_lack), expected)
            np.testing.assert_array_equal(reader.read("group/values", row=2, may_lack=may_lack), expected[2])
        for may_lack in (False, ~rows):
            for row in (None, 2):
                with pytest.raises(ZarrError, match=r"chunk 2\.1 of array 'group/values' is missing"):
                    reader.read("group/values", row=row, may_lack=may_lack)
            np.testing.assert_array_equal(reader.read("group/values", row=1, may_lack=may_lack), expected[1])


def test_one_row_reads_only_its_own_chunks(tmp_path: Path) -> None:
    path = tmp_path / "file.zarr"
    values = np.arange(12.0).reshape(4, 3)
    write(path, values, (1, 3), None)
    for row in (0, 1, 3):
        (path / f"group/values/{row}.0").write_bytes(b"broken")
    with ZarrReader(path) as reader:
        np.testing.assert_array_equal(reader.read("group/values", row=2), values[2])
        with pytest.raises(ValueError, match=r"buffer size|entries"):
            reader.read("group/values")


@pytest.mark.parametrize("length", [0, 8, 16, 32])
def test_a_chunk_of_the_wrong_length_is_an_error(length: int, tmp_path: Path) -> None:
    path = tmp_path / "file.zarr"
    write(path, np.arange(3.0), (3,), None)
    (path / "group/values/0").write_bytes(b"\0" * length)
    with (
        ZarrReader(path) as reader,
        pytest.raises(ValueError, match=rf"'group/values' has {length // 8} entries, expected 3"),
    ):
        reader.read("group/values")


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_both_orders_are_read(suffix: str, order: Any, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    values = np.arange(12.0).reshape(4, 3)
    store = zarr.storage.ZipStore(path, mode="w") if suffix.endswith("zip") else zarr.storage.LocalStore(path)
    root = zarr.open_group(store, mode="w", zarr_format=2)
    root.create_array("values", shape=(4, 3), dtype="f8", chunks=(2, 2), order=order)[...] = values
    store.close()
    with ZarrReader(path) as reader:
        np.testing.assert_array_equal(reader.read("values"), values)
        np.testing.assert_array_equal(reader.read("values", row=3), values[3])


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
def test_zarr_v3_groups_are_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    values = np.arange(12.0).reshape(4, 3)
    store = zarr.storage.ZipStore(path, mode="w") if suffix.endswith("zip") else zarr.storage.LocalStore(path)
    root = zarr.open_group(store, mode="w", zarr_format=3, attributes={"made_by": "test"})
    root.create_array("a/values", shape=(4, 3), dtype="f8", chunks=(2, 2))[...] = values
    root.create_array("scalar", shape=(), dtype="i8")[...] = 5
    store.close()
    with ZarrReader(path) as reader:
        assert reader.arrays() == ["a/values", "scalar"]
        assert reader.attributes() == {"made_by": "test"}
        assert reader.shape("a/values") == (4, 3)
        np.testing.assert_array_equal(reader.read("a/values"), values)
        np.testing.assert_array_equal(reader.read("a/values", row=1), values[1])
        assert reader.read("scalar")[()] == 5
        with pytest.raises(KeyError):
            reader.read("a/absent")


def test_attributes_of_groups(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "file.zarr", mode="w", zarr_format=2, attributes={"code": "x"})
    root.create_group("inner", attributes={"n": 3})
    with ZarrReader(tmp_path / "file.zarr") as reader:
        assert reader.attributes() == {"code": "x"}
        assert reader.attributes("inner") == {"n": 3}
        assert reader.attributes("absent") == {}
        assert reader.arrays() == []


def test_missing_and_foreign_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.zarr"):
        ZarrReader(tmp_path / "nowhere.zarr")
    (tmp_path / "text.zarr.zip").write_text("no zip file")
    with pytest.raises(ZarrError, match="BadZipFile"):
        ZarrReader(tmp_path / "text.zarr.zip")
    write(tmp_path / "file.zarr", np.zeros(1), (1,), None)
    with ZarrReader(tmp_path / "file.zarr") as reader, pytest.raises(KeyError, match="group/absent"):
        reader.read("group/absent")


def test_two_readers_of_one_zip_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file.zarr.zip"
    values = np.arange(12.0).reshape(4, 3)
    write(path, values, (1, 3), COMPRESSORS[1])
    with ZarrReader(path) as one, ZarrReader(path) as other:
        for reader, row in itertools.product((one, other), range(4)):
            np.testing.assert_array_equal(reader.read("group/values", row=row), values[row])
