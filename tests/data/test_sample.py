import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

from ofdft_norm import OFData
from ofdft_norm.data.sample import (
    convert_to_data,
    count_molecules,
    find_molecule_index,
    is_sample,
    join_samples,
    make_batch,
    name_sample,
    register_fields,
)
from ofdft_norm.errors import BasisError, BatchError, LabelFileError


def test_arguments_in_order_become_fields_in_float64(basis_info: Any) -> None:
    values = np.arange(20.0)
    sample = OFData.construct_new(
        basis_info, np.ones((3, 3)), [8, 1, 1], values, values + 1, values + 2, -76.5, True, values + 3, "water", 7
    )
    assert (sample.atomic_numbers.tolist(), sample.atom_ind.tolist()) == ([8, 1, 1], [2, 0, 0])
    for shift, field in enumerate(("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals")):
        assert sample[field].dtype == torch.float64
        np.testing.assert_array_equal(sample[field].numpy(), values + shift)
    assert (sample.energy_label.tolist(), sample.has_energy_label.tolist()) == ([-76.5], [True])
    assert (sample.mol_id, sample.scf_iteration.tolist(), sample.coordinates) == ("water", [7], "raw")


def test_numbers_lose_no_digits_and_tensors_keep_their_dtype(basis_info: Any) -> None:
    energy, coeffs = -12345.678901234567, torch.ones(5, dtype=torch.float32)
    torch.set_default_dtype(torch.bfloat16)
    try:
        sample = OFData.construct_new(basis_info, [[0.1, 0.2, 0.3]], [1], coeffs, energy_label=energy)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (float(sample.energy_label), sample.pos.tolist()) == (energy, [[0.1, 0.2, 0.3]])
    assert sample.coeffs.dtype == torch.float32
    assert sample.has_energy_label.tolist() == [True]
    assert OFData.construct_new(basis_info, np.zeros((1, 3)), [1], [1] * 5).has_energy_label.tolist() == [False]
    for flag in (False, 0.0, np.bool_(False), [False], np.array(False), torch.tensor(False)):
        made = OFData.construct_new(basis_info, np.zeros((1, 3)), [1], np.ones(5), None, None, energy, flag)
        assert torch.equal(made.has_energy_label, torch.tensor([False]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("pos", value) for value in (np.zeros((2, 3)), np.zeros(3))),
        *(("coeffs", value) for value in (np.zeros(4), np.zeros((5, 1)), np.zeros(5) * 1j, ["a"] * 5)),
        ("coeffs", torch.zeros(5, dtype=torch.complex64)),
        ("ground_state_coeffs", np.zeros(6)),
        ("gradient_label", np.zeros(0)),
        ("dual_basis_integrals", 1.0),
        *(("energy_label", value) for value in ([1.0, 2.0], 1j)),
        *(("has_energy_label", flag) for flag in (2, -1, 0.5, np.nan, "False", [], [True, False], {"a": 1})),
    ],
)
def test_a_field_that_does_not_fit_is_named(field: str, value: Any, basis_info: Any) -> None:
    fields = {"pos": np.zeros((1, 3)), "atomic_numbers": [1], "coeffs": np.zeros(5), "mol_id": "water"}
    with pytest.raises(LabelFileError, match=f"molecule 'water': field '{field}'.*expected"):
        OFData.construct_new(basis_info, **{**fields, field: value})
    with pytest.raises(BasisError, match="molecule 'water'"):
        OFData.construct_new(basis_info, **{**fields, "atomic_numbers": [2]})


def test_fields_are_split_by_atom(basis_info: Any, make_sample: Any, make_batch: Any) -> None:
    rng = np.random.default_rng(0)
    batch = make_batch([make_sample(basis_info, rng, numbers) for numbers in ([1, 6, 8], [8, 1, 1])])
    pieces = batch.split_field_by_atom(batch.coeffs)
    assert batch.n_basis_per_atom.tolist() == [len(piece) for piece in pieces] == [5, 14, 10, 10, 5, 5]
    assert torch.equal(torch.cat(pieces), batch.coeffs)
    with pytest.raises(BasisError, match="the sample has"):
        batch.split_field_by_atom(np.zeros(3))
    with pytest.raises(BatchError, match="'basis_info'"):
        _ = OFData(atom_ind=torch.zeros(1, dtype=torch.int64)).n_basis_per_atom


# --- batches ----------------------------------------------------------------------------------------------------------


def test_another_class_of_the_same_name_keeps_its_own_batches(basis_info: Any, make_sample: Any) -> None:
    """PyG remembers batch classes by name; STRUCTURES25's samples are called OFData, too."""
    sample = make_sample(basis_info, np.random.default_rng(0))
    ours = join_samples([sample, sample])
    theirs = type("OFData", (Data,), {})
    batch = Batch.from_data_list([theirs(x=torch.zeros(2)), theirs(x=torch.ones(3))])
    assert isinstance(batch, theirs)
    assert not isinstance(batch, OFData)
    for copy in (pickle.loads(pickle.dumps(sample)), pickle.loads(pickle.dumps(ours))[1]):
        assert type(copy) is OFData


@given(data=st.data())
def test_a_batch_made_of_joined_fields_is_pygs(data: st.DataObject, some_samples: Any, assert_same_fields: Any) -> None:
    _, samples, _ = data.draw(some_samples)
    expected = Batch.from_data_list(samples, follow_batch=["coeffs"])
    fields = {
        "atom": ("pos", "atomic_numbers", "atom_ind"),
        "function": ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals", "basis_function_ind"),
        "sample": ("energy_label", "has_energy_label", "mol_id", "scf_iteration", "basis_info", "coordinates"),
    }
    per = [{name: expected[name] for name in names} for names in fields.values()]
    found = make_batch(*per, np.array([len(s.pos) for s in samples]), np.array([len(s.coeffs) for s in samples]))
    assert_same_fields(found, expected)
    assert type(found) is type(expected)
    for i, (part, sample) in enumerate(zip(found.to_data_list(), samples, strict=True)):
        assert_same_fields(part, sample)
        assert name_sample(found, i) == name_sample(sample, 0) == sample.mol_id


@pytest.mark.parametrize("n", [1, 3])
def test_samples_are_counted_and_told_apart(n: int, basis_info: Any, make_sample: Any) -> None:
    samples = [make_sample(basis_info, np.random.default_rng(i)) for i in range(n)]
    for data, chosen in ((samples[0], samples[:1]), (join_samples(samples), samples)):
        assert count_molecules(data) == len(chosen)
        assert find_molecule_index(data).tolist() == [i for i, s in enumerate(chosen) for _ in s.coeffs]
        assert find_molecule_index(data, "pos").tolist() == [i for i, s in enumerate(chosen) for _ in s.pos]
    with pytest.raises(BatchError, match=r"no 'coeffs_batch'.*follow_batch=\['coeffs'\]"):
        find_molecule_index(join_samples(samples, []))
    for sample in samples:
        del sample.pos
    for follow in (["coeffs"], []):
        assert count_molecules(join_samples(samples, follow)) == n
        with pytest.raises(BatchError, match="no 'batch': give the samples 'pos'"):
            find_molecule_index(join_samples(samples, follow), "pos")


def test_fields_added_to_a_batch_are_in_its_samples(basis_info: Any, make_sample: Any, make_batch: Any) -> None:
    samples = [make_sample(basis_info, np.random.default_rng(i)) for i in range(3)]
    batch = make_batch(samples)
    batch.score, batch.double = torch.arange(3.0), 2 * batch.coeffs
    assert register_fields(batch, {"score": None, "double": "coeffs"}) is batch
    for i, part in enumerate(batch.to_data_list()):
        assert part.score.tolist() == [i]
        assert torch.equal(part.double, 2 * samples[i].coeffs)
    assert register_fields(samples[0], {"score": None}) is samples[0]


@pytest.mark.parametrize("keys", [["z", "name", "batch"], lambda: ["z", "name", "batch"]])
def test_samples_of_other_classes_become_pygs(keys: Any) -> None:
    sample = SimpleNamespace(z=torch.tensor([1, 8]), name=["water"], batch=torch.zeros(2), keys=keys)
    found = convert_to_data(sample)
    assert set(found.keys()) == {"z", "name"}
    assert found.name == "water"
    assert [is_sample(sample), is_sample({"z": 1})] == [True, False]
    assert join_samples([sample, sample]).name == ["water", "water"]
    with pytest.raises(BatchError, match="only some samples have the fields"):
        join_samples([sample, Data(x=sample.z)])
