"""What `apply_to_dataset_statistics` computes, against a new fit on the rescaled samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    DimensionWiseRescaling,
    HasEnergyLabelSampleWeigher,
    InitialGuessOnlySampleWeigher,
    MinSCFIterationSampleWeigher,
    OFData,
)
from ofdft_norm.errors import StatisticsError

WEIGHERS = (HasEnergyLabelSampleWeigher(), ConstantSampleWeigher(), MinSCFIterationSampleWeigher(2))
INITIAL_GUESS_WEIGHERS = (InitialGuessOnlySampleWeigher(), ConstantSampleWeigher(2))
KEYS = [weigher.summary_string() for weigher in WEIGHERS]
OPTIONS: list[dict[str, Any]] = [{}, {"s_coeff": 3, "s_grad": 0.01}, {"epsilon": 0.0}]


def fit(basis: BasisInfo, samples: list[OFData]) -> DatasetStatistics:
    return DatasetStatistics.from_dataset(
        None,
        samples,
        basis,
        atom_ref_fit_sample_weighers=WEIGHERS,
        initial_guess_sample_weighers=INITIAL_GUESS_WEIGHERS,
        progress=False,
    )


def rescaled(rescaling: DimensionWiseRescaling, sample: OFData) -> OFData:
    out = sample.clone()
    index = sample.basis_function_ind
    lam, pbar = rescaling.lambda_z[index], rescaling.coeff_biases[index]
    out.coeffs = lam * (sample.coeffs - pbar)
    out.ground_state_coeffs = lam * (sample.ground_state_coeffs - pbar)
    out.gradient_label = sample.gradient_label / (lam + rescaling.epsilon)
    return out


def assert_same_statistics(transformed: DatasetStatistics, refitted: DatasetStatistics) -> None:
    assert transformed.keys_recursive() == refitted.keys_recursive()
    for key in refitted.keys_recursive():
        a, b = (statistics.load_statistic(*key.split("/", 1)) for statistics in (transformed, refitted))
        assert a.shape == b.shape, key
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * (1 + np.abs(b).max()), err_msg=key)


@pytest.fixture(scope="module")
def samples(basis_info: Any, make_sample: Any) -> list[OFData]:
    """Eight molecules of linearly independent compositions, with four SCF iterations each."""
    rng = np.random.default_rng(0)
    molecules = [[1], [6], [8], [1, 6], [1, 1, 8], [6, 8, 8], [6, 6, 1, 1], [1, 8, 6, 6]]
    return [
        make_sample(basis_info, rng, numbers, f"m{i}", scf_iteration=step, has_energy_label=step > 0)
        for i, numbers in enumerate(molecules)
        for step in range(4)
    ]


@pytest.mark.parametrize("weigher_key", KEYS)
@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_a_new_fit_on_the_rescaled_samples(
    options: dict[str, Any], equivariant: bool, weigher_key: str, basis_info: Any, samples: list[OFData]
) -> None:
    statistics = fit(basis_info, samples)
    options = {**options, "basis_info": basis_info, "equivariant": equivariant}
    rescaling = DimensionWiseRescaling.from_dataset_statistics(statistics, weigher_key=weigher_key, **options)
    assert (rescaling.lambda_z != 1).any()
    transformed = DimensionWiseRescaling.apply_to_dataset_statistics(statistics, None, weigher_key, **options)
    assert_same_statistics(transformed, fit(basis_info, [rescaled(rescaling, sample) for sample in samples]))


def test_gradients_take_epsilon_into_account(basis_info: Any, samples: list[OFData]) -> None:
    # energies follow the reference only to epsilon: with a large one, compare gradients and coefficients alone
    statistics = fit(basis_info, samples)
    rescaling = DimensionWiseRescaling.from_dataset_statistics(statistics, epsilon=0.5)
    transformed = DimensionWiseRescaling.apply_to_dataset_statistics(statistics, None, "has_energy_label", epsilon=0.5)
    refitted = fit(basis_info, [rescaled(rescaling, sample) for sample in samples])
    keys = [key for key in refitted.keys_recursive() if any(part in key for part in ("gradient", "coeffs", "delta"))]
    assert len(keys) > 20
    for key in keys:
        a, b = (s.load_statistic(*key.split("/", 1)) for s in (transformed, refitted))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=key)


@pytest.mark.filterwarnings("ignore:the basis has the elements")
def test_elements_that_one_weigher_did_not_see_stay_neutral(basis_info: Any, samples: list[OFData]) -> None:
    # the molecules with carbon converge before the second iteration
    short = [s for s in samples if 6 not in s.atomic_numbers.tolist() or int(s.scf_iteration) < 2]
    statistics = fit(basis_info, short)
    rescaling = DimensionWiseRescaling.from_dataset_statistics(statistics)
    transformed = DimensionWiseRescaling.apply_to_dataset_statistics(statistics, None, "has_energy_label")
    refitted = fit(basis_info, [rescaled(rescaling, sample) for sample in short])
    for name in ("mean", "minimum", "maximum", "abs_max", "std"):
        values = transformed.load_statistic("min_scf_iteration_2", f"coeffs/{name}")
        expected = refitted.load_statistic("min_scf_iteration_2", f"coeffs/{name}")
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9)
        assert not values[basis_info.atom_ind_to_basis_function_ind[1]].any()


def test_the_source_stays_and_the_result_is_written_and_read(
    basis_info: Any, samples: list[OFData], tmp_path: Any
) -> None:
    statistics = fit(basis_info, samples)
    before = {key: statistics.load_statistic(*key.split("/", 1)).copy() for key in statistics.keys_recursive()}
    path = tmp_path / "folder" / "rescaled"
    transformed = DimensionWiseRescaling.apply_to_dataset_statistics(statistics, path, "has_energy_label")
    for key, values in before.items():
        np.testing.assert_array_equal(statistics.load_statistic(*key.split("/", 1)), values)
    read = DatasetStatistics(path)
    assert read.keys_recursive() == transformed.keys_recursive() == sorted(before)
    assert "DimensionWiseRescaling" in read.attributes["rescaled_by"]
    for key in before:
        np.testing.assert_array_equal(
            read.load_statistic(*key.split("/", 1)), transformed.load_statistic(*key.split("/", 1))
        )
    # rescaling once more does next to nothing: centred already, gradients at most s_grad or coefficients at s_coeff
    again = DimensionWiseRescaling.from_dataset_statistics(read)
    np.testing.assert_allclose(again.coeff_biases.numpy(), 0, atol=1e-9)
    np.testing.assert_allclose(again.lambda_z.numpy(), 1, rtol=1e-5)


def test_statistics_without_minimum_and_maximum_lose_what_cannot_be_computed(
    basis_info: Any, samples: list[OFData]
) -> None:
    full = fit(basis_info, samples)
    foreign = DatasetStatistics.from_arrays(
        {
            key: full.load_statistic(*key.split("/", 1))
            for key in full.keys_recursive()
            if not key.endswith(("minimum", "maximum")) and key.startswith("has_energy_label")
        }
    )
    with pytest.warns(UserWarning, match="'has_energy_label/coeffs/abs_max' cannot be transformed"):
        transformed = DimensionWiseRescaling.apply_to_dataset_statistics(
            foreign, None, "has_energy_label", basis_info=basis_info
        )
    assert "has_energy_label/coeffs/abs_max" not in transformed
    expected = DimensionWiseRescaling.apply_to_dataset_statistics(full, None, "has_energy_label")
    for key in transformed.keys_recursive():
        np.testing.assert_array_equal(
            transformed.load_statistic(*key.split("/", 1)), expected.load_statistic(*key.split("/", 1))
        )
    with pytest.raises(StatisticsError, match="pass basis_info"):
        DimensionWiseRescaling.apply_to_dataset_statistics(foreign, None, "has_energy_label")


def test_uncentred_deviations_of_structures25_are_centred_once(basis_info: Any, samples: list[OFData]) -> None:
    full = fit(basis_info, samples)
    folder = "has_energy_label/energy_minus_atom_ref"
    arrays = {k: v for k, v in full.to_arrays().items() if k.startswith("has_energy_label") and not k.endswith("rms")}
    arrays |= {
        f"{folder}/mean": np.array(0.3),
        f"{folder}/std": np.array(0.5),
    }  # the root mean square, as they write it
    foreign = DatasetStatistics.from_arrays(arrays, full.attributes)
    transformed = DimensionWiseRescaling.apply_to_dataset_statistics(foreign, None, "has_energy_label")
    twice = DimensionWiseRescaling.apply_to_dataset_statistics(transformed, None, "has_energy_label")
    for statistics in (foreign, transformed, twice):
        found = [float(statistics.load_statistic(*f"{folder}/{n}".split("/", 1))) for n in ("mean", "std", "rms")]
        np.testing.assert_allclose(found, [0.3, 0.4, 0.5], rtol=1e-15)
