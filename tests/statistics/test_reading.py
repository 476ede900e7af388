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

from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    HasEnergyLabelSampleWeigher,
    OFData,
    OFDataset,
)
from ofdft_norm.statistics.distributed import Ranks
from ofdft_norm.statistics.reading import SampleBatch, fit_fields, reader_of, sample_reader

WEIGHERS = [ConstantSampleWeigher(), HasEnergyLabelSampleWeigher()]


@pytest.fixture(scope="module")
def samples(basis_info: BasisInfo, scf_samples: Callable[..., list[OFData]]) -> list[OFData]:
    rng = np.random.default_rng(0)
    molecules = [[1, 6, 8], *(rng.choice([1, 6, 8], rng.integers(1, 6)).tolist() for _ in range(30))]
    return scf_samples(basis_info, rng, molecules, 3)


def fit(data: Any, basis_info: BasisInfo) -> dict[str, Any]:
    fitted = DatasetStatistics.from_dataset(None, data, basis_info, WEIGHERS, WEIGHERS[:1], progress=False)
    return fitted.to_arrays()


def test_joined_fields_are_those_of_pyg(samples: list[OFData]) -> None:
    fields = fit_fields(WEIGHERS, ["coeffs", "gradient_label", "pos"], ["energy_label"])
    (joined,) = reader_of(samples[:7], Ranks()).batches(fields)
    expected = next(iter(DataLoader(samples[:7], 7, follow_batch=["coeffs"])))
    for name in ("coeffs", "gradient_label", "energy_label", "atomic_numbers", "pos", "batch", "ptr", "coeffs_batch"):
        assert torch.equal(joined.data[name], expected[name]), name
    assert joined.names == expected.mol_id
    assert joined.indices.tolist() == list(range(7))
    assert "dual_basis_integrals" not in joined.data  # the fit does not read it


def test_every_sample_once_on_several_ranks(samples: list[OFData]) -> None:
    indices, seen = [5, 1, 2, 7, 3, 0, 8], []
    for rank in range(3):
        reader = sample_reader(samples, Ranks(rank, 3), indices, 2)
        own = [i for batch in reader.batches(fit_fields([], [])) for i in batch.indices.tolist()]
        assert len(own) == reader.n_items
        seen += own
    assert sorted(seen) == sorted(indices)


@pytest.mark.parametrize("kind", ["shuffled loader", "mappings", "workers", "subset"])
def test_kinds_of_data_sets_give_the_same(
    kind: str, samples: list[OFData], basis_info: BasisInfo, assert_same_statistics: Any
) -> None:
    data: Any = {
        "shuffled loader": DataLoader(samples, 4, shuffle=True, follow_batch=["coeffs"]),
        "mappings": [sample.to_dict() for sample in samples],
        "workers": DataLoader(samples, 40, num_workers=1, follow_batch=["coeffs"], multiprocessing_context="fork"),
        "subset": Subset(samples, range(len(samples))),
    }[kind]
    state = torch.get_rng_state()
    found = fit(data, basis_info)
    if kind != "shuffled loader":
        assert torch.equal(torch.get_rng_state(), state)
    assert_same_statistics(found, fit(samples, basis_info))


def test_both_passes_read_the_samples_that_a_loader_has_drawn(
    samples: list[OFData], basis_info: BasisInfo, assert_close: Any, naive: Any
) -> None:
    torch.manual_seed(1)
    loader = DataLoader(samples, 40, shuffle=True, drop_last=True, follow_batch=["coeffs"])
    found = DatasetStatistics.from_dataset(None, loader, basis_info, WEIGHERS[:1], progress=False, n_batches=2)
    torch.manual_seed(1)
    chosen = [samples[i] for batch in [*loader.batch_sampler][:2] for i in batch]
    assert_close(found, "constant", naive(chosen, basis_info, [1.0] * 80))


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


def test_molecules_of_label_files(labels: Any) -> None:
    dataset = OFDataset(labels.write_several(), labels.basis_info, limit_scf_iterations=[2], keep_initial_guess=True)
    (batch,) = reader_of(dataset, Ranks()).batches(fit_fields([], ["coeffs"]))
    assert batch.molecules.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.place(1) == "molecule 'water' (SCF iteration 2)"
    parts = [reader_of(dataset, Ranks(rank, 2)) for rank in (0, 1)]
    assert [[m for b in part.batches(fit_fields([], [])) for m in b.molecules.tolist()] for part in parts] == [
        [0, 0, 2, 2],
        [1, 1],
    ]


def test_a_batch_of_another_device_stays_there(
    samples: list[OFData], make_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([sample.clone() for sample in samples[:3]]).to("meta")
    # stands for a GPU, from which data can be read; in place, as PyG's own
    monkeypatch.setattr(Data, "cpu", lambda self: self.apply(lambda x: torch.zeros_like(x, device="cpu")))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.zeros_like(self, device="cpu"))
    assert SampleBatch(batch, "atomic_numbers", np.arange(3)).data.coeffs.device.type == "cpu"
    assert batch.coeffs.device.type == "meta"
