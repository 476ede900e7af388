from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm.data.label_files import read_molecule, read_n_scf_iterations
from ofdft_norm.errors import LabelFileError

COEFFS = "of_labels/spatial/coeffs"
GRADIENT = "of_labels/spatial/grad_kin"
INTEGRALS = "of_labels/spatial/dual_basis_integrals"
ENERGY = "of_labels/energies/e_kin"
FLAG = "ks_labels/energies/has_energy_label"

BLOSC = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)


def read(path: Path, rows: Any = None) -> Any:
    return read_molecule(path, "e_kin", "grad_kin", rows)


def setting(name: str, index: Any, value: float) -> Callable[[dict[str, np.ndarray]], None]:
    """Returns a change that sets some entries of an array."""

    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name][index] = value

    return change


def replacing(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], None]:
    """Returns a change that replaces an array."""

    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = make(arrays[name])

    return change


@pytest.mark.parametrize("name", ["water.zarr", "water.zarr.zip"])
@pytest.mark.parametrize("chunk_rows", [1, 3, None])
@pytest.mark.parametrize("compressor", [None, BLOSC])
def test_every_row_equals_what_was_written(name: str, chunk_rows: Any, compressor: Any, labels: Any) -> None:
    path = labels.write(name, n_scf=4, chunk_rows=chunk_rows, compressor=compressor)
    arrays = labels.written[path]
    assert read_n_scf_iterations(path) == 4
    for rows in (None, [0], [3], [2], [1, 3], [3, 0]):
        molecule = read(path, rows)
        selected = [0, 1, 2, 3] if rows is None else rows
        assert molecule.path == path
        assert molecule.mol_id == "water"
        assert molecule.n_scf_iterations == 4
        assert molecule.atomic_numbers.tolist() == [8, 1, 1]
        assert molecule.atomic_numbers.dtype == np.int64
        assert molecule.scf_iterations.tolist() == selected
        assert molecule.has_energy_label.tolist() == [row > 0 for row in selected]
        for values, expected in (
            (molecule.pos, arrays["geometry/atom_pos"]),
            (molecule.coeffs, arrays[COEFFS][selected]),
            (molecule.ground_state_coeffs, arrays[COEFFS][-1]),
            (molecule.gradient, arrays[GRADIENT][selected]),
            (molecule.energy, arrays[ENERGY][selected]),
            (molecule.dual_basis_integrals, arrays[INTEGRALS][selected]),
        ):
            assert values.dtype == np.float64
            np.testing.assert_array_equal(values, expected)


def test_the_keys_choose_energy_and_gradient(labels: Any) -> None:
    path = labels.write()
    molecule = read_molecule(path, "e_tot", "grad_tot")
    np.testing.assert_array_equal(molecule.energy, labels.written[path]["of_labels/energies/e_tot"])
    np.testing.assert_array_equal(molecule.gradient, labels.written[path]["of_labels/spatial/grad_tot"])


def test_zarr_v3_label_files_are_read(labels: Any) -> None:
    path = labels.write("water.zarr", zarr_format=3)
    np.testing.assert_array_equal(read(path, [2]).gradient[0], labels.written[path][GRADIENT][2])


def test_a_name_stored_as_bytes_is_text(labels: Any) -> None:
    path = labels.write(change=replacing("geometry/mol_id", lambda name: name.astype("S")))
    assert read(path).mol_id == "water"


def test_float32_labels_come_back_in_float64(labels: Any) -> None:
    path = labels.write(change=replacing(COEFFS, lambda values: values.astype(np.float32)))
    molecule = read(path)
    assert molecule.coeffs.dtype == molecule.ground_state_coeffs.dtype == np.float64


# --- numbers that are not finite -----


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [GRADIENT, ENERGY])
def test_labels_that_are_not_used_may_be_anything(name: str, value: float, labels: Any) -> None:
    path = labels.write(change=setting(name, 0, value))  # row 0 has no label
    assert not np.isfinite(read(path).gradient[0]).all() or not np.isfinite(read(path).energy[0])
    assert read(path, [0]).has_energy_label.tolist() == [False]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "index", "entry"),
    [(GRADIENT, (2, 5), 5), (ENERGY, 2, 0), (COEFFS, (2, 1), 1), (INTEGRALS, (2, 3), 3)],
)
@pytest.mark.parametrize("rows", [None, [2]])
def test_a_used_number_that_is_not_finite_names_file_molecule_field_and_row(
    name: str, index: Any, entry: int, value: float, rows: Any, labels: Any
) -> None:
    path = labels.write(change=setting(name, index, value))
    with pytest.raises(
        LabelFileError, match=rf"'water': field '{name}' is {value} at SCF iteration 2, entry {entry};"
    ) as error:
        read(path, rows)
    assert str(path) in str(error.value)
    assert "data.source.exclude" in str(error.value)
    assert read(path, [1]).scf_iterations.tolist() == [1]  # the other rows can be used


@pytest.mark.parametrize("name", [COEFFS, INTEGRALS])
def test_coefficients_and_integrals_of_unlabelled_rows_are_used(name: str, labels: Any) -> None:
    with pytest.raises(LabelFileError, match=rf"{name}.*SCF iteration 0, entry 4"):
        read(labels.write(change=setting(name, (0, 4), np.nan)))


def test_the_ground_state_is_checked_whichever_row_is_read(labels: Any) -> None:
    path = labels.write(change=setting(COEFFS, (3, 4), np.nan))
    with pytest.raises(LabelFileError, match=rf"'water': field '{COEFFS}' is nan at SCF iteration 3, entry 4"):
        read(path, [1])


def test_a_position_that_is_not_finite(labels: Any) -> None:
    with pytest.raises(LabelFileError, match=r"'water': field 'geometry/atom_pos' is nan .*entry 4"):
        read(labels.write(change=setting("geometry/atom_pos", (1, 1), np.nan)))


# --- arrays that are missing or do not fit -----


def removing(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        del arrays[name]

    return change


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
@pytest.mark.parametrize(
    ("energy_key", "gradient_key", "message"),
    [
        (
            "e_xc",
            "grad_kin",
            r"/e_xc'; .*\['e_kin', 'e_tot'\]; .*\(config: data.source.energy_key\)",
        ),
        (
            "e_kin",
            "grad_xc",
            r"/grad_xc'; .*'grad_kin', 'grad_tot'.*\(config: data.source.gradient_key\)",
        ),
    ],
)
def test_an_unknown_key_lists_what_there_is_and_the_config_key(
    energy_key: str, gradient_key: str, message: str, suffix: str, labels: Any
) -> None:
    path = labels.write(f"water{suffix}")
    for rows in (None, [1]):
        with pytest.raises(LabelFileError, match=message) as error:
            read_molecule(path, energy_key, gradient_key, rows)
        assert f"{path}: molecule 'water'" in str(error.value)


@pytest.mark.parametrize("name", [COEFFS, INTEGRALS, "geometry/atom_pos", "geometry/atomic_numbers"])
def test_a_missing_array_is_named_with_what_stands_beside_it(name: str, labels: Any) -> None:
    path = labels.write(change=removing(name))
    beside = sorted(
        n.rpartition("/")[2] for n in labels.written[path] if n.rpartition("/")[0] == name.rpartition("/")[0]
    )
    with pytest.raises(LabelFileError, match=r"data\.source\.exclude") as error:
        read(path)
    assert f"{path}: molecule 'water': lacks the array {name!r}; {name.rpartition('/')[0]}/ has {beside}" in str(
        error.value
    )
    assert "gradient_key" not in str(error.value)


@pytest.mark.parametrize("guess", ["zeros", "energy", "gradient"])
def test_files_that_do_not_say_what_is_labelled_have_labels_but_for_a_guess_of_zeros(
    guess: str, labels: Any, caplog: Any
) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        del arrays[FLAG]
        if guess != "zeros":
            arrays[GRADIENT if guess == "gradient" else ENERGY][0] = 1e-9

    caplog.set_level("INFO")
    # older versions of zarr leave out a chunk of zeros, which is then a missing one
    path = labels.write("water.zarr", change=change, write_empty_chunks=True)
    expected = [guess != "zeros", True, True, True]
    assert read(path).has_energy_label.tolist() == expected
    assert [read(path, [row]).has_energy_label.tolist() for row in range(4)] == [[e] for e in expected]
    said = [r.message for r in caplog.records if "all rows are taken to have labels, but for a first one" in r.message]
    assert [message.partition(":")[0] for message in said] == [str(path.parent)]  # once for a folder
    # this package's own files say it
    attributes = path / ".zattrs"
    attributes.write_text('{"p_order": "yzx"}')
    with pytest.raises(LabelFileError, match=rf"lacks the array '{FLAG}'"):
        read(path)


def test_a_missing_name_is_an_error_of_the_file(labels: Any) -> None:
    path = labels.write(change=removing("geometry/mol_id"))
    with pytest.raises(LabelFileError, match="lacks the array 'geometry/mol_id'") as error:
        read_n_scf_iterations(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "make", "shape"),
    [
        (GRADIENT, lambda v: v[:-1], r"\(3, 24\), expected \(4, 24\)"),
        (GRADIENT, lambda v: np.vstack([v, v]), r"\(8, 24\), expected \(4, 24\)"),
        (GRADIENT, lambda v: v[:, :-1], r"\(4, 23\), expected \(4, 24\)"),
        (GRADIENT, lambda v: v[0], r"\(24,\), expected \(4, 24\)"),
        (INTEGRALS, lambda v: v[:1], r"\(1, 24\), expected \(4, 24\)"),
        (ENERGY, lambda v: v[:-1], r"\(3,\), expected \(4,\)"),
        (ENERGY, lambda v: np.append(v, 1.0), r"\(5,\), expected \(4,\)"),
        (FLAG, lambda v: v[:2], r"\(2,\), expected \(4,\)"),
        ("geometry/atom_pos", lambda v: v[:2], r"\(2, 3\), expected \(3, 3\)"),
        ("geometry/atom_pos", lambda v: v[:, :2], r"\(3, 2\), expected \(3, 3\)"),
    ],
)
@pytest.mark.parametrize("rows", [None, [0], [3]])
def test_a_wrong_length_is_named_whichever_row_is_read(
    name: str, make: Any, shape: str, rows: Any, labels: Any, basis_info: Any
) -> None:
    n = int(basis_info.basis_dim_per_atom[2] + 2 * basis_info.basis_dim_per_atom[0])
    path = labels.write(change=replacing(name, make))
    with pytest.raises(LabelFileError, match=shape.replace("24", str(n)).replace("23", str(n - 1))) as error:
        read(path, rows)
    assert f"{path}: molecule 'water': array {name!r}" in str(error.value)
    assert "data.source.exclude" in str(error.value)


@pytest.mark.parametrize("make", [lambda v: v[:0], lambda v: v[0], lambda v: v[..., None], lambda v: v[0, 0]])
def test_coefficients_must_be_a_matrix_with_rows(make: Any, labels: Any) -> None:
    path = labels.write(change=replacing(COEFFS, make))
    for action in (read_n_scf_iterations, read):
        with pytest.raises(LabelFileError, match=rf"array '{COEFFS}'.*(has shape|chunks is) .*data.source.exclude"):
            action(path)


@pytest.mark.parametrize("make", [lambda v: v[:, None], lambda v: v.astype(float), lambda v: v.astype("U")])
def test_atomic_numbers_must_be_a_vector_of_integers(make: Any, labels: Any) -> None:
    path = labels.write(change=replacing("geometry/atomic_numbers", make))
    with pytest.raises(LabelFileError, match="'water': array 'geometry/atomic_numbers' has dtype") as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("rows", [[4], [-1], [0, 9], [-5, 2]])
def test_rows_that_the_file_does_not_have(rows: list[int], labels: Any) -> None:
    path = labels.write()
    outside = [row for row in rows if not 0 <= row < 4]
    with pytest.raises(
        LabelFileError, match=r"'water': SCF iterations .* were asked for, but .* has 4: .*data.split.file"
    ) as error:
        read(path, rows)
    assert str(path) in str(error.value)
    assert str(outside) in str(error.value)


# --- files that are no label files -----


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    for action in (read_n_scf_iterations, read):
        with pytest.raises(LabelFileError, match=r"nowhere\.zarr\.zip: no such label file \(config: data.source\)"):
            action(tmp_path / "nowhere.zarr.zip")


@pytest.mark.parametrize("content", [b"", b"no zip file at all", b"PK\x03\x04 a start without an end"])
def test_what_is_not_a_zip_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.zarr.zip"
    path.write_bytes(content)
    for action in (read_n_scf_iterations, read):
        with pytest.raises(LabelFileError, match=r"cannot be read.*truncated.*data.source.exclude") as error:
            action(path)
        assert str(path) in str(error.value)


def test_a_folder_that_is_no_label_file(tmp_path: Path) -> None:
    with pytest.raises(LabelFileError, match="lacks the array 'geometry/mol_id'; geometry/ has nothing;") as error:
        read(tmp_path)
    assert str(tmp_path) in str(error.value)


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_zip_file_is_named(share: float, tmp_path_factory: Any, write_arrays: Any, full_zip: bytes) -> None:
    path = tmp_path_factory.mktemp("labels") / "water.zarr.zip"
    path.write_bytes(full_zip[: int(share * len(full_zip))])
    for action in (read_n_scf_iterations, read):
        with pytest.raises(LabelFileError, match="truncated") as error:
            action(path)
        assert str(path) in str(error.value)


@given(data=st.data())
def test_damaged_bytes_are_an_error_of_the_file_or_harmless(
    data: st.DataObject, tmp_path_factory: Any, full_zip: bytes
) -> None:
    path = tmp_path_factory.mktemp("labels") / "water.zarr.zip"
    damaged = bytearray(full_zip)
    start = data.draw(st.integers(0, len(full_zip) - 1))
    for position in range(start, min(start + data.draw(st.integers(1, 40)), len(full_zip))):
        damaged[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(damaged))
    message = ""
    try:
        read(path)
    except LabelFileError as error:  # anything else fails the test
        message = str(error)
    assert not message or str(path) in message


@pytest.mark.parametrize("metadata", ["", "{", "[]", "{}", "null", '{"shape": 3}', "\x00\x01"])
@pytest.mark.parametrize("name", [COEFFS, ENERGY, "geometry/mol_id"])
def test_broken_metadata_are_an_error_of_the_file(metadata: str, name: str, labels: Any) -> None:
    path = labels.write("water.zarr")
    (path / name / ".zarray").write_text(metadata)
    with pytest.raises(LabelFileError, match="cannot be read") as error:
        read(path)
    assert str(path) in str(error.value)


def test_an_unknown_compressor_is_an_error_of_the_file(labels: Any) -> None:
    path = labels.write("water.zarr")
    file = path / COEFFS / ".zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), "compressor": {"id": "no such codec"}}))
    with pytest.raises(LabelFileError, match="no such codec") as error:
        read(path)
    assert str(path) in str(error.value)


def test_chunks_of_rows_without_label_may_be_missing(labels: Any) -> None:
    path = labels.write("water.zarr")
    (path / GRADIENT / "0.0").unlink(missing_ok=True)  # the initial guess: zarr leaves out chunks of zeros, or not
    np.testing.assert_array_equal(read(path).gradient, labels.written[path][GRADIENT])
    np.testing.assert_array_equal(read(path, [0]).gradient, np.zeros_like(read(path, [0]).gradient))


def test_a_writer_may_say_that_missing_chunks_are_fill_values(labels: Any) -> None:
    path = labels.write("water.zarr")
    for chunk in ("2.0", "3.0"):
        (path / GRADIENT / chunk).unlink()
    with pytest.raises(LabelFileError, match=rf"'water': cannot be read: chunk 2\.0 of array '{GRADIENT}' is missing"):
        read(path)
    (path / ".zattrs").write_text(json.dumps({"missing_chunks_are_fill_values": True}))
    expected = labels.written[path][GRADIENT].copy()
    expected[2:] = 0
    np.testing.assert_array_equal(read(path).gradient, expected)
    np.testing.assert_array_equal(read(path, [2]).gradient[0], expected[2])


def test_a_deflated_zip_is_read_like_a_stored_one(labels: Any) -> None:
    path = labels.write("water.zarr")
    packed = Path(shutil.make_archive(str(path), "zip", path))
    with zipfile.ZipFile(packed) as file:
        assert {entry.compress_type for entry in file.infolist()} >= {zipfile.ZIP_DEFLATED}
    np.testing.assert_array_equal(read(packed).coeffs, read(path).coeffs)


@pytest.fixture(scope="session")
def full_zip(tmp_path_factory: Any, basis_info: Any, write_arrays: Any, make_label_arrays: Any) -> bytes:
    """The bytes of a whole label file, deflated, so that damage meets zlib as well."""
    folder = tmp_path_factory.mktemp("whole")
    write_arrays(folder / "water.zarr", make_label_arrays(basis_info, np.random.default_rng(0)), compressor=BLOSC)
    return Path(shutil.make_archive(str(folder / "water.zarr"), "zip", folder / "water.zarr")).read_bytes()
