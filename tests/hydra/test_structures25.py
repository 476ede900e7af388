"""STRUCTURES25's folders: splits that name data sets, bases from `dataset_info.yaml`."""

import json
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ofdft_norm.config import SplitConfig, Structures25Labels
from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.dataset_info import read_dataset_info
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.data.label_files import read_n_scf_iterations
from ofdft_norm.errors import BasisError, ConfigError, OFDFTNormError, SplitError

DATASET_INFO = {
    "kohn_sham": {"basis": "6-31G(2df,p)", "xc": "PBE", "convergence_tolerance": "1.0e-09"},
    "of_basis_set": "even_tempered_2.5",
    "dataset": {"name": "QM9", "label_dir": "${oc.env:DFT_DATA}/${dataset.name}/labels/"},
}
FILES = {"QM9": ("water", "methane", "ammonia"), "QMUGS": ("water", "ethyne")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets; both have a water."""
    folder = tmp_path_factory.mktemp("data")
    for dataset, molecules in FILES.items():
        (folder / dataset / "labels").mkdir(parents=True)
        for name in molecules:
            shutil.copy(EMBEDDED_DATA / "labels" / f"{name}.zarr.zip", folder / dataset / "labels")
        (folder / dataset / "dataset_info.yaml").write_text(yaml.safe_dump(DATASET_INFO))
    return folder


def entry(dataset: str, name: str) -> tuple[str, str, int]:
    file = f"{name}.zarr.zip"
    return dataset, file, read_n_scf_iterations(EMBEDDED_DATA / "labels" / file)


def good_split() -> dict[str, list[Any]]:
    return {
        "train": [entry("QM9", "water"), entry("QM9", "methane")],
        "val": [entry("QM9", "ammonia")],
        "test": [entry("QMUGS", "water")],
    }


def write_split(path: Path, split: dict[str, list[Any]]) -> str:
    if path.suffix == ".npz":
        np.savez(path, **{part: np.array(entries) for part, entries in split.items()})
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump({part: [list(e) for e in entries] for part, entries in split.items()}))
    elif path.suffix == ".json":
        path.write_text(json.dumps(split))
    else:
        path.write_bytes(pickle.dumps(split))
    return str(path)


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".npz"])
def test_split_files_of_all_kinds_lead_to_the_same_samples(root: Path, tmp_path: Path, suffix: str) -> None:
    source = Structures25Labels(root=str(root), dataset=["QM9", "QMUGS"])
    file = write_split(tmp_path / f"split{suffix}", good_split())
    datasets = source.datasets(SplitConfig(file=file), None)
    found = {part: [str(path.relative_to(root)) for path in data.paths] for part, data in datasets.items()}
    assert found == {
        "train": ["QM9/labels/water.zarr.zip", "QM9/labels/methane.zarr.zip"],
        "val": ["QM9/labels/ammonia.zarr.zip"],
        "test": ["QMUGS/labels/water.zarr.zip"],
    }
    assert {part: len(data) for part, data in datasets.items()} == {
        part: sum(n for _, _, n in entries) for part, entries in good_split().items()
    }
    assert datasets["train"][0].coeffs.dtype.itemsize == 8


def test_basis_from_dataset_info_is_the_one_of_the_labels(root: Path) -> None:
    made = Structures25Labels(root=str(root), dataset="QM9").basis()
    assert made == BasisInfo.from_json(EMBEDDED_DATA / "basis_info.json")
    # [STR25]'s sizes: H 20, C 109, N, O, F 116 functions
    assert made.basis_dim_per_atom.tolist() == [20, 109, 116, 116, 116]


def test_basis_depends_on_beta_and_on_each_element_alone() -> None:
    make = BasisInfo.from_atomic_numbers_with_even_tempered_basis
    both = make([8, 1], "6-31G(2df,p)", 2.5)
    assert both.atomic_numbers.tolist() == [8, 1]
    assert both.p_order == "xyz"
    assert [make([z], "6-31G(2df,p)", 2.5).irreps_per_atom[0] for z in (8, 1)] == both.irreps_per_atom
    assert make([1, 8], "6-31G(2df,p)", 1.8).n_basis > both.n_basis
    with pytest.raises(BasisError, match=r"no orbital basis '6-31G\(2df,p\)' for the elements \[1, 19\]"):
        make([1, 19])


def test_json_basis_goes_before_dataset_info(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "QM9", tmp_path / "QM9")
    (tmp_path / "QM9" / "basis_info.json").write_text('{"atomic_numbers": [1], "irreps_per_atom": ["2x0e"]}')
    assert Structures25Labels(root=str(tmp_path), dataset="QM9").basis() == BasisInfo([1], ["2x0e"])
    given = str(tmp_path / "QM9" / "dataset_info.yaml")
    assert Structures25Labels(root=str(tmp_path), dataset="QM9", basis_info=given).basis().n_types == 5


def test_exponents_and_order_are_found_beside_a_json_basis(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "QM9", tmp_path / "QM9")
    shells = json.loads((EMBEDDED_DATA / "basis_info.json").read_text())
    plain = {key: shells[key][::-1] for key in ("atomic_numbers", "irreps_per_atom")}
    (tmp_path / "QM9" / "basis_info.json").write_text(json.dumps(plain))
    found = Structures25Labels(root=str(tmp_path), dataset="QM9").basis().to_dict()
    assert found == {**plain, "p_order": "yzx", "exponents_per_atom": shells["exponents_per_atom"][::-1]}
    # files that do not say are those of STRUCTURES25's code
    for file in (tmp_path / "QM9" / "labels").iterdir():
        file.unlink()
    assert Structures25Labels(root=str(tmp_path), dataset="QM9").basis().p_order == "xyz"


def test_missing_label_files_are_refused_with_the_list(root: Path, tmp_path: Path) -> None:
    split = good_split()
    split["train"].append(("QM9", "benzene.zarr.zip", 5))
    split["val"].append(("QM9", "toluene.zarr.zip", 5))
    source = Structures25Labels(root=str(root), dataset=["QM9", "QMUGS"])
    with pytest.raises(SplitError) as caught:
        source.datasets(SplitConfig(file=write_split(tmp_path / "split.json", split)), None)
    for expected in ("missing label files: 2", "QM9/labels/benzene.zarr.zip", "QM9/labels/toluene.zarr.zip"):
        assert expected in str(caught.value)
    assert "water" not in str(caught.value)


@pytest.mark.parametrize("other", ["test", "val", "train"])
def test_a_molecule_listed_twice_is_refused_with_the_list(root: Path, tmp_path: Path, other: str) -> None:
    split = good_split()
    split[other].append(entry("QM9", "methane"))
    source = Structures25Labels(root=str(root), dataset=["QM9", "QMUGS"])
    with pytest.raises(SplitError, match=rf"twice: 1 .*\n  .*QM9/labels/methane.zarr.zip \(in train and {other}\)"):
        source.datasets(SplitConfig(file=write_split(tmp_path / "split.json", split)), None)


def test_excluded_molecules_may_be_missing_but_not_all_of_training(root: Path, tmp_path: Path) -> None:
    split = good_split()
    split["train"].append(("QM9", "benzene.zarr.zip", 5))
    file = write_split(tmp_path / "split.json", split)
    names = ["QM9", "QMUGS"]
    source = Structures25Labels(root=str(root), dataset=names, exclude=["benzene.zarr.zip", "methane.zarr.zip"])
    assert [path.name for path in source.split_files(SplitConfig(file=file))[0]["train"]] == ["water.zarr.zip"]
    everything = [name for _, name, _ in split["train"]]
    with pytest.raises(SplitError, match="training split has no molecule"):
        Structures25Labels(root=str(root), dataset=names, exclude=everything).split_files(SplitConfig(file=file))


def test_a_data_set_that_is_not_configured_is_refused(root: Path, tmp_path: Path) -> None:
    file = write_split(tmp_path / "split.json", good_split())
    with pytest.raises(SplitError, match=r"'water.zarr.zip' belongs to the data set 'QMUGS'.*data.source.dataset"):
        Structures25Labels(root=str(root), dataset="QM9").split_files(SplitConfig(file=file))


def test_random_split_covers_the_folder_of_labels(root: Path) -> None:
    source = Structures25Labels(root=str(root), dataset=["QM9", "QMUGS"])
    parts, _ = source.split_files(SplitConfig(train=0.6, val=0.2, test=0.2))
    files = sorted(path for paths in parts.values() for path in paths)
    assert files == sorted(root.rglob("*.zarr.zip"))


def test_pickled_splits_are_never_opened(root: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    path = tmp_path / "split.pkl"
    path.write_bytes(pickle.dumps({"train": [Bomb()]}))
    with pytest.raises(SplitError, match=r"pickle\.load"):
        Structures25Labels(root=str(root), dataset="QM9").split_files(SplitConfig(file=str(path)))
    array = tmp_path / "split.npz"
    np.savez(array, train=np.array([Bomb()], dtype=object))
    with pytest.raises(SplitError, match=r"split\.npz: cannot be read as a split"):
        Structures25Labels(root=str(root), dataset="QM9").split_files(SplitConfig(file=str(array)))
    assert not (tmp_path / "exploded").exists()


def test_the_conversion_that_the_message_proposes_works(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.pkl"
    write_split(path, good_split())
    source = Structures25Labels(root=str(root), dataset=["QM9", "QMUGS"])
    with pytest.raises(SplitError) as caught:
        source.split_files(SplitConfig(file=str(path)))
    command = str(caught.value).split("`")[1].replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert source.split_files(SplitConfig(file=str(tmp_path / "split.json"))) == source.split_files(
        SplitConfig(file=write_split(tmp_path / "direct.json", good_split()))
    )


@pytest.mark.parametrize(
    "content",
    [
        {"train": [["QM9", "water.zarr.zip"]]},
        {"train": [["QM9", "water.zarr.zip", "many"]]},
        {"train": "water.zarr.zip"},
        {"train": None},
        {"val": []},
        {"train": [], "dev": []},
        ["water.zarr.zip"],
    ],
)
def test_malformed_splits_name_the_file_and_what_is_wrong(root: Path, tmp_path: Path, content: Any) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SplitError, match=r"split\.json: "):
        Structures25Labels(root=str(root), dataset="QM9").split_files(SplitConfig(file=str(path)))


@pytest.mark.parametrize("change", [{"of_basis_set": "def2-universal-jfit"}, {"kohn_sham": None}, {"kohn_sham": {}}])
def test_dataset_info_without_an_even_tempered_basis_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "dataset_info.yaml"
    path.write_text(yaml.safe_dump({**DATASET_INFO, **change}))
    with pytest.raises(BasisError, match=r"even_tempered_<beta>.*data\.source\.basis_info"):
        read_dataset_info(path)


@pytest.mark.parametrize(
    ("keywords", "key"),
    [
        ({"dataset": "QM8"}, "data.source.paths|data.source.dataset"),
        ({"dataset": 3}, "data.source.dataset"),
        ({"dataset": "QM9", "atomic_numbers": [0]}, "data.source.atomic_numbers"),
        ({"dataset": "QM9", "keep_initial_guess": "yes"}, "data.source.keep_initial_guess"),
    ],
)
def test_wrong_settings_name_the_key(root: Path, keywords: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Structures25Labels(root=str(root), **keywords).label_files()


def test_a_folder_without_any_basis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OFDFTNormError, match=r"neither basis_info\.json nor dataset_info\.yaml"):
        Structures25Labels(root=str(tmp_path), dataset="QM9").basis()
