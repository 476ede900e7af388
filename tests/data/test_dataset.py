import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch_geometric.transforms import Compose

from ofdft_norm import BasisInfo, OFData, OFDataset, ProjectGradient
from ofdft_norm.data.dataset import apply_transform, compose, read_file_states
from ofdft_norm.errors import BasisError, ConfigError, LabelFileError


def add_norm(sample: OFData) -> OFData:
    """A transform for single samples, which knows nothing of batches."""
    sample = ProjectGradient()(sample)
    sample.norm = sample.coeffs.norm().reshape(1)
    return sample


def test_samples_are_the_rows_of_the_files_in_float64(paths: list[Path], labels: Any, basis_info: Any) -> None:
    dataset = OFDataset(paths, basis_info)
    assert (len(dataset), dataset.n_molecules, dataset.paths) == (12, 3, paths)
    assert dataset.sample_offsets.tolist() == [0, 4, 7, 12]
    assert dataset.elements() == {1, 6, 8}
    for outside in (12, -13):
        with pytest.raises(IndexError, match="12"):
            dataset[outside]
    rows = [(path, row) for path, n in zip(paths, (4, 3, 5), strict=True) for row in range(n)]
    for index, (path, row) in enumerate(rows):
        arrays, sample = labels.written[path], dataset[index - 12]
        expected = {
            "coeffs": arrays["of_labels/spatial/coeffs"][row],
            "ground_state_coeffs": arrays["of_labels/spatial/coeffs"][-1],
            "gradient_label": arrays["of_labels/spatial/grad_kin"][row],
            "dual_basis_integrals": arrays["of_labels/spatial/dual_basis_integrals"][row],
            "energy_label": arrays["of_labels/energies/e_kin"][[row]],
            "pos": arrays["geometry/atom_pos"],
        }
        for field, values in expected.items():
            assert sample[field].dtype == torch.float64
            np.testing.assert_array_equal(sample[field].numpy(), values)
        assert (sample.has_energy_label.tolist(), sample.scf_iteration.tolist()) == ([row > 0], [row])
        assert (sample.mol_id, sample.coordinates) == (path.name.split(".")[0], "raw")
        assert sample.atomic_numbers.tolist() == arrays["geometry/atomic_numbers"].tolist()


@pytest.mark.parametrize("transform", [None, ProjectGradient(), add_norm, compose([add_norm, ProjectGradient()])])
@pytest.mark.parametrize("limit", [None, [-1], [2, 1]])
def test_batches_equal_the_collation_of_single_samples(
    transform: Any, limit: Any, paths: list[Path], basis_info: Any, make_batch: Any, assert_same_fields: Any
) -> None:
    dataset = OFDataset(paths, basis_info, transform=transform, limit_scf_iterations=limit, keep_initial_guess=False)
    samples = list(dataset)
    assert_same_fields(dataset.molecules([0, 1, 2]), make_batch(samples))
    for m, (a, b) in enumerate(zip(dataset.sample_offsets[:-1], dataset.sample_offsets[1:], strict=True)):
        assert_same_fields(dataset.molecules([m]), make_batch(samples[a:b]))
    order = [*range(len(dataset) - 1, -1, -1), 0, 0]
    assert_same_fields(dataset.__getitems__(order), make_batch([samples[i] for i in order]))


SELECTIONS = [
    (None, [0, 1, 2, 3]),
    (2, [0, 2, 3]),
    (-1, [0, 3]),
    ([-1, 1], [0, 1, 3]),
    ((3, -1, 2, 2), [0, 2, 3]),
    (OmegaConf.create([1, -1]), [0, 1, 3]),
]


@pytest.mark.parametrize(("limit", "selected"), SELECTIONS)
@pytest.mark.parametrize("keep", [True, False])
def test_selected_scf_iterations(limit: Any, selected: list[int], keep: bool, labels: Any, basis_info: Any) -> None:
    dataset = OFDataset([labels.write()], basis_info, limit_scf_iterations=limit, keep_initial_guess=keep)
    expected = selected if keep else selected[1:]
    assert dataset.molecules([0]).scf_iteration.tolist() == expected
    assert [int(s.scf_iteration) for s in dataset] == expected
    assert all(torch.equal(s.ground_state_coeffs, dataset[0].ground_state_coeffs) for s in dataset)


def test_a_selection_without_iterations_or_of_another_kind_is_refused(labels: Any, basis_info: Any) -> None:
    for limit in (9, [], [0, -4, 7, -5]):
        dataset = OFDataset([labels.write()], basis_info, limit_scf_iterations=limit, keep_initial_guess=False)
        for action in (lambda dataset=dataset: dataset.molecules([0]), dataset.__len__):
            with pytest.raises(LabelFileError, match=r"water\.zarr\.zip: none of its 4 SCF.*limit_scf_iterations"):
                action()
    others: Any = ("3", 1.5, [1.0], ["a"], True, {1: 2})
    for limit in others:
        with pytest.raises(ConfigError, match=r"data\.source\.limit_scf_iterations"):
            OFDataset([], basis_info, limit_scf_iterations=limit)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "reads_all"),
    [(None, False), (ProjectGradient(), False), (Compose([ProjectGradient()]), False), (lambda sample: sample, True)],
)
def test_fields_that_are_read_have_the_values_of_a_whole_sample(
    transform: Any, reads_all: bool, paths: list[Path], basis_info: Any
) -> None:
    dataset = OFDataset(paths, basis_info, transform=transform)
    whole, gradients = dataset.molecules([0, 2]), dataset.molecules([0, 2], ["gradient_label"])
    assert torch.equal(gradients.gradient_label, whole.gradient_label)
    energies = dataset.molecules([0, 2], ["energy_label"])
    assert torch.equal(energies.energy_label, whole.energy_label)
    assert ("gradient_label" in energies, "dual_basis_integrals" in energies) == (reads_all, reads_all)


@pytest.mark.parametrize("n", [3, 9])
def test_another_number_of_iterations_than_the_split_states_is_named(
    n: int, paths: list[Path], basis_info: Any
) -> None:
    dataset = OFDataset(paths, basis_info, n_scf_iterations=[n, 3, 5])
    for action in (lambda: dataset.molecules([0]), dataset.elements):
        with pytest.raises(LabelFileError, match=rf"water\.zarr\.zip: .*expected {n}.*data\.split\.file"):
            action()
    with pytest.raises(ConfigError, match="n_scf_iterations has 2 entries for 3"):
        OFDataset(paths, basis_info, n_scf_iterations=[4, 3])


def test_two_geometries_of_one_name_are_refused(labels: Any, basis_info: Any) -> None:
    dataset = OFDataset([labels.write("water.zarr.zip"), labels.write("water.zarr")], basis_info)
    with pytest.raises(LabelFileError, match=r"water\.zarr: .*'water' has another geometry than in .*water\.zarr\.zip"):
        dataset.molecules([0, 1])


def test_labels_of_another_basis_name_file_and_molecule(labels: Any) -> None:
    path = labels.write("formaldehyde.zarr.zip", (6, 8, 1, 1))
    for basis, error, words in (
        (BasisInfo([1, 8], ["2x0e+1x1o", "2x0e+1x1o+1x2e"]), BasisError, r"field 'atomic_numbers'.*\[6\]"),
        (BasisInfo([1, 6, 8], ["2x0e+1x1o", "2x0e", "3x0e"]), LabelFileError, "coefficients"),
    ):
        dataset = OFDataset([path], basis)
        with pytest.raises(error, match=rf"{path}: molecule 'formaldehyde'.*{words}.*data\.source\.basis_info"):
            dataset.molecules([0])


# --- transforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("works_on_batches", [True, False])
def test_an_error_of_a_transform_gets_a_note_with_the_molecules(
    works_on_batches: bool, paths: list[Path], basis_info: Any
) -> None:
    class Failing:
        def __call__(self, sample: Any) -> Any:
            raise ZeroDivisionError("one of theirs")

    Failing.works_on_batches = works_on_batches  # type: ignore[attr-defined]
    dataset = OFDataset(paths, basis_info, transform=compose([ProjectGradient(), Failing()]))
    with pytest.raises(ZeroDivisionError) as error:
        dataset.molecules([1, 0])
    (note,) = error.value.__notes__
    assert "methane" in note
    assert ("water" in note) == works_on_batches
    with pytest.raises(ZeroDivisionError) as error:
        apply_transform(Failing(), OFDataset(paths, basis_info).molecules([1, 0]), config="data.post_transforms")
    assert "methane" in error.value.__notes__[0]
    assert "(config: data.post_transforms)" in error.value.__notes__[0]


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("put", [lambda source, target: target.symlink_to(source), shutil.copytree, os.rename])
def test_a_label_set_is_the_same_in_another_place(put: Any, labels: Any, tmp_path: Path) -> None:
    labels.folder = tmp_path / "set"
    labels.folder.mkdir()
    paths = labels.write_several()
    before = [read_file_states(paths, contents) for contents in (False, True)]
    put(labels.folder, tmp_path / "scratch")
    moved = [tmp_path / "scratch" / path.name for path in paths]
    assert [read_file_states(moved, contents) for contents in (False, True)] == before


@pytest.mark.parametrize("changed", ["time", "size", "content", "order", "name"])
def test_changed_label_files_have_another_state(changed: str, paths: list[Path]) -> None:
    before, contents = read_file_states(paths), read_file_states(paths, contents=True)
    chunk = paths[1] / "of_labels/spatial/coeffs/0.0"  # in a folder
    old, data = chunk.stat(), bytearray(chunk.read_bytes())
    if changed == "time":
        os.utime(chunk, (1, 1))
    elif changed == "size":
        chunk.write_bytes(data + b"0")
    elif changed == "content":
        data[0] ^= 1
        chunk.write_bytes(data)
        os.utime(chunk, ns=(old.st_atime_ns, old.st_mtime_ns))
    elif changed == "order":
        paths = paths[::-1]
    else:
        paths[0] = paths[0].rename(paths[0].with_name("ice.zarr.zip"))
    assert (read_file_states(paths) == before) == (changed == "content")
    assert (read_file_states(paths, contents=True) == contents) == (changed == "time")


def test_a_missing_label_file_has_no_state(tmp_path: Path) -> None:
    for contents in (False, True):
        with pytest.raises(LabelFileError, match=r"absent\.zarr.*data\.source"):
            read_file_states([tmp_path / "absent.zarr"], contents)
