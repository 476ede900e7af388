"""Which samples belong to one molecule, and how a batch is sorted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import BasisInfo, ConstantSampleWeigher, DatasetStatistics, OFData
from ofdft_norm.errors import BatchError
from ofdft_norm.statistics.weighed_batch import WeighedBatch, molecule_keys


def test_keys_tell_geometry_and_name(basis_info: BasisInfo, make_sample: Any, make_batch: Any) -> None:
    rng = np.random.default_rng(0)
    one = make_sample(basis_info, rng, [8, 1, 1], "a")
    variants = [one.clone() for _ in range(5)]
    variants[0].scf_iteration += 1  # the same molecule
    variants[0].coeffs += 1
    variants[1].mol_id = "b"
    variants[2].pos = variants[2].pos.flip(0)
    variants[3].pos = -variants[3].pos
    variants[4].pos = variants[4].pos.clone()
    variants[4].pos[0, 0] = torch.nextafter(variants[4].pos[0, 0], torch.tensor(9.0).double())
    keys = molecule_keys(make_batch([one, *variants])).tolist()
    assert keys[0] == keys[1]
    assert len(set(keys)) == 5
    assert molecule_keys(one).tolist() == keys[:1]
    others = [make_sample(basis_info, rng, None, "c") for _ in range(3)]
    assert molecule_keys(make_batch([*others, one, *others]))[3] == keys[0]


def test_keys_of_zeros(basis_info: BasisInfo, make_sample: Any) -> None:
    one = make_sample(basis_info, np.random.default_rng(0), [1], "a")
    one.pos = torch.zeros(1, 3)
    two = one.clone()
    two.pos = -torch.zeros(1, 3, dtype=torch.float64)
    assert torch.equal(molecule_keys(one), molecule_keys(two))


def test_keys_are_the_same_in_every_process() -> None:
    # frozen: ranks must agree on keys
    sample = OFData.construct_new(BasisInfo([1], ["1x0e"]), [[0.1, 0.2, 0.3]], [1], torch.zeros(1), mol_id="a")
    assert molecule_keys(sample).item() == 6530721033060159750


def test_samples_without_name_are_molecules_of_their_own(basis_info: BasisInfo, make_sample: Any) -> None:
    rng = np.random.default_rng(0)
    samples = [make_sample(basis_info, rng, [8, 1, 6], "a") for _ in range(3)]
    for sample in samples:
        sample.pos = samples[0].pos
        del sample.mol_id
    found = DatasetStatistics.from_dataset(None, samples, basis_info, [ConstantSampleWeigher()], progress=False)
    assert found.load_statistic("constant", "n_molecules") == 3


def weighed(samples: list[OFData], basis_info: BasisInfo, make_batch: Any, weights: Any) -> WeighedBatch:
    return WeighedBatch(make_batch(samples), torch.tensor(weights, dtype=torch.float64), basis_info)


def test_rows_and_matrices_against_loops(basis_info: BasisInfo, make_sample: Any, make_batch: Any) -> None:
    rng = np.random.default_rng(3)
    samples = [make_sample(basis_info, rng, numbers) for numbers in ([8, 1, 1], [6, 1], [1, 8, 6, 8])]
    batch = weighed(samples, basis_info, make_batch, [[1.0, 2.0, 1.0], [0.0, 1.0, 0.0]])
    assert batch.group.tolist() == [0, 1, 0]
    assert batch.group_weights.tolist() == [[1, 2], [0, 1]]
    for sample, row in zip(samples, batch.rows(), strict=True):
        sums = np.zeros(basis_info.n_basis)
        np.add.at(sums, sample.basis_function_ind.numpy(), sample.coeffs.numpy())
        counts = [(sample.atomic_numbers == z).sum() for z in basis_info.atomic_numbers]
        np.testing.assert_allclose(row, [1, *counts, float(sample.energy_label), *sums], rtol=1e-14, atol=1e-14)
    oxygen = batch.elements[2]
    assert oxygen.atoms_per_group == [3, 0]
    assert oxygen.samples.tolist() == [0, 2, 2]
    columns = torch.as_tensor(basis_info.atom_ind_to_basis_function_ind[2])
    first = samples[0].coeffs[torch.isin(samples[0].basis_function_ind, columns)]
    assert torch.equal(batch.matrices("coeffs")[2][0], first)


def test_samples_of_another_basis_among_others(basis_info: BasisInfo, make_sample: Any, make_batch: Any) -> None:
    samples = [make_sample(basis_info, np.random.default_rng(0), [8, 1]) for _ in range(2)]
    samples[1].coeffs = samples[1].coeffs[1:]
    with pytest.raises(BatchError, match="made with another basis"):
        weighed(samples, basis_info, make_batch, [[1.0, 1.0]])


def test_gradients_of_another_length(basis_info: BasisInfo, make_sample: Any, make_batch: Any) -> None:
    samples = [make_sample(basis_info, np.random.default_rng(0), [8, 1]) for _ in range(2)]
    samples[1].gradient_label = samples[1].gradient_label[1:]
    n = sum(len(sample.coeffs) for sample in samples)
    with pytest.raises(BatchError, match=rf"a batch has {n - 1} values of 'gradient_label'.* have {n} functions"):
        weighed(samples, basis_info, make_batch, [[1.0, 1.0]]).matrices("gradient_label")
