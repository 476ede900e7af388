import copy
import json
import os
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm.data.label_file import LabelFileContent, read_header, read_molecule, write_label_file
from ofdft_norm.errors import LabelFileError, OFDFTNormError
from tests.hostile.fuzzing import JSON, few_or_many

COEFFS = "of_labels/spatial/coeffs"
GRADIENT = "of_labels/spatial/grad_kin"
INTEGRALS = "of_labels/spatial/dual_basis_integrals"
ENERGY = "of_labels/energies/e_kin"
FLAG = "ks_labels/energies/has_energy_label"
POSITIONS = "geometry/atom_pos"
ELEMENTS = "geometry/atomic_numbers"
NAME = "geometry/mol_id"
STEPS = "of_labels/n_scf_steps"


FIELDS = {"coeffs": COEFFS, "gradient_label": GRADIENT, "dual_basis_integrals": INTEGRALS, "energy_label": ENERGY}
FIELDS |= {"has_energy_label": FLAG, "pos": POSITIONS, "atomic_numbers": ELEMENTS}


BLOSC = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)

Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays], None]


def read(path: Path, rows: Any = None, target: str = "kin") -> Any:
    labels = read_molecule(path, f"e_{target}", f"grad_{target}", rows)
    return SimpleNamespace(**vars(labels), **labels.rows)


def changing(name: str, make: Callable[[np.ndarray], Any]) -> Change:
    """A change of an array, to what `make` returns; None: the array is left out."""

    def change(arrays: Arrays) -> None:
        made = make(arrays.pop(name))
        arrays |= {} if made is None else {name: np.asarray(made)}

    return change


def put(index: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def make(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return make


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["water.zarr", "water.zarr.zip"])
@pytest.mark.parametrize("chunk_rows", [1, 3, None])
@pytest.mark.parametrize(("target", "compressor"), [("kin", None), ("tot", BLOSC)])
def test_every_row_equals_what_was_written(
    name: str, chunk_rows: Any, target: str, compressor: Any, labels: Any
) -> None:
    path = labels.write(name, n_scf=4, chunk_rows=chunk_rows, compressor=compressor)
    arrays = labels.written[path]
    expected = {field: arrays[key.replace("_kin", f"_{target}")] for field, key in FIELDS.items()}
    for chosen in (None, [0], [3], [2], [1, 3], [3, 0], lambda n: np.arange(n - 2, n)):
        molecule = read(path, chosen, target)
        selected = [0, 1, 2, 3] if chosen is None else [2, 3] if callable(chosen) else chosen
        for header in (read_header(path), molecule):
            assert (header.mol_id, header.n_scf_iterations) == ("water", 4)
            np.testing.assert_array_equal(header.atomic_numbers, expected["atomic_numbers"])
            np.testing.assert_array_equal(header.pos, expected["pos"])
        assert molecule.scf_iteration.tolist() == selected
        np.testing.assert_array_equal(molecule.ground_state_coeffs, arrays[COEFFS][-1])
        for field in list(FIELDS)[:5]:
            np.testing.assert_array_equal(getattr(molecule, field), expected[field][selected])
            assert getattr(molecule, field).dtype == (bool if field == "has_energy_label" else np.float64)


@pytest.mark.parametrize(
    ("name", "dtype"), [(COEFFS, "f4"), (ENERGY, "f4"), (POSITIONS, "i4"), (FLAG, "u1"), (FLAG, "f8"), (NAME, "S")]
)
def test_types_that_lose_nothing_are_read(name: str, dtype: str, labels: Any) -> None:
    path = labels.write(change=changing(name, lambda values: values.astype(dtype)))
    for field, key in FIELDS.items():
        np.testing.assert_array_equal(getattr(read(path), field), labels.written[path][key])
    assert read(path).mol_id == "water"


@pytest.mark.parametrize("guess", ["zeros", "energy", "gradient"])
def test_without_flags_all_rows_have_labels_but_a_guess_of_zeros(guess: str, labels: Any) -> None:
    def change(arrays: Arrays) -> None:
        del arrays[FLAG]
        if guess != "zeros":
            arrays[GRADIENT if guess == "gradient" else ENERGY][0] = 1e-9

    path = labels.write(change=change)
    expected = [guess != "zeros", True, True, True]
    assert read(path).has_energy_label.tolist() == expected
    assert [read(path, [row]).has_energy_label.tolist() for row in range(4)] == [[e] for e in expected]


def test_chunks_of_rows_without_label_may_be_missing(labels: Any) -> None:
    path = labels.write("water.zarr", write_empty_chunks=True)
    (path / GRADIENT / "0.0").unlink()
    np.testing.assert_array_equal(read(path).gradient_label, labels.written[path][GRADIENT])
    np.testing.assert_array_equal(read(path, [0]).gradient_label, np.zeros_like(read(path, [0]).gradient_label))


@pytest.mark.parametrize(
    ("attributes", "refused"),
    [
        ({}, False),
        ({"p_order": "yzx"}, True),
        ({"coordinates": "natural_symmetric"}, True),
        ({"settings": {"natural_reparametrization": True}}, True),
    ],
)
def test_labels_of_older_versions_are_refused(attributes: dict[str, Any], refused: bool, labels: Any) -> None:
    path = labels.write("water.zarr")
    (path / ".zattrs").write_text(json.dumps(attributes))
    with pytest.raises(LabelFileError, match=r"'water': .*ofdft_norm 0\.2") if refused else nullcontext():
        read(path)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [GRADIENT, ENERGY])
def test_labels_that_are_not_used_may_be_anything(name: str, value: float, labels: Any) -> None:
    path = labels.write(change=changing(name, put(0, value)))  # row 0 has no label
    for rows in (None, [0]):
        found = read(path, rows)
        assert not found.has_energy_label[0]
        assert not np.isfinite(found.gradient_label[0] if name == GRADIENT else found.energy_label[0]).any()


def test_rows_that_are_not_read_may_be_anything_but_the_ground_state(labels: Any) -> None:
    path = labels.write(change=changing(COEFFS, put((2, 4), np.nan)))
    assert read(path, [1]).scf_iteration.tolist() == [1]
    with pytest.raises(LabelFileError, match=f"'water': array '{COEFFS}' .* SCF iteration 3, entry 4"):
        read(labels.write(change=changing(COEFFS, put((3, 4), np.nan))), [1])


NUMBERS = "expected float64"
FLAGS = "expected booleans, or 0 and 1"
WRONG: list[tuple[str, Callable[[np.ndarray], Any], str]] = [
    *((name, lambda v: v * 1j, NUMBERS) for name in (COEFFS, ENERGY)),
    *((GRADIENT, put((2, 5), value), "SCF iteration 2, entry 5, ") for value in (np.nan, -np.inf, -1e16)),
    (INTEGRALS, put((0, 4), np.nan), "SCF iteration 0, entry 4, "),  # without label
    (POSITIONS, put((1, 1), np.nan), "expected finite"),
    (COEFFS, lambda v: v.view(">f8"), "expected finite"),  # the wrong byte order
    (COEFFS, lambda v: v[0], "expected"),
    (FLAG, lambda v: [0, 0.5, 1, 1], FLAGS),
    (STEPS, lambda v: 3, "has shape"),
    (ELEMENTS, lambda v: [8.0, 1, 1], "whole numbers"),
    *((NAME, lambda v, w=value: w, "expected a name") for value in (["a", "b"], "a\nb", b"\xff")),
    (INTEGRALS, lambda v: None, "lacks the array"),
]


@pytest.mark.parametrize(("name", "make", "words"), WRONG)
def test_an_array_of_another_kind_is_named(name: str, make: Any, words: str, labels: Any) -> None:
    with np.errstate(all="ignore"):
        path = labels.write(change=changing(name, make), write_empty_chunks=True)
    with pytest.raises(LabelFileError, match=rf"{path}(?=.*'{name}').*{words}.*\(config: data\."):
        read(path)


# --- files ------------------------------------------------------------------------------------------------------------


def test_unknown_keys_and_iterations_name_their_setting(labels: Any) -> None:
    path = labels.write()
    for keys, setting in ((("e_xc", "grad_kin"), "energy_key"), (("e_kin", "grad_xc"), "gradient_key")):
        with pytest.raises(LabelFileError, match=rf"'water': lacks .*_kin.*_tot.*data\.source\.{setting}"):
            read_molecule(path, *keys)
    for rows in ([4], [-1], [0, 7]):
        with pytest.raises(LabelFileError, match=r"'water': has 4 SCF iterations.*data\.split\.file"):
            read(path, rows)


@pytest.mark.parametrize("content", [b"", b"no zip file at all", b"PK\x03\x04 a start without an end", None])
def test_a_path_that_is_no_label_file(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file.zarr.zip"
    os.mkfifo(path) if content is None else path.write_bytes(content)
    for wrong, words in (
        (path, "is no zarr v2 label file"),
        (tmp_path / "a", "no such"),
        (tmp_path, "lacks the array"),
    ):
        with pytest.raises(LabelFileError, match=f"{wrong}: {words}"):
            read(wrong)


# --- writing ----------------------------------------------------------------------------------------------------------


def content(arrays: Arrays, **changes: Any) -> LabelFileContent:
    def below(folder: str, kind: str) -> Arrays:
        return {key.removeprefix(folder): array for key, array in arrays.items() if key.startswith(folder + kind)}

    fields: dict[str, Any] = {
        "mol_id": "water",
        "atomic_numbers": arrays[ELEMENTS],
        "positions": arrays[POSITIONS],
        "coeffs": arrays[COEFFS],
        "gradients": below("of_labels/spatial/", "grad_"),
        "dual_basis_integrals": arrays[INTEGRALS][0],
        "energies": below("of_labels/energies/", "e_"),
        "has_energy_label": arrays[FLAG],
        "ks_energies": below("ks_labels/energies/", "e_"),
        "attributes": {"settings": {"beta": 2.5}},
    }
    return LabelFileContent(**fields | changes)


def test_written_files_have_the_layout_and_every_chunk(basis_info: Any, make_label_arrays: Any, tmp_path: Path) -> None:
    arrays = make_label_arrays(basis_info, np.random.default_rng(0))
    path = tmp_path / "water.zarr"
    write_label_file(path, content(arrays))
    root: Any = zarr.open_group(str(path), mode="r")
    assert dict(root.attrs) == {"settings": {"beta": 2.5}}
    for name, values in arrays.items():
        np.testing.assert_array_equal(np.asarray(root[name][...]), values)
        assert root[name].chunks == ((1, values.shape[1]) if name.startswith("of_labels/spatial") else values.shape)
    np.testing.assert_array_equal(read(path).gradient_label, arrays[GRADIENT])


@pytest.mark.parametrize(
    "change",
    [
        {"coeffs": np.full((4, 20), np.nan)},
        {"gradients": {"grad_kin": np.zeros((4, 19))}},
        {"has_energy_label": [True]},
    ],
)
def test_labels_that_do_not_fit_are_not_written(
    change: dict[str, Any], basis_info: Any, make_label_arrays: Any, tmp_path: Path
) -> None:
    arrays = make_label_arrays(basis_info, np.random.default_rng(0))
    with pytest.raises(LabelFileError, match=r"water\.zarr\.zip: molecule 'water': array"):
        write_label_file(tmp_path / "water.zarr.zip", content(arrays, **change))
    assert not list(tmp_path.iterdir())


# --- mutated files ----------------------------------------------------------------------------------------------------
# The result is that of the whole file, or that of the zarr library, or an error of the package that names the file.


SPECIAL = ["<f8", ">f8", "<f4", "<i8", "|u1", "|b1", "<U5", "|O", "<m8[s]", "C", "F", "K", "NaN", "/"]
VALUES = st.sampled_from([*SPECIAL, *({"id": name} for name in ("zlib", "blosc", "pickle", "shuffle"))]) | JSON
VALUES |= st.lists(VALUES | st.integers(0, 40), max_size=3)
KEYS = ("shape", "chunks", "dtype", "compressor", "filters", "order", "fill_value", "dimension_separator")


@pytest.fixture(scope="session")
def files(tmp_path_factory: Any, basis_info: Any, write_arrays: Any, make_label_arrays: Any) -> dict[str, bytes]:
    """The files of a whole label folder, some compressed."""
    folder = tmp_path_factory.mktemp("whole") / "water.zarr"
    arrays = make_label_arrays(basis_info, np.random.default_rng(0))
    write_arrays(folder, arrays, compressor=numcodecs.Zlib(), write_empty_chunks=True, plain=tuple(arrays)[::2])
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="session")
def place(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("fuzzing") / "water.zarr.zip"


def written(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def fields_of(path: Path) -> dict[str, Any]:
    molecule = read(path)
    return {name: getattr(molecule, name) for name in ("mol_id", *FIELDS)}


def compare(path: Path, whole: dict[str, Any], may_differ: bool = True) -> None:
    """Reads a mutated file; `may_differ` where the mutation may make another valid file."""
    found, message = whole, str(path)
    try:
        found = fields_of(path)
    except OFDFTNormError as error:
        message = str(error)
    assert str(path) in message
    if may_differ and not all(np.array_equal(found[name], whole[name]) for name in whole):
        with zarr.storage.ZipStore(path, mode="r") as store:
            root = zarr.open_group(store, mode="r")
            whole = {name: np.asarray(root[key][...]) for name, key in FIELDS.items()}
            whole["mol_id"] = str(np.asarray(root[NAME][...]).item())
    assert all(np.array_equal(found[name], whole[name]) for name in whole)


def change_bytes(data: st.DataObject, files: dict[str, bytes], place: Path) -> None:
    """Flips, cuts out, repeats or appends bytes anywhere in the zip file."""
    whole = fields_of(written(place, files, data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))))
    changed = bytearray(place.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(changed)))
        end = min(len(changed), start + data.draw(st.sampled_from([1, 10, 60, 10**6])))
        repeated = st.just(b"\0" * min(60, end - start)) | st.just(bytes(changed[start : start + 60]) * 2)
        changed[start:end] = data.draw(st.binary(max_size=60) | repeated)
    place.write_bytes(bytes(changed))
    compare(place, whole, may_differ=False)


def change_files(data: st.DataObject, files: dict[str, bytes], place: Path) -> None:
    """Loses, empties or changes chunks and metadata."""
    whole, mutated = fields_of(written(place, files)), copy.copy(files)
    metadata = [f"{name}/.zarray" for name in (NAME, *FIELDS.values())]
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(files)) | st.sampled_from(metadata))
        old = files[name]
        new = data.draw(st.sampled_from([None, b"", old[: len(old) // 2], old * 2]) | st.binary(max_size=len(old)))
        if name in metadata and data.draw(st.booleans()):
            described, key = json.loads(old), data.draw(st.sampled_from(KEYS))
            described.pop(key)
            described |= data.draw(st.just({}) | VALUES.map(lambda value, key=key: {key: value}))
            new = json.dumps(described).encode()
        mutated = {**mutated, name: new or b""}
        if new is None:
            del mutated[name]
    compare(written(place, mutated), whole)


@pytest.mark.parametrize("change", [change_bytes, change_files])
@few_or_many
@pytest.mark.filterwarnings("ignore")
def test_mutated_label_files(change: Any, setting: Any, files: dict[str, bytes], place: Path) -> None:
    setting(given(data=st.data())(lambda data: change(data, files, place)))()
