"""Parts of a data module: opened when asked for, remembered by checkpoints, converted to another unit and basis."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from ofdft_norm.data.ase import ASEFiles
from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.dataset import OFDataset
from ofdft_norm.data.pack import pack_labels
from ofdft_norm.data.parts import DataParts, InBasis, InUnit
from ofdft_norm.data.sample import OFData
from ofdft_norm.data.sources import EmbeddedLabels, LabelFiles, PackedLabels
from ofdft_norm.data.split import SplitConfig
from ofdft_norm.data.wrapped import WrappedData
from ofdft_norm.errors import BasisError, ConfigError, SplitError
from ofdft_norm.units import conversion

SPLIT = SplitConfig(0.5, 0.25, 0.25)


@pytest.fixture
def folder(labels: Any) -> Path:
    """Eight molecules in one folder, with their basis beside them."""
    numbers = [(8, 1, 1), (6, 1, 1, 1, 1), (6, 8, 1, 1)]
    (labels.folder / "basis.json").write_text(json.dumps(labels.basis_info.to_dict()))
    for i in range(8):
        labels.write(f"molecule_{i}.zarr.zip", numbers[i % 3], 2)
    return labels.folder


def parts_of(folder: Path, split: SplitConfig = SPLIT, **options: Any) -> DataParts:
    return DataParts(LabelFiles(str(folder), str(folder / "basis.json")), split, [], **options)


def names(parts: DataParts) -> dict[str, list[str]]:
    return {part: sorted({sample.mol_id for sample in parts[part]}) for part in parts.names()}


def test_only_the_files_of_a_part_are_opened(folder: Path) -> None:
    parts = parts_of(folder)
    assert parts.names() == ["train", "val", "test"]
    for path in parts["train"].paths:
        path.write_bytes(b"damaged")
    assert len(parts["test"]) == 4
    assert parts["test"] is parts["test"]
    assert parts.elements("test") <= {1, 6, 8}
    assert pickle.loads(pickle.dumps(parts))._opened == {}
    with pytest.raises(SplitError, match=r"no 'predict' split; they have \['train', 'val', 'test'\]"):
        _ = parts["predict"]


def test_pre_transforms_are_applied_to_densities(folder: Path) -> None:
    def halve(sample: Any) -> Any:
        sample.coeffs = sample.coeffs / 2
        return sample

    raw, halved = parts_of(folder), DataParts(parts_of(folder).source, SPLIT, [halve])
    for part in ("train", "all"):
        assert torch.equal(halved[part][0].coeffs, raw[part][0].coeffs / 2)
    theirs = WrappedData(train=[Data(z=torch.tensor([1]), y=torch.ones(1))], val=[], energy_field="y")
    assert float(DataParts(theirs, SplitConfig(), [halve])["train"][0].y) == 1.0  # has no coefficients


# --- the split of a checkpoint ----------------------------------------------------------------------------------------


def test_a_checkpoints_split_holds_when_files_are_added(folder: Path, labels: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    before = DataParts(LabelFiles(".", "basis.json"), SPLIT, [])
    expected, state = names(before), before.state()
    assert state is not None
    json.dumps(state["identity"])  # plain data
    for i in range(5):
        labels.write(f"another_{i}.zarr.zip")
    after = DataParts(LabelFiles(".", "basis.json"), SPLIT, [])
    assert names(after) != expected
    after.restore(state, labels.basis_info)
    assert names(after) == expected
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    moved = DataParts(LabelFiles(str(folder), str(folder / "basis.json")), SPLIT, [])
    moved.restore(state, labels.basis_info, resuming=True)  # paths are absolute
    assert names(moved) == expected


def test_another_split_than_the_checkpoints_may_not_train_on_held_back_molecules(folder: Path, labels: Any) -> None:
    before = parts_of(folder)
    before.names()
    state = before.state()
    other = parts_of(folder, SplitConfig(0.5, 0.25, 0.25, seed=5))
    with pytest.raises(
        SplitError, match=r"validated or tested on \d molecules? that would be trained on now: molecule_"
    ):
        other.restore(state, labels.basis_info, resuming=True)
    other.restore(state, labels.basis_info)  # predicting is no leak
    assert other.names() == ["train", "val", "test"]


def test_the_embedded_labels_are_found_in_another_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = DataParts(EmbeddedLabels(), SplitConfig(), [])
    expected = parts.names(), [path.name for path in parts["test"].paths]
    state = parts.state()
    assert state is not None
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


def test_frames_of_a_checkpoints_split(tmp_path: Path) -> None:
    path = tmp_path / "data.xyz"

    def frames(n: int) -> list[Atoms]:
        return [Atoms("H2", [[0, 0, 0], [0, 0, 0.7 + i / 100]], info={"energy": float(i)}) for i in range(n)]

    write(path, frames(20), format="extxyz")
    before = DataParts(ASEFiles(str(path), energy="energy", forces=None), SplitConfig(), [], "eV")
    expected = {part: [float(sample.energy) for sample in before[part]] for part in before.names()}
    write(path, frames(25), format="extxyz")
    after = DataParts(ASEFiles(str(path), energy="energy", forces=None), SplitConfig(), [], "eV")
    after.restore(before.state(), None)
    assert {part: [float(sample.energy) for sample in after[part]] for part in after.names()} == expected


def test_names_of_any_bytes_survive_a_checkpoint(folder: Path, labels: Any) -> None:
    for name in ("two\nlines.zarr.zip", os.fsdecode(b"not\xffutf8.zarr.zip")):
        shutil.copy(labels.write("next.zarr.zip"), folder / name)
        (folder / "next.zarr.zip").unlink()
    parts = parts_of(folder)
    expected = {part: parts[part].paths for part in parts.names()}
    parts.restore(parts.state(), None)
    assert {part: parts[part].paths for part in parts.names()} == expected


# --- units ------------------------------------------------------------------------------------------------------------


def test_energies_and_their_derivatives_are_converted(folder: Path) -> None:
    factor = conversion("hartree", "eV")
    for raw, found in zip(parts_of(folder)["train"], parts_of(folder, unit="eV")["train"], strict=True):
        for name in ("energy_label", "gradient_label"):
            torch.testing.assert_close(found[name], raw[name] * factor, rtol=1e-15, atol=0)
        assert torch.equal(found.coeffs, raw.coeffs)


def test_a_conversion_leaves_its_argument_as_it_is() -> None:
    sample = Data(y=torch.ones(1), force=torch.ones(2, 3), pos=torch.ones(2, 3))
    out = InUnit(3.0, ["y", "force", "gradient_label"])(sample)
    assert (float(out.y), float(out.force.sum()), float(out.pos.sum())) == (3.0, 18.0, 6.0)
    assert float(sample.y) == 1.0


class Loaders:
    """A data module in all but name."""

    def setup(self, stage: str) -> None:
        self.data = [Data(z=torch.tensor([1]), y=torch.tensor([float(i)])) for i in range(4)]

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=2)

    trainer = None


def test_batches_of_a_wrapped_loader_are_converted() -> None:
    class InHartree(WrappedData):
        unit = "hartree"

    loader: Any = DataParts(InHartree(Loaders(), energy_field="y"), SplitConfig(), [], "eV").loader("train")
    factor = conversion("hartree", "eV")
    assert [batch.y.tolist() for batch in loader] == [[0.0, factor], [2 * factor, 3 * factor]]


# --- bases ------------------------------------------------------------------------------------------------------------

LARGE = BasisInfo([1, 6, 8], ["2x0e", "3x0e+1x1o", "2x0e+1x1o"])
SMALL = BasisInfo([8, 1], ["2x0e+1x1o", "2x0e"])  # two of the elements, in another order


def pair(make_sample: Any, seed: int) -> tuple[OFData, OFData]:
    numbers = [8, 1, 1] if seed % 2 else [1, 8]
    made = [make_sample(basis, np.random.default_rng(seed), numbers) for basis in (SMALL, LARGE)]
    return made[0], made[1]


def test_samples_and_batches_are_those_built_with_the_larger_basis(
    make_sample: Any, make_batch: Any, assert_same_fields: Any
) -> None:
    transform = InBasis(SMALL, LARGE)
    small, large = zip(*[pair(make_sample, seed) for seed in range(4)], strict=True)
    before = small[0].clone()
    for own, other in zip(small, large, strict=True):
        assert_same_fields(transform(own), other)
    assert_same_fields(small[0], before)
    batch = transform(make_batch(small))
    assert_same_fields(batch, make_batch(large))
    for own, other in zip(batch.to_data_list(), large, strict=True):
        assert_same_fields(own, other)


@pytest.mark.parametrize("own", [BasisInfo([9], ["1x0e"]), BasisInfo([1, 8], ["2x0e", "3x0e+1x1o"])])
def test_a_basis_that_is_no_subset_is_refused(own: BasisInfo, folder: Path) -> None:
    with pytest.raises(BasisError, match="do not all have the same functions"):
        InBasis(own, LARGE)
    parts = parts_of(folder)
    parts.restore(None, own)
    with pytest.raises(ConfigError, match=r"the checkpoint's normaliser belongs to .*data\.source\.basis_info"):
        _ = parts["train"]


def test_labels_of_a_part_of_a_checkpoints_basis_are_numbered_in_it(folder: Path, labels: Any) -> None:
    own = labels.basis_info.to_dict()
    larger = BasisInfo([9, *own["atomic_numbers"]], ["4x0e", *own["irreps_per_atom"]])
    raw, parts = parts_of(folder), parts_of(folder)
    parts.restore(None, larger)
    for a, b in zip(raw["all"], parts["all"], strict=True):
        assert torch.equal(b.atom_ind, a.atom_ind + 1)
        assert torch.equal(b.coeffs, a.coeffs)
        assert b.basis_info == larger


def test_files_that_change_between_two_setups_are_read_again(tmp_path: Path, folder: Path, labels: Any) -> None:
    path = tmp_path / "data.xyz"
    write(path, [Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], info={"energy": 1.0})] * 10, format="extxyz")
    files = sorted(folder.glob("*.zip"))
    packed = pack_labels(OFDataset(files, labels.basis_info), tmp_path / "packed", progress=False)
    frames = DataParts(ASEFiles(str(path), forces=None), SplitConfig(), [], "eV")
    labelled = DataParts(PackedLabels(str(packed)), SPLIT, [])
    before = [(float(frames["train"][0].energy), float(labelled["train"][0].coeffs[0]))]
    path.write_text(path.read_text().replace("energy=1.0", "energy=2.0"))
    shutil.rmtree(packed)
    for file in files:
        labels.write(file.name, (8, 1, 1), 2)
    pack_labels(OFDataset(files, labels.basis_info), packed, progress=False)
    before.append((float(frames["train"][0].energy), float(labelled["train"][0].coeffs[0])))
    for parts in (frames, labelled):
        parts.release()
    after = float(frames["train"][0].energy), float(labelled["train"][0].coeffs[0])
    assert before[0] == before[1]
    assert (after[0], after[1] != before[0][1]) == (2.0, True)
