from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import (
    AtomRef,
    ConstantSampleWeigher,
    DatasetStatistics,
    DimensionWiseRescaling,
    InitialGuessDelta,
    Normalizer,
)
from ofdft_norm.errors import StatisticsError
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch


@given(data=st.data())
def test_prediction_and_target_are_inverse_alone_and_in_normalised_batches(
    data: st.DataObject, some_samples: Any, make_batch: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    n = basis.n_basis
    std = rng.uniform(0.1, 3, n) * (rng.uniform(size=n) > 0.2)
    delta = InitialGuessDelta(rng.normal(size=n), std)
    batch = make_batch(samples)
    target = delta(batch)
    for i, value in enumerate(target.tolist()):
        b = int(batch.basis_function_ind[i])
        difference = float(batch.coeffs[i] - batch.ground_state_coeffs[i]) - float(delta.mean[b])
        assert value == pytest.approx(difference / (std[b] if std[b] > 0 else 1.0), abs=1e-11)
    torch.testing.assert_close(delta.unscale(target, batch), batch.coeffs - batch.ground_state_coeffs)
    torch.testing.assert_close(delta.ground_state_coeffs(target, batch), batch.ground_state_coeffs)
    rescaling = DimensionWiseRescaling(rng.normal(size=n), rng.uniform(0.1, 9, n), rng.uniform(0, 5, n))
    normalizer = Normalizer(AtomRef(np.zeros(basis.n_types), 0.0, rng.normal(size=n)), rescaling)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        normalized = NormalizeBatch(normalizer, dtype)(batch)
        found = delta.of_normalized(normalized, normalizer)
        torch.testing.assert_close(found, target, rtol=tolerance, atol=tolerance)
        back = delta.ground_state_coeffs(target, normalized, normalizer)
        torch.testing.assert_close(back, batch.ground_state_coeffs, rtol=tolerance, atol=tolerance)


def test_scales_are_those_of_the_statistics(basis_info: Any, make_sample: Any) -> None:
    rng = np.random.default_rng(0)
    dataset = [make_sample(basis_info, rng, numbers) for numbers in ([8, 1, 1], [6, 8], [6, 1, 1], [8, 8], [6, 6, 8])]
    weighers = (ConstantSampleWeigher(),)
    statistics = DatasetStatistics.from_dataset(
        None, dataset, basis_info, initial_guess_sample_weighers=weighers, progress=False
    )
    delta = InitialGuessDelta.from_dataset_statistics(statistics, "constant")
    targets = torch.cat([delta(sample) for sample in dataset])
    index = torch.cat([sample.basis_function_ind for sample in dataset])
    for b in range(basis_info.n_basis):
        own = targets[index == b]
        assert float(own.mean()) == pytest.approx(0, abs=1e-10)
        assert float(own.std(correction=0)) == pytest.approx(1, abs=1e-10)
    with pytest.raises(StatisticsError, match="initial_guess_only"):
        InitialGuessDelta.from_dataset_statistics(statistics)
