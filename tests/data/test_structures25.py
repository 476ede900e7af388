"""STRUCTURES25's folders: splits that name data sets, bases from `dataset_info.yaml`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.split import SplitConfig
from ofdft_norm.data.structures25 import Structures25Labels
from ofdft_norm.errors import BasisError, ConfigError, SplitError

DATASET_INFO = {
    "kohn_sham": {"basis": "6-31G(2df,p)", "xc": "PBE", "convergence_tolerance": "1.0e-09"},
    "of_basis_set": "even_tempered_2.5",
    "dataset": {"name": "QM9", "label_dir": "${oc.env:DFT_DATA}/${dataset.name}/labels/"},
}
FILES = {"QM9": ("water", "methane", "ammonia"), "QMUGS": ("water", "ethyne")}


@pytest.fixture
def root(labels: Any) -> Path:
    """Two data sets; both have a water, of different geometries."""
    for dataset, names in FILES.items():
        folder = labels.folder / dataset / "labels"
        folder.mkdir(parents=True)
        for name in names:
            labels.write(f"{name}.zarr.zip", (8, 1, 1), 3).rename(folder / f"{name}.zarr.zip")
        info = labels.folder / dataset / "dataset_info.yaml"
        info.write_text(yaml.safe_dump(DATASET_INFO))
        (labels.folder / dataset / "basis_info.json").write_text(json.dumps(labels.basis_info.to_dict()))
    return labels.folder


def entry(dataset: str, name: str) -> tuple[str, str, int]:
    return dataset, f"{name}.zarr.zip", 3


def good_split() -> dict[str, list[Any]]:
    return {
        "train": [entry("QM9", "water"), entry("QM9", "methane")],
        "val": [entry("QM9", "ammonia")],
        "test": [entry("QMUGS", "water")],
    }


def split_of(folder: Path, entries: dict[str, list[Any]]) -> SplitConfig:
    (folder / "split.json").write_text(json.dumps(entries))
    return SplitConfig(file=str(folder / "split.json"))


def source_of(root: Path, dataset: Any = ("QM9", "QMUGS"), **options: Any) -> Structures25Labels:
    return Structures25Labels(root=str(root), dataset=dataset, **options)


def test_a_split_leads_to_its_samples(root: Path) -> None:
    source = source_of(root)
    parts = source.parts(split_of(root, good_split()))
    assert parts == {
        "train": [str(root / f"QM9/labels/{name}.zarr.zip") for name in ("water", "methane")],
        "val": [str(root / "QM9/labels/ammonia.zarr.zip")],
        "test": [str(root / "QMUGS/labels/water.zarr.zip")],
    }
    datasets: dict[str, Any] = {part: source.open(part, members, []) for part, members in parts.items()}
    assert {part: len(dataset) for part, dataset in datasets.items()} == {"train": 6, "val": 3, "test": 3}
    assert datasets["test"][0].mol_id == "water"


def test_entries_without_a_data_set_belong_to_the_only_one(root: Path) -> None:
    entries = {"train": ["water.zarr.zip"], "val": ["methane.zarr.zip"]}
    assert len(source_of(root, "QM9").parts(split_of(root, entries))["train"]) == 1
    with pytest.raises(SplitError, match=r"'water.zarr.zip' belongs to the data set None; expected one of"):
        source_of(root).parts(split_of(root, entries))
    with pytest.raises(SplitError, match=r"'water.zarr.zip' belongs to the data set 'QMUGS'.*data\.source\.dataset"):
        source_of(root, "QM9").parts(split_of(root, good_split()))


def test_missing_label_files_are_listed(root: Path) -> None:
    split = good_split()
    split["train"] += [entry("QM9", "benzene"), entry("QM9", "toluene")]
    source = source_of(root)
    members = source.parts(split_of(root, split))["train"]
    with pytest.raises(SplitError, match=r"label files of the train split that do not exist.*: 2 ") as error:
        source.open("train", members, [])
    for expected in ("QM9/labels/benzene.zarr.zip", "QM9/labels/toluene.zarr.zip"):
        assert expected in str(error.value)
    assert "water" not in str(error.value)


def test_a_random_split_covers_the_folders_of_labels(root: Path) -> None:
    parts = source_of(root).parts(SplitConfig(0.6, 0.2, 0.2))
    assert sorted(path for paths in parts.values() for path in paths) == sorted(map(str, root.rglob("*.zarr.zip")))


def test_a_basis_of_dataset_info_is_that_of_the_labels(root: Path) -> None:
    made = source_of(root, "QM9", basis_info=str(root / "QM9/dataset_info.yaml")).basis()
    assert made == BasisInfo.from_json(EMBEDDED / "basis_info.json")
    # [STR25]'s sizes: H 20, C 109, N, O, F 116 functions
    assert made.basis_dim_per_atom.tolist() == [20, 109, 116, 116, 116]
    (root / "QM9/basis_info.json").unlink()
    assert source_of(root, "QM9").basis() == made
    assert source_of(root, "QM9", atomic_numbers=[8, 1]).basis().atomic_numbers.tolist() == [1, 8]
    (root / "QM9/dataset_info.yaml").unlink()
    with pytest.raises(BasisError, match=r"neither basis_info\.json nor dataset_info\.yaml"):
        source_of(root, "QM9").basis()


def test_a_json_basis_gets_its_exponents_from_dataset_info(root: Path) -> None:
    found = source_of(root, "QM9").basis()
    assert found.exponent_per_shell is None  # another basis than that of dataset_info.yaml
    shells = json.loads((EMBEDDED / "basis_info.json").read_text())
    plain = {key: shells[key][::-1] for key in ("atomic_numbers", "irreps_per_atom")}
    (root / "QM9/basis_info.json").write_text(json.dumps(plain))
    found = source_of(root, "QM9").basis()
    assert found.to_dict() == {**plain, "exponents_per_atom": shells["exponents_per_atom"][::-1]}


@pytest.mark.parametrize(
    ("keywords", "key"),
    [
        ({"dataset": "QM8"}, "data.source.paths"),
        ({"dataset": 3}, "data.source.dataset"),
        ({"dataset": "QM9", "atomic_numbers": [0]}, "data.source.atomic_numbers"),
        ({"dataset": "QM9", "keep_initial_guess": "yes"}, "data.source.keep_initial_guess"),
    ],
)
def test_wrong_settings_name_the_key(root: Path, keywords: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Structures25Labels(root=str(root), **keywords).everything()
