"""What the fit does with odd and bad input: weights, elements, labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    OFData,
    OFDataset,
    SampleWeigher,
)
from ofdft_norm.errors import BatchError, LabelFileError, StatisticsError

Samples = Callable[..., list[OFData]]


def fit_quietly(dataset: Any, basis_info: BasisInfo, weighers: Sequence[SampleWeigher], **kwargs: Any) -> Any:
    return DatasetStatistics.from_dataset(None, dataset, basis_info, weighers, progress=False, **kwargs)


def every_element(basis_info: BasisInfo) -> list[list[int]]:
    z = basis_info.atomic_numbers.tolist()
    return [z, [*z, z[0]], [z[0]], [*z, *z, z[-1]], [z[-1]] * 3]


# --- weights ----------------------------------------------------------------------------------------------------------


def test_samples_of_weight_zero_change_nothing(
    basis_info: BasisInfo, scf_samples: Samples, field_weighers: list[SampleWeigher], assert_same_statistics: Any
) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), every_element(basis_info), n_scf=2)
    for sample in samples:
        sample.weight[:] = 0.5
    alone = fit_quietly(samples, basis_info, field_weighers[:1])
    ignored = scf_samples(basis_info, np.random.default_rng(1), every_element(basis_info), n_scf=1)
    for sample, worst in zip(ignored, (np.nan, np.inf, -np.inf, 1e300, np.nan), strict=True):
        sample.weight[:] = 0.0
        sample.mol_id += " ignored"
        for field in ("coeffs", "gradient_label", "energy_label"):
            sample[field] = torch.full_like(sample[field], worst)
    mixed = [s for pair in zip(samples, [*ignored, *ignored], strict=True) for s in pair]
    together = fit_quietly(DataLoader(mixed, 4, follow_batch=["coeffs"]), basis_info, field_weighers[:1])
    assert_same_statistics(together.to_arrays(), alone.to_arrays())


def test_numbers_without_label_are_never_used(
    basis_info: BasisInfo, scf_samples: Samples, naive: Any, assert_close: Any
) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(2), every_element(basis_info), n_scf=3)
    expected = naive(samples, basis_info, [1.0] * len(samples))
    for sample in samples:
        if not sample.has_energy_label:
            sample.gradient_label[:] = torch.nan
            sample.energy_label[:] = torch.nan
    assert not all(s.has_energy_label for s in samples)
    assert_close(fit_quietly(samples, basis_info, [ConstantSampleWeigher()]), "constant", expected)


class FixedWeigher(SampleWeigher):
    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def get_weights(self, batch: Data) -> Tensor:
        return torch.as_tensor(self.weight, dtype=torch.float64).expand(len(batch.ptr) - 1)

    def summary_string(self) -> str:
        return "fixed"


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-1.0, "'fixed' gave sample 0 .*molecule 0.* the weight -1.0; expected 0, or 1e-100 ... 1e\\+100"),
        (1e200, "the weight 1e\\+200; expected 0, or 1e-100 ... 1e\\+100"),
        (1e-200, "the weight 1e-200; expected 0, or 1e-100 ... 1e\\+100"),
        (float("nan"), "the weight nan"),
        (float("inf"), "the weight inf"),
        (0.0, "'fixed' gives no sample of the training split a positive weight.*data.statistics.weighers"),
    ],
)
def test_bad_weights(basis_info: BasisInfo, scf_samples: Samples, weight: float, message: str) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), [[8, 1, 6]], n_scf=2)
    with pytest.raises(StatisticsError, match=message):
        fit_quietly(samples, basis_info, [FixedWeigher(weight)])


def test_a_weigher_that_returns_too_few_weights(basis_info: BasisInfo, scf_samples: Samples) -> None:
    class Short(FixedWeigher):
        def get_weights(self, batch: Data) -> Tensor:
            return torch.ones(1)

    samples = scf_samples(basis_info, np.random.default_rng(0), [[8, 1, 6]], n_scf=2)
    with pytest.raises(StatisticsError, match=r"shape \(1,\) for 2 samples"):
        fit_quietly(samples, basis_info, [Short(1.0)])


def test_weigher_that_chooses_unlabelled_samples_only(basis_info: BasisInfo, scf_samples: Samples) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), [[8, 1, 6]], n_scf=2)
    for sample in samples:
        sample.has_energy_label[:] = False
    with pytest.raises(StatisticsError, match="no sample with energy and gradient labels"):
        fit_quietly(samples, basis_info, [ConstantSampleWeigher()])


# --- what the data lack -----------------------------------------------------------------------------------------------


def test_empty_training_split(basis_info: BasisInfo) -> None:
    nothing: list[Any] = [[], DataLoader([], follow_batch=["coeffs"]), OFDataset([], basis_info)]
    for dataset in nothing:
        with pytest.raises(StatisticsError, match=r"training split.*config: data\.split"):
            fit_quietly(dataset, basis_info, [ConstantSampleWeigher()])


def test_too_few_atoms_of_an_element(basis_info: BasisInfo, scf_samples: Samples) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), [[8, 1, 6], [1, 6, 6]], n_scf=1)
    for sample in samples:
        sample.has_energy_label[:] = True
    with pytest.raises(StatisticsError, match=r"too few atoms .*\{1: 2, 8: 1\}.*at least 3.*min_atoms_per_type"):
        fit_quietly(samples, basis_info, [ConstantSampleWeigher()], min_atoms_per_type=3)


def test_an_element_without_atoms_is_neutral(basis_info: BasisInfo, scf_samples: Samples) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), [[8, 1, 1], [1, 1], [8, 8]], n_scf=2)
    with pytest.warns(UserWarning, match=r"elements \[6\].*'constant'.*no atom"):
        found = fit_quietly(samples, basis_info, [ConstantSampleWeigher()])
    carbon = basis_info.atom_ind_to_basis_function_ind[1]
    for key in ("coeffs/mean", "coeffs/std", "coeffs/abs_max", "gradient_label/mean", "gradient_max_after_atom_ref"):
        assert not found.load_statistic("constant", key)[carbon].any(), key
    assert found.load_statistic("constant", "atom_ref_atom_type_bias")[1] == 0
    assert found.load_statistic("constant", "n_atoms").tolist() == [8, 0, 6]


def test_one_composition_has_the_solution_of_minimum_norm(basis_info: BasisInfo, scf_samples: Samples) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), [[6, 8, 1, 1]] * 3, n_scf=2)
    found = fit_quietly(samples, basis_info, [ConstantSampleWeigher()])
    assert found.load_statistic("constant", "atom_ref_rank") == 1
    assert found.load_statistic("constant", "linear_ref_rank") == 1
    t = found.load_statistic("constant", "linear_ref_atom_type_bias")
    np.testing.assert_allclose(t / t[1], [2, 1, 1], rtol=1e-12)  # along the composition: nothing of the null space
    assert found.load_statistic("constant", "linear_ref_condition_number") == pytest.approx(1)


def test_a_basis_of_one_function(make_sample: Any, naive: Any, assert_close: Any) -> None:
    basis_info = BasisInfo([1], ["1x0e"])
    rng = np.random.default_rng(0)
    samples = [make_sample(basis_info, rng, [1] * n, f"{n}") for n in (1, 2, 3, 3)]
    found = fit_quietly(samples, basis_info, [ConstantSampleWeigher()])
    assert found.load_statistic("constant", "coeffs/mean").shape == (1,)
    assert found.load_statistic("constant", "n_atoms").shape == (1,)
    assert found.load_statistic("constant", "atom_ref_atom_type_bias").shape == (1,)
    samples[-1].mol_id = "other"
    assert_close(found, "constant", naive(samples, basis_info, [1.0] * 4))


# --- bad labels -------------------------------------------------------------------------------------------------------


def spoil(array: str, row: int = 2) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[array][(row, *[1] * (arrays[array].ndim - 1))] = np.nan

    return change


@pytest.mark.parametrize(
    "array", ["of_labels/spatial/coeffs", "of_labels/spatial/grad_kin", "of_labels/energies/e_kin"]
)
def test_a_nan_in_a_file_names_file_molecule_and_field(labels: Any, array: str) -> None:
    bad = labels.write("methane.zarr.zip", (6, 1, 1, 1, 1), change=spoil(array))
    dataset = OFDataset([labels.write(), bad], labels.basis_info)
    with pytest.raises(LabelFileError, match=rf"{bad}.*'methane'.*{array}.*nan"):
        fit_quietly(dataset, labels.basis_info, [ConstantSampleWeigher()])


@pytest.mark.parametrize("field", ["coeffs", "gradient_label", "energy_label"])
def test_a_nan_in_memory_names_molecule_and_field(basis_info: BasisInfo, scf_samples: Samples, field: str) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), every_element(basis_info), n_scf=2)
    samples[5].has_energy_label[:] = True
    samples[5][field][-1] = torch.inf
    with pytest.raises(StatisticsError, match=rf"'molecule 2' \(sample 5, SCF iteration 1\): field '{field}' is inf"):
        fit_quietly(samples, basis_info, [ConstantSampleWeigher()])


def test_missing_fields_and_foreign_bases(basis_info: BasisInfo, scf_samples: Samples, make_sample: Any) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), every_element(basis_info), n_scf=2)
    other = BasisInfo([1, 6, 8], ["1x0e", "1x0e", "1x0e"])
    with pytest.raises(BatchError, match=r"samples were made with another basis.*data\.source\.basis_info"):
        fit_quietly(samples, other, [ConstantSampleWeigher()])
    for sample in samples:
        del sample.gradient_label
    with pytest.raises(BatchError, match="need the field 'gradient_label'"):
        fit_quietly(samples, basis_info, [ConstantSampleWeigher()])
