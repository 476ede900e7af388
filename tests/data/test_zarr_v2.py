import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm.data.zarr_v2 import ZarrError, ZarrGroup, write_zarr_arrays

COMPRESSORS = [None, numcodecs.Blosc(cname="zstd", shuffle=numcodecs.Blosc.SHUFFLE), numcodecs.Zlib(level=1)]
DTYPES = ["<f8", "<f4", "<i8", "|u1", "|b1", "<U5", ">f8"]


@st.composite
def arrays(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
    chunks = tuple(draw(st.integers(1, max(1, n) + 1)) for n in shape)
    values, dtype = np.random.default_rng(0).integers(0, 100, size=shape), draw(st.sampled_from(DTYPES))
    return ((values % 2 == 0) if dtype == "|b1" else values.astype(dtype)), chunks


def open_store(path: Path, mode: Any) -> Any:
    """A store of the zarr library, version 2 or 3."""
    if path.suffix == ".zip":
        return zarr.storage.ZipStore(path, mode=mode)
    return getattr(zarr.storage, "LocalStore" if hasattr(zarr.storage, "LocalStore") else "DirectoryStore")(path)


def write(
    path: Path, values: np.ndarray, chunks: tuple[int, ...], codec: Any = None, order: Any = "C", separator: Any = "."
) -> None:
    """Writes ``group/values`` with the zarr library."""
    store = open_store(path, "w")
    options: dict[str, Any] = {"shape": values.shape, "dtype": values.dtype, "chunks": chunks, "order": order}
    if zarr.__version__.startswith("2"):
        options |= {"compressor": codec, "dimension_separator": separator}
        zarr.group(store).create_dataset("group/values", **options)[...] = values
    else:
        options |= {"compressors": codec, "chunk_key_encoding": {"name": "v2", "separator": separator}}
        zarr.open_group(store, mode="w", zarr_format=2).create_array("group/values", **options)[...] = values
    store.close()


@given(
    array=arrays(),
    compressor=st.sampled_from(COMPRESSORS),
    suffix=st.sampled_from([".zarr", ".zarr.zip"]),
    order=st.sampled_from(["C", "F"]),
    separator=st.sampled_from(["/", "."]),
)
def test_arrays_and_rows_equal_what_the_library_wrote(
    array: Any, compressor: Any, suffix: str, order: str, separator: str, tmp_path_factory: Any
) -> None:
    values, chunks = array
    path = tmp_path_factory.mktemp("zarr") / f"file{suffix}"
    write(path, values, chunks, compressor, order, separator)
    with ZarrGroup(path) as group:
        assert group.arrays() == ["group/values"]
        read = group.read("group/values", may_lack=True)
        assert (read.dtype, read.shape) == (values.dtype, values.shape) == (read.dtype, group.shape("group/values"))
        np.testing.assert_array_equal(read, values)
        for row in range(len(values) if values.ndim else 0):
            np.testing.assert_array_equal(group.read("group/values", row=row, may_lack=True), values[row])


@pytest.mark.parametrize("fill", [0.0, 7.5, "NaN", "Infinity", None])
@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
def test_a_missing_chunk_is_an_error_or_holds_the_fill_value(fill: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "file.zarr"
    values = np.arange(1.0, 13).reshape(4, 3)
    write(path, values, (1, 2))
    chunk = path / "group/values"
    metadata = json.loads((chunk / ".zarray").read_text())
    (chunk / ".zarray").write_text(json.dumps({**metadata, "fill_value": fill}))
    (chunk / "2.1").unlink()
    if suffix == ".zarr.zip":
        path = Path(shutil.make_archive(str(tmp_path / "file.zarr"), "zip", path))
    expected = values.copy()
    expected[2, 2] = 0.0 if fill is None else float(fill)
    rows = np.array([False, False, True, False])
    with ZarrGroup(path) as group:
        for may_lack in (True, rows):
            np.testing.assert_array_equal(group.read("group/values", may_lack=may_lack), expected)
            np.testing.assert_array_equal(group.read("group/values", row=2, may_lack=may_lack), expected[2])
        for lacks_none in (False, ~rows):
            for row in (None, 2):
                with pytest.raises(ZarrError, match=r"'group/values': lacks the chunk '2\.1'"):
                    group.read("group/values", row=row, may_lack=lacks_none)
            np.testing.assert_array_equal(group.read("group/values", row=1, may_lack=lacks_none), expected[1])


@pytest.mark.parametrize(
    "attack",
    [
        {"compressor": {"id": "pickle"}},
        {"filters": [{"id": "pickle"}, {"id": "crc32"}], "dtype": "|O"},
        {"compressor": None, "dtype": "|O"},
        {"compressor": {"id": "json2"}},
    ],
)
def test_no_file_runs_code(attack: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the newest numcodecs refuses to unpickle by itself; older ones do not
    monkeypatch.setattr(numcodecs.Pickle, "decode", lambda *_, **__: pytest.fail("was unpickled"))
    path = tmp_path / "file.zarr"
    write(path, np.zeros(3), (3,))
    metadata = path / "group/values/.zarray"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), **attack}))
    with ZarrGroup(path) as group, pytest.raises(ZarrError, match="group/values"):
        group.read("group/values")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("extra", [b"", b"\xfe\xca\x04\x00abcd"])
def test_members_of_zip_files_are_those_that_zipfile_reads(method: int, extra: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.zarr.zip"
    write_zarr_arrays(tmp_path / "file.zarr", {"group/values": np.arange(4.0)}, {})
    with zipfile.ZipFile(path, "w") as archive:
        for file in (tmp_path / "file.zarr").rglob("*"):
            entry = zipfile.ZipInfo(file.relative_to(tmp_path / "file.zarr").as_posix())
            entry.extra = extra
            if file.is_file():
                archive.writestr(entry, file.read_bytes(), method)
    with ZarrGroup(path) as group:
        assert group.read("group/values").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("change", ["data", "name", "signature", "other member"])
def test_a_changed_member_is_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "file.zarr.zip"
    write_zarr_arrays(path, {"group/values": np.arange(4.0), "group/others": np.ones(4)}, {})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at, other = (archive.getinfo(f"group/{name}/0").header_offset for name in ("values", "others"))
    if change == "other member":  # the directory names the place of the other array's bytes
        place = data.rindex(b"group/values/0") - 4
        data[place : place + 4] = other.to_bytes(4, "little")
    else:
        data[at + {"signature": 0, "name": 32, "data": 60}[change]] ^= 1
    path.write_bytes(data)
    with ZarrGroup(path) as group, pytest.raises(ZarrError, match="'group/values'"):
        group.read("group/values")
