"""LinearReferences: applied, inverted, stored, and exchanged with fairchem."""

from __future__ import annotations

import io
import math
import pickle
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
from ofdft_norm.normalization.reference_files import create_element_references, references_from_values

VALUES = {1: -0.5, 6: -37.8, 8: -75.1}


def vector(values: dict[int, float] = VALUES, length: int = 119) -> torch.Tensor:
    references = torch.zeros(length, dtype=torch.float64)
    for z, value in values.items():
        references[z] = value
    return references


def batch_of(*molecules: list[int]) -> Any:
    return Batch.from_data_list([Data(pos=torch.zeros(len(z), 3), atomic_numbers=torch.tensor(z)) for z in molecules])


def fitted() -> LinearReferences:
    data = [Data(z=torch.tensor([6] + [1] * n), energy=-37.8 - 0.5 * n + 0.01 * n**2) for n in range(5)]
    return fit_linear_references(["energy"], data, 2)["energy"]


@given(
    st.lists(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=6), min_size=1, max_size=5), st.booleans()
)
def test_references_are_sums_over_atoms_and_invert(molecules: list[list[int]], column: bool) -> None:
    references = LinearReferences(vector())
    batch = batch_of(*molecules)
    target = torch.arange(len(molecules), dtype=torch.float64)
    target = target[:, None] if column else target
    expected = torch.tensor([sum(VALUES[z] for z in molecule) for molecule in molecules], dtype=torch.float64)
    added = references(target, batch)
    torch.testing.assert_close(added, target + expected.reshape(target.shape), rtol=1e-14, atol=1e-12)
    torch.testing.assert_close(references.dereference(added, batch), target, rtol=0, atol=1e-12)
    assert added.dtype == torch.float64


def test_single_samples_the_field_z_and_loaders_of_pyg_work() -> None:
    references = LinearReferences(vector())
    assert references(torch.zeros(1), Data(z=torch.tensor([8, 1, 1]))).item() == pytest.approx(-76.1, abs=1e-13)
    named = LinearReferences(vector(), atomic_numbers_field="species")
    assert named(torch.zeros(1), Data(species=torch.tensor([8]), z=torch.tensor([1]))).item() == -75.1
    data = [Data(pos=torch.zeros(n, 3), z=torch.tensor([1] * n), y=torch.tensor([float(n)])) for n in (1, 2, 3)]
    for batch in DataLoader(data, batch_size=3):
        assert references(batch.y, batch).tolist() == [0.5, 1.0, 1.5]


def test_targets_of_other_shapes_and_samples_without_elements_are_refused() -> None:
    references = LinearReferences(vector())
    with pytest.raises(BatchError, match=r"the target has shape \(3,\), expected \(2,\)"):
        references(torch.zeros(3), batch_of([1], [1]))
    with pytest.raises(BatchError, match=r"lacks the field 'atomic_numbers' .or 'z'."):
        references(torch.zeros(1), Data(pos=torch.zeros(1, 3)))


def test_unseen_elements_are_refused_or_zero() -> None:
    batch = batch_of([1, 7], [9])
    message = r"no reference energy for the elements \[7, 9\].*unseen_elements"
    with pytest.raises(NormalizationError, match=message):
        LinearReferences(vector()).energy(batch)
    with pytest.raises(NormalizationError, match=rf"^the split 'val': {message}"):
        LinearReferences(vector()).check_numbers(torch.tensor([1, 7, 9]), "the split 'val'")
    batch.mol_id = ["ammonia", "hydrogen_fluoride"]
    with pytest.raises(NormalizationError, match=r"^molecules \['ammonia', 'hydrogen_fluoride'\]: no reference"):
        LinearReferences(vector()).energy(batch)
    assert LinearReferences(vector(), unseen_elements="zero").energy(batch).tolist() == [-0.5, 0.0]
    for number in (0, -1, 9):
        with pytest.raises(NormalizationError, match=rf"no reference energy for the elements \[{number}\].* at most 8"):
            LinearReferences(vector(length=9), 8, unseen_elements="zero").energy(Data(z=torch.tensor([number])))


def test_an_element_whose_fitted_reference_is_zero_is_not_unseen() -> None:
    data = [Data(z=torch.tensor([1] * n), energy=0.0) for n in (1, 2)]
    assert fit_linear_references(["energy"], data, 2)["energy"].energy(Data(z=torch.tensor([1, 1]))).tolist() == [0.0]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(StatisticsError, match=r"shape \(5, 2\), expected a vector"):
        LinearReferences(torch.zeros(5, 2))
    with pytest.raises(StatisticsError, match=r"seen_elements has shape \(4,\), expected \(5,\)"):
        LinearReferences(torch.zeros(5), seen_elements=torch.ones(4))
    with pytest.raises(StatisticsError, match="finite"):
        LinearReferences(vector({1: math.nan}))
    with pytest.raises(ConfigError, match="unseen_elements = 'skip'"):
        LinearReferences(vector(), unseen_elements="skip")


@pytest.mark.parametrize(
    "options",
    [{"values": {"H": 1.0}, "file": "a"}, {"by": "dataset", "base": "b.pt"}, {"base": "b", "values": [0, 1.0]}],
)
def test_sources_that_exclude_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data\.reference has .* exclude each other"):
        LinearReferencesConfig(**options)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_training_in_low_precision_costs_energies_nothing(
    dtype: Any, basis_info: Any, make_sample: Any, make_batch: Any
) -> None:
    rng = np.random.default_rng(1)
    values = {"H": -1234.567890123, "C": -2345.678901234, "O": -3456.789012345}
    batch = make_batch([make_sample(basis_info, rng, energy_label=np.array([-1e4 + rng.normal()])) for _ in range(8)])
    normalizer = Normalizer(references_from_values(values), energy_scale=0.37).to(dtype)
    out = normalizer.normalize(batch)
    with torch.autocast("cpu", dtype=dtype if dtype != torch.float32 else torch.bfloat16):
        back = normalizer.denormalize_energy(out.energy_label, out)
    torch.testing.assert_close(back, batch.energy_label, rtol=0, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_agree() -> None:
    references = LinearReferences(vector())
    batch = batch_of(*[[8, 1, 1, 6] * n for n in range(1, 50)])
    expected = references(torch.zeros(49), batch)
    found = references.to("cuda")(torch.zeros(49, device="cuda"), batch.to("cuda")).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


# --- state dicts ------------------------------------------------------------------------------------------------------


def test_state_dicts_round_trip_with_the_fit_report() -> None:
    references = fitted()
    file = io.BytesIO()
    torch.save(references.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    loaded = LinearReferences()
    loaded.load_state_dict(state)
    assert torch.equal(loaded.element_references, references.element_references)
    assert torch.equal(loaded.seen_elements, references.seen_elements)
    assert loaded.fit_report == references.fit_report
    assert loaded.summary() == references.summary()
    assert create_element_references(state_dict=state).fit_report == references.fit_report
    assert pickle.loads(pickle.dumps(references)).fit_report == references.fit_report
    normalizer, other = Normalizer(references), Normalizer(LinearReferences())
    other.load_state_dict(normalizer.state_dict())
    assert other.reference.fit_report == references.fit_report


class Fairchem(torch.nn.Module):
    """What fairchem's class of this name is to a state dict."""

    def __init__(self, element_references: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("element_references", element_references)


@pytest.mark.parametrize("length", [10, 119, 130])
def test_state_dicts_go_to_fairchem_and_back_whatever_their_length(length: int) -> None:
    theirs, ours = Fairchem(torch.zeros(length)), LinearReferences(vector({1: -0.5}, length))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(theirs.element_references, vector({1: -0.5}, length).float())
    back = fitted()
    back.load_state_dict(theirs.state_dict(), strict=True)
    assert back.max_num_elements == length - 1
    assert back.seen_elements.nonzero().squeeze(1).tolist() == [1]
    assert back.fit_report is None
    assert set(back.state_dict()) == {"element_references"}


@pytest.mark.parametrize("wrap", [lambda module: torch.nn.ModuleList([module]), Normalizer])
def test_inside_other_modules_state_dicts_hold_everything(wrap: Any) -> None:
    given = LinearReferences(vector({1: -0.5}), seen_elements=vector({1: 1, 8: 1}))
    inner, outer = wrap(given), wrap(LinearReferences())
    outer.load_state_dict(dict(inner.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(inner.buffers(), outer.buffers(), strict=True))


# --- from statistics --------------------------------------------------------------------------------------------------


def test_statistics_give_values_and_seen_elements() -> None:
    basis_info = BasisInfo([8, 1, 6], ["1x0e", "1x0e", "1x0e"])
    statistics = DatasetStatistics.from_arrays(
        {
            "w/linear_ref_atom_type_bias": np.array([-75.1, -0.5, 99.0]),
            "w/n_atoms": np.array([4, 8, 0]),
            "w/n_molecules": np.array(5),
            "w/linear_ref_rank": np.array(2),
            "w/energy_minus_linear_ref/mean": np.array(0.0),
            "w/energy_minus_linear_ref/std": np.array(0.125),
            "w/energy_minus_linear_ref/rms": np.array(0.125),
            "w/energy/mean": np.array(-3.0),
            "w/energy/std": np.array(0.25),
        }
    )
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
