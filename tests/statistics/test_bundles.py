"""Batches of a loader are bundled, and reduced in a thread of their own while the next ones are loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset
from torch_geometric.loader import DataLoader

from ofdft_norm import BasisInfo, ConstantSampleWeigher, DatasetStatistics, HasEnergyLabelSampleWeigher, OFData
from ofdft_norm.data.lazy_batch import parts
from ofdft_norm.errors import BatchError, StatisticsError
from ofdft_norm.statistics import batches
from ofdft_norm.statistics.distributed import Ranks
from ofdft_norm.statistics.workspace import Workspace

WEIGHERS = [ConstantSampleWeigher(), HasEnergyLabelSampleWeigher()]


@pytest.fixture
def samples(basis_info: BasisInfo, scf_samples: Callable[..., list[OFData]]) -> list[OFData]:
    rng = np.random.default_rng(0)
    molecules = [[1, 6, 8], *(rng.choice([1, 6, 8], rng.integers(1, 6)).tolist() for _ in range(30))]
    return scf_samples(basis_info, rng, molecules, 3)


def fit(samples: list[OFData], basis_info: BasisInfo, **loading: Any) -> DatasetStatistics:
    return fit_loader(DataLoader(samples, follow_batch=["coeffs"], **loading), basis_info)


def fit_loader(loader: Any, basis_info: BasisInfo) -> DatasetStatistics:
    return DatasetStatistics.from_dataset(None, loader, basis_info, WEIGHERS, [ConstantSampleWeigher()], progress=False)


@pytest.mark.parametrize("shuffle", [False, True])
def test_bundles_of_any_size_give_the_same(
    shuffle: bool,
    samples: list[OFData],
    basis_info: BasisInfo,
    assert_same_statistics: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {}
    for size in (1, 150, 2**20):
        monkeypatch.setattr(batches, "COEFFICIENTS_PER_BUNDLE", size)
        found[size] = fit(samples, basis_info, batch_size=4, shuffle=shuffle).to_arrays()
    for size in (1, 150):
        assert_same_statistics(found[size], found[2**20])


class OwnLoader(DataLoader):
    """Does as PyG's, but who knows?"""


@pytest.mark.parametrize("shuffle", [False, True])
def test_loaders_that_only_join_samples_are_not_asked_to(
    shuffle: bool, samples: list[OFData], basis_info: BasisInfo, assert_same_statistics: Any
) -> None:
    own = OwnLoader(samples, batch_size=4, shuffle=shuffle, follow_batch=["coeffs"])
    joined = fit_loader(own, basis_info)
    asked = {"__iter__": 0}

    class Counted(list[OFData]):
        def __iter__(self) -> Any:  # the data set is read by index alone
            asked["__iter__"] += 1
            return super().__iter__()

    unjoined = fit(Counted(samples), basis_info, batch_size=4, shuffle=shuffle)
    assert asked["__iter__"] == 0
    assert_same_statistics(unjoined.to_arrays(), joined.to_arrays())
    if not shuffle:
        assert all(np.array_equal(a, joined.to_arrays()[key]) for key, a in unjoined.to_arrays().items())


@pytest.mark.parametrize(
    ("change", "is_plain"),
    [
        ({}, True),
        ({"shuffle": True, "drop_last": True}, True),
        ({"exclude_keys": ["pos"]}, False),
        ({"num_workers": 1}, False),
    ],
)
def test_which_loaders_only_join_samples(change: dict[str, Any], is_plain: bool, samples: list[OFData]) -> None:
    loader = DataLoader(samples, **{"batch_size": 4, "follow_batch": ["coeffs"], **change})
    source = batches.batch_source(loader, Ranks(), n_batches=1)
    assert (len(parts(next(iter(source.batches())), "coeffs")) > 1) == is_plain


def test_an_order_of_one_s_own_is_kept(samples: list[OFData]) -> None:
    order = [[5, 1], [2], [7, 3, 0]]
    loader = DataLoader(Subset(samples, range(len(samples))), batch_sampler=order, follow_batch=["coeffs"])
    for found, expected in zip(batches.batch_source(loader, Ranks()).batches(), loader, strict=True):
        assert torch.equal(found.coeffs, expected.coeffs)
        assert found.mol_id == expected.mol_id


@pytest.mark.parametrize("size", [1, 200, 2**20])
def test_a_bad_label_is_named_whatever_its_bundle(
    size: int, samples: list[OFData], basis_info: BasisInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "COEFFICIENTS_PER_BUNDLE", size)
    bad = samples[50]
    bad.coeffs = bad.coeffs.clone()
    bad.coeffs[0] = torch.nan
    # 50 is the third sample of the batch 48 ... 51
    with pytest.raises(StatisticsError, match=rf"molecule '{bad.mol_id}' \(sample 2 of its batch, .*'coeffs' is nan"):
        fit(samples, basis_info, batch_size=4)
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_samples_of_another_basis_among_others(samples: list[OFData], basis_info: BasisInfo) -> None:
    # the next batch's sample has as many functions too many: the sum of both is right
    for k, extra in ((8, 1), (12, -1)):
        n = len(samples[k].coeffs) + extra
        samples[k].coeffs = torch.zeros(n, dtype=torch.float64)
    with pytest.raises(BatchError, match="made with another basis"):
        fit(samples, basis_info, batch_size=4)


@pytest.mark.parametrize("joins", [False, True])
def test_gradients_of_another_length(joins: bool, samples: list[OFData], basis_info: BasisInfo) -> None:
    samples[8].gradient_label = samples[8].gradient_label[1:]
    loader = (OwnLoader if joins else DataLoader)(samples, batch_size=4, follow_batch=["coeffs"])
    n = sum(len(sample.coeffs) for sample in samples[8:12])
    with pytest.raises(BatchError, match=rf"a batch has {n - 1} values of 'gradient_label'.* have {n} functions"):
        fit_loader(loader, basis_info)


def test_a_workspace_gives_its_memory_again() -> None:
    workspace = Workspace()
    first = workspace.take("a", 10)
    assert workspace.take("a", 8).data_ptr() == first.data_ptr() != workspace.take("b", 8).data_ptr()
    assert workspace.take("a", 100).shape == (100,)
    parts = [torch.ones(2, 3), torch.zeros(1, 3, dtype=torch.float64)]
    joined = workspace.cat("c", parts)
    assert joined.tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3]
    assert workspace.select("d", joined, torch.tensor([2, 0])).tolist() == [[0.0] * 3, [1.0] * 3]
