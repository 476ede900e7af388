"""What the fit does with odd and bad input: weights, elements, labels."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from ofdft_norm import (
    BasisInfo,
    DimensionWiseRescaling,
    HasEnergyLabelSampleWeigher,
    OFData,
    OFDataset,
    OFDFTDataModule,
    SampleWeigher,
)
from ofdft_norm.errors import BatchError, OFDFTNormError, StatisticsError
from tests.naive_statistics import naive_statistics
from tests.statistics.common import FIELD_WEIGHERS, FIELDS, assert_close, assert_same_statistics, fit


@pytest.mark.parametrize("weigher", FIELD_WEIGHERS)
def test_samples_of_weight_zero_change_nothing(
    basis_info: BasisInfo, samples: list[OFData], weigher: SampleWeigher
) -> None:
    field = FIELDS[weigher.summary_string()]
    for sample in samples:
        sample[field] = torch.tensor([0.5], dtype=torch.float64)
    ignored = [sample.clone() for sample in samples]
    for sample, worst in zip(ignored, (np.nan, np.inf, -np.inf, np.nan, np.nan) * 2, strict=True):
        sample[field] = torch.zeros(1, dtype=torch.float64)
        sample.mol_id += " ignored"
        for name in ("coeffs", "gradient_label", "energy_label"):
            sample[name] = torch.full_like(sample[name], worst)
    mixed = [s for pair in zip(samples, ignored, strict=True) for s in pair]
    for data in (mixed, DataLoader(mixed, 4, follow_batch=["coeffs"])):
        assert_same_statistics(fit(data, basis_info, [weigher]), fit(samples, basis_info, [weigher]))


def test_numbers_without_label_are_never_used(basis_info: BasisInfo, samples: list[OFData]) -> None:
    for sample in samples[1::3]:
        sample.has_energy_label[:] = False
    expected = naive_statistics(samples, basis_info, [1.0] * len(samples))
    for sample in samples[1::3]:
        sample.gradient_label = torch.full_like(sample.gradient_label, torch.nan)
        sample.energy_label = torch.full_like(sample.energy_label, torch.nan)
    assert_close(fit(samples, basis_info), "constant", expected)


def test_a_basis_of_another_class_is_converted(basis_info: BasisInfo, samples: list[OFData]) -> None:
    foreign: Any = SimpleNamespace(atomic_numbers=basis_info.atomic_numbers, irreps_per_atom=basis_info.irreps_per_atom)
    statistics = fit(samples, foreign)
    assert_same_statistics(statistics, fit(samples, basis_info))
    scales = [
        DimensionWiseRescaling.from_dataset_statistics(statistics, basis, "constant", equivariant=True).lambda_z
        for basis in (foreign, basis_info)
    ]
    assert torch.equal(*scales)
    assert OFDFTDataModule.wrap(train=samples, basis_info=foreign).basis_info == basis_info


class FixedWeigher(SampleWeigher):
    key = "fixed"

    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def get_weights(self, batch: Data) -> Tensor:
        weight = torch.as_tensor(self.weight, dtype=torch.float64)
        return weight if weight.ndim else weight.expand(len(batch.ptr) - 1)


def change(chosen: slice, field: str, make: Callable[[Tensor], Tensor] | None) -> Callable[[list[OFData]], None]:
    """A change of a field of some samples; None: the field is removed."""

    def apply(samples: list[OFData]) -> None:
        for sample in samples[chosen]:
            value = sample[field]
            del sample[field]
            if make is not None:
                sample[field] = make(value.clone())

    return apply


def end_with(number: float) -> Callable[[Tensor], Tensor]:
    return lambda values: torch.cat([values[:-1], torch.tensor([number], dtype=torch.float64)])


EVERY = slice(None)
UNLABELLED = change(EVERY, "has_energy_label", torch.zeros_like)


def spoil_gradients(samples: list[OFData]) -> None:
    samples[0].has_energy_label[:] = False  # its gradient is not used
    samples[0].gradient_label[:] = torch.nan
    samples[5].gradient_label[-1] = torch.inf


SMALLER = BasisInfo([1, 6, 8], ["1x0e", "1x0e", "1x0e"])
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    *(
        (None, {"weighers": [FixedWeigher(weight)]}, message)
        for weight, message in (
            (-1.0, "'fixed' gave sample 0 .*molecule 0.* the weight -1.0; expected 0, or 1e-100 ... 1e\\+100"),
            (1e200, "the weight 1e\\+200; expected 0, or 1e-100 ... 1e\\+100"),
            (0.0, "'fixed' gives no sample of the training split a positive weight.*data.statistics.weighers"),
            ([1.0], r"shape \(1,\) for 10 samples"),
        )
    ),
    (UNLABELLED, {}, "no sample with energy and gradient labels"),
    (UNLABELLED, {"weighers": [HasEnergyLabelSampleWeigher()]}, "'has_energy_label' gives no sample of the training"),
    (None, {"min_atoms_per_type": 9}, r"too few atoms .*\{6: 8\}.*at least 9.*min_atoms_per_type"),
    (None, {"basis_info": SMALLER}, r"samples were made with another basis.*data\.source\.basis_info"),
    (change(slice(3, 4), "coeffs", end_with(1e200)), {}, r"'constant/coeffs/std'.* are not finite"),
    (change(slice(4, 5), "gradient_label", None), {}, r"sample 4 \(molecule 'molecule 2'\) lacks .*'gradient_label'"),
    (change(EVERY, "has_energy_label", None), {}, "lacks the field 'has_energy_label'"),
    (
        change(slice(5, 6), "energy_label", lambda v: v * 1j),
        {"basis_info": None},
        r"'energy_label' has 10 values of torch.complex128, expected real numbers",
    ),
    (spoil_gradients, {}, "5, SCF iteration 1.*'gradient_label' is inf"),
    *(
        (change(slice(5, 6), field, end_with(torch.inf)), {"loader": loader}, f"5, SCF iteration 1.*'{field}' is inf")
        for field in ("coeffs", "gradient_label", "energy_label")
        for loader in (False, True)
    ),
]


@pytest.mark.parametrize(("change", "options", "message"), REFUSED)
def test_samples_and_settings_without_statistics_are_named(
    basis_info: BasisInfo, samples: list[OFData], change: Any, options: dict[str, Any], message: str
) -> None:
    if change is not None:
        change(samples)
    options = {"basis_info": basis_info, **options}
    data: Any = DataLoader(samples, 4, follow_batch=["coeffs"]) if options.pop("loader", False) else samples
    with pytest.raises(OFDFTNormError, match=message):
        fit(data, **options)


def test_empty_training_split(basis_info: BasisInfo) -> None:
    nothing: list[Any] = [[], DataLoader([], follow_batch=["coeffs"]), OFDataset([], basis_info), iter([])]
    for dataset in nothing:
        with pytest.raises(StatisticsError, match=r"training split has no sample.*config: data\.split"):
            fit(dataset, basis_info)


def test_an_element_without_atoms_is_neutral(basis_info: BasisInfo, scf_samples: Callable[..., list[OFData]]) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), [[8, 1, 1], [1, 1], [8, 8]], n_scf=2)
    with pytest.warns(UserWarning, match=r"elements \[6\].*'constant'.*no atom"):
        found = fit(samples, basis_info)["constant"]
    carbon = basis_info.atom_ind_to_basis_function_ind[1]
    for key in ("coeffs/mean", "coeffs/std", "coeffs_range/maximum", "gradient_max_after_atom_ref"):
        assert not found.load(key)[carbon].any(), key
    assert not any(found.gradient_holders[1][b] for b in carbon)
    assert found.reference("atom_ref").t_z[1] == 0
    assert found.n_atoms.tolist() == [8, 0, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": None}, r"sample 1 \(molecule None\) lacks the field 'energy'; it has \['z'\]"),
        ({"energy": np.zeros(2)}, r"sample 1: field 'energy' has shape \(2,\), expected one number"),
        ({"z": None}, r"sample 1 lacks the field 'atomic_numbers' \(or 'z'\).*atomic_numbers_field"),
        ({"z": [0, 1]}, r"sample 1 has the atomic number 0; expected 1 \.\.\. 118"),
        ({"energy": np.nan}, r"sample 1: field 'energy' is nan"),
    ],
)
def test_energies_alone(change: dict[str, Any], message: str) -> None:
    samples = [{"z": torch.tensor([1, 1]), "energy": -1.0} for _ in range(2)]
    samples[1] = {name: value for name, value in {**samples[1], **change}.items() if value is not None}
    with pytest.raises((BatchError, StatisticsError), match=message):
        fit(samples, None, energy_field="energy")
