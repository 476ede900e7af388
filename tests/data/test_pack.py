from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from ofdft_norm import OFData, OFDataset, ProjectGradient
from ofdft_norm.data import pack
from ofdft_norm.data.identity import identity
from ofdft_norm.data.pack import pack_labels, verify_packed
from ofdft_norm.data.packed import PackedDataset, PackedSet
from ofdft_norm.errors import ConfigError, LabelFileError


class Halved:
    """A transform for single samples; the initial guess and the others alike."""

    def __call__(self, sample: OFData) -> OFData:
        sample.coeffs = sample.coeffs / 2
        sample.ground_state_coeffs = sample.ground_state_coeffs / 2
        return sample


class ToOtherCoordinates:
    """A change of basis; only water's is another."""

    changes_basis = True

    def __call__(self, sample: OFData) -> OFData:
        sample.coordinates = f"of_{sample.mol_id}"
        return sample


def add_field(sample: OFData) -> OFData:
    sample.extra = torch.zeros(1)
    return sample


@pytest.fixture
def raw(paths: list[Path], basis_info: Any) -> OFDataset:
    return OFDataset(paths, basis_info)


def test_pre_transforms_are_applied_before_packing(raw: OFDataset, tmp_path: Path, assert_same_fields: Any) -> None:
    transforms = (Halved(), ProjectGradient())
    packed = pack_labels(raw, tmp_path / "new" / "packed", ["kin"], transforms, workers=2, progress=False)
    assert packed == tmp_path / "new" / "packed"
    assert os.listdir(packed.parent) == ["packed"]
    assert PackedSet(packed).meta["applied"] == [identity(t) for t in transforms]
    for found, expected in zip(PackedDataset([packed]), raw, strict=True):
        for transform in transforms:
            expected = transform(expected)
        assert_same_fields(found, expected)
    assert verify_packed(raw, packed, ["kin"], transforms, every=1) == 3


def test_a_packed_set_can_be_packed_again(raw: OFDataset, tmp_path: Path, assert_same_fields: Any) -> None:
    both = PackedDataset([pack_labels(raw, tmp_path / "all", ["kin", "tot"], progress=False)], [np.array([2, 0])])
    again = pack_labels(both, tmp_path / "again", ["tot"], progress=False)
    assert PackedSet(again).names() == ["formaldehyde.zarr.zip", "water.zarr.zip"]
    expected = raw.with_target("tot").molecules([2, 0])
    assert_same_fields(PackedDataset([again], None, "e_tot", "grad_tot").molecules([0, 1]), expected)


def test_further_energies_and_perturbed_rows_are_packed(labels: Any, basis_info: Any, tmp_path: Path) -> None:
    def add(arrays: dict[str, np.ndarray]) -> None:
        arrays["of_labels/energies/e_xc"] = np.array([0.0, -3.0, -2.0, -1.0])
        arrays["of_labels/perturbed"] = np.array([False, True, False, False])

    raw = OFDataset([labels.write(change=add)], basis_info)
    packed = pack_labels(raw, tmp_path / "packed", ["kin", "tot"], energies=["xc"], progress=False)
    again = pack_labels(PackedDataset([packed]), tmp_path / "again", energies=["xc"], progress=False)
    for folder in (packed, again):
        found = PackedDataset([folder], energy_key="e_xc")
        assert [float(sample.energy_label) for sample in found] == [0.0, -3.0, -2.0, -1.0]
        assert [bool(sample.perturbed) for sample in found] == [False, True, False, False]
        assert torch.equal(found[1].gradient_label, raw[1].gradient_label)
        assert torch.equal(found[1].ground_state_coeffs, raw[3].coeffs)
    assert verify_packed(raw, packed, ["kin", "tot"]) == 1


def test_an_output_that_exists_is_left_alone(raw: OFDataset, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for output in (tmp_path, tmp_path / "link"):
        with pytest.raises(ConfigError, match="exists already"):
            pack_labels(raw, output, progress=False)
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_that_fails_leaves_nothing(raw: OFDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "meta_checksum", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(LabelFileError, match=r"packed: cannot be written: .*No space"):
        pack_labels(raw, tmp_path / "packed", progress=False)
    assert not list(tmp_path.glob("*packed*"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_label_file_ends_packing(workers: int, raw: OFDataset, basis_info: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zarr.zip"
    broken.write_bytes(b"not a label file")
    with pytest.raises(LabelFileError, match=r"^\S*broken\.zarr\.zip: "):
        pack_labels(OFDataset([*raw.paths, broken], basis_info), tmp_path / "packed", workers=workers, progress=False)
    assert not list(tmp_path.glob("*packed*"))


def test_integrals_that_change_along_the_path_are_refused(labels: Any, basis_info: Any, tmp_path: Path) -> None:
    def spoil(arrays: dict[str, np.ndarray]) -> None:
        arrays["of_labels/spatial/dual_basis_integrals"][2] *= 2

    with pytest.raises(LabelFileError, match=r"molecule 'water': field 'dual_basis_integrals' differs between SCF"):
        pack_labels(OFDataset([labels.write(change=spoil)], basis_info), tmp_path / "packed", progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16'"),
        ({"targets": []}, "targets"),
        ({"targets": ["xc"]}, "e_xc"),
        ({"energies": ["xc"]}, "e_xc"),
        ({"energies": ["kin"]}, "targets"),
        ({"pre_transforms": [add_field]}, r"\['extra'\].*data\.pre_transforms"),
        ({"pre_transforms": [lambda sample: sample]}, "cannot be recognised"),
        ({"pre_transforms": [ToOtherCoordinates()]}, "one system of coordinates"),
        ({"dataset": {"limit_scf_iterations": -1}}, "all SCF iterations"),
        ({"dataset": {"paths": []}}, "0 label files"),
        ({"dataset": {"paths": ["a/1.zarr", "b/1.zarr"]}}, "2 label files, 1 names"),
    ],
)
def test_settings_that_cannot_be_packed_are_refused(
    settings: dict[str, Any], message: str, raw: OFDataset, basis_info: Any, tmp_path: Path
) -> None:
    dataset = OFDataset(**{"paths": raw.paths, "basis_info": basis_info} | settings.pop("dataset", {}))
    with pytest.raises((ConfigError, LabelFileError), match=message):
        pack_labels(dataset, tmp_path / "packed", progress=False, **settings)
    assert not list(tmp_path.glob("*packed*"))


def test_verification_finds_differences(raw: OFDataset, basis_info: Any, tmp_path: Path, labels: Any) -> None:
    packed = pack_labels(raw, tmp_path / "packed", progress=False)
    others = OFDataset(raw.paths[::-1], basis_info)
    for other, options, words in (
        (raw, {"targets": ["tot"]}, r"other \['targets'\]"),
        (raw, {"pre_transforms": [ProjectGradient()]}, r"other \['applied'\]"),
        (others, {}, "other label files"),
        (raw, {"every": 0}, "verify is 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            verify_packed(other, packed, **options)
    labels.write("water.zarr.zip")
    with pytest.raises(LabelFileError, match=r"water\.zarr\.zip: target 'kin': field '.*' is not the packed one"):
        verify_packed(OFDataset(raw.paths, basis_info), packed)
