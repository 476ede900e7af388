"""Label files say in which order the functions of a p shell stand; a data set has one order."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import zarr

from ofdft_norm import BasisInfo, OFDataset
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.data.label_files import read_molecule
from ofdft_norm.data.label_source import LabelFiles
from ofdft_norm.errors import LabelFileError

STATED = {None: {}, "yzx": {"p_order": "yzx"}, "xyz": {"p_order": "xyz"}, "0.1.0": {"irreps_per_atom": {"1": "2x0e"}}}


@pytest.fixture
def write(labels: Any) -> Any:
    """`write(name, what)`: a label file with the attributes of `STATED[what]`."""

    def written(name: str, what: str | None) -> Path:
        path: Path = labels.write(f"{name}.zarr")
        zarr.open_group(str(path), mode="r+", zarr_format=2).attrs.update(STATED[what])
        return path

    return written


@pytest.mark.parametrize(("what", "order"), [(None, None), ("yzx", "yzx"), ("xyz", "xyz"), ("0.1.0", "yzx")])
def test_what_a_file_says(write: Any, what: str | None, order: str | None) -> None:
    assert read_molecule(write("water", what), "e_kin", "grad_kin").p_order == order


def test_the_embedded_labels_are_in_the_order_of_m() -> None:
    assert read_molecule(EMBEDDED_DATA / "labels" / "water.zarr.zip", "e_kin", "grad_kin").p_order == "yzx"


@pytest.mark.parametrize("order", ["zxy", 3, ["xyz"], None])
def test_another_order_is_refused(labels: Any, order: Any) -> None:
    path = labels.write("water.zarr")
    zarr.open_group(str(path), mode="r+", zarr_format=2).attrs["p_order"] = order
    if order is None:  # null says nothing
        assert read_molecule(path, "e_kin", "grad_kin").p_order is None
        return
    with pytest.raises(
        LabelFileError, match=r"water\.zarr: molecule 'water': attribute 'p_order'.*data.source.exclude"
    ):
        read_molecule(path, "e_kin", "grad_kin")


@pytest.mark.parametrize(("first", "second"), [(None, "0.1.0"), ("yzx", None), (None, "yzx")])
def test_files_of_structures25_and_of_this_package_are_not_mixed(
    labels: Any, write: Any, first: str | None, second: str | None
) -> None:
    dataset = OFDataset([write("a", first), write("b", second)], labels.basis_info)
    dataset[0]
    with pytest.raises(LabelFileError, match=r"b\.zarr.* those of .*a\.zarr.*one order.*data.source.exclude"):
        dataset.molecule_batch(1)


def test_a_stated_order_must_be_the_one_of_the_basis(labels: Any, write: Any) -> None:
    basis = BasisInfo(labels.basis_info.atomic_numbers, labels.basis_info.irreps_per_atom, "xyz")
    for what in ("yzx", "0.1.0"):
        with pytest.raises(
            LabelFileError, match=r"'p_order' is 'yzx', but the basis has 'xyz'.*data.source.basis_info"
        ):
            OFDataset([write("a", what)], basis)[0]
    with pytest.raises(LabelFileError, match=r"'p_order' is 'xyz', but the basis has 'yzx'"):
        OFDataset([write("b", "xyz")], labels.basis_info)[0]


@pytest.mark.parametrize(("what", "order"), [(None, "xyz"), ("yzx", "yzx"), ("xyz", "xyz"), ("0.1.0", "yzx")])
def test_a_basis_that_leaves_the_order_open_takes_that_of_the_first_label_file(
    labels: Any, write: Any, tmp_path: Path, what: str | None, order: str
) -> None:
    open_basis, closed_basis = tmp_path / "open.json", tmp_path / "closed.json"
    content = labels.basis_info.to_dict()
    closed_basis.write_text(json.dumps(content))
    del content["p_order"]
    open_basis.write_text(json.dumps(content))
    path = write("water", what)
    for paths in (str(path), str(path.parent), [str(path.parent / "*.zarr")]):
        assert LabelFiles(paths, str(open_basis)).basis().p_order == order
    assert LabelFiles(str(path), str(closed_basis)).basis().p_order == "yzx"


def test_files_of_one_order_are_read_together(labels: Any, write: Any) -> None:
    irreps = labels.basis_info.irreps_per_atom
    cases: list[tuple[Any, list[Any]]] = [("xyz", [None, "xyz"]), ("yzx", ["yzx", "0.1.0"]), ("yzx", [None, None])]
    for order, files in cases:
        basis = BasisInfo(labels.basis_info.atomic_numbers, irreps, order)
        paths = [write(f"{order}_{len(files)}_{i}_{what}", what) for i, what in enumerate(files)]
        dataset = OFDataset(paths, basis)
        assert len([sample.mol_id for sample in pickle.loads(pickle.dumps(dataset))]) == len(dataset) == 8
