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
from ofdft_norm.data.lazy_batch import lazy_batch
from ofdft_norm.errors import BatchError
from ofdft_norm.statistics.counts import SampleCounts
from ofdft_norm.statistics.element_blocks import on_cpu
from ofdft_norm.statistics.energy_fit import EnergyFit
from ofdft_norm.statistics.fit import StatisticsAccumulator
from ofdft_norm.statistics.moments import FieldMoments

MOLECULES = [[8, 1, 1], [6, 1, 1, 1, 1], [6, 8], [1, 1], [6, 6, 1, 1], [8, 8]]
METRICS = ("coeffs", "gradient", "delta", "energy", "counts")


@pytest.fixture(scope="module")
def samples(basis_info: BasisInfo, scf_samples: Callable[..., list[OFData]]) -> list[OFData]:
    return scf_samples(basis_info, np.random.default_rng(0), MOLECULES, n_scf=4)


def accumulated(
    basis_info: BasisInfo, weighers: Sequence[SampleWeigher], samples: Sequence[OFData], batch_size: int = 3
) -> StatisticsAccumulator:
    accumulator = StatisticsAccumulator(basis_info, weighers, [ConstantSampleWeigher()])
    for batch in DataLoader(list(samples), batch_size, follow_batch=["coeffs"]):
        accumulator.take(accumulator.cut(batch))
    return accumulator


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
        parts[0].coeffs._merge_waiting()
    while len(parts) > 1:
        i, j = rng.choice(len(parts), 2, replace=False)
        for name in METRICS:
            getattr(parts[i], name).merge_state(getattr(parts[j], name))
        del parts[j]
    batch = next(iter(DataLoader(samples, 1, follow_batch=["coeffs"])))
    parts[0].take(parts[0].cut(batch))  # goes on after a merge
    whole = accumulated(basis_info, weighers, [*samples, samples[0]])
    assert_same_statistics(parts[0].arrays(True, 1), whole.arrays(True, 1))


def test_merging_with_weighers_that_have_seen_nothing(
    basis_info: BasisInfo, samples: list[OFData], field_weighers: list[SampleWeigher], assert_same_statistics: Any
) -> None:
    # the first part has no weight for one of two weighers, so its state takes over the other part's guess of the slope
    first = [s.clone() for s in samples[:8]]
    for sample in first:
        sample.weight = torch.zeros(1, dtype=torch.float64)
    rest = [s.clone() for s in samples[8:]]
    for sample in rest:
        sample.weight = torch.ones(1, dtype=torch.float64)
    one, two = accumulated(basis_info, field_weighers, first), accumulated(basis_info, field_weighers, rest[:8])
    one.energy._reduce()
    for name in METRICS:
        getattr(one, name).merge_state(getattr(two, name))
    for batch in DataLoader(rest[8:], 4, follow_batch=["coeffs"]):
        one.take(one.cut(batch))
    whole = accumulated(basis_info, field_weighers, [*first, *rest])
    assert_same_statistics(one.arrays(True, 1), whole.arrays(True, 1))


@pytest.mark.parametrize("first", [0, 1])
def test_a_part_that_was_merged_stays_as_it_is(basis_info: BasisInfo, samples: list[OFData], first: int) -> None:
    batch = next(iter(DataLoader(samples, 24, follow_batch=["coeffs"])))
    parts = [EnergyFit(basis_info, [ConstantSampleWeigher()]) for _ in range(2)]
    parts[0].update(batch)
    parts[1].update(next(s for s in samples if not s.has_energy_label))  # adds nothing
    parts[1].merge_state(parts[0])  # both know the same rows now
    found = [numbers(parts[first]), numbers(parts[1 - first])]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-11, atol=1e-11)  # their slopes are not guessed alike


def make_metrics(basis_info: BasisInfo) -> list[Any]:
    weighers = [ConstantSampleWeigher()]
    return [
        FieldMoments(basis_info, "coeffs", weighers),
        FieldMoments(basis_info, "gradient_label", weighers),
        EnergyFit(basis_info, weighers),
        SampleCounts(basis_info, weighers),
    ]


def numbers(metric: Any) -> list[Any]:
    """Everything that a metric computes, flat."""
    result = metric.compute()["constant"]
    if isinstance(metric, EnergyFit):
        gbar = torch.linspace(-1, 1, metric.basis_info.n_basis, dtype=torch.float64)
        reference = result.reference(gbar)
        return [*reference.t_z.tolist(), reference.t_global, reference.mean, reference.std, result.n_molecules]
    return [x for value in result.values() for x in value.reshape(-1).tolist()]


@pytest.mark.parametrize("kind", range(4))
def test_alone_in_a_training_loop(basis_info: BasisInfo, samples: list[OFData], kind: int) -> None:
    batches = list(DataLoader(samples, 5, follow_batch=["coeffs"]))
    by_update, by_forward = make_metrics(basis_info)[kind], make_metrics(basis_info)[kind]
    for batch in batches:
        by_update.update(batch)
    for batch in batches:
        batch = batch.clone()
        batch.coeffs = batch.coeffs.clone().requires_grad_()  # as in training
        of_batch = by_forward(batch)
    alone = make_metrics(basis_info)[kind]
    alone.update(batches[-1])
    if kind != 2:
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
    fresh = make_metrics(basis_info)[kind]
    fresh.update(batches[0])
    np.testing.assert_array_equal(numbers(by_forward), numbers(fresh))


@pytest.mark.parametrize("kind", range(4))
def test_a_single_sample_is_a_batch_of_one(basis_info: BasisInfo, samples: list[OFData], kind: int) -> None:
    labelled = next(s for s in samples if s.has_energy_label)
    of_sample, of_batch = make_metrics(basis_info)[kind], make_metrics(basis_info)[kind]
    of_sample.update(labelled)
    of_batch.update(next(iter(DataLoader([labelled], 1, follow_batch=["coeffs"]))))
    assert numbers(of_sample) == numbers(of_batch)


@pytest.mark.parametrize("kind", range(4))
def test_states_stay_double_and_take_float32(basis_info: BasisInfo, samples: list[OFData], kind: int) -> None:
    metric, reference = make_metrics(basis_info)[kind], make_metrics(basis_info)[kind]
    batch = next(iter(DataLoader(samples, 9, follow_batch=["coeffs"])))
    for field in ("coeffs", "gradient_label", "energy_label", "pos"):
        batch[field] = batch[field].float()
    double = batch.clone()
    for field in ("coeffs", "gradient_label", "energy_label", "pos"):
        double[field] = double[field].double()
    metric.half().update(batch)
    reference.update(double)
    assert numbers(metric) == numbers(reference)


def test_consecutive_molecules_across_batches(basis_info: BasisInfo, samples: list[OFData]) -> None:
    ordered = EnergyFit(basis_info, [ConstantSampleWeigher()], consecutive=True)
    scattered = EnergyFit(basis_info, [ConstantSampleWeigher()])
    for batch in DataLoader(samples, 3, follow_batch=["coeffs"]):
        ordered.update(batch)
        ordered._reduce()
        scattered.update(batch)
        assert sum(map(len, ordered.molecules)) <= 1  # only the last molecule is kept
    np.testing.assert_allclose(numbers(ordered), numbers(scattered), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_batch_of_another_device_stays_there(
    lazy: bool, samples: list[OFData], make_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [sample.clone() for sample in samples[:3]]
    batch = (lazy_batch(copies) if lazy else make_batch(copies)).to("meta")
    # stands for a GPU, from which data can be read; in place, as PyG's own
    monkeypatch.setattr(Data, "cpu", lambda self: self.apply(lambda x: torch.zeros_like(x, device="cpu")))
    assert on_cpu(batch).coeffs.device.type == "cpu"
    assert batch.coeffs.device.type == batch.atom_ind.device.type == "meta"


def test_fields_that_lack(basis_info: BasisInfo, samples: list[OFData]) -> None:
    sample = samples[0].clone()
    del sample.energy_label
    with pytest.raises(BatchError, match="needs the field 'energy_label'"):
        EnergyFit(basis_info, [ConstantSampleWeigher()]).update(sample)
    del sample.ground_state_coeffs
    with pytest.raises(BatchError, match="'initial_guess_delta' need the field 'ground_state_coeffs'"):
        FieldMoments(basis_info, "initial_guess_delta", [ConstantSampleWeigher()]).update(sample)
    del sample.has_energy_label
    with pytest.raises(BatchError, match="lacks the field 'has_energy_label'"):
        FieldMoments(basis_info, "gradient_label", [ConstantSampleWeigher()]).update(sample)
