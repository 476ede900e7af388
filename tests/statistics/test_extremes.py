"""Which samples hold the largest and smallest gradients, compared with a naive search; merged in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.loader import DataLoader

from ofdft_norm import BasisInfo, ConstantSampleWeigher, DatasetStatistics, OFData
from ofdft_norm.statistics.extremes import extreme_arrays
from ofdft_norm.statistics.moments import FieldMoments

FIELD = "gradient_label"
NAMES = ("maximum", "second_maximum", "minimum", "second_minimum")


@pytest.fixture(scope="module")
def samples(basis_info: BasisInfo, scf_samples: Any) -> list[OFData]:
    """Rounded gradients, so that many are equal; no molecule but one has oxygen."""
    molecules = [[6, 1, 1], [8, 1, 1], [6, 6, 1, 1, 1], [1, 1], [6, 1], [6, 6]]
    samples: list[OFData] = scf_samples(basis_info, np.random.default_rng(3), molecules, n_scf=5)
    for sample in samples:
        sample.gradient_label = sample.gradient_label.round(decimals=1)
    return samples


def naive_extremes(samples: Sequence[OFData], weights: Sequence[float], dimension: int) -> dict[str, Any]:
    """Returns (value, molecule, SCF iteration) by name, None where there is no (other) molecule."""
    entries = [
        (float(value), s.mol_id, int(s.scf_iteration))
        for s, weight in zip(samples, weights, strict=True)
        if weight > 0 and s.has_energy_label
        for value in s.gradient_label[s.basis_function_ind == dimension]
    ]
    found: dict[str, Any] = {}
    for name, sign in (("maximum", -1), ("minimum", 1)):
        in_order = sorted((sign * value, molecule, i) for value, molecule, i in entries)
        others = [entry for entry in in_order if entry[1] != in_order[0][1]]
        for key, candidates in ((name, in_order), (f"second_{name}", others)):
            found[key] = (sign * candidates[0][0], *candidates[0][1:]) if candidates else None
    return found


def assert_found(arrays: Any, table: Any, key: str, samples: Sequence[OFData], weights: Sequence[float]) -> None:
    """Compares all but which of equal molecules was taken: that depends on their keys."""
    for b in range(len(arrays[f"{key}/{FIELD}/second_maximum"])):
        for name, expected in naive_extremes(samples, weights, b).items():
            row = int(arrays[f"{key}/{FIELD}_samples/{name}"][b])
            if expected is None:
                assert row == -1
                continue
            holder = next(
                s
                for s in samples
                if (s.mol_id, int(s.scf_iteration)) == (table[row]["name"], table[row]["scf_iteration"])
            )
            held = holder.gradient_label[holder.basis_function_ind == b]
            assert expected[0] in held
            if name.startswith("second"):
                assert arrays[f"{key}/{FIELD}/{name}"][b] == expected[0]
                first = table[int(arrays[f"{key}/{FIELD}_samples/{name.removeprefix('second_')}"][b])]
                assert first["molecule"] != table[row]["molecule"]


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_samples_of_every_weigher(
    basis_info: BasisInfo, samples: list[OFData], field_weighers: Any, batch_size: int
) -> None:
    weighers = [ConstantSampleWeigher(), *field_weighers]
    loader = DataLoader(samples, batch_size, shuffle=True, follow_batch=["coeffs"])
    found = DatasetStatistics.from_dataset(None, loader, basis_info, weighers, progress=False)
    arrays, tables = found.to_arrays(), found.attributes["extreme_samples"]
    weights = ([1.0] * len(samples), [float(s.weight) for s in samples], [float(s.other_weight) for s in samples])
    for weigher, of_samples in zip(weighers, weights, strict=True):
        key = weigher.summary_string()
        assert_found(arrays, tables[key], key, samples, of_samples)
        oxygen = basis_info.atom_ind_to_basis_function_ind[2]
        for name in ("second_maximum", "second_minimum"):
            assert (arrays[f"{key}/{FIELD}_samples/{name}"][oxygen] == -1).all()
            mean = arrays[f"{key}/{FIELD}/mean"][oxygen]
            np.testing.assert_array_equal(arrays[f"{key}/{FIELD}/{name}"][oxygen], mean)
    again = DatasetStatistics.from_dataset(None, samples, basis_info, weighers, progress=False)
    assert again.attributes["extreme_samples"] == tables
    for name in NAMES:
        key = f"constant/{FIELD}_samples/{name}"
        np.testing.assert_array_equal(again.to_arrays()[key], arrays[key])


@settings(max_examples=8)
@given(data=st.data())
def test_parts_merge_in_any_order(
    basis_info: BasisInfo, samples: list[OFData], make_batch: Any, data: st.DataObject
) -> None:
    def accumulator(part: Sequence[OFData]) -> FieldMoments:
        metric = FieldMoments(basis_info, FIELD, [ConstantSampleWeigher()], remember_samples=True)
        if part:
            metric.update(make_batch([s.clone() for s in part]))
        return metric

    together = accumulator(samples)
    shuffled = data.draw(st.permutations(samples))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(samples)), min_size=1, max_size=4)))
    parts = [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(samples)], strict=True)]
    merged = accumulator(parts[0])
    for part in parts[1:]:
        merged.merge_state(accumulator(part))
    assert torch.equal(merged.extremes, together.extremes)
    mean = together.compute()["constant"]["mean"]
    found = [extreme_arrays("constant", FIELD, m.extremes[..., 0, :], m.names, mean) for m in (merged, together)]
    assert found[0][1] == found[1][1]
    for key, array in found[1][0].items():
        np.testing.assert_array_equal(found[0][0][key], array)


def test_samples_without_names_are_told_by_their_index(basis_info: BasisInfo, samples: list[OFData]) -> None:
    nameless = [sample.clone() for sample in samples[:6]]
    for sample in nameless:
        del sample.mol_id
    found = DatasetStatistics.from_dataset(None, nameless, basis_info, [ConstantSampleWeigher()], progress=False)
    table = found.attributes["extreme_samples"]["constant"]
    assert {row["name"] for row in table} <= {f"sample {i}" for i in range(6)}
    assert len({row["molecule"] for row in table}) == len(table)
