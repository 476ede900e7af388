"""The label file format: layout, losslessness, equal bytes for equal labels, nothing written on error."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ofdft_norm.data.label_writer import write_label_file
from ofdft_norm.errors import LabelFileError

N_SCF, N_BASIS = 4, 25


def _content() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    gradient = generator.normal(size=(N_SCF, N_BASIS))
    gradient[0] = 0.0
    return {
        "mol_id": "some_molecule",
        "atomic_numbers": np.array([8, 1]),
        "positions": generator.normal(size=(2, 3)),
        "coeffs": generator.normal(size=(N_SCF, N_BASIS)),
        "gradients": {"grad_kin": gradient},
        "dual_basis_integrals": generator.normal(size=N_BASIS),
        "energies": {"e_kin": generator.normal(size=N_SCF)},
        "ks_energies": {"e_tot": generator.normal(size=N_SCF)},
        "has_energy_label": np.arange(N_SCF) > 0,
        "attributes": {"made": "by a test"},
        "p_order": "xyz",
    }


def test_layout_types_and_chunks(tmp_path: Path) -> None:
    path, content = tmp_path / "new" / "a.zarr.zip", _content()
    write_label_file(path, **content)

    with zarr.storage.ZipStore(path, mode="r") as store:
        root = zarr.open_group(store, mode="r", zarr_format=2)
        assert dict(root.attrs) == {"made": "by a test", "p_order": "xyz"}
        assert str(np.asarray(root["geometry/mol_id"])[()]) == "some_molecule"
        assert root["geometry/atomic_numbers"].dtype == np.uint8
        np.testing.assert_array_equal(root["geometry/atom_pos"], content["positions"])
        assert int(np.asarray(root["of_labels/n_scf_steps"])) == N_SCF
        assert root["of_labels/spatial/coeffs"].chunks == (1, N_BASIS)
        np.testing.assert_array_equal(root["of_labels/spatial/coeffs"], content["coeffs"])
        np.testing.assert_array_equal(root["of_labels/spatial/grad_kin"], content["gradients"]["grad_kin"])
        np.testing.assert_array_equal(
            root["of_labels/spatial/dual_basis_integrals"], np.tile(content["dual_basis_integrals"], (N_SCF, 1))
        )
        np.testing.assert_array_equal(root["of_labels/energies/e_kin"], content["energies"]["e_kin"])
        np.testing.assert_array_equal(root["ks_labels/energies/e_tot"], content["ks_energies"]["e_tot"])
        assert root["ks_labels/energies/has_energy_label"].dtype == np.bool_
        np.testing.assert_array_equal(root["ks_labels/energies/has_energy_label"], [False, True, True, True])
    assert [p.name for p in path.parent.iterdir()] == ["a.zarr.zip"]


def test_equal_labels_are_equal_bytes_and_files_are_replaced(tmp_path: Path) -> None:
    first, second = tmp_path / "a.zarr.zip", tmp_path / "b.zarr.zip"
    second.write_bytes(b"something old")
    for path in (first, second):
        write_label_file(path, **_content())
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gradients", {"grad_kin": np.zeros((N_SCF, 3))}, r"'spatial/grad_kin': shape \(4, 3\), expected \(4, 25\)"),
        ("dual_basis_integrals", np.zeros(3), "'spatial/dual_basis_integrals'"),
        ("energies", {"e_kin": np.zeros(9)}, r"'energies/e_kin': shape \(9,\), expected \(4,\)"),
        ("has_energy_label", np.zeros(2, dtype=bool), "'energies/has_energy_label'"),
        ("positions", np.zeros((1, 3)), "'atom_pos'"),
        ("coeffs", np.zeros(5), "'coeffs'"),
        ("ks_energies", {"e_tot": np.array([0.0, np.inf, 0.0, 0.0])}, r"'energies/e_tot': inf at index \(1,\)"),
    ],
)
def test_refuses_inconsistent_content(tmp_path: Path, field: str, value: Any, message: str) -> None:
    path = tmp_path / "a.zarr.zip"
    write_label_file(path, **_content())
    before = path.read_bytes()
    with pytest.raises(LabelFileError, match=message):
        write_label_file(path, **{**_content(), field: value})
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
