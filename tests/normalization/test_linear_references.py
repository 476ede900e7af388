"""LinearReferences: applied, inverted, stored, and exchanged with fairchem."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from ofdft_norm import BasisInfo, DatasetStatistics, LinearReferences, Normalizer, fit_linear_references
from ofdft_norm.config import LinearReferencesConfig
from ofdft_norm.errors import BatchError, ConfigError, NormalizationError, StatisticsError
from ofdft_norm.normalization.reference_files import create_element_references

VALUES = {1: -0.5, 6: -37.8, 8: -75.1}


def vector(values: dict[int, float] = VALUES, length: int = 119) -> torch.Tensor:
    return torch.tensor([values.get(z, 0.0) for z in range(length)], dtype=torch.float64)


REFERENCES = LinearReferences(vector())


def batch_of(*molecules: list[int]) -> Any:
    return Batch.from_data_list([Data(pos=torch.zeros(len(z), 3), atomic_numbers=torch.tensor(z)) for z in molecules])


def fitted() -> LinearReferences:
    data = [Data(z=torch.tensor([6] + [1] * n), energy=-37.8 - 0.5 * n + 0.01 * n**2) for n in range(5)]
    return fit_linear_references(["energy"], data, 2)["energy"]


MOLECULE = st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=6)


@given(st.lists(MOLECULE, min_size=1, max_size=5), st.booleans())
def test_references_are_sums_over_atoms_and_invert(molecules: list[list[int]], column: bool) -> None:
    batch = batch_of(*molecules)
    target = torch.arange(len(molecules), dtype=torch.float64).reshape((-1, 1) if column else -1)
    expected = torch.tensor([sum(VALUES[z] for z in molecule) for molecule in molecules], dtype=torch.float64)
    added = REFERENCES(target, batch)
    torch.testing.assert_close(added, target + expected.reshape(target.shape), rtol=1e-14, atol=1e-12)
    torch.testing.assert_close(REFERENCES.dereference(added, batch), target, rtol=0, atol=1e-12)
    assert added.dtype == torch.float64


def test_single_samples_the_field_z_and_loaders_of_pyg_work() -> None:
    assert REFERENCES(torch.zeros(1), Data(z=torch.tensor([8, 1, 1]))).item() == pytest.approx(-76.1, abs=1e-13)
    named = LinearReferences(vector(), atomic_numbers_field="species")
    assert named(torch.zeros(1), Data(species=torch.tensor([8]), z=torch.tensor([1]))).item() == -75.1
    data = [Data(pos=torch.zeros(n, 3), z=torch.tensor([1] * n), y=torch.tensor([float(n)])) for n in (1, 2, 3)]
    (batch,) = DataLoader(data, batch_size=3)
    assert REFERENCES(batch.y, batch).tolist() == [0.5, 1.0, 1.5]


def test_unseen_elements_are_refused_or_zero() -> None:
    batch = batch_of([1, 7], [9])
    batch.mol_id = ["ammonia", "hydrogen_fluoride"]
    message = r"^molecules \['ammonia', 'hydrogen_fluoride'\]: no reference energy .* \[7, 9\].*unseen_elements"
    with pytest.raises(NormalizationError, match=message):
        REFERENCES.energy(batch)
    assert LinearReferences(vector(), unseen_elements="zero").energy(batch).tolist() == [-0.5, 0.0]
    for number in (0, -1, 9):
        with pytest.raises(NormalizationError, match=rf"no reference energy for the elements \[{number}\].* at most"):
            LinearReferences(vector(length=9), unseen_elements="zero").energy(Data(z=torch.tensor([number])))


def test_an_element_whose_fitted_reference_is_zero_is_not_unseen() -> None:
    data = [Data(z=torch.tensor([1] * n), energy=0.0) for n in (1, 2)]
    assert fit_linear_references(["energy"], data, 2)["energy"].energy(Data(z=torch.tensor([1, 1]))).tolist() == [0.0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LinearReferences(torch.zeros(5, 2)), StatisticsError, r"shape \(5, 2\), expected a vector"),
        (lambda: LinearReferences(torch.zeros(5), seen_elements=torch.ones(4)), StatisticsError, r"\(4,\), .*\(5,\)"),
        (lambda: LinearReferences(vector({1: math.nan})), StatisticsError, "finite"),
        (lambda: LinearReferences(vector(), unseen_elements="skip"), ConfigError, "unseen_elements = 'skip'"),
        (lambda: REFERENCES(torch.zeros(3), batch_of([1], [1])), BatchError, r"\(3,\), expected \(2,\)"),
        (lambda: REFERENCES(torch.zeros(1), Data(pos=torch.zeros(1, 3))), BatchError, "lacks the field"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "options",
    [{"values": {"H": 1.0}, "file": "a"}, {"by": "dataset", "base": "b.pt"}, {"base": "b", "values": [0, 1.0]}],
)
def test_sources_that_exclude_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data\.reference has .* exclude each other"):
        LinearReferencesConfig(**options)


@pytest.mark.parametrize("make", [fitted, lambda: LinearReferences(vector(), seen_elements=vector({1: 1, 9: 1}))])
def test_state_dicts_round_trip_with_seen_elements_and_report(make: Callable[[], LinearReferences]) -> None:
    references = make()
    file = io.BytesIO()
    torch.save(references.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    loaded, normalizer = LinearReferences(), Normalizer(LinearReferences())
    loaded.load_state_dict(state)
    normalizer.load_state_dict(dict(Normalizer(references).state_dict()))
    created, pickled = create_element_references(state_dict=state), pickle.loads(pickle.dumps(references))
    for found in (loaded, normalizer.reference, created, pickled):
        assert torch.equal(found.element_references, references.element_references)
        assert torch.equal(found.seen_elements, references.seen_elements)
        assert found.fit_report == references.fit_report
        assert found.summary() == references.summary()


@pytest.mark.parametrize("length", [10, 119, 130])
def test_state_dicts_go_to_fairchem_and_back_whatever_their_length(length: int) -> None:
    theirs, ours = torch.nn.Module(), LinearReferences(vector({1: -0.5}, length))
    theirs.register_buffer("element_references", torch.zeros(length))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(theirs.element_references, vector({1: -0.5}, length).float())
    back = fitted()
    back.load_state_dict(theirs.state_dict(), strict=True)
    assert back.max_num_elements == length - 1
    assert back.seen_elements.nonzero().squeeze(1).tolist() == [1]
    assert back.fit_report is None
    assert set(back.state_dict()) == {"element_references"}


def test_statistics_of_other_packages_give_values_and_seen_elements() -> None:
    basis_info = BasisInfo([8, 1, 6], ["1x0e", "1x0e", "1x0e"])
    values = {"linear_ref_atom_type_bias": [-75.1, -0.5, 99.0], "n_atoms": [4, 8, 0], "n_molecules": 5}
    values |= {"linear_ref_rank": 2, "energy/mean": -3.0, "energy/std": 0.25}
    values |= {f"energy_minus_linear_ref/{name}": value for name, value in (("mean", 0.0), ("std", 0.125))}
    statistics = DatasetStatistics.from_arrays({f"w/{name}": np.array(value) for name, value in values.items()})
    references = LinearReferences.from_dataset_statistics(statistics, basis_info, "w", unseen_elements="zero")
    assert torch.equal(references.element_references, vector({1: -0.5, 8: -75.1}))
    assert references.seen_elements.nonzero().squeeze(1).tolist() == [1, 8]
    report = references.fit_report
    assert (report.rmse, report.rank, report.n_rows, report.n_atoms, report.mae) == (0.125, 2, 5, [4, 8], None)
    assert report.r2 == 0.75
    assert "fit on 5 molecules: rank 2 of 2" in references.summary()
    with pytest.raises(StatisticsError, match="max_num_elements = 7"):
        LinearReferences.from_dataset_statistics(statistics, basis_info, "w", max_num_elements=7)
    with pytest.raises(StatisticsError, match=r"references of 3 elements.* expected \[1\]"):
        LinearReferences.from_dataset_statistics(statistics, BasisInfo([1], ["1x0e"]), "w")
