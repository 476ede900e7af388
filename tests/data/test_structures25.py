"""STRUCTURES25's folders: splits that name data sets, bases from `dataset_info.yaml`."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.split import SplitConfig
from ofdft_norm.data.structures25 import Structures25Labels
from ofdft_norm.errors import BasisError, SplitError

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


SPLIT = {
    "train": [("QM9", "water.zarr.zip", 3), ("QM9", "methane.zarr.zip", 3)],
    "val": [("QM9", "ammonia.zarr.zip", 3)],
    "test": [("QMUGS", "water.zarr.zip", 3)],
}


def split_of(folder: Path, entries: dict[str, list[Any]]) -> SplitConfig:
    (folder / "split.json").write_text(json.dumps(entries))
    return SplitConfig(file=str(folder / "split.json"))


def source_of(root: Path, dataset: Any = ("QM9", "QMUGS"), **options: Any) -> Structures25Labels:
    return Structures25Labels(root=str(root), dataset=dataset, **options)


def test_a_split_leads_to_its_samples(root: Path) -> None:
    source = source_of(root)
    assert source.everything() == sorted(map(str, root.rglob("*.zarr.zip")))
    parts = source.parts(split_of(root, SPLIT))
    assert parts == {
        "train": [str(root / f"QM9/labels/{name}.zarr.zip") for name in ("water", "methane")],
        "val": [str(root / "QM9/labels/ammonia.zarr.zip")],
        "test": [str(root / "QMUGS/labels/water.zarr.zip")],
    }
    assert [len(source.open(part, members, [])) for part, members in parts.items()] == [6, 3, 3]


def test_entries_without_a_data_set_belong_to_the_only_one(root: Path) -> None:
    entries = {"train": ["water.zarr.zip"], "val": ["methane.zarr.zip"]}
    assert len(source_of(root, "QM9").parts(split_of(root, entries))["train"]) == 1
    with pytest.raises(SplitError, match=r"'water.zarr.zip' belongs to the data set None; expected one of"):
        source_of(root).parts(split_of(root, entries))
    with pytest.raises(SplitError, match=r"'water.zarr.zip' belongs to the data set 'QMUGS'.*data\.source\.dataset"):
        source_of(root, "QM9").parts(split_of(root, SPLIT))


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
