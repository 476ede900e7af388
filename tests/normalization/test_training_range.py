"""How far samples leave the training range, compared with plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofdft_norm import BasisInfo, DatasetStatistics, DimensionWiseRescaling, Normalizer
from ofdft_norm.normalization.normalizer_state import normalizer_from_state, normalizer_to_state
from ofdft_norm.normalization.training_range import TrainingRange

KEY = "has_energy_label"


@settings(max_examples=10)
@given(drawn=st.data())
def test_raw_and_normalised_batches(some_samples: Any, make_batch: Any, drawn: st.DataObject) -> None:
    basis_info, samples, rng = drawn.draw(some_samples)
    n = basis_info.n_basis
    lowest = rng.normal(size=n)
    highest = lowest + rng.choice([0.0, 1.0, 3.0], size=n)  # 0: all training samples are equal
    unseen = rng.random(n) < 0.1
    lowest[unseen] = highest[unseen] = 0
    statistics = DatasetStatistics.from_arrays({f"{KEY}/coeffs/minimum": lowest, f"{KEY}/coeffs/maximum": highest})
    rescaling = DimensionWiseRescaling(rng.normal(size=n), rng.uniform(0.1, 2, size=n), rng.uniform(0, 1, size=n))
    normalizer = Normalizer(
        rescaling=rescaling,
        basis_info=basis_info,
        training_range=TrainingRange.from_dataset_statistics(statistics, basis_info),
    )
    normalizer = normalizer_from_state(normalizer_to_state(normalizer))
    batch, shell = make_batch(samples), basis_info.basis_func_to_shell
    smallest = 1e-9 * max(abs(lowest).max(), abs(highest).max())
    found = normalizer.range_excess(batch)
    assert found is not None
    for i, sample in enumerate(samples):
        excess = []
        for b, p in zip(sample.basis_function_ind.tolist(), sample.coeffs.tolist(), strict=True):
            width = max(highest[b] - lowest[b], 0.01 * max((highest - lowest)[shell == shell[b]]), smallest)
            excess.append(0.0 if unseen[b] else max(p - highest[b], lowest[b] - p, 0.0) / width)
        excess = [e if e >= 1e-6 else 0.0 for e in excess]  # rounding of float32
        np.testing.assert_allclose(float(found.excess[i]), max(excess), rtol=1e-12)
        if max(excess) > 0:
            assert int(found.dimension[i]) == int(sample.basis_function_ind[int(np.argmax(excess))])
    of_normalised = normalizer.range_excess(normalizer.normalize(batch))
    assert of_normalised is not None
    np.testing.assert_allclose(of_normalised.excess, found.excess, rtol=1e-6, atol=1e-6)


@settings(max_examples=20)
@given(values=st.lists(st.floats(-100, 100), min_size=2, max_size=10, unique=True), bias=st.floats(-10, 10))
def test_training_samples_lie_inside_after_a_cast_to_float32(values: list[float], bias: float) -> None:
    coeffs = torch.tensor(values, dtype=torch.float64)
    lowest, highest = coeffs.min(), coeffs.max()
    training = TrainingRange(lowest[None], highest[None], (highest - lowest)[None])
    unit = 0.03 * float(highest - lowest)
    cast = ((coeffs - lowest - bias * unit) / unit).float()
    index = torch.zeros(len(coeffs), dtype=torch.int64)
    found = training.excess(cast.double() * unit + lowest + bias * unit, index, index, 1)
    assert float(found.excess) == 0


def test_statistics_without_a_range_say_nothing(basis_info: BasisInfo) -> None:
    statistics = DatasetStatistics.from_arrays({f"{KEY}/coeffs/mean": np.zeros(3)})
    assert TrainingRange.from_dataset_statistics(statistics, basis_info) is None
    assert Normalizer().range_excess(torch.nn.Identity()) is None
