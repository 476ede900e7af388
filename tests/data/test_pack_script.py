"""The command that packs label files, as users call it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ofdft_norm import BasisTransforms, LocalFrames, NaturalReparametrization, OFDataset, ProjectGradient
from ofdft_norm.commands import pack_labels
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.data.packed import PackedSet
from ofdft_norm.data.packed_files import GrowingArrays
from ofdft_norm.data.packed_labels import PackedLabels
from ofdft_norm.data.pre_transforms import composed


@pytest.fixture(scope="module")
def script() -> Any:
    return pack_labels


@pytest.fixture
def folder(labels: Any, basis_info: Any, tmp_path: Path) -> Path:
    """A data set's folder as STRUCTURES25 lays it out, with the basis as JSON."""
    (tmp_path / "QM9" / "labels").mkdir(parents=True)
    for path in labels.write_several():
        shutil.move(path, tmp_path / "QM9" / "labels" / path.name)
    (tmp_path / "QM9" / "basis_info.json").write_text(json.dumps(basis_info.to_dict()))
    return tmp_path / "QM9"


def test_a_data_sets_folder_is_packed_and_verified(
    script: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "packed"
    wanted = [str(folder), str(output), "--targets", "kin", "grad_tot", "--pre-transforms", "ProjectGradient()"]
    assert script.main([*wanted, "--dtype", "float32", "--verify", "1", "--exclude", "methane.zarr"]) == 0
    assert "2 molecules" in (out := capsys.readouterr().out)
    assert "9 samples" in out
    meta = PackedSet(output).meta
    assert (meta["targets"], meta["pre_transforms"], meta["dtype"]) == (
        ["kin", "tot"],
        ["ProjectGradient()"],
        "float32",
    )
    assert meta["command"].startswith(f"ofdft-norm pack {folder} {output} --targets")
    assert meta["sources"] == [str(folder / "labels")]
    assert script.main([*wanted, "--verify"]) == 2
    assert "was packed with other ['dtype', 'n_molecules']" in capsys.readouterr().err


def test_label_files_take_their_basis_from_a_file(
    script: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = str(folder / "labels" / "*.zip")
    assert script.main([files, str(tmp_path / "packed")]) == 2
    assert "option --basis-info" in capsys.readouterr().err
    assert script.main([str(tmp_path / "none"), str(tmp_path / "packed")]) == 2
    assert f"error: {tmp_path / 'none'}: no such folder or file" in capsys.readouterr().err
    assert script.main([files, str(tmp_path / "packed"), "--basis-info", str(folder / "basis_info.json")]) == 0
    assert PackedSet(tmp_path / "packed").names() == ["formaldehyde.zarr.zip", "water.zarr.zip"]


def test_labels_are_packed_after_an_option_of_pre_transforms(script: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyscf")
    files = [str(EMBEDDED_DATA / "labels" / f"{name}.zarr.zip") for name in ("ammonia", "water")]
    command = [*files, str(tmp_path / "packed"), "--basis-info", str(EMBEDDED_DATA / "basis_info.json")]
    assert script.main([*command, "--pre-transforms", "local_frames_natrep", "--verify", "1"]) == 0
    wanted = composed([BasisTransforms([LocalFrames(), NaturalReparametrization()]), ProjectGradient()])
    packed = PackedLabels(str(tmp_path / "packed")).everything(wanted)
    assert packed.transform is None  # nothing is left to do
    stored = OFDataset(files, packed.basis_info, transform=wanted)
    for found, expected in zip(packed, stored, strict=True):
        assert found.coordinates == "local_frames+natural_symmetric"
        torch.testing.assert_close(found.coeffs, expected.coeffs, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.gradient_label, expected.gradient_label, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["Nothing", "ProjectGradient(", "os.remove", "OFDataset"])
def test_what_is_no_pre_transform_is_refused(
    name: str, script: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(folder), str(tmp_path / "packed"), "--pre-transforms", name]) == 2
    assert f"{name!r}" in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()


def test_settings_of_pre_transforms_are_yaml(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(ProjectGradient):
        def __init__(self, factor: float, name: str) -> None:
            self.settings = (factor, name)

    monkeypatch.setattr(script.ofdft_norm, "Scaled", Scaled, raising=False)
    assert script.pre_transform("Scaled(factor=2.5, name=canonical)").settings == (2.5, "canonical")


def run_as_process(target: Callable[[], Any]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join()
    return process.exitcode


def test_a_killed_packing_goes_on(script: Any, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "packed"
    arguments = [str(folder), str(output), "--verify", "1"]

    def killed() -> None:
        append = GrowingArrays.append_molecule

        def append_and_die(self: GrowingArrays, values: Any) -> None:
            append(self, values)
            self.save()
            if self.done.n_molecules == 2:
                append(self, values)  # written, but nobody has said so
                os.kill(os.getpid(), signal.SIGKILL)

        GrowingArrays.append_molecule = append_and_die  # type: ignore[method-assign]
        script.main(arguments)

    assert run_as_process(killed) == -signal.SIGKILL
    assert not output.exists()
    assert script.main(arguments) == 0
    assert PackedSet(output, verify=True).meta["n_samples"] == 12
