"""Label files that are not what they should be: each is refused with an error that says where and what.

Every case is one line of the table: how a valid file is spoiled, and words that the message must hold beside the file's
name. The valid file is water with four SCF iterations, of which the first has no label.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest

from ofdft_norm import DatasetStatistics, OFDataset
from ofdft_norm.data.label_files import LARGEST_LABEL, read_molecule, read_n_scf_iterations
from ofdft_norm.data.zarr_metadata import COMPRESSORS, FILTERS
from ofdft_norm.errors import LabelFileError, OFDFTNormError, StatisticsError

COEFFS = "of_labels/spatial/coeffs"
GRADIENT = "of_labels/spatial/grad_kin"
INTEGRALS = "of_labels/spatial/dual_basis_integrals"
ENERGY = "of_labels/energies/e_kin"
FLAG = "ks_labels/energies/has_energy_label"
POSITIONS = "geometry/atom_pos"
ELEMENTS = "geometry/atomic_numbers"
NAME = "geometry/mol_id"
STEPS = "of_labels/n_scf_steps"

Arrays = dict[str, np.ndarray]
Spoil = Callable[[Path], None]


def read(path: Path) -> Any:
    return read_molecule(path, "e_kin", "grad_kin")


# --- arrays of another type or other values: written as such ----------------------------------------------------------


def as_type(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values.astype(dtype)


def times(factor: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values * factor


def constant(value: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: np.full(values.shape, value)


def given(*values: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda _: np.array(*values)


NUMBERS = "expected float64"
FLAGS = "expected booleans, or 0 and 1"
RANGE = f"expected finite numbers, of at most {LARGEST_LABEL:g}"

ARRAYS: list[tuple[str, Callable[[np.ndarray], np.ndarray], str]] = [
    *((name, times(1j), NUMBERS) for name in (COEFFS, GRADIENT, INTEGRALS, ENERGY, POSITIONS)),
    *((name, as_type("b1"), NUMBERS) for name in (COEFFS, GRADIENT, INTEGRALS, ENERGY, POSITIONS)),
    *((name, as_type("U8"), NUMBERS) for name in (COEFFS, GRADIENT, ENERGY, POSITIONS)),
    *((name, as_type("S8"), NUMBERS) for name in (COEFFS, ENERGY)),
    *((name, as_type("m8[s]"), NUMBERS) for name in (COEFFS, ENERGY)),
    *((name, as_type("M8[s]"), NUMBERS) for name in (COEFFS, ENERGY)),
    *((name, constant(1e200), RANGE) for name in (COEFFS, GRADIENT, INTEGRALS, ENERGY, POSITIONS)),
    *((name, constant(-1e16), RANGE) for name in (COEFFS, GRADIENT, INTEGRALS, ENERGY, POSITIONS)),
    *((name, constant(np.nan), RANGE) for name in (COEFFS, GRADIENT, INTEGRALS, ENERGY, POSITIONS)),
    (COEFFS, constant(2**62), RANGE),
    (COEFFS, lambda v: v.view(np.int64), RANGE),  # floats that are read as integers
    (COEFFS, lambda v: v.view(">f8"), RANGE),  # the wrong byte order
    (FLAG, as_type("U5"), FLAGS),
    (FLAG, as_type("S5"), FLAGS),
    (FLAG, as_type("c16"), FLAGS),
    (FLAG, as_type("m8[s]"), FLAGS),
    (FLAG, given([0.0, np.nan, 1.0, 1.0]), FLAGS),
    (FLAG, given([0, 1, 2, 1]), FLAGS),
    (FLAG, given([0, 1, -1, 1]), FLAGS),
    (FLAG, given([0, 0.5, 1, 1]), FLAGS),
    (STEPS, given(-4), "'of_labels/n_scf_steps' is [-4]"),
    (STEPS, given(10**12), "'of_labels/n_scf_steps' is [1000000000000]"),
    (STEPS, given(3), "has 4 SCF iterations"),
    (STEPS, given(np.nan), "'of_labels/n_scf_steps' is [nan]"),
    (STEPS, given("4"), "'of_labels/n_scf_steps' is ['4']"),
    (STEPS, given([4, 4]), "'of_labels/n_scf_steps' is [4, 4]"),
    (ELEMENTS, given([8.0, 1.0, 1.0]), "expected integers"),
    (ELEMENTS, given([True, False, True]), "expected integers"),
    (ELEMENTS, given(8), "expected integers of shape (n_atom,)"),
    (NAME, given(["water", "ammonia"]), "expected one name"),
    (NAME, given(1.5), "expected one name"),
    (NAME, given(True), "expected one name"),
    (NAME, given("water\nammonia"), "expected a name of printable characters"),
    (NAME, given("\x07"), "expected a name of printable characters"),
    (NAME, given(b"\xff\xfe"), "is no text"),
]


@pytest.mark.parametrize(("name", "make", "words"), ARRAYS)
def test_an_array_of_another_type_or_absurd_values(name: str, make: Any, words: str, labels: Any) -> None:
    def change(arrays: Arrays) -> None:
        arrays[name] = make(arrays[name])

    with np.errstate(all="ignore"):
        path = labels.write("water.zarr.zip", change=change, compressor=None, write_empty_chunks=True)
    with pytest.raises(LabelFileError) as error:
        read(path)
    message = str(error.value)
    assert str(path) in message
    assert name in message
    assert words in message
    assert "(config: data." in message
    assert name == NAME or "molecule 'water'" in message


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(COEFFS, "f4"), (COEFFS, "f2"), (ENERGY, "f4"), (POSITIONS, "i4"), (FLAG, "u1"), (FLAG, "f8"), (STEPS, "f8")],
)
def test_types_that_lose_nothing_are_welcome(name: str, dtype: str, labels: Any) -> None:
    def change(arrays: Arrays) -> None:
        arrays[name] = arrays[name].astype(dtype)

    path = labels.write(change=change)
    molecule = read(path)
    fields = {
        COEFFS: molecule.coeffs,
        ENERGY: molecule.energy,
        POSITIONS: molecule.pos,
        FLAG: molecule.has_energy_label,
    }
    np.testing.assert_array_equal(fields.get(name, labels.written[path][name]), labels.written[path][name])


# --- files whose bytes or metadata are spoilt after writing -----------------------------------------------------------


def lose(chunk: str) -> Spoil:
    return lambda path: (path / chunk).unlink()


def metadata(name: str, **values: Any) -> Spoil:
    def spoil(path: Path) -> None:
        file = path / name / ".zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return spoil


def content(file: str, data: bytes | str) -> Spoil:
    def spoil(path: Path) -> None:
        (path / file).write_bytes(data if isinstance(data, bytes) else data.encode())

    return spoil


def every(*spoils: Spoil) -> Spoil:
    def spoil(path: Path) -> None:
        for step in spoils:
            step(path)

    return spoil


def emptied_geometry(path: Path) -> None:
    for name, shape in ((ELEMENTS, [0]), (POSITIONS, [0, 3])):
        metadata(name, shape=shape)(path)


def empty_folder_instead_of(chunk: str) -> Spoil:
    def spoil(path: Path) -> None:
        (path / chunk).unlink()
        (path / chunk).mkdir()

    return spoil


def pipe_instead_of(chunk: str) -> Spoil:
    def spoil(path: Path) -> None:
        (path / chunk).unlink()
        os.mkfifo(path / chunk)

    return spoil


NESTED = "[" * 100_000
FILES: list[tuple[str, Spoil, str]] = [
    *((f"lost {name}", lose(f"{name}/1.0"), f"chunk 1.0 of array '{name}' is missing") for name in (COEFFS, GRADIENT)),
    *((f"lost {name}", lose(f"{name}/0"), f"chunk 0 of array '{name}' is missing") for name in (ENERGY, FLAG, NAME)),
    ("lost integrals", lose(f"{INTEGRALS}/3.0"), f"chunk 3.0 of array '{INTEGRALS}' is missing"),
    ("lost positions", lose(f"{POSITIONS}/0.0"), f"chunk 0.0 of array '{POSITIONS}' is missing"),
    ("lost elements", lose(f"{ELEMENTS}/0"), f"chunk 0 of array '{ELEMENTS}' is missing"),
    ("lost number of steps", lose(f"{STEPS}/0"), f"chunk 0 of array '{STEPS}' is missing"),
    ("lost guess", lose(f"{COEFFS}/0.0"), f"chunk 0.0 of array '{COEFFS}' is missing"),
    (
        "fill values that are not meant",
        every(lose(f"{COEFFS}/1.0"), content(".zattrs", '{"missing_chunks_are_fill_values": 1}')),
        "is missing",
    ),
    ("a folder as chunk", empty_folder_instead_of(f"{ENERGY}/0"), "is missing"),
    ("a pipe as chunk", pipe_instead_of(f"{ENERGY}/0"), "is missing"),
    *(
        (f"compressor {name}", metadata(COEFFS, compressor={"id": name}), f"compressor '{name}' is not read")
        for name in ("pickle", "msgpack2", "json2", "vlen-utf8", "astype", "no such codec")
    ),
    ("compressor without name", metadata(COEFFS, compressor={"cname": "zstd"}), "compressor 'None' is not read"),
    ("compressor as list", metadata(COEFFS, compressor={"id": ["pickle"]}), "is not read"),
    ("compressor as text", metadata(COEFFS, compressor="pickle"), "compressor"),
    ("compressor's settings", metadata(COEFFS, compressor={"id": "zlib", "nonsense": 3}), "nonsense"),
    *(
        (f"filter {name}", metadata(COEFFS, filters=[{"id": name}]), f"filter '{name}' is not read")
        for name in ("pickle", "vlen-utf8", "categorize", "astype", "delta")
    ),
    ("filters as text", metadata(COEFFS, filters="pickle"), "expected a list"),
    *(
        (f"dtype {dtype}", metadata(COEFFS, dtype=dtype), "expected numbers, booleans or texts")
        for dtype in ("|O", "O", "object", "<f8,<f8", "<f7", "|S0", "|V8", "", 8, None)
    ),
    ("dtype structure", metadata(COEFFS, dtype=[["a", "<f8"]]), "structures are not read"),
    ("dtype f16", metadata(COEFFS, dtype="<f16"), "entries, expected"),
    ("dtype of half the size", metadata(COEFFS, dtype="<f4"), "entries, expected"),
    ("dtype of twice the size", metadata(ENERGY, dtype="<c16"), "entries, expected"),
    ("dtype texts", metadata(NAME, dtype="<U500000000"), "buffer size"),
    ("dtype vast texts", metadata(NAME, dtype="<U2000000000"), "texts of fixed size"),
    ("names with letters that do not exist", content(f"{NAME}/0", b"\xff" * 20), "printable"),
    ("booleans of two", content(f"{FLAG}/0", b"\0\1\2\1"), "booleans other than 0 and 1"),
    ("chunks of 0", metadata(COEFFS, chunks=[0, 0]), "chunks is [0, 0]"),
    ("chunks negative", metadata(COEFFS, chunks=[-1, 20]), "chunks is [-1, 20]"),
    ("chunks of other length", metadata(COEFFS, chunks=[1]), "have different lengths"),
    ("chunks of text", metadata(COEFFS, chunks="1"), "chunks is 1"),
    ("chunks of floats", metadata(COEFFS, chunks=[1.0, 20.0]), "whole numbers"),
    ("shape of booleans", metadata(COEFFS, shape=[True, 20]), "whole numbers"),
    ("shape vast", metadata(COEFFS, shape=[10**7, 10**7]), "expected at most"),
    ("shape beyond int64", metadata(COEFFS, shape=[10**30, 20]), "expected at most"),
    ("shape large", metadata(COEFFS, shape=[10**5, 20], chunks=[1, 20]), "has 100000 SCF iterations"),
    (
        "shape vast, of one chunk",
        metadata(COEFFS, shape=[10**4, 10**4], chunks=[10**4, 10**4]),
        "has 10000 SCF iterations",
    ),
    ("chunks vast", metadata(ENERGY, chunks=[10**12]), "expected at most"),
    ("chunks many", metadata(ENERGY, shape=[10**8], chunks=[1]), "into 100000000"),
    ("a hundred dimensions", metadata(COEFFS, shape=[1] * 100, chunks=[1] * 100), "shape is"),
    ("no atoms", emptied_geometry, "of one atom at least"),
    ("no basis functions", metadata(COEFFS, shape=[4, 0]), "at least one of each"),
    ("zarr_format 3", metadata(COEFFS, zarr_format=3), "zarr_format is 3"),
    ("order K", metadata(COEFFS, order="K"), "order 'K'"),
    ("separator of a folder", metadata(COEFFS, dimension_separator="/../"), "dimension_separator"),
    ("metadata bomb", content(f"{COEFFS}/.zarray", NESTED), "no JSON"),
    ("attributes bomb", every(lose(f"{COEFFS}/1.0"), content(".zattrs", NESTED)), "no JSON"),
    ("metadata not UTF-8", content(f"{COEFFS}/.zarray", b"\xff\xfe\x00"), "no JSON"),
    ("empty chunk", content(f"{ENERGY}/0", b""), "expected"),
    ("half a number", content(f"{ENERGY}/0", b"1234"), "buffer size"),
    *(
        (
            f"garbage for {name}",
            every(
                metadata(ENERGY, compressor=numcodecs.get_codec({"id": name}).get_config()),
                content(f"{ENERGY}/0", b"\x07garbage" * 9),
            ),
            "cannot be read: chunk",
        )
        for name in COMPRESSORS
    ),
    *(
        (
            f"garbage through {name}",
            every(metadata(ENERGY, filters=[{"id": name}]), content(f"{ENERGY}/0", b"\x07garbag" * 9)),
            "cannot be read: chunk",
        )
        for name in FILTERS
    ),
]


@pytest.mark.parametrize(("spoil", "words"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
def test_a_spoilt_file(spoil: Spoil, words: str, suffix: str, labels: Any) -> None:
    path = labels.write("water.zarr", compressor=numcodecs.Zlib(), write_empty_chunks=True, plain=(ENERGY, FLAG, NAME))
    read(path)
    spoil(path)
    if suffix == ".zarr.zip":
        path = zipped(path)
    with pytest.raises(LabelFileError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)
    assert "(config: data." in str(error.value)


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zarr.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def test_a_named_pipe_is_no_label_file(tmp_path: Path) -> None:
    path = tmp_path / "water.zarr.zip"
    os.mkfifo(path)
    for action in (read, read_n_scf_iterations):
        with pytest.raises(LabelFileError, match=r"water\.zarr\.zip: cannot be read: .*neither a folder nor a file"):
            action(path)


def test_a_device_is_no_label_file() -> None:
    with pytest.raises(LabelFileError, match=r"/dev/null: cannot be read: .*neither a folder nor a file"):
        read(Path("/dev/null"))


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_damage_behind_every_compression_of_zip(compression: int, labels: Any) -> None:
    folder = labels.write("water.zarr")
    path = folder.with_suffix(".zarr.zip")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    np.testing.assert_array_equal(read(path).coeffs, read(folder).coeffs)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(f"{COEFFS}/1.0").header_offset + 30 + len(f"{COEFFS}/1.0")
    data = bytearray(path.read_bytes())
    data[start : start + 40] = bytes(255 - byte for byte in data[start : start + 40])
    path.write_bytes(bytes(data))
    with pytest.raises(LabelFileError, match=rf"cannot be read: '{COEFFS}/1\.0'"):
        read(path)


# --- files that would run code ----------------------------------------------------------------------------------------


class Marker:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


ATTACKS: list[tuple[str, dict[str, Any]]] = [
    ("compressor", {"compressor": {"id": "pickle"}}),
    ("compressor of objects", {"compressor": {"id": "pickle"}, "dtype": "|O"}),
    ("compressor in Fortran order", {"compressor": {"id": "pickle"}, "order": "F"}),
    ("filter", {"compressor": None, "filters": [{"id": "pickle"}]}),
    ("filter of objects", {"compressor": None, "filters": [{"id": "pickle"}], "dtype": "|O"}),
    ("filter behind another", {"compressor": None, "filters": [{"id": "pickle"}, {"id": "crc32"}]}),
    ("objects", {"compressor": None, "dtype": "|O"}),
]


@pytest.mark.parametrize("attack", [case[1] for case in ATTACKS], ids=[case[0] for case in ATTACKS])
@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
@pytest.mark.parametrize("target", ["labels", "statistics"])
def test_no_file_runs_code(
    attack: dict[str, Any], suffix: str, target: str, labels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the newest numcodecs refuses to unpickle by itself; older ones that the package admits do not
    monkeypatch.setattr(numcodecs.Pickle, "decode", lambda self, data, out=None: pickle.loads(data))
    marker = tmp_path / "code_ran"
    if target == "labels":
        folder, name = labels.write("water.zarr"), COEFFS
        chunk = f"{name}/1.0"
    else:
        folder, name = tmp_path / "statistics.zarr", "constant/coeffs/mean"
        DatasetStatistics.from_arrays({name: np.zeros(3)}).save_to(folder)
        chunk = f"{name}/0"
    metadata(name, **attack)(folder)
    (folder / chunk).write_bytes(pickle.dumps(Marker(marker)))
    # what the zarr library would look at first
    consolidated = {f"{name}/.zarray": json.loads((folder / name / ".zarray").read_text())}
    (folder / ".zmetadata").write_text(json.dumps({"zarr_consolidated_format": 1, "metadata": consolidated}))
    path = zipped(folder) if suffix == ".zarr.zip" else folder
    expected: type[OFDFTNormError] = LabelFileError if target == "labels" else StatisticsError
    with pytest.raises(expected, match=r"(is not read: it could run code|Python objects)") as error:
        read(path) if target == "labels" else DatasetStatistics(path)
    assert str(path) in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize("codec", ["numcodecs.pickle", "pickle", "vlen-utf8", "sharding_indexed"])
def test_no_zarr_v3_file_runs_code(codec: str, labels: Any, tmp_path: Path) -> None:
    path = labels.write("water.zarr", zarr_format=3)
    file = path / COEFFS / "zarr.json"
    content = json.loads(file.read_text())
    content["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": codec}]
    file.write_text(json.dumps(content))
    (path / COEFFS / "c/1/0").write_bytes(pickle.dumps(Marker(tmp_path / "code_ran")))
    with pytest.raises(LabelFileError, match=rf"'{codec.split('.')[-1]}' is not read: it could run code"):
        read(path)
    assert not (tmp_path / "code_ran").exists()


@pytest.mark.parametrize("value", [None, [], {}, "x", 3, [{"name": "x"}], {"name": "x"}])
@pytest.mark.parametrize("key", ["shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs", "fill_value"])
def test_spoilt_zarr_v3_metadata(key: str, value: Any, labels: Any) -> None:
    path = labels.write("water.zarr", zarr_format=3, write_empty_chunks=True)
    before = read(path)
    file = path / COEFFS / "zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    if key == "fill_value":  # no chunk is missing
        np.testing.assert_array_equal(read(path).coeffs, before.coeffs)
        return
    with pytest.raises(LabelFileError, match=f"array '{COEFFS}'"):
        read(path)


def test_the_number_of_iterations_that_a_split_names(labels: Any, basis_info: Any) -> None:
    path = labels.write()
    for n in (3, 5):
        dataset = OFDataset([path], basis_info, limit_scf_iterations=-1, n_scf_iterations=[n])
        with pytest.raises(LabelFileError, match=rf"'water': {n} SCF iterations were expected, but .* has 4") as error:
            dataset[1]
        assert "data.split.file" in str(error.value)
        with pytest.raises(LabelFileError, match=rf"{n} SCF iterations were expected"):
            dataset.molecule_batch(0)


def test_objects_saved_by_numpy_are_not_opened(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Marker(tmp_path / "code_ran")], dtype=object), allow_pickle=True)
    path = tmp_path / "water.zarr.zip"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(LabelFileError, match="cannot be read"):
        read(path)
    assert not (tmp_path / "code_ran").exists()
