from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.transforms import Compose

from ofdft_norm import OFDFTDataModule, ProjectGradient
from ofdft_norm.config import LabelFiles
from ofdft_norm.data.packed_labels import PackedLabels
from ofdft_norm.data.packed_writer import PackingPlan, pack_labels
from ofdft_norm.errors import BasisError, ConfigError, LabelFileError, SplitError
from ofdft_norm.statistics.cache import dataset_fingerprint


def split_of(**settings: Any) -> Any:
    return dataclasses.replace(OFDFTDataModule().split, **settings)


@pytest.fixture
def paths(labels: Any) -> list[Path]:
    """Nine molecules, in one folder."""
    numbers = [(8, 1, 1), (6, 1, 1, 1, 1), (6, 8, 1, 1)]
    return [labels.write(f"molecule_{i}.zarr.zip", numbers[i % 3], 3 + i % 3) for i in range(9)]


@pytest.fixture
def basis_file(basis_info: Any, tmp_path: Path) -> str:
    (tmp_path / "basis_info.json").write_text(json.dumps(basis_info.to_dict()))
    return str(tmp_path / "basis_info.json")


@pytest.fixture
def packed(paths: list[Path], basis_info: Any, tmp_path: Path) -> Path:
    return pack_labels(PackingPlan(paths, basis_info), tmp_path / "packed", progress=False)


def test_parts_are_those_of_the_label_files(
    packed: Path, paths: list[Path], basis_file: str, assert_same_fields: Any
) -> None:
    split = split_of(train=0.5, val=0.2, test=0.3, seed=3)
    files = LabelFiles(str(paths[0].parent), basis_file, limit_scf_iterations=-2, exclude=["molecule_4.zarr.zip"])
    source = PackedLabels(str(packed), basis_file, limit_scf_iterations=-2, exclude=["molecule_4.zarr.zip"])
    assert source.basis() == files.basis()
    expected, found = (s.datasets(split, ProjectGradient()) for s in (files, source))
    assert list(found) == list(expected) == ["train", "val", "test"]
    for part in found:
        assert [p.name for p in found[part].paths] == [p.name for p in expected[part].paths]
        for a, b in zip(found[part], expected[part], strict=True):
            assert_same_fields(a, b)
    assert len(source.everything(None)) == len(files.everything(None))
    assert [p.name for p in source.everything(None).paths] == [p.name for p in files.label_files()]


def test_a_checkpoints_files_stand_for_the_split(packed: Path) -> None:
    files = {"train": [str(packed / "molecule_3.zarr.zip")], "test": [str(packed / "molecule_1.zarr.zip")]}
    parts = PackedLabels(str(packed)).datasets(split_of(), None, files=files)
    assert {part: [path.name for path in parts[part].paths] for part in parts} == {
        "train": ["molecule_3.zarr.zip"],
        "test": ["molecule_1.zarr.zip"],
    }


def test_a_split_file_names_molecules_of_one_or_several_sets(
    packed: Path, paths: list[Path], basis_info: Any, tmp_path: Path
) -> None:
    other = pack_labels(PackingPlan(paths[:2], basis_info), tmp_path / "QM9", progress=False)
    file = tmp_path / "split.json"
    split = split_of(file=str(file))
    names = [path.name for path in paths]
    file.write_text(json.dumps({"train": [names[5], names[2]], "val": [names[7]], "test": [names[3]]}))
    parts = PackedLabels(str(packed)).datasets(split, None)
    assert [p.name for p in parts["train"].paths] == [names[5], names[2]]
    both = PackedLabels([str(packed), str(other)])
    assert [p for p in both.datasets(split, None)["train"].paths] == [packed / names[5], packed / names[2]]
    file.write_text(json.dumps({"train": [names[0]]}))
    with pytest.raises(SplitError, match=r"'molecule_0.zarr.zip' .* fits 2 label files.*data\.split\.file"):
        both.split_files(split)
    file.write_text(json.dumps({"train": [("QM9", names[0], 3)]}))
    assert both.datasets(split, None)["train"].paths == [other / names[0]]
    file.write_text(json.dumps({"train": ["absent.zarr"]}))
    with pytest.raises(SplitError, match=r"the train split: molecules that are not in the packed sets: 1"):
        _ = both.datasets(split, None)["train"]


def test_pre_transforms_that_were_packed_are_not_applied_again(
    paths: list[Path], packed: Path, basis_info: Any, tmp_path: Path, assert_same_fields: Any
) -> None:
    plan = PackingPlan(paths, basis_info, pre_transforms=[ProjectGradient()])
    projected = PackedLabels(str(pack_labels(plan, tmp_path / "projected", progress=False)))
    expected = PackedLabels(str(packed)).everything(ProjectGradient())
    assert expected.transform is not None
    found = projected.everything(ProjectGradient())
    assert found.transform is None
    for a, b in zip(found, expected, strict=True):
        assert_same_fields(a, b)
    twice = ProjectGradient()
    assert projected.everything(Compose([ProjectGradient(), twice])).transform is twice
    with pytest.raises(ConfigError, match=r"projected: was packed after .*ProjectGradient.*data\.pre_transforms"):
        projected.everything(None)


def test_what_cannot_be_is_refused(packed: Path, basis_file: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no packed set .meta\.json. there.*data\.source\.paths"):
        PackedLabels(str(tmp_path / "absent*")).label_files()
    with pytest.raises(ConfigError, match=r"exclude names \['other.zarr'\].*data\.source\.exclude"):
        PackedLabels(str(packed), exclude=["other.zarr"]).label_files()
    with pytest.raises(LabelFileError, match=r"lacks 'e_tot'.*data\.source\.energy_key"):
        PackedLabels(str(packed), energy_key="e_tot").everything(None)
    Path(basis_file).write_text(json.dumps({"atomic_numbers": [1], "irreps_per_atom": ["1x0e"]}))
    with pytest.raises(BasisError, match=r"was packed in the basis .*data\.source\.basis_info"):
        PackedLabels(str(packed), basis_file).basis()


def test_verification_is_a_setting(packed: Path) -> None:
    content = bytearray((packed / "coeffs.npy").read_bytes())
    content[-1] ^= 1
    (packed / "coeffs.npy").write_bytes(content)
    PackedLabels(str(packed)).everything(None)
    with pytest.raises(LabelFileError, match=r"coeffs\.npy: its SHA-256"):
        PackedLabels(str(packed), verify=True).everything(None)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_data_module_gives_the_same_batches(
    packed: Path, paths: list[Path], basis_file: str, tmp_path: Path
) -> None:
    def module(source: LabelFiles) -> OFDFTDataModule:
        settings: dict[str, Any] = {"dir": str(tmp_path / "cache"), "progress": False, "min_atoms_per_type": 1}
        statistics = dataclasses.replace(OFDFTDataModule().statistics_config, **settings)
        datamodule = OFDFTDataModule(source, statistics=statistics, dtype="float64")
        datamodule.setup("fit")
        return datamodule

    files, found = module(LabelFiles(str(paths[0].parent), basis_file)), module(PackedLabels(str(packed)))
    for a, b in zip(found.train_dataloader(), files.train_dataloader(), strict=True):
        for field in ("coeffs", "gradient_label", "energy_label", "energy_reference", "dual_basis_integrals"):
            torch.testing.assert_close(a[field], b[field], rtol=1e-9, atol=1e-9)
    again = module(PackedLabels(str(packed)))
    _ = again.normalizer
    assert again.fingerprint is not None
    assert again.fingerprint == found.fingerprint != files.fingerprint


def test_a_copied_or_linked_set_keeps_its_fingerprint(packed: Path, basis_info: Any, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "scratch" / "copy", copy_function=shutil.copyfile)
    (tmp_path / "link").symlink_to(packed)
    split = split_of(train=0.5, val=0.2, test=0.3)
    found = {
        dataset_fingerprint(PackedLabels(str(folder)).datasets(split, ProjectGradient())["train"], basis_info, {})
        for folder in (packed, tmp_path / "scratch" / "copy", tmp_path / "link")
    }
    assert len(found) == 1
    assert None not in found
    other = PackedLabels(str(packed)).datasets(split, ProjectGradient())["test"]
    assert dataset_fingerprint(other, basis_info, {}) not in found
