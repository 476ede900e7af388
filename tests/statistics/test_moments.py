"""The accumulators as torchmetrics metrics: merging, forward, reset, copies."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from ofdft_norm import BasisInfo, ConstantSampleWeigher, OFData, SampleWeigher
from ofdft_norm.errors import BatchError
from ofdft_norm.statistics.counts import SampleCounts
from ofdft_norm.statistics.energy_fit import EnergyFit
from ofdft_norm.statistics.fit import StatisticsAccumulator, _first_results
from ofdft_norm.statistics.moments import FieldMoments
from ofdft_norm.statistics.row_factor import RowLayout
from ofdft_norm.statistics.sample_weighers import sample_weights
from ofdft_norm.statistics.weighed_batch import WeighedBatch, on_cpu

MOLECULES = [[8, 1, 1], [6, 1, 1, 1, 1], [6, 8], [1, 1], [6, 6, 1, 1], [8, 8]]


@pytest.fixture(scope="module")
def samples(basis_info: BasisInfo, scf_samples: Callable[..., list[OFData]]) -> list[OFData]:
    return scf_samples(basis_info, np.random.default_rng(0), MOLECULES, n_scf=4)


def accumulated(
    basis_info: BasisInfo, weighers: Sequence[SampleWeigher], samples: Sequence[OFData], batch_size: int = 3
) -> StatisticsAccumulator:
    accumulator = StatisticsAccumulator(basis_info, weighers, [ConstantSampleWeigher()])
    for batch in DataLoader(list(samples), batch_size, follow_batch=["coeffs"]):
        accumulator.update(batch)
    return accumulator


def arrays(accumulator: StatisticsAccumulator) -> dict[str, Any]:
    return _first_results(accumulator, with_bias=True, min_atoms=1)[0]


@given(seed=st.integers(0, 2**32 - 1), n_parts=st.integers(2, 5))
def test_merging_is_associative(
    basis_info: BasisInfo,
    samples: list[OFData],
    field_weighers: list[SampleWeigher],
    assert_same_statistics: Any,
    seed: int,
    n_parts: int,
) -> None:
    rng = np.random.default_rng(seed)
    weighers = field_weighers[1:]
    part_of_sample = rng.integers(0, n_parts, len(samples))  # scatters molecules over the parts; parts may be empty
    parts = [
        accumulated(basis_info, weighers, [s for s, p in zip(samples, part_of_sample, strict=True) if p == part])
        for part in range(n_parts)
    ]
    if rng.random() < 0.5:  # merge what waits as well as what is reduced
        parts[0].energy._reduce()
    while len(parts) > 1:
        i, j = rng.choice(len(parts), 2, replace=False)
        for one, other in zip(parts[i].metrics, parts[j].metrics, strict=True):
            one.merge_state(other)
        del parts[j]
    batch = next(iter(DataLoader(samples, 1, follow_batch=["coeffs"])))
    parts[0].update(batch)  # goes on after a merge
    whole = accumulated(basis_info, weighers, [*samples, samples[0]])
    assert_same_statistics(arrays(parts[0]), arrays(whole))


def test_merging_with_weighers_that_have_seen_nothing(
    basis_info: BasisInfo, samples: list[OFData], field_weighers: list[SampleWeigher], assert_same_statistics: Any
) -> None:
    first = [s.clone() for s in samples[:8]]
    for sample in first:
        sample.weight = torch.zeros(1, dtype=torch.float64)
    rest = [s.clone() for s in samples[8:]]
    for sample in rest:
        sample.weight = torch.ones(1, dtype=torch.float64)
    one, two = accumulated(basis_info, field_weighers, first), accumulated(basis_info, field_weighers, rest[:8])
    one.energy._reduce()
    for mine, other in zip(one.metrics, two.metrics, strict=True):
        mine.merge_state(other)
    for batch in DataLoader(rest[8:], 4, follow_batch=["coeffs"]):
        one.update(batch)
    whole = accumulated(basis_info, field_weighers, [*first, *rest])
    assert_same_statistics(arrays(one), arrays(whole))


def test_weights_that_all_differ(
    basis_info: BasisInfo, samples: list[OFData], field_weighers: list[SampleWeigher], assert_same_statistics: Any
) -> None:
    # more groups than are kept apart, in one reduction and over several
    many = [s.clone() for s in samples * 3]
    for i, sample in enumerate(many):
        sample.weight = torch.tensor([0.01 + 0.37 * i], dtype=torch.float64)
        sample.mol_id += f" {i // len(samples)}"
    whole = accumulated(basis_info, field_weighers, many)
    parts = accumulated(basis_info, field_weighers, [])
    for i, batch in enumerate(DataLoader(many, 5, follow_batch=["coeffs"])):
        parts.update(batch)
        if i % 3 == 0:
            parts.energy._reduce()
    assert_same_statistics(arrays(parts), arrays(whole))
    assert len(parts.energy.factors) <= 20


@pytest.mark.parametrize("first", [0, 1])
def test_a_part_that_was_merged_stays_as_it_is(basis_info: BasisInfo, samples: list[OFData], first: int) -> None:
    batch = next(iter(DataLoader(samples, 24, follow_batch=["coeffs"])))
    parts = [make_metrics(basis_info)[2] for _ in range(2)]
    parts[0].update(batch)
    parts[1].update(next(s for s in samples if not s.has_energy_label))  # adds nothing
    parts[1].merge_state(parts[0])  # both know the same rows now
    found = [numbers(parts[first]), numbers(parts[1 - first])]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-11, atol=1e-11)


def make_metrics(basis_info: BasisInfo) -> list[Any]:
    weighers = [ConstantSampleWeigher()]
    return [
        FieldMoments(basis_info, "coeffs", weighers),
        FieldMoments(basis_info, "gradient_label", weighers),
        EnergyFit(RowLayout(basis_info.n_types, 1, basis_info.n_basis), weighers, basis_info=basis_info),
    ]


def numbers(metric: Any) -> list[Any]:
    """Everything that a metric computes, flat."""
    result = metric.compute()["constant"]
    if isinstance(metric, EnergyFit):
        gbar = torch.linspace(-1, 1, metric.layout.n_basis, dtype=torch.float64)
        reference = result.reference(gbar)
        return [*reference.t_z.tolist(), reference.t_global, reference.mean, reference.std, result.n_molecules]
    return [x for value in result.values() for x in value.reshape(-1).tolist()]


@pytest.mark.parametrize("which", range(3))
def test_alone_in_a_training_loop(basis_info: BasisInfo, samples: list[OFData], which: int) -> None:
    batches = list(DataLoader(samples, 5, follow_batch=["coeffs"]))
    by_update, by_forward = make_metrics(basis_info)[which], make_metrics(basis_info)[which]
    for batch in batches:
        by_update.update(batch)
    for batch in batches:
        batch = batch.clone()
        batch.coeffs = batch.coeffs.clone().requires_grad_()  # as in training
        of_batch = by_forward(batch)
    alone = make_metrics(basis_info)[which]
    alone.update(batches[-1])
    if which != 2:
        for name, value in alone.compute()["constant"].items():
            torch.testing.assert_close(of_batch["constant"][name], value)
    np.testing.assert_allclose(numbers(by_forward), numbers(by_update), rtol=1e-10, atol=1e-10)

    copy = pickle.loads(pickle.dumps(by_update))
    np.testing.assert_array_equal(numbers(copy), numbers(by_update))
    clone = by_update.clone()
    clone.update(batches[0])
    assert numbers(clone) != numbers(by_update)

    by_forward.reset()
    by_forward.update(batches[0])
    fresh = make_metrics(basis_info)[which]
    fresh.update(batches[0])
    np.testing.assert_array_equal(numbers(by_forward), numbers(fresh))


@pytest.mark.parametrize("which", range(3))
def test_a_single_sample_is_a_batch_of_one(basis_info: BasisInfo, samples: list[OFData], which: int) -> None:
    labelled = next(s for s in samples if s.has_energy_label)
    of_sample, of_batch = make_metrics(basis_info)[which], make_metrics(basis_info)[which]
    of_sample.update(labelled)
    of_batch.update(next(iter(DataLoader([labelled], 1, follow_batch=["coeffs"]))))
    assert numbers(of_sample) == numbers(of_batch)


@pytest.mark.parametrize("which", range(3))
def test_states_stay_double_and_take_float32(basis_info: BasisInfo, samples: list[OFData], which: int) -> None:
    metric, reference = make_metrics(basis_info)[which], make_metrics(basis_info)[which]
    batch = next(iter(DataLoader(samples, 9, follow_batch=["coeffs"])))
    for field in ("coeffs", "gradient_label", "energy_label", "pos"):
        batch[field] = batch[field].float()
    double = batch.clone()
    for field in ("coeffs", "gradient_label", "energy_label", "pos"):
        double[field] = double[field].double()
    metric.half().update(batch)
    reference.update(double)
    assert numbers(metric) == numbers(reference)


def test_whole_molecules_are_not_kept(basis_info: BasisInfo, samples: list[OFData]) -> None:
    layout = RowLayout(basis_info.n_types, 1, basis_info.n_basis)
    whole = EnergyFit(layout, [ConstantSampleWeigher()], "whole", basis_info)
    scattered = EnergyFit(layout, [ConstantSampleWeigher()], "scattered", basis_info)
    for batch in DataLoader(samples, 8, follow_batch=["coeffs"]):
        whole.update(batch)
        scattered.update(batch)
    assert not whole.molecules
    np.testing.assert_allclose(numbers(whole), numbers(scattered), rtol=1e-11, atol=1e-11)


def test_counts(basis_info: BasisInfo, samples: list[OFData]) -> None:
    counts = SampleCounts(1, basis_info.n_types)
    for batch in DataLoader(samples, 5, follow_batch=["coeffs"]):
        weighed = WeighedBatch(batch, sample_weights([ConstantSampleWeigher()], batch), basis_info)
        counts.update(weighed.weights, weighed.composition)
    found = counts.compute()
    assert int(found["n_samples"]) == len(samples)
    for k, z in enumerate(basis_info.atomic_numbers.tolist()):
        assert found["n_atoms"][0, k] == sum(int((s.atomic_numbers == z).sum()) for s in samples)
        assert found["n_samples_per_element"][0, k] == sum(z in s.atomic_numbers for s in samples)


def test_a_batch_of_another_device_stays_there(
    samples: list[OFData], make_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([sample.clone() for sample in samples[:3]]).to("meta")
    # stands for a GPU, from which data can be read; in place, as PyG's own
    monkeypatch.setattr(Data, "cpu", lambda self: self.apply(lambda x: torch.zeros_like(x, device="cpu")))
    assert on_cpu(batch).coeffs.device.type == "cpu"
    assert batch.coeffs.device.type == batch.atom_ind.device.type == "meta"


def test_fields_that_lack(basis_info: BasisInfo, samples: list[OFData]) -> None:
    sample = samples[0].clone()
    del sample.energy_label
    with pytest.raises(BatchError, match="needs the field 'energy_label'"):
        make_metrics(basis_info)[2].update(sample)
    del sample.ground_state_coeffs
    with pytest.raises(BatchError, match="'initial_guess_delta' need the field 'ground_state_coeffs'"):
        FieldMoments(basis_info, "initial_guess_delta", [ConstantSampleWeigher()]).update(sample)
    del sample.has_energy_label
    with pytest.raises(BatchError, match="lacks the field 'has_energy_label'"):
        FieldMoments(basis_info, "gradient_label", [ConstantSampleWeigher()]).update(sample)
