"""Where batches come from: the fields that a fit reads, and how they are joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from ofdft_norm import BasisInfo, ConstantSampleWeigher, HasEnergyLabelSampleWeigher, OFData, OFDataset
from ofdft_norm.statistics.distributed import Ranks
from ofdft_norm.statistics.reading import SampleBatch, fit_fields, reader_of
from tests.naive_statistics import naive_statistics
from tests.statistics.common import assert_close, assert_same_statistics, fit

WEIGHERS = [ConstantSampleWeigher(), HasEnergyLabelSampleWeigher()]


@pytest.fixture(scope="module")
def samples(basis_info: BasisInfo, scf_samples: Callable[..., list[OFData]]) -> list[OFData]:
    rng = np.random.default_rng(0)
    molecules = [[1, 6, 8], *(rng.choice([1, 6, 8], rng.integers(1, 6)).tolist() for _ in range(30))]
    return scf_samples(basis_info, rng, molecules, 3)


@pytest.mark.parametrize("kind", ["shuffled loader", "mappings", "workers", "subset"])
def test_kinds_of_data_sets_give_the_same(kind: str, samples: list[OFData], basis_info: BasisInfo) -> None:
    data: Any = {
        "shuffled loader": DataLoader(samples, 4, shuffle=True, follow_batch=["coeffs"]),
        "mappings": [sample.to_dict() for sample in samples],
        "workers": DataLoader(samples, 40, num_workers=1, follow_batch=["coeffs"], multiprocessing_context="fork"),
        "subset": Subset(samples, range(len(samples))),
    }[kind]
    state = torch.get_rng_state()
    found = fit(data, basis_info, WEIGHERS)
    if kind != "shuffled loader":
        assert torch.equal(torch.get_rng_state(), state)
    assert_same_statistics(found, fit(samples, basis_info, WEIGHERS))


def test_both_passes_read_the_samples_that_a_loader_has_drawn(samples: list[OFData], basis_info: BasisInfo) -> None:
    torch.manual_seed(1)
    loader = DataLoader(samples, 40, shuffle=True, drop_last=True, follow_batch=["coeffs"])
    found = fit(loader, basis_info, n_batches=2)
    torch.manual_seed(1)
    chosen = [samples[i] for batch in [*loader.batch_sampler][:2] for i in batch]
    assert_close(found, "constant", naive_statistics(chosen, basis_info, [1.0] * 80))


def test_data_sets_that_read_several_samples_at_once(labels: Any, samples: list[OFData], basis_info: BasisInfo) -> None:
    class AtOnce(list[OFData]):
        def __getitems__(self, indices: list[int]) -> list[OFData]:
            asked.append(len(indices))
            return [self[i] for i in indices]

    asked: list[int] = []
    fit(AtOnce(samples), basis_info)
    assert asked == [len(samples)] * 2
    joined = OFDataset(labels.write_several(), labels.basis_info)  # a subset of it gives batches
    (batch,) = reader_of(Subset(joined, [3, 4, 11]), Ranks()).batches(fit_fields([], ["coeffs"]))
    assert batch.names == ["water", "methane", "formaldehyde"]


def test_a_batch_of_another_device_stays_there(
    samples: list[OFData], make_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([sample.clone() for sample in samples[:3]]).to("meta")
    # stands for a GPU, from which data can be read; in place, as PyG's own
    monkeypatch.setattr(Data, "cpu", lambda self: self.apply(lambda x: torch.zeros_like(x, device="cpu")))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.zeros_like(self, device="cpu"))
    assert SampleBatch(batch, "atomic_numbers", np.arange(3)).data.coeffs.device.type == "cpu"
    assert batch.coeffs.device.type == "meta"
