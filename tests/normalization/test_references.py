"""References: applied, inverted, stored, taken from statistics, and exchanged with fairchem and STRUCTURES25."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from ofdft_norm import AtomRef, BasisInfo, DatasetStatistics, LinearReferences, fit_linear_references
from ofdft_norm.config import LinearReferencesConfig
from ofdft_norm.errors import BatchError, ConfigError, NormalizationError, StatisticsError

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
def test_references_are_sums_over_atoms_and_invert(molecules, column):
    batch = batch_of(*molecules)
    target = torch.arange(len(molecules), dtype=torch.float64).reshape((-1, 1) if column else -1)
    expected = torch.tensor([sum(VALUES[z] for z in molecule) for molecule in molecules], dtype=torch.float64)
    added = REFERENCES(target, batch)
    torch.testing.assert_close(added, target + expected.reshape(target.shape), rtol=1e-14, atol=1e-12)
    torch.testing.assert_close(REFERENCES.dereference(added, batch), target, rtol=0, atol=1e-12)
    assert added.dtype == torch.float64


def test_single_samples_the_field_z_and_loaders_of_pyg_work():
    assert REFERENCES(torch.zeros(1), Data(z=torch.tensor([8, 1, 1]))).item() == pytest.approx(-76.1, abs=1e-13)
    named = LinearReferences(vector(), atomic_numbers_field="species")
    assert named(torch.zeros(1), Data(species=torch.tensor([8]), z=torch.tensor([1]))).item() == -75.1
    data = [Data(pos=torch.zeros(n, 3), z=torch.tensor([1] * n), y=torch.tensor([float(n)])) for n in (1, 2, 3)]
    (batch,) = DataLoader(data, batch_size=3)
    assert REFERENCES(batch.y, batch).tolist() == [0.5, 1.0, 1.5]


def test_unseen_elements_are_refused_or_zero():
    batch = batch_of([1, 7], [9])
    batch.mol_id = ["ammonia", "hydrogen_fluoride"]
    message = r"^molecules \['ammonia', 'hydrogen_fluoride'\]: no reference energy .* \[7, 9\].*unseen_elements"
    with pytest.raises(NormalizationError, match=message):
        REFERENCES.energy(batch)
    assert LinearReferences(vector(), unseen_elements="zero").energy(batch).tolist() == [-0.5, 0.0]
    for number in (0, -1, 9):
        with pytest.raises(NormalizationError, match=rf"no reference energy for the elements \[{number}\].* at most"):
            LinearReferences(vector(length=9), unseen_elements="zero").energy(Data(z=torch.tensor([number])))


def test_an_element_whose_fitted_reference_is_zero_is_not_unseen():
    data = [Data(z=torch.tensor([1] * n), energy=0.0) for n in (1, 2)]
    assert fit_linear_references(["energy"], data, 2)["energy"].energy(Data(z=torch.tensor([1, 1]))).tolist() == [0.0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LinearReferences(torch.zeros(5, 2)), StatisticsError, r"shape \(5, 2\), expected a vector"),
        (lambda: LinearReferences(torch.zeros(5), seen_elements=torch.ones(4)), StatisticsError, r"\(4,\), .*\(5,\)"),
        (lambda: LinearReferences(vector({1: math.nan})), StatisticsError, "finite"),
        (lambda: AtomRef([0.0], 1j, [0.0]), StatisticsError, "AtomRef: t_global "),
        (lambda: LinearReferences(vector(), unseen_elements="skip"), ConfigError, "unseen_elements = 'skip'"),
        (lambda: LinearReferencesConfig(values=[0, 1.0], file="a"), ConfigError, "values and file, which exclude"),
        (lambda: LinearReferencesConfig(by="level", base="b"), ConfigError, "by and base, which exclude"),
        (lambda: LinearReferencesConfig(values=[0, 1.0], base="b"), ConfigError, "base and values, which exclude"),
        (lambda: REFERENCES(torch.zeros(3), batch_of([1], [1])), BatchError, r"\(3,\), expected \(2,\)"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("length", [10, 119, 130])
def test_state_dicts_go_to_fairchem_and_back_whatever_their_length(length):
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


def test_statistics_of_other_packages_give_values_and_seen_elements():
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


# --- atomic references -----


def some_statistics(n_types: int, n_basis: int, rng: np.random.Generator) -> DatasetStatistics:
    arrays = {"gradient_label/mean": rng.normal(size=n_basis)}
    for name in ("atom_ref", "scalar_atom_ref"):
        arrays[f"{name}_atom_type_bias"] = rng.normal(size=n_types)
        arrays[f"{name}_global_bias"] = np.array(rng.normal())
    return DatasetStatistics.from_arrays({f"constant/{key}": value for key, value in arrays.items()})


@given(data=st.data(), scalar_only=st.booleans())
def test_values_of_an_atomic_reference_come_from_the_statistics(data, scalar_only, some_bases):
    basis = data.draw(some_bases)
    statistics = some_statistics(basis.n_types, basis.n_basis, np.random.default_rng(0))
    reference = AtomRef.from_dataset_statistics(statistics, basis, "constant", scalar_only)
    prefix = "scalar_atom_ref" if scalar_only else "atom_ref"
    gbar = statistics.load_statistic("constant", "gradient_label/mean")
    expected = [g if l == 0 or not scalar_only else 0.0 for g, l in zip(gbar, basis.l_per_basis_func, strict=True)]
    assert reference.g_z.tolist() == expected
    assert reference.t_z.tolist() == statistics.load_statistic("constant", f"{prefix}_atom_type_bias").tolist()
    assert float(reference.t_global) == float(statistics.load_statistic("constant", f"{prefix}_global_bias"))


def test_statistics_that_do_not_fit_an_atomic_reference_are_refused(basis_info):
    statistics = some_statistics(3, basis_info.n_basis, np.random.default_rng(0))
    build = AtomRef.from_dataset_statistics
    with pytest.raises(StatisticsError, match="has_energy_label"):
        build(statistics, basis_info)
    with pytest.raises(ConfigError, match="scalar_only=True needs basis_info"):
        build(statistics, weigher_key="constant", scalar_only=True)
    with pytest.raises(StatisticsError, match="2 functions"):
        build(statistics, BasisInfo([1], ["2x0e"]), "constant")


def test_state_dicts_go_to_structures25_and_back(caplog):
    ours = AtomRef(torch.tensor([1.0, 2.0]), 0.5, torch.tensor([3.0, 4.0, 5.0]))
    theirs = torch.nn.Module()  # STRUCTURES25's constant is an attribute
    theirs.register_buffer("t_z", torch.zeros(2))
    theirs.register_buffer("g_z", torch.zeros(3))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert (theirs.t_z.tolist(), theirs.g_z.tolist()) == ([1.0, 2.0], [3.0, 4.0, 5.0])
    own = AtomRef(torch.zeros(2), 0.0, torch.zeros(3))
    own.load_state_dict(ours.state_dict())
    assert not caplog.records
    assert float(own.t_global) == 0.5
    own.load_state_dict(theirs.state_dict(), strict=True)
    assert "0.5 hartree stays" in caplog.text
    assert (own.t_z.tolist(), float(own.t_global)) == ([1.0, 2.0], 0.5)
