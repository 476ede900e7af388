"""Where batches come from: the fields that a fit reads, and how they are joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from ofdft_norm import BasisInfo, ConstantSampleWeigher, DatasetStatistics, HasEnergyLabelSampleWeigher, OFData
from ofdft_norm.errors import BatchError, StatisticsError
from ofdft_norm.statistics.distributed import Ranks
from ofdft_norm.statistics.fit import fit_fields
from ofdft_norm.statistics.reading import SAMPLE_INDEX, FitFields, batch_source, sample_source

WEIGHERS = [ConstantSampleWeigher(), HasEnergyLabelSampleWeigher()]


@pytest.fixture
def samples(basis_info: BasisInfo, scf_samples: Callable[..., list[OFData]]) -> list[OFData]:
    rng = np.random.default_rng(0)
    molecules = [[1, 6, 8], *(rng.choice([1, 6, 8], rng.integers(1, 6)).tolist() for _ in range(30))]
    return scf_samples(basis_info, rng, molecules, 3)


def fit(data: Any, basis_info: BasisInfo) -> dict[str, Any]:
    fitted = DatasetStatistics.from_dataset(None, data, basis_info, WEIGHERS, WEIGHERS[:1], progress=False)
    return fitted.to_arrays()


@pytest.mark.parametrize("shuffle", [False, True])
def test_samples_and_their_loader_give_the_same(
    shuffle: bool, samples: list[OFData], basis_info: BasisInfo, assert_same_statistics: Any
) -> None:
    loader = DataLoader(samples, 4, shuffle=shuffle, follow_batch=["coeffs"])
    assert_same_statistics(fit(loader, basis_info), fit(samples, basis_info))


def test_joined_fields_are_those_of_pyg(samples: list[OFData], basis_info: BasisInfo) -> None:
    fields = fit_fields(basis_info, WEIGHERS, "energy_label", "atomic_numbers")
    joined = next(batch_source(samples[:7], Ranks(), fields).batches())
    expected = next(iter(DataLoader(samples[:7], 7, follow_batch=["coeffs"])))
    for name in ("coeffs", "gradient_label", "energy_label", "atom_ind", "pos", "batch", "ptr", "coeffs_batch"):
        assert torch.equal(joined[name], expected[name]), name
    assert joined.mol_id == expected.mol_id
    assert joined[SAMPLE_INDEX].tolist() == list(range(7))
    assert "dual_basis_integrals" not in joined  # nobody reads it


def test_every_sample_once_on_several_ranks(samples: list[OFData]) -> None:
    indices = [5, 1, 2, 7, 3, 0, 8]
    seen = []
    for rank in range(3):
        source = sample_source(samples, Ranks(rank, 3), FitFields(("mol_id",)), indices, 2)
        of_rank = [i for batch in source.batches() for i in batch[SAMPLE_INDEX].tolist()]
        assert len(of_rank) == source.n_samples
        seen += of_rank
    assert sorted(seen) == sorted(indices)


def test_data_sets_that_give_several_samples_at_once(samples: list[OFData], basis_info: BasisInfo) -> None:
    class AtOnce(list[OFData]):
        def __getitems__(self, indices: list[int]) -> list[OFData]:
            asked.append(len(indices))
            return [self[i] for i in indices]

    asked: list[int] = []
    fit(AtOnce(samples), basis_info)
    assert asked == [len(samples)] * 2


@pytest.mark.parametrize("joined", [False, True])
def test_a_bad_label_is_named(joined: bool, samples: list[OFData], basis_info: BasisInfo) -> None:
    bad = samples[50]
    bad.coeffs = bad.coeffs.clone()
    bad.coeffs[0] = torch.nan
    data: Any = DataLoader(samples, 4, follow_batch=["coeffs"]) if joined else samples
    with pytest.raises(StatisticsError, match=rf"molecule '{bad.mol_id}' \(sample 50, .*'coeffs' is nan"):
        fit(data, basis_info)


def test_a_sample_that_lacks_a_field_is_named(samples: list[OFData], basis_info: BasisInfo) -> None:
    del samples[4].gradient_label
    with pytest.raises(BatchError, match=r"sample 4 \(molecule 'molecule 1'\) lacks the field 'gradient_label'"):
        fit(samples, basis_info)
