"""What each lambda hangs on, compared with lambdas of the samples without one molecule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ofdft_norm import BasisInfo, DatasetStatistics, DimensionWiseRescaling, OFData
from ofdft_norm.data.irreps import dimension_name
from ofdft_norm.normalization.lambda_sources import lambda_sources, sources_table
from tests.printed_tables import check_printed

KEY = "has_energy_label"
S_GRAD = 0.4
Array = Any


@pytest.fixture(scope="module")
def samples(basis_info: BasisInfo, make_sample: Any) -> list[OFData]:
    """Four samples of each of five molecules, some with much larger gradients than others."""
    rng = np.random.default_rng(5)
    molecules = [[8, 1, 1], [6, 1, 1, 1, 1], [6, 8], [1, 1], [6, 6, 1, 1]]
    out = []
    for m, numbers in enumerate(molecules):
        first = make_sample(basis_info, rng, numbers)
        for i in range(4):
            sample = make_sample(basis_info, rng, numbers, f"molecule {m}", i, has_energy_label=i > 0)
            sample.pos = first.pos
            sample.gradient_label = sample.gradient_label * float(rng.choice([0.3, 1, 4]))
            out.append(sample)
    return out


@pytest.fixture(scope="module")
def statistics(samples: list[OFData], basis_info: BasisInfo) -> DatasetStatistics:
    return DatasetStatistics.from_dataset(None, samples, basis_info, progress=False)


def largest(samples: list[OFData], origin: Array, left_out: str | None, basis_info: BasisInfo) -> tuple[Array, Array]:
    """Returns max |g - origin| of all labelled samples but one molecule's, and whose it is."""
    values, names = np.zeros(basis_info.n_basis), np.full(basis_info.n_basis, "", dtype=object)
    for sample in samples:
        if sample.mol_id != left_out and sample.has_energy_label:
            index = sample.basis_function_ind.numpy()
            for b, distance in zip(index, np.abs(sample.gradient_label.numpy() - origin[index]), strict=True):
                if distance > values[b]:
                    values[b], names[b] = distance, sample.mol_id
    return values, names


def naive_lambda(largest: Array, stds: Array, s_coeff: float) -> Array:
    return np.where(largest > S_GRAD, np.minimum(largest / S_GRAD, s_coeff / stds), 1.0)


@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize("s_coeff", [50.0, 12.0])
def test_lambda_without_the_molecule_that_sets_it(
    samples: list[OFData], statistics: DatasetStatistics, basis_info: BasisInfo, equivariant: bool, s_coeff: float
) -> None:
    rescaling = DimensionWiseRescaling.from_dataset_statistics(
        statistics, basis_info, equivariant=equivariant, s_grad=S_GRAD, s_coeff=s_coeff
    )
    found = lambda_sources(statistics, rescaling, basis_info, KEY)
    assert found is not None
    shell, stds = basis_info.basis_func_to_shell, rescaling.coeff_stds.numpy()
    origin = statistics.load_statistic(KEY, "gradient_label/mean")
    if equivariant:
        origin = np.where(basis_info.l_per_basis_func == 0, origin, 0.0)
    values, names = largest(samples, origin, None, basis_info)
    n_set = 0
    for b in range(basis_info.n_basis):
        same = np.flatnonzero(shell == shell[b]) if equivariant else np.array([b])
        holder = names[same[values[same].argmax()]]
        without, _ = largest(samples, origin, holder, basis_info)
        expected = naive_lambda(np.array([values[same].max(), without[same].max()]), stds[b], s_coeff)
        by_gradient = values[same].max() > S_GRAD and values[same].max() / S_GRAD <= s_coeff / stds[b]
        assert (found.holder[b] >= 0) == by_gradient
        if by_gradient:
            assert found.samples[found.holder[b]].name == holder
            assert found.change[b] == pytest.approx(expected[0] / expected[1], rel=1e-12)
        else:
            assert found.change[b] == 1
        n_set += by_gradient
    assert n_set == rescaling.branches()["gradient"]
    shares = found.molecules()
    assert sum(share.n_dimensions for share in shares) == n_set
    assert [share.largest_change for share in shares] == sorted((s.largest_change for s in shares), reverse=True)
    table = sources_table(found, basis_info, head=3)
    check_printed(table, data=r"molecule \d")
    assert f"the {n_set} lambdas that a gradient sets hang on {len(shares)} molecules" in table
    first = table.splitlines()[2]
    assert first.startswith(shares[0].sample.name)
    assert first.endswith(dimension_name(basis_info, shares[0].dimension))
    assert f"{shares[0].largest_change:.2f}" in first


def test_other_statistics_do_not_say(statistics: DatasetStatistics, basis_info: BasisInfo) -> None:
    rescaling = DimensionWiseRescaling.from_dataset_statistics(statistics, basis_info, s_grad=S_GRAD)
    older = DatasetStatistics.from_arrays(
        {key: array for key, array in statistics.to_arrays().items() if "_samples/" not in key}, statistics.attributes
    )
    assert lambda_sources(older, rescaling, basis_info, KEY) is None
    doubled = DimensionWiseRescaling(rescaling.coeff_biases, rescaling.coeff_stds, 2 * rescaling.max_grads)
    assert lambda_sources(statistics, doubled, basis_info, KEY) is None
    nothing = DimensionWiseRescaling.from_dataset_statistics(statistics, basis_info, s_grad=1e3)
    found = lambda_sources(statistics, nothing, basis_info, KEY)
    assert found is not None
    assert sources_table(found, basis_info) == ""


def test_rescaled_statistics_say_the_same(statistics: DatasetStatistics, basis_info: BasisInfo) -> None:
    changed = DimensionWiseRescaling.apply_to_dataset_statistics(
        statistics, None, KEY, s_grad=S_GRAD, basis_info=basis_info
    )
    rescaled, raw = (DimensionWiseRescaling.from_dataset_statistics(s, s_grad=1e-3) for s in (changed, statistics))
    found, before = (lambda_sources(s, r, basis_info, KEY) for s, r in ((changed, rescaled), (statistics, raw)))
    assert found is not None
    assert before is not None
    np.testing.assert_array_equal(found.holder, before.holder)
    np.testing.assert_allclose(found.change, before.change, rtol=1e-7)
