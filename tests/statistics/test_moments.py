"""Moments of batches merge to those of the whole; the samples that hold extremes, against a plain search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import BasisInfo, OFData
from ofdft_norm.statistics.distributed import Ranks
from ofdft_norm.statistics.moments import Moments, WeighedBatch
from ofdft_norm.statistics.reading import SampleBatch, fit_fields, reader_of

FIELD = "gradient_label"


@pytest.fixture(scope="module")
def samples(basis_info: BasisInfo, scf_samples: Callable[..., list[OFData]]) -> list[OFData]:
    """Rounded gradients, so that many are equal; only one molecule has oxygen."""
    molecules = [[6, 1, 1], [8, 1, 1], [6, 6, 1, 1, 1], [1, 1], [6, 1], [6, 6]]
    samples = scf_samples(basis_info, np.random.default_rng(3), molecules, n_scf=5)
    for sample in samples:
        sample.gradient_label = sample.gradient_label.round(decimals=1)
    return samples


def weigh(batch: SampleBatch, basis_info: BasisInfo) -> WeighedBatch:
    """Weighs by the field `weight`, by 1, and by `other_weight`."""
    names = ("weight", None, "other_weight")
    rows = [np.ones(batch.n_samples) if name is None else batch.data[name].numpy() for name in names]
    return WeighedBatch(batch, np.stack(rows), basis_info)


def moments_of(samples: Sequence[OFData], indices: Sequence[int], basis_info: BasisInfo, size: int = 4) -> Moments:
    moments = Moments(FIELD, slice(0, 3), basis_info.n_basis)
    fields = fit_fields([], [FIELD, "coeffs", "weight", "other_weight"])
    for first in range(0, len(indices), size):
        chosen = list(indices[first : first + size])
        (batch,) = reader_of([samples[i] for i in chosen], Ranks()).batches(fields)
        moments.update(weigh(SampleBatch(batch.data, "atomic_numbers", np.array(chosen)), basis_info))
    return moments


@given(data=st.data())
def test_parts_merge_in_any_order(basis_info: BasisInfo, samples: list[OFData], data: st.DataObject) -> None:
    whole = moments_of(samples, range(len(samples)), basis_info, 100)
    order = data.draw(st.permutations(range(len(samples))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(samples)), min_size=1, max_size=4)))
    ranges = zip([0, *cuts], [*cuts, len(samples)], strict=True)
    parts = [moments_of(samples, sorted(order[a:b]), basis_info) for a, b in ranges]  # some are empty
    parts[0].merge(parts)
    for k in range(3):
        found, expected = parts[0].results(k), whole.results(k)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, atol=1e-13, err_msg=name)
    assert_holders(parts[0], samples, basis_info)


def assert_holders(moments: Moments, samples: list[OFData], basis_info: BasisInfo) -> None:
    """The named molecules have the smallest and the largest gradient, of possibly several equal ones."""
    weights = [[float(s.weight) for s in samples], [1.0] * len(samples), [float(s.other_weight) for s in samples]]
    for k, of_samples in enumerate(weights):
        for dimension in range(basis_info.n_basis):
            entries = [
                (float(value), sample.mol_id)
                for sample, weight in zip(samples, of_samples, strict=True)
                if weight > 0
                for value in sample.gradient_label[sample.basis_function_ind == dimension]
            ]
            for holder, limit in zip(moments.holders[:, k, dimension], (min, max), strict=True):
                assert (limit(entries)[0], holder) in entries if entries else holder == ""
