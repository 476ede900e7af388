"""How far samples leave the training range, compared with plain loops."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofdft_norm import BasisInfo, DatasetStatistics, DimensionWiseRescaling, Normalizer
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch
from ofdft_norm.normalization.training_range import TrainingRange

KEY = "has_energy_label"


@settings(max_examples=10)
@given(drawn=st.data())
def test_raw_and_normalised_batches(some_samples: Any, make_batch: Any, drawn: st.DataObject) -> None:
    basis_info, samples, rng = drawn.draw(some_samples)
    n = basis_info.n_basis
    lowest = rng.normal(size=n)
    highest = lowest + rng.choice([0.0, 1.0, 3.0], size=n)  # 0: all training samples are equal
    zero = rng.random(n) < 0.1  # by symmetry: the range is 0 alone
    lowest[zero] = highest[zero] = 0
    n_atoms = rng.integers(0, 2, size=basis_info.n_types)  # 0: an element that no sample has
    unseen = np.repeat(n_atoms == 0, basis_info.basis_dim_per_atom)
    lowest[unseen] = highest[unseen] = 0
    arrays = {"coeffs_range/minimum": lowest, "coeffs_range/maximum": highest, "n_atoms": n_atoms}
    statistics = DatasetStatistics.from_arrays({f"{KEY}/{name}": values for name, values in arrays.items()})
    rescaling = DimensionWiseRescaling(rng.normal(size=n), rng.uniform(0.1, 2, size=n), rng.uniform(0, 1, size=n))
    training_range = TrainingRange.from_dataset_statistics(statistics, basis_info)
    normalizer = Normalizer(rescaling=rescaling, basis_info=basis_info, training_range=training_range)
    batch, shell = make_batch(samples), basis_info.basis_func_to_shell
    smallest = 1e-9 * max(abs(lowest).max(), abs(highest).max())
    found = normalizer.range_excess(batch)
    assert found is not None
    for i, sample in enumerate(samples):
        excess = []
        for b, p in zip(sample.basis_function_ind.tolist(), sample.coeffs.tolist(), strict=True):
            width = max(highest[b] - lowest[b], 0.01 * max((highest - lowest)[shell == shell[b]]), smallest)
            width = width if width > 0 else 1.0
            excess.append(0.0 if unseen[b] else max(p - highest[b], lowest[b] - p, 0.0) / width)
        excess = [e if e >= 1e-6 else 0.0 for e in excess]  # rounding of float32
        np.testing.assert_allclose(float(found.excess[i]), max(excess), rtol=1e-12)
        if max(excess) > 0:
            assert int(found.dimension[i]) == int(sample.basis_function_ind[int(np.argmax(excess))])
    of_normalised = normalizer.range_excess(normalizer.normalize(batch))
    assert of_normalised is not None
    np.testing.assert_allclose(of_normalised.excess, found.excess, rtol=1e-6, atol=1e-6)


def test_the_range_covers_all_training_samples_and_bounds_dimensions_that_are_always_zero(
    basis_info: BasisInfo, make_sample: Any, make_batch: Any
) -> None:
    rng = np.random.default_rng(0)
    both = itertools.product(range(4), range(3))
    samples = [make_sample(basis_info, rng, [8, 1, 1], f"m{m}", i, has_energy_label=i > 0) for m, i in both]
    for sample in samples:
        sample.coeffs[0] = 0.0  # of oxygen's first function, in all samples
    with pytest.warns(UserWarning, match=r"elements \[6\]"):
        statistics = DatasetStatistics.from_dataset(None, samples, basis_info, progress=False)
    rescaling = DimensionWiseRescaling.from_dataset_statistics(statistics, basis_info)
    training_range = TrainingRange.from_dataset_statistics(statistics, basis_info)
    normalizer = Normalizer(rescaling=rescaling, training_range=training_range)
    batch = NormalizeBatch(normalizer, torch.float32)(make_batch(samples))
    assert normalizer.range_excess(batch).excess.tolist() == [0.0] * len(samples)  # also after the cast to float32
    outside = samples[0].clone()
    outside.coeffs[0] = 50.0
    found = normalizer.range_excess(outside)
    assert float(found.excess) > 1
    assert int(found.dimension) == int(outside.basis_function_ind[0])


def test_statistics_without_a_range_give_none(basis_info: BasisInfo) -> None:
    statistics = DatasetStatistics.from_arrays({f"{KEY}/coeffs/mean": np.zeros(3)})
    assert TrainingRange.from_dataset_statistics(statistics, basis_info) is None
    assert Normalizer().range_excess(torch.nn.Identity()) is None
