from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch_geometric.loader import DataLoader

from ofdft_norm import BasisInfo, OFData, OFDataset, ProjectGradient
from ofdft_norm.errors import BasisError, BatchError, ConfigError, LabelFileError
from tests import processes


def add_norm(sample: OFData) -> OFData:
    """A transform for single samples, which knows nothing of batches."""
    sample = ProjectGradient()(sample)
    sample.norm = sample.coeffs.norm().reshape(1)
    return sample


@pytest.fixture
def paths(labels: Any) -> list[Path]:
    """Water, methane and formaldehyde, with 4, 3 and 5 SCF iterations."""
    return labels.write_several()


def test_samples_are_the_rows_of_the_files_in_float64(paths: list[Path], labels: Any, basis_info: Any) -> None:
    dataset = OFDataset(paths, basis_info)
    assert len(dataset) == 12
    assert dataset.n_molecules == 3
    assert dataset.sample_offsets.tolist() == [0, 4, 7, 12]
    rows = [(path, row) for path, n in zip(paths, (4, 3, 5), strict=True) for row in range(n)]
    for index, (path, row) in enumerate(rows):
        arrays = labels.written[path]
        for sample in (dataset[index], dataset[index - 12]):
            spatial = {
                "coeffs": arrays["of_labels/spatial/coeffs"][row],
                "ground_state_coeffs": arrays["of_labels/spatial/coeffs"][-1],
                "gradient_label": arrays["of_labels/spatial/grad_kin"][row],
                "dual_basis_integrals": arrays["of_labels/spatial/dual_basis_integrals"][row],
                "energy_label": arrays["of_labels/energies/e_kin"][[row]],
                "pos": arrays["geometry/atom_pos"],
            }
            for field, expected in spatial.items():
                assert sample[field].dtype == torch.float64
                np.testing.assert_array_equal(sample[field].numpy(), expected)
            assert sample.has_energy_label.tolist() == [row > 0]
            assert sample.scf_iteration.tolist() == [row]
            assert sample.mol_id == path.name.split(".")[0]
            assert sample.atomic_numbers.tolist() == arrays["geometry/atomic_numbers"].tolist()
    assert [s.mol_id for s in dataset] == [p.name.split(".")[0] for p, _ in rows]
    for outside in (12, -13):
        with pytest.raises(IndexError, match="data set of 12"):
            dataset[outside]


@pytest.mark.parametrize(
    ("limit", "with_guess", "without_guess"),
    [
        (None, [0, 1, 2, 3], [1, 2, 3]),
        (0, [0, 1, 2, 3], [1, 2, 3]),
        (1, [0, 1, 2, 3], [1, 2, 3]),
        (2, [0, 2, 3], [2, 3]),
        (-1, [0, 3], [3]),
        (-2, [0, 2, 3], [2, 3]),
        (-9, [0, 1, 2, 3], [1, 2, 3]),
        ([1], [0, 1], [1]),
        ([-1, 1], [0, 1, 3], [1, 3]),
        ((3, -1, 2, 2), [0, 2, 3], [2, 3]),
        ([2, 7, -9], [0, 2], [2]),
        (np.int64(2), [0, 2, 3], [2, 3]),
        (OmegaConf.create([1, -1]), [0, 1, 3], [1, 3]),
    ],
)
def test_selected_scf_iterations(
    limit: Any, with_guess: list[int], without_guess: list[int], labels: Any, basis_info: Any
) -> None:
    path = labels.write(n_scf=4)
    for keep, expected in ((True, with_guess), (False, without_guess)):
        dataset = OFDataset([path], basis_info, limit_scf_iterations=limit, keep_initial_guess=keep)
        assert [int(s.scf_iteration) for s in dataset] == expected
        assert dataset.molecule_batch(0).scf_iteration.tolist() == expected
        assert all(torch.equal(s.ground_state_coeffs, dataset[0].ground_state_coeffs) for s in dataset)


@pytest.mark.parametrize("limit", [9, [], [7], [-5], [0, -4]])
def test_a_file_of_which_nothing_is_selected_is_an_error(limit: Any, labels: Any, basis_info: Any) -> None:
    path = labels.write(n_scf=4)
    with pytest.raises(
        LabelFileError, match=r"none of its 4 SCF iterations.*data.source.limit_scf_iterations"
    ) as error:
        OFDataset([path], basis_info, limit_scf_iterations=limit, keep_initial_guess=False)
    assert str(path) in str(error.value)
    assert "keep_initial_guess=False" in str(error.value)


@pytest.mark.parametrize("limit", ["3", 1.5, [1.0], ["a"], True, {1: 2}])
def test_a_selection_of_another_kind_is_refused(limit: Any, labels: Any, basis_info: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.source\.limit_scf_iterations"):
        OFDataset([labels.write()], basis_info, limit_scf_iterations=limit)


@pytest.mark.parametrize("transform", [None, ProjectGradient(), add_norm])
@pytest.mark.parametrize("limit", [None, [-1], [2, 1]])
def test_molecule_batches_equal_the_collation_of_single_samples(
    transform: Any, limit: Any, paths: list[Path], basis_info: Any, make_batch: Any, assert_same_fields: Any
) -> None:
    dataset = OFDataset(paths, basis_info, transform=transform, limit_scf_iterations=limit, keep_initial_guess=False)
    samples = list(dataset)
    batches = [dataset.molecule_batch(m) for m in range(3)]
    for m, batch in enumerate(batches):
        assert_same_fields(batch, make_batch(samples[dataset.sample_offsets[m] : dataset.sample_offsets[m + 1]]))
    assert_same_fields(dataset.batch(range(len(dataset))), make_batch(samples))


def without_integrals_of_water(sample: Any) -> Any:
    if sample.mol_id == "water":
        del sample.dual_basis_integrals
    return sample


def test_samples_with_different_fields_are_not_joined(paths: list[Path], basis_info: Any) -> None:
    dataset = OFDataset(paths, basis_info, transform=without_integrals_of_water)
    with pytest.raises(BatchError, match=r"\['dual_basis_integrals'\].*data.pre_transforms"):
        dataset.batch(range(len(dataset)))


def test_the_transform_is_applied_once_to_each_sample(paths: list[Path], basis_info: Any) -> None:
    raw, projected = OFDataset(paths, basis_info), OFDataset(paths, basis_info, transform=ProjectGradient())
    for a, b in zip(raw, projected, strict=True):
        assert torch.equal(ProjectGradient()(a).gradient_label, b.gradient_label)
    assert float(projected[1].gradient_label @ projected[1].dual_basis_integrals) == pytest.approx(0, abs=1e-12)


# a server's processes get what spawned ones get, pickled
@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("forkserver", 1)])
def test_loader_workers_give_the_same_batches(
    context: str, workers: int, paths: list[Path], basis_info: Any, make_batch: Any, assert_same_fields: Any
) -> None:
    processes.context()
    dataset = OFDataset(paths, basis_info, transform=ProjectGradient())
    loader = DataLoader(
        dataset, batch_size=5, num_workers=workers, multiprocessing_context=context, follow_batch=["coeffs"]
    )
    samples = list(dataset)
    for start, batch in itertools.zip_longest(range(0, 12, 5), loader):
        assert_same_fields(batch, make_batch(samples[start : start + 5]))


def test_pickling_keeps_everything(paths: list[Path], basis_info: Any, assert_same_fields: Any) -> None:
    dataset = OFDataset(
        paths, basis_info, "e_tot", "grad_tot", ProjectGradient(), limit_scf_iterations=-2, keep_initial_guess=False
    )
    copied = pickle.loads(pickle.dumps(dataset))
    assert len(copied) == len(dataset) == 6
    for a, b in zip(dataset, copied, strict=True):
        assert_same_fields(a, b)


def test_given_numbers_of_iterations_spare_reading_the_headers(paths: list[Path], basis_info: Any) -> None:
    absent = [path.with_name(f"absent_{path.name}") for path in paths]
    assert len(OFDataset(absent, basis_info, n_scf_iterations=[4, 3, 5])) == 12
    with pytest.raises(LabelFileError, match=r"absent_water\.zarr\.zip: no such label file"):
        OFDataset(absent, basis_info)
    with pytest.raises(ConfigError, match=r"2 numbers for 3 label files.*data.split.file"):
        OFDataset(paths, basis_info, n_scf_iterations=[4, 3])


def test_a_given_number_of_iterations_that_is_too_large_is_named(paths: list[Path], basis_info: Any) -> None:
    dataset = OFDataset(paths, basis_info, n_scf_iterations=[9, 3, 5])
    for action in (lambda: dataset[8], lambda: dataset.molecule_batch(0)):
        with pytest.raises(LabelFileError, match=r"'water': 9 SCF iterations were expected.*has 4") as error:
            action()
        assert str(paths[0]) in str(error.value)


def test_an_element_outside_the_basis_names_file_and_molecule(labels: Any) -> None:
    path = labels.write("formaldehyde.zarr.zip", (6, 8, 1, 1))
    dataset = OFDataset([path], BasisInfo([1, 8], ["2x0e+1x1o", "2x0e+1x1o+1x2e"]))
    for action in (lambda: dataset[0], lambda: dataset.molecule_batch(0)):
        with pytest.raises(BasisError, match=r"molecule 'formaldehyde': field 'atomic_numbers'.*\[6\]") as error:
            action()
        assert str(path) in str(error.value)
        assert "data.source.basis_info" in str(error.value)


def test_labels_of_another_basis_name_file_and_molecule(labels: Any) -> None:
    path = labels.write()
    dataset = OFDataset([path], BasisInfo([1, 8], ["2x0e+1x1o", "3x0e"]))
    for action in (lambda: dataset[0], lambda: dataset.molecule_batch(0)):
        with pytest.raises(LabelFileError, match=r"molecule 'water': field 'coeffs'.*data.source.basis_info") as error:
            action()
        assert str(path) in str(error.value)


def test_labels_that_are_not_used_may_be_nan_throughout(labels: Any, basis_info: Any) -> None:
    def spoil(arrays: dict[str, np.ndarray]) -> None:
        arrays["of_labels/spatial/grad_kin"][0] = np.nan
        arrays["of_labels/energies/e_kin"][0] = np.nan

    dataset = OFDataset([labels.write(change=spoil)], basis_info, transform=ProjectGradient())
    batch = dataset.molecule_batch(0)
    assert dataset[0].gradient_label.isnan().all()
    assert not dataset[1].gradient_label.isnan().any()
    assert torch.equal(batch.gradient_label.isnan(), batch.coeffs_batch == 0)
    assert batch.energy_label.isnan().tolist() == [True, False, False, False]
    assert not batch.coeffs.isnan().any()


def test_an_empty_data_set_has_no_sample(basis_info: Any) -> None:
    dataset = OFDataset([], basis_info)
    assert len(dataset) == dataset.n_molecules == 0
    with pytest.raises(IndexError):
        dataset[0]
