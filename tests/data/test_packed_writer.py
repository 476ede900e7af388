from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import OFData, OFDataset, ProjectGradient
from ofdft_norm.data import packed_files, packed_writer
from ofdft_norm.data.packed import PackedSet
from ofdft_norm.data.packed_dataset import PackedDataset
from ofdft_norm.data.packed_writer import PackingPlan, pack_labels, verify_packed
from ofdft_norm.errors import ConfigError, LabelFileError


class Halved:
    """A transform for single samples; the initial guess and the others alike."""

    def __call__(self, sample: OFData) -> OFData:
        sample.coeffs = sample.coeffs / 2
        sample.ground_state_coeffs = sample.ground_state_coeffs / 2
        return sample


@pytest.fixture
def paths(labels: Any) -> list[Path]:
    return labels.write_several()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("transforms", [(), (ProjectGradient(),), (Halved(), ProjectGradient())])
def test_pre_transforms_are_paid_once(
    workers: int, transforms: Any, paths: list[Path], basis_info: Any, tmp_path: Path, assert_same_fields: Any
) -> None:
    plan = PackingPlan(paths, basis_info, pre_transforms=transforms)
    packed = pack_labels(plan, tmp_path / "packed", workers, progress=False, command="pack it")
    assert packed == tmp_path / "packed"
    meta = PackedSet(packed).meta
    assert meta["pre_transforms"] == [f"{type(t).__name__}()" for t in transforms]
    assert meta["command"] == "pack it"
    for found, raw in zip(PackedDataset([packed]), OFDataset(paths, basis_info), strict=True):
        for transform in transforms:
            raw = transform(raw)
        assert_same_fields(found, raw)
    assert verify_packed(plan, packed, every=1) == 12
    assert not list(tmp_path.glob(".packed*"))


class Killed(BaseException):
    """Stands for a signal that no code catches."""


@pytest.mark.parametrize("molecule", [0, 1, 2])
@pytest.mark.parametrize("saved", [True, False])
def test_a_killed_run_is_gone_on_with(
    molecule: int, saved: bool, paths: list[Path], basis_info: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = PackingPlan(paths, basis_info, pre_transforms=[ProjectGradient()])
    expected = pack_labels(plan, tmp_path / "whole", progress=False)
    read, n_read = PackingPlan.read, []

    def killed(self: PackingPlan, path: Path) -> Any:
        if path == paths[molecule]:
            raise Killed
        return read(self, path)

    def counted(self: PackingPlan, path: Path) -> Any:
        n_read.append(path)
        return read(self, path)

    monkeypatch.setattr(packed_writer, "_BYTES_BETWEEN", -1 if saved else 2**28)
    monkeypatch.setattr(PackingPlan, "read", killed)
    with pytest.raises(Killed):
        pack_labels(plan, tmp_path / "packed", progress=False)
    assert not (tmp_path / "packed").exists()
    monkeypatch.setattr(PackingPlan, "read", counted)
    packed = pack_labels(plan, tmp_path / "packed", progress=False)
    assert n_read == (paths[molecule:] if saved else paths)
    assert contents(packed) == contents(expected)
    PackedSet(packed, verify=True)


@pytest.mark.parametrize("when", ["headers", "meta", "rename"])
def test_a_run_killed_at_its_end_is_gone_on_with(
    when: str, paths: list[Path], basis_info: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = PackingPlan(paths, basis_info)

    def killed(*arguments: Any) -> None:
        raise Killed

    place: dict[str, tuple[Any, str]] = {
        "headers": (packed_files.GrowingArrays, "write_headers"),
        "meta": (packed_writer, "write_meta"),
        "rename": (packed_writer.os, "rename"),  # type: ignore[attr-defined]
    }
    with monkeypatch.context() as patched:
        patched.setattr(*place[when], killed)
        with pytest.raises(Killed):
            pack_labels(plan, tmp_path / "packed", progress=False)
    assert not (tmp_path / "packed").exists()
    assert verify_packed(plan, pack_labels(plan, tmp_path / "packed", progress=False), every=1) == 12


def test_a_full_disk_is_an_error_and_packing_goes_on_afterwards(
    paths: list[Path], basis_info: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = PackingPlan(paths, basis_info)
    append = packed_files.GrowingArrays.append_molecule

    def full(self: packed_files.GrowingArrays, values: Any) -> None:
        if self.done.n_molecules == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, values)

    with monkeypatch.context() as patched:
        patched.setattr(packed_files.GrowingArrays, "append_molecule", full)
        with pytest.raises(LabelFileError, match=r"\.packed\.packing: cannot be written: .*No space left.*make room"):
            pack_labels(plan, tmp_path / "packed", progress=False)
    assert not (tmp_path / "packed").exists()
    verify_packed(plan, pack_labels(plan, tmp_path / "packed", progress=False), every=1)


def test_what_was_begun_with_another_plan_is_not_mixed(paths: list[Path], basis_info: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zarr.zip"
    broken.write_bytes(b"not a label file")
    with pytest.raises(LabelFileError, match=r"broken\.zarr\.zip"):
        pack_labels(PackingPlan([*paths, broken], basis_info), tmp_path / "packed", progress=False)
    assert not (tmp_path / "packed").exists()
    begun = json.loads((tmp_path / ".packed.packing" / "progress.json").read_text())
    assert begun["progress"]["n_molecules"] == 3
    for plan, what in (
        (PackingPlan(paths, basis_info), "n_molecules"),
        (PackingPlan([*paths, broken], basis_info, ["tot"]), "targets"),
        (PackingPlan([*paths, broken], basis_info, dtype="float32"), "dtype"),
    ):
        with pytest.raises(ConfigError, match=rf"begun with other.*{what}.*delete this folder"):
            pack_labels(plan, tmp_path / "packed", progress=False)


def test_an_output_that_exists_is_left_alone(paths: list[Path], basis_info: Any, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        pack_labels(PackingPlan(paths, basis_info), tmp_path / "packed", progress=False)
    assert list((tmp_path / "packed").iterdir()) == []


def test_two_packers_of_one_set_do_not_meet(paths: list[Path], basis_info: Any, tmp_path: Path) -> None:
    with (
        packed_writer._locked(tmp_path / ".packed.packing"),
        pytest.raises(ConfigError, match="another process is packing the same set"),
    ):
        pack_labels(PackingPlan(paths, basis_info), tmp_path / "packed", progress=False)


@pytest.fixture(params=["at once", "gone on with"])
def begun(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Packs all molecules of a plan but the last one, and is killed; or does nothing."""

    def begin(plan: PackingPlan) -> None:
        if request.param == "at once":
            return
        read = PackingPlan.read

        def killed(self: PackingPlan, path: Path) -> Any:
            if path == plan.paths[-1]:
                raise Killed
            return read(self, path)

        with monkeypatch.context() as patched:
            patched.setattr(packed_writer, "_BYTES_BETWEEN", -1)
            patched.setattr(PackingPlan, "read", killed)
            with pytest.raises(Killed):
                pack_labels(plan, tmp_path / "packed", progress=False)

    return begin


def test_two_geometries_of_one_name_are_not_packed(labels: Any, basis_info: Any, tmp_path: Path, begun: Any) -> None:
    plan = PackingPlan([*labels.write_several(), labels.write("water.zarr")], basis_info)
    begun(plan)
    message = r"water\.zarr: molecule 'water' has another geometry than .*water\.zarr\.zip"
    with pytest.raises(LabelFileError, match=message):
        pack_labels(plan, tmp_path / "packed", progress=False)
    assert not (tmp_path / "packed").exists()


def test_integrals_that_change_along_the_path_are_refused(labels: Any, basis_info: Any, tmp_path: Path) -> None:
    def spoil(arrays: dict[str, np.ndarray]) -> None:
        arrays["of_labels/spatial/dual_basis_integrals"][2] *= 2

    plan = PackingPlan([labels.write(change=spoil)], basis_info)
    with pytest.raises(LabelFileError, match=r"molecule 'water': field 'dual_basis_integrals' differs between SCF"):
        pack_labels(plan, tmp_path / "packed", progress=False)


def test_fields_that_a_pre_transform_adds_are_refused(paths: list[Path], basis_info: Any, tmp_path: Path) -> None:
    plan = PackingPlan(paths, basis_info, pre_transforms=[add_field])
    with pytest.raises(ConfigError, match=r"add the fields \['extra'\].*data\.pre_transforms"):
        pack_labels(plan, tmp_path / "packed", progress=False)


def add_field(sample: OFData) -> OFData:
    sample.extra = torch.zeros(1)
    return sample


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "dtype = 'float16'"),
        ({"targets": []}, "targets = "),
        ({"targets": ["kin", "kin"]}, "targets = "),
        ({"paths": []}, "0 label files"),
        ({"paths": [Path("a/1.zarr"), Path("b/1.zarr")]}, r"\['1.zarr'\] have the same name"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(settings: dict[str, Any], message: str, basis_info: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        PackingPlan(**({"paths": [Path("1.zarr")], "basis_info": basis_info} | settings))


def test_files_of_two_p_orders_are_not_packed_together(
    labels: Any, basis_info: Any, tmp_path: Path, begun: Any
) -> None:
    first, second = labels.write("a.zarr"), labels.write("b.zarr")
    (second / ".zattrs").write_text(json.dumps({"p_order": "yzx"}))
    plan = PackingPlan([first, *labels.write_several()[1:], second], basis_info)
    begun(plan)
    with pytest.raises(LabelFileError, match=r"b\.zarr: its p functions stand in the order 'yzx'"):
        pack_labels(plan, tmp_path / "packed", progress=False)


def test_verification_finds_what_differs(paths: list[Path], basis_info: Any, tmp_path: Path, labels: Any) -> None:
    plan = PackingPlan(paths, basis_info)
    packed = pack_labels(plan, tmp_path / "packed", progress=False)
    with pytest.raises(ConfigError, match=r"was packed with other \['targets'\]"):
        verify_packed(PackingPlan(paths, basis_info, ["tot"]), packed)
    with pytest.raises(ConfigError, match=r"was packed with other \['label files'\]"):
        verify_packed(PackingPlan(paths[::-1], basis_info), packed)
    labels.write("water.zarr.zip")
    with pytest.raises(
        LabelFileError, match=r"water\.zarr\.zip: molecule 'water', SCF iteration 0: field '.*' differs"
    ):
        verify_packed(plan, packed)
