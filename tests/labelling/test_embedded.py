"""The label set that ships with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
import zarr

import ofdft_norm.data
from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.labelling import read_geometries, verify_checksums
from ofdft_norm.labelling.checks import finite_difference_errors
from ofdft_norm.labelling.errors import LabellingError

EMBEDDED = Path(ofdft_norm.data.__file__).parent / "embedded"
FILES = sorted((EMBEDDED / "labels").glob("*.zarr.zip"))


def _read(path: Path, *names: str) -> list[npt.NDArray[Any]]:
    with zarr.storage.ZipStore(path, mode="r") as store:
        root = zarr.open_group(store, mode="r", zarr_format=2)
        return [np.asarray(root[name]) for name in names]


def test_checksums_and_size() -> None:
    verify_checksums(EMBEDDED)
    files = [p for p in EMBEDDED.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    listed = (EMBEDDED / "SHA256SUMS").read_text().splitlines()
    assert len(listed) == len(files) - 1


def test_provenance_says_how_far_the_kinetic_label_is_from_the_kohn_sham_energy() -> None:
    shifts = {}
    for path in FILES:
        fitted, exact = _read(path, "of_labels/energies/e_kin", "ks_labels/energies/e_kin")
        shifts[path.name.removesuffix(".zarr.zip")] = float(fitted[-1] - exact[-1])
    found = yaml.safe_load((EMBEDDED / "provenance.yaml").read_text())["kinetic_shift"]
    assert found["mean"] == pytest.approx(np.mean(list(shifts.values())), abs=1e-9)
    for key, choose in (("lowest", min), ("highest", max)):
        mol_id = choose(shifts, key=lambda name: shifts[name])
        assert found[key] == {"mol_id": mol_id, "value": pytest.approx(shifts[mol_id], abs=1e-9)}


def test_changed_files_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text("0" * 64 + "  a\n")
    with pytest.raises(LabellingError, match="listed in SHA256SUMS, but missing"):
        verify_checksums(tmp_path)
    (tmp_path / "a").write_text("changed")
    with pytest.raises(LabellingError, match=r"a: sha256 is .*, expected 0000"):
        verify_checksums(tmp_path)
    with pytest.raises(LabellingError, match="no SHA256SUMS"):
        verify_checksums(tmp_path / "elsewhere")


def test_every_geometry_has_labels_and_a_source() -> None:
    geometries = read_geometries(EMBEDDED / "geometries.xyz")
    assert len(geometries) >= 85
    assert sorted(g.mol_id for g in geometries) == [p.name.removesuffix(".zarr.zip") for p in FILES]
    assert all(g.source and 2 <= len(g.atomic_numbers) <= 10 for g in geometries)
    for number, at_least in {1: 60, 6: 60, 7: 20, 8: 30, 9: 12}.items():
        assert sum(number in g.atomic_numbers for g in geometries) >= at_least


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name.removesuffix(".zarr.zip"))
def test_labels_are_complete_and_consistent(path: Path) -> None:
    basis = BasisInfo(**json.loads((EMBEDDED / "basis_info.json").read_text()))
    mol_id, numbers, labelled, coeffs, integrals = _read(
        path,
        "geometry/mol_id",
        "geometry/atomic_numbers",
        "ks_labels/energies/has_energy_label",
        "of_labels/spatial/coeffs",
        "of_labels/spatial/dual_basis_integrals",
    )
    assert f"{mol_id}.zarr.zip" == path.name
    assert labelled.sum() >= 5
    assert not labelled[0]
    assert coeffs.shape[1] == basis.basis_dim_per_atom[basis.atom_indices(numbers)].sum()
    np.testing.assert_allclose(np.einsum("kn,kn->k", coeffs, integrals), numbers.astype(int).sum(), atol=1e-9)

    for energy, gradient in (("e_kin", "grad_kin"), ("e_kin_plus_xc", "grad_kin_plus_xc")):
        energies, gradients = _read(path, f"of_labels/energies/{energy}", f"of_labels/spatial/{gradient}")
        assert energies[0] == 0.0
        assert not gradients[0].any()
        errors = finite_difference_errors(
            energies[labelled], gradients[labelled], coeffs[labelled], integrals[0], min_energy_change=1e-5
        )
        assert len(errors) >= 3
        assert errors.max() < 0.01
