"""Parts of a data module: opened when asked for, remembered by checkpoints, converted to another unit and basis."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.dataset import OFDataset
from ofdft_norm.data.parts import DataParts
from ofdft_norm.data.sources import EmbeddedLabels, LabelFiles
from ofdft_norm.data.split import SplitConfig
from ofdft_norm.data.wrapped import WrappedData
from ofdft_norm.errors import ConfigError, SplitError
from ofdft_norm.transforms.project_gradient import ProjectGradient

SPLIT = SplitConfig(0.5, 0.25, 0.25)


@pytest.fixture
def folder(labels: Any, basis_file: str) -> Path:
    """Eight molecules in one folder, with their basis beside them."""
    numbers = [(8, 1, 1), (6, 1, 1, 1, 1), (6, 8, 1, 1)]
    for i in range(8):
        labels.write(f"molecule_{i}.zarr.zip", numbers[i % 3], 2)
    return labels.folder


def parts_of(folder: Path, split: SplitConfig = SPLIT, **options: Any) -> DataParts:
    return DataParts(LabelFiles(str(folder), str(folder / "basis_info.json")), split, [], **options)


def names(parts: DataParts) -> dict[str, list[str]]:
    return {part: sorted({sample.mol_id for sample in parts[part]}) for part in parts.names()}


def test_only_the_files_of_a_part_are_opened(folder: Path) -> None:
    parts = parts_of(folder)
    assert parts.names() == ["train", "val", "test"]
    for path in parts["train"].paths:
        path.write_bytes(b"damaged")
    assert len(parts["test"]) == 4
    assert parts["test"] is parts["test"]
    assert pickle.loads(pickle.dumps(parts))._opened == {}
    with pytest.raises(SplitError, match=r"no 'predict' split; they have \['train', 'val', 'test'\]"):
        _ = parts["predict"]


def test_pre_transforms_are_applied_to_densities(folder: Path) -> None:
    raw, projected = parts_of(folder), DataParts(parts_of(folder).source, SPLIT, [ProjectGradient()])
    for part in ("train", "all"):
        assert not torch.equal(projected[part][1].gradient_label, raw[part][1].gradient_label)
    theirs = WrappedData(train=[Data(z=torch.tensor([1]), y=torch.ones(1))], val=[], energy_field="y")
    assert float(DataParts(theirs, SplitConfig(), [ProjectGradient()])["train"][0].y) == 1.0  # has no coefficients


# --- the split of a checkpoint ----------------------------------------------------------------------------------------


def test_a_checkpoints_split_holds_when_files_are_added(folder: Path, labels: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    for name in (b"two\nlines.zarr.zip", b"not\xffutf8.zarr.zip"):  # any bytes survive
        labels.write("next.zarr.zip").rename(folder / os.fsdecode(name))
    before = DataParts(LabelFiles(".", "basis_info.json"), SPLIT, [])
    expected, state = names(before), before.state()
    assert state is not None
    json.dumps(state["identity"])  # plain data
    for i in range(5):
        labels.write(f"another_{i}.zarr.zip")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    after = parts_of(folder)
    assert names(after) != expected
    after.restore(state, labels.basis_info, resuming=True)  # paths are absolute
    assert names(after) == expected


def test_another_split_than_the_checkpoints_may_not_train_on_held_back_molecules(folder: Path, labels: Any) -> None:
    before = parts_of(folder)
    before.names()
    other = parts_of(folder, SplitConfig(0.5, 0.25, 0.25, seed=5))
    with pytest.raises(SplitError, match=r"validated or tested on \d molecules? that would be trained on.*molecule_"):
        other.restore(before.state(), labels.basis_info, resuming=True)
    other.restore(before.state(), labels.basis_info)  # predicting is no leak
    assert other.names() == ["train", "val", "test"]


def test_the_embedded_labels_are_found_in_another_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = DataParts(EmbeddedLabels(), SplitConfig(), [])
    expected, state = (parts.names(), [path.name for path in parts["test"].paths]), parts.state()
    copy = tmp_path / "site-packages" / "embedded"
    shutil.copytree(str(EmbeddedLabels().paths), copy)
    for module in ("sources", "parts"):
        monkeypatch.setattr(f"ofdft_norm.data.{module}.EMBEDDED", copy)
    source = EmbeddedLabels()
    object.__setattr__(source, "paths", str(copy))
    moved = DataParts(source, SplitConfig(), [])
    monkeypatch.setattr(type(source), "parts", lambda *_: {})  # the state alone decides
    moved.restore(state, None)
    assert (moved.names(), [path.name for path in moved["test"].paths]) == expected
    assert moved["test"].paths[0].parent == copy


# --- bases ------------------------------------------------------------------------------------------------------------


def test_labels_of_a_part_of_a_checkpoints_basis_are_those_built_with_it(
    folder: Path, labels: Any, assert_same_fields: Any
) -> None:
    (h, c, o), irreps = labels.basis_info.atomic_numbers.tolist(), labels.basis_info.irreps_per_atom
    larger = BasisInfo([o, 9, h, c], [irreps[2], "4x0e", irreps[0], irreps[1]])
    parts = parts_of(folder)
    parts.restore(None, larger)
    expected = OFDataset(parts["all"].paths, larger)
    for samples in (range(len(expected)), [3]):
        assert_same_fields(parts["all"].__getitems__(samples), expected.__getitems__(samples))
    assert_same_fields(parts["all"][1], expected[1])
    for other in (BasisInfo([9], ["1x0e"]), BasisInfo([1, 8], ["2x0e", "3x0e+1x1o"])):
        parts.restore(None, other)
        with pytest.raises(ConfigError, match=r"the checkpoint's normaliser belongs to .*data\.source\.basis_info"):
            _ = parts["train"]
