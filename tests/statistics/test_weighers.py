"""Sample weighers: their weights and their names."""

from typing import Any

import numpy as np
import pytest

from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    GroundStateOnlySampleWeigher,
    HasEnergyLabelSampleWeigher,
    InitialGuessOnlySampleWeigher,
    MinSCFIterationSampleWeigher,
    ProductSampleWeigher,
    SampleWeigher,
)
from ofdft_norm.errors import BatchError, StatisticsError
from ofdft_norm.statistics.weighers import check_keys

CASES = [
    (ConstantSampleWeigher(), "constant", [1, 1, 1, 1]),
    (ConstantSampleWeigher(2), "constant_2", [2, 2, 2, 2]),
    (ConstantSampleWeigher(0.1234567), "constant_0.1234567", [0.1234567] * 4),
    (HasEnergyLabelSampleWeigher(), "has_energy_label", [0, 1, 1, 1]),
    (MinSCFIterationSampleWeigher(2), "min_scf_iteration_2", [0, 0, 1, 1]),
    (InitialGuessOnlySampleWeigher(), "initial_guess_only", [1, 0, 0, 0]),
    (GroundStateOnlySampleWeigher(), "ground_state_only", [0, 0, 0, 1]),
    (
        ConstantSampleWeigher(2) * HasEnergyLabelSampleWeigher() * MinSCFIterationSampleWeigher(2),
        "constant_2_times_has_energy_label_times_min_scf_iteration_2",
        [0, 0, 2, 2],
    ),
]


@pytest.fixture(scope="module")
def path_of_four(basis_info: BasisInfo, make_sample: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    samples = [make_sample(basis_info, rng, [8, 1, 1], "water", i, i > 0) for i in range(4)]
    samples[3].coeffs = samples[3].ground_state_coeffs.clone()
    samples[2].coeffs = samples[2].ground_state_coeffs.clone()
    samples[2].coeffs[-1] += 1e-6
    return samples


@pytest.mark.parametrize(("weigher", "name", "weights"), CASES, ids=[case[1] for case in CASES])
def test_weights_and_names(
    path_of_four: list[Any], make_batch: Any, weigher: SampleWeigher, name: str, weights: list[float]
) -> None:
    assert weigher.summary_string() == name
    assert weigher.get_weights(make_batch(path_of_four)).tolist() == weights
    assert [weigher.get_weights(sample).tolist() for sample in path_of_four] == [[w] for w in weights]


def test_missing_fields_are_named(path_of_four: list[Any]) -> None:
    with pytest.raises(StatisticsError, match="at least one"):
        ProductSampleWeigher()
    sample = path_of_four[0].clone()
    del sample.scf_iteration
    with pytest.raises(BatchError, match=r"'initial_guess_only' needs the field 'scf_iteration'.*weighers"):
        InitialGuessOnlySampleWeigher().get_weights(sample)


@pytest.mark.parametrize("weight", [-1, 1e200, float("nan"), 10**400, "1", True])
def test_a_constant_weight_out_of_range_is_refused(weight: Any) -> None:
    with pytest.raises(StatisticsError, match=r"weight = .*expected 0, or 1e-100.*config: data\.statistics\.weighers"):
        ConstantSampleWeigher(weight)


class Heavy(ConstantSampleWeigher):
    def summary_string(self) -> str:
        return "constant"


def test_equal_weighers_share_a_key_and_different_ones_are_refused() -> None:
    a, b = ConstantSampleWeigher(2), HasEnergyLabelSampleWeigher()
    check_keys([a, b, a * b, ConstantSampleWeigher(2) * HasEnergyLabelSampleWeigher(), Heavy() * a, b, a])
    check_keys([ConstantSampleWeigher(0.1234567), ConstantSampleWeigher(0.1234568)])
    for different in ([ConstantSampleWeigher(), Heavy()], [Heavy(), Heavy(3)], [Heavy() * b, Heavy(3) * b]):
        with pytest.raises(StatisticsError, match=r"two different weighers, .* key 'constant"):
            check_keys([a, *different])
