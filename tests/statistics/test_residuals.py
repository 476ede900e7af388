"""The molecules that the linear references fit worst."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.loader import DataLoader

from ofdft_norm import BasisInfo, ConstantSampleWeigher, DatasetStatistics, OFData, SampleWeigher
from ofdft_norm.data.elements import formula
from ofdft_norm.normalization.element_references import LinearReferences
from ofdft_norm.statistics.distributed import Ranks
from ofdft_norm.statistics.residuals import ResidualColumn, Residuals
from ofdft_norm.statistics.row_factor import RowLayout
from ofdft_norm.statistics.sample_weighers import labelled_weights
from ofdft_norm.statistics.weighed_batch import WeighedBatch


@pytest.fixture(scope="module")
def samples(basis_info: BasisInfo, scf_samples: Callable[..., list[OFData]]) -> list[OFData]:
    """Twenty molecules of four samples each, some without label, some of weight 0."""
    rng = np.random.default_rng(5)
    numbers = basis_info.atomic_numbers.tolist()
    molecules = [rng.choice(numbers, rng.integers(2, 6)).tolist() for _ in range(20)]
    return scf_samples(basis_info, rng, molecules, n_scf=4)


def fit_quietly(data: Any, basis_info: BasisInfo, weighers: Sequence[SampleWeigher], **kwargs: Any) -> Any:
    return DatasetStatistics.from_dataset(None, data, basis_info, weighers, progress=False, **kwargs)


def naive_worst(
    samples: Sequence[OFData], weights: Sequence[float], values: Any, numbers: Any
) -> list[tuple[Any, ...]]:
    """Each molecule's worst sample, of those that count, by a plain sort."""
    value_of = dict(zip(numbers.tolist(), values.tolist(), strict=True))
    worst: dict[str, tuple[Any, ...]] = {}
    for sample, weight in zip(samples, weights, strict=True):
        atoms = sample.atomic_numbers.tolist()
        residual = float(sample.energy_label) - sum(value_of[z] for z in atoms)
        found = (sample.mol_id, formula(atoms), int(sample.scf_iteration), float(sample.energy_label), residual)
        if weight > 0 and sample.has_energy_label and abs(residual) > abs(worst.get(sample.mol_id, (*found[:4], 0))[4]):
            worst[sample.mol_id] = found
    return sorted(worst.values(), key=lambda row: -abs(row[4]))[:10]


@pytest.mark.parametrize("batch_size", [1, 7, 80])
def test_against_a_plain_sort(
    basis_info: BasisInfo, samples: list[OFData], field_weighers: list[SampleWeigher], batch_size: int
) -> None:
    order = np.random.default_rng(batch_size).permutation(len(samples))
    loader = DataLoader([samples[i] for i in order], batch_size, follow_batch=["coeffs"])
    statistics = fit_quietly(loader, basis_info, field_weighers)
    for key, name in (("field", "weight"), ("other", "other_weight")):
        values = statistics.load_statistic(key, "linear_ref_atom_type_bias")
        expected = naive_worst(samples, [float(s[name]) for s in samples], values, basis_info.atomic_numbers)
        found = statistics.attributes["worst_molecules"][key]
        assert len(found) == len(expected) == 10
        for of_fit, row in zip(found, expected, strict=True):
            assert (of_fit["name"], of_fit["formula"], of_fit["scf_iteration"], of_fit["target"]) == row[:4]
            assert of_fit["residual"] == pytest.approx(row[4], rel=1e-9, abs=1e-9)


@given(seed=st.integers(0, 2**32 - 1), n_parts=st.integers(2, 5))
def test_parts_merge_in_any_order(basis_info: BasisInfo, samples: list[OFData], seed: int, n_parts: int) -> None:
    rng, weighers = np.random.default_rng(seed), [ConstantSampleWeigher()]
    layout = RowLayout(basis_info.n_types, 1, basis_info.n_basis)
    direction = torch.zeros(layout.width, dtype=torch.float64)
    direction[layout.composition], direction[layout.energies] = torch.tensor([1.0, 20.0, 30.0]), 1.0
    part_of_sample = rng.integers(0, n_parts, len(samples))

    def measured(chosen: Sequence[OFData]) -> Residuals:
        residuals = Residuals([ResidualColumn(direction, 0, n_worst=10)], basis_info.atomic_numbers)
        for batch in DataLoader(list(chosen), 8, follow_batch=["coeffs"]):
            residuals.update(WeighedBatch(batch, labelled_weights(weighers, batch), basis_info))
        return residuals

    parts = [measured([s for s, p in zip(samples, part_of_sample, strict=True) if p == n]) for n in range(n_parts)]
    while len(parts) > 1:
        i, j = rng.choice(len(parts), 2, replace=False)
        parts[i].merge_state(parts[j])
        del parts[j]
    whole = measured(samples)
    assert parts[0].worst(Ranks()) == whole.worst(Ranks())
    for name, value in whole.compute().items():
        torch.testing.assert_close(parts[0].compute()[name], value, rtol=1e-13, atol=0)


def test_fewer_molecules_than_ten_long_names_and_no_names(basis_info: BasisInfo, samples: list[OFData]) -> None:
    named = [s.clone() for s in samples[:12]]
    for sample in named[:4]:
        sample.mol_id = "é" * 60
    for sample in named:
        sample.has_energy_label = torch.tensor([True])
    (worst,) = fit_quietly(named, basis_info, [ConstantSampleWeigher()]).attributes["worst_molecules"].values()
    assert {w["name"] for w in worst} == {"é" * 60, "molecule 1", "molecule 2"}
    for sample in named:
        del sample.mol_id, sample.scf_iteration
    statistics = fit_quietly(named, basis_info, [ConstantSampleWeigher()])
    (worst,) = statistics.attributes["worst_molecules"].values()
    assert [w["name"] for w in worst] == [""] * 10  # samples without name are molecules of their own
    assert len({w["index"] for w in worst}) == 10
    assert statistics.load_statistic("constant", "n_molecules") == 12
    table = str(LinearReferences.from_dataset_statistics(statistics, basis_info, "constant").summary())
    lines = table.splitlines()
    rows = lines[next(i for i, line in enumerate(lines) if line.startswith("worst molecules")) + 1 :][:10]
    assert [line.split()[0] for line in rows] == ["-"] * 10


def test_the_summary_of_references_from_stored_statistics_lists_them(
    basis_info: BasisInfo, samples: list[OFData], tmp_path: Path
) -> None:
    weighers = [ConstantSampleWeigher()]
    DatasetStatistics.from_dataset(tmp_path / "s.zarr", samples, basis_info, weighers, progress=False)
    stored = DatasetStatistics(tmp_path / "s.zarr")
    references = LinearReferences.from_dataset_statistics(stored, basis_info, "constant")
    worst = stored.attributes["worst_molecules"]["constant"]
    copy = LinearReferences()
    copy.load_state_dict(references.state_dict())
    for summary in (references.summary("hartree"), copy.summary("hartree")):
        assert summary.fit is not None
        assert [w.name for w in summary.fit.worst] == [w["name"] for w in worst]
        lines = str(summary).splitlines()
        titles = "worst molecules  formula           sample  target [hartree]  residual [hartree]"
        first = lines.index(titles) + 1
        for line, w in zip(lines[first : first + 10], worst, strict=True):
            assert line.startswith(w["name"])
            assert f"SCF iteration {w['scf_iteration']}" in line
            assert line.endswith(f"{w['residual']:+.3g}")


def test_without_the_second_pass_none_are_known(basis_info: BasisInfo, samples: list[OFData]) -> None:
    statistics = fit_quietly(samples, basis_info, [ConstantSampleWeigher()], residuals=False)
    assert statistics.attributes["worst_molecules"] == {}
    summary = LinearReferences.from_dataset_statistics(statistics, basis_info, "constant").summary()
    assert summary.fit is not None
    assert summary.fit.worst == []
    assert "worst" not in str(summary)
