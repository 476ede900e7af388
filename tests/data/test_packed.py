from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofdft_norm.data.packed import PackedSet, meta_checksum
from ofdft_norm.data.packed_writer import PackingPlan, pack_labels
from ofdft_norm.errors import LabelFileError


@pytest.fixture
def packed(labels: Any, basis_info: Any, tmp_path: Path) -> Path:
    """Water, methane and formaldehyde, packed."""
    return pack_labels(PackingPlan(labels.write_several(), basis_info), tmp_path / "packed", progress=False)


def test_a_set_says_what_it_is(packed: Path, basis_info: Any) -> None:
    found = PackedSet(packed, verify=True)
    assert found.basis_info == basis_info
    assert found.names() == ["water.zarr.zip", "methane.zarr", "formaldehyde.zarr.zip"]
    assert found.meta["n_samples"] == 12
    assert found.meta["sources"] == [str(packed.parent)]
    assert found.arrays["sample_offsets"].tolist() == [0, 4, 7, 12]
    assert not found.arrays["coeffs"].flags.writeable
    assert sorted(p.name for p in packed.iterdir()) == sorted([*(f"{n}.npy" for n in found.arrays), "meta.json"])


def test_a_pickle_holds_the_path_alone(packed: Path) -> None:
    content = pickle.dumps(PackedSet(packed))
    assert len(content) < 500
    assert pickle.loads(content).names() == PackedSet(packed).names()


def change_meta(packed: Path, **changes: Any) -> None:
    meta = json.loads((packed / "meta.json").read_text()) | changes
    (packed / "meta.json").write_text(json.dumps(meta))


def missing(packed: Path) -> None:
    (packed / "coeffs.npy").unlink()


def short(packed: Path) -> None:
    (packed / "coeffs.npy").write_bytes((packed / "coeffs.npy").read_bytes()[:-8])


def foreign(packed: Path) -> None:
    np.save(packed / "coeffs.npy", np.zeros(7))


def no_array(packed: Path) -> None:
    (packed / "coeffs.npy").write_text("not an array")


def pickled(packed: Path) -> None:
    np.save(packed / "coeffs.npy", np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("damage", [missing, short, foreign, no_array, pickled])
def test_an_array_that_is_not_the_sets_is_named(damage: Any, packed: Path) -> None:
    damage(packed)
    with pytest.raises(LabelFileError, match=r"coeffs\.npy: .*pack it anew.*data\.source\.paths"):
        PackedSet(packed)


def test_offsets_that_do_not_fit_are_refused(packed: Path) -> None:
    np.save(packed / "atom_offsets.npy", np.array([0, 1, 2, 3]))
    with pytest.raises(LabelFileError, match=r"atom_offsets\.npy ends at \[3\]"):
        PackedSet(packed)


def test_a_changed_number_is_found_by_its_digest(packed: Path) -> None:
    array = np.load(packed / "grad_kin.npy", mmap_mode="r+")
    array[3] += 1e-12
    array.flush()
    PackedSet(packed)
    with pytest.raises(LabelFileError, match=r"grad_kin\.npy: its SHA-256 is .*has changed"):
        PackedSet(packed, verify=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, "expected .'ofdft_norm packed labels', 1"),
        ({"version": 2}, "expected .'ofdft_norm packed labels', 1"),
        ({"pre_transforms": ["ProjectGradient()"]}, "changed by hand"),
        ({"targets": None}, "malformed"),
        ({"arrays": {}}, "changed by hand"),
    ],
)
def test_meta_that_was_changed_is_refused(change: dict[str, Any], message: str, packed: Path) -> None:
    change_meta(packed, **change)
    with pytest.raises(LabelFileError, match=rf"meta\.json: .*{message}"):
        PackedSet(packed)


@pytest.mark.parametrize("content", ["", "[1]", "{", "\udcff"])
def test_a_folder_without_meta_is_no_set(content: str, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(LabelFileError, match=r"meta\.json: .*data\.source\.paths"):
        PackedSet(tmp_path)
    with pytest.raises(LabelFileError, match=r"no packed set"):
        PackedSet(tmp_path / "absent")


def test_the_checksum_stands_for_arrays_and_their_meaning(packed: Path) -> None:
    meta = PackedSet(packed).meta
    for name in ("basis_info", "targets", "pre_transforms", "arrays"):
        assert meta_checksum(meta | {name: "other"}) != meta["checksum"]
    assert meta_checksum(meta | {"created_at": "later", "sources": []}) == meta["checksum"]
