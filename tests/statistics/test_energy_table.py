"""The table of samples: several energies, groups, worst molecules, molecules in several parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import BasisInfo, OFData
from ofdft_norm.data.elements import formula
from ofdft_norm.statistics.reading import SampleBatch
from tests.statistics.common import FIELD_WEIGHERS, FIELDS, fit


@pytest.fixture(scope="module")
def samples(basis_info: BasisInfo, scf_samples: Callable[..., list[OFData]]) -> list[OFData]:
    """Twenty molecules of four samples each, some without label, some of weight 0."""
    rng = np.random.default_rng(5)
    molecules = [rng.choice([1, 6, 8], rng.integers(2, 6)).tolist() for _ in range(20)]
    return scf_samples(basis_info, rng, molecules, n_scf=4)


def naive_worst(samples: Sequence[OFData], weights: Sequence[float], values: Any) -> list[tuple[Any, ...]]:
    """The worst sample of each molecule, of samples that count, by a plain sort."""
    value_of = dict(zip((1, 6, 8), values.tolist(), strict=True))
    worst: dict[str, tuple[Any, ...]] = {}
    for sample, weight in zip(samples, weights, strict=True):
        atoms = sample.atomic_numbers.tolist()
        residual = float(sample.energy_label) - sum(value_of[z] for z in atoms)
        found = (sample.mol_id, formula(atoms), int(sample.scf_iteration), float(sample.energy_label), residual)
        if weight > 0 and sample.has_energy_label and abs(residual) > abs(worst.get(sample.mol_id, (*found[:4], 0))[4]):
            worst[sample.mol_id] = found
    return sorted(worst.values(), key=lambda row: -abs(row[4]))[:10]


def test_worst_molecules_against_a_plain_sort(basis_info: BasisInfo, samples: list[OFData]) -> None:
    order = np.random.default_rng(0).permutation(len(samples))
    shuffled = [samples[i] for i in order]
    statistics = fit(shuffled, basis_info, FIELD_WEIGHERS)
    for key, name in FIELDS.items():
        reference = statistics[key].reference("linear_ref")
        expected = naive_worst(samples, [float(s[name]) for s in samples], reference.t_z)
        assert len(reference.worst) == len(expected) == 10
        for w, row in zip(reference.worst, expected, strict=True):
            assert (w.name, w.formula, w.scf_iteration, w.target) == row[:4]
            assert w.residual == pytest.approx(row[4], rel=1e-9, abs=1e-9)
            assert w.index is not None
            assert shuffled[w.index].mol_id == w.name


def test_samples_without_name_are_molecules_of_their_own(basis_info: BasisInfo, samples: list[OFData]) -> None:
    nameless = [s.clone() for s in samples[:12]]
    for sample in nameless:
        sample.pos = nameless[0].pos[:1].expand(len(sample.pos), 3)
        sample.has_energy_label = torch.tensor([True])
        del sample.mol_id, sample.scf_iteration
    found = fit(nameless, basis_info)
    assert found["constant"].n_molecules == 12
    reference = found["constant"].reference("linear_ref")
    assert [w.name for w in reference.worst] == [""] * 10
    assert len({w.index for w in reference.worst}) == 10


def test_molecules_are_told_apart_by_name_elements_and_geometry(
    basis_info: BasisInfo, make_sample: Any, make_batch: Any
) -> None:
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

    def keys(*samples: OFData) -> list[int]:
        batch = SampleBatch(make_batch(samples), "atomic_numbers", np.arange(len(samples)))
        found: list[int] = batch.molecules.tolist()
        return found

    first, same, *others = keys(one, *variants)
    assert first == same
    assert len({first, *others}) == 5
    zero = make_sample(basis_info, rng, [1], "a")
    zero.pos = torch.zeros(1, 3)
    minus = zero.clone()
    minus.pos = -torch.zeros(1, 3, dtype=torch.float64)
    assert keys(variants[1], zero, one, minus)[1::2] == 2 * keys(zero)
    # frozen: ranks must agree
    sample = OFData.construct_new(BasisInfo([1], ["1x0e"]), [[0.1, 0.2, 0.3]], [1], torch.zeros(1), mol_id="a")
    assert keys(sample) == [6530721033060159750]
