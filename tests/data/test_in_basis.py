"""Samples of a small basis in the numbering of a larger one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import BasisInfo, OFData
from ofdft_norm.data.in_basis import InBasis
from ofdft_norm.errors import BasisError

LARGE = BasisInfo([1, 6, 8], ["2x0e", "3x0e+1x1o", "2x0e+1x1o"])
SMALL = BasisInfo([8, 1], ["2x0e+1x1o", "2x0e"])  # two of the elements, in another order


def pair(make_sample: Any, seed: int, **fields: Any) -> tuple[OFData, OFData]:
    numbers = [8, 1, 1] if seed % 2 else [1, 8]
    made = [make_sample(basis, np.random.default_rng(seed), numbers, **fields) for basis in (SMALL, LARGE)]
    return made[0], made[1]


def assert_equal(found: Any, expected: Any) -> None:
    assert set(found.keys()) == set(expected.keys())
    for name in expected.keys():
        value = expected[name]
        assert torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value, name


def test_samples_and_batches_are_those_built_with_the_larger_basis(make_sample: Any, make_batch: Any) -> None:
    transform = InBasis(SMALL, LARGE)
    small, large = zip(*[pair(make_sample, seed) for seed in range(4)], strict=True)
    before = small[0].clone()
    for own, other in zip(small, large, strict=True):
        assert_equal(transform(own), other)
    assert_equal(small[0], before)
    batch = transform(make_batch(small))
    assert_equal(batch, make_batch(large))
    for own, other in zip(batch.to_data_list(), large, strict=True):
        assert_equal(own, other)


@pytest.mark.parametrize(
    "own", [BasisInfo([9], ["1x0e"]), BasisInfo([1, 8], ["2x0e", "3x0e+1x1o"]), BasisInfo([8], ["2x0e+1x1o"], "xyz")]
)
def test_a_basis_that_is_no_subset_is_refused(own: BasisInfo) -> None:
    with pytest.raises(BasisError, match="do not all have the same functions"):
        InBasis(own, LARGE)
