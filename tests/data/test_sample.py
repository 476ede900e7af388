from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset
from torch_geometric.data import Batch, Data

from ofdft_norm import OFData
from ofdft_norm.data.sample import (
    JoinedDataset,
    as_data,
    collate_joined,
    field_names,
    get_field,
    is_sample,
    join_samples,
    make_batch,
    molecule_index,
    n_molecules,
    read_batch,
    sample_name,
    with_added_fields,
)
from ofdft_norm.errors import BasisError, BatchError, LabelFileError


def test_fields_and_indices_of_a_sample(basis_info: Any) -> None:
    dims = {1: 5, 8: 10}
    numbers = [8, 1, 1]
    n = sum(dims[z] for z in numbers)
    values = np.arange(n, dtype=np.float64)
    sample = OFData.construct_new(
        basis_info, np.ones((3, 3)), numbers, values, values + 1, values + 2, -76.5, True, values + 3, "water", 7
    )
    assert sample.atomic_numbers.tolist() == numbers
    assert sample.atom_ind.tolist() == [2, 0, 0]
    first = {z: int(basis_info.offsets[i]) for i, z in enumerate(basis_info.atomic_numbers.tolist())}
    assert sample.basis_function_ind.tolist() == [first[z] + tau for z in numbers for tau in range(dims[z])]
    for shift, field in enumerate(("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals")):
        assert sample[field].dtype == torch.float64
        np.testing.assert_array_equal(sample[field].numpy(), values + shift)
    assert sample.energy_label.tolist() == [-76.5]
    assert sample.has_energy_label.tolist() == [True]
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
    samples = [make_sample(basis_info, rng, numbers) for numbers in ([1, 6, 8], [8, 1, 1])]
    sizes = {1: 5, 6: 14, 8: 10}
    for data in (*samples, make_batch(samples)):
        expected = [sizes[z] for z in data.atomic_numbers.tolist()]
        assert data.n_basis_per_atom.tolist() == expected
        pieces = data.split_field_by_atom(data.coeffs)
        assert [len(piece) for piece in pieces] == expected
        assert torch.equal(torch.cat(pieces), data.coeffs)
        with pytest.raises(BasisError, match="the sample has"):
            data.split_field_by_atom(np.zeros(3))
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
        assert sample_name(found, i) == sample_name(sample, 0) == sample.mol_id


@pytest.mark.parametrize("n", [1, 3])
def test_samples_are_counted_and_told_apart(n: int, basis_info: Any, make_sample: Any) -> None:
    samples = [make_sample(basis_info, np.random.default_rng(i)) for i in range(n)]
    for data in (samples[0], OFData(z=torch.zeros(len(samples[0].pos)), coeffs=samples[0].coeffs)):
        assert n_molecules(data) == 1
        assert molecule_index(data).tolist() == [0] * len(data.coeffs)
        assert molecule_index(data, "pos").tolist() == [0] * len(samples[0].pos)
    batch = join_samples(samples)
    assert n_molecules(batch) == n
    assert molecule_index(batch).tolist() == [i for i, s in enumerate(samples) for _ in s.coeffs]
    assert molecule_index(batch, "pos").tolist() == [i for i, s in enumerate(samples) for _ in s.pos]
    with pytest.raises(BatchError, match=r"no 'coeffs_batch'.*follow_batch=\['coeffs'\]"):
        molecule_index(join_samples(samples, []))
    for sample in samples:
        del sample.pos
    for follow in (["coeffs"], []):
        assert n_molecules(join_samples(samples, follow)) == n
        with pytest.raises(BatchError, match="no 'batch': give the samples 'pos'"):
            molecule_index(join_samples(samples, follow), "pos")
    for field in ("pos", "coeffs"):
        with pytest.raises(BatchError, match=field):
            molecule_index(OFData(), field)


def test_fields_added_to_a_batch_are_in_its_samples(basis_info: Any, make_sample: Any, make_batch: Any) -> None:
    samples = [make_sample(basis_info, np.random.default_rng(i)) for i in range(3)]
    batch = make_batch(samples)
    batch.score, batch.double = torch.arange(3.0), 2 * batch.coeffs
    assert with_added_fields(batch, {"score": None, "double": "coeffs"}) is batch
    for i, part in enumerate(batch.to_data_list()):
        assert part.score.tolist() == [i]
        assert torch.equal(part.double, 2 * samples[i].coeffs)
    assert with_added_fields(samples[0], {"score": None}) is samples[0]


class Foreign:
    """A sample of another package's class."""

    def __init__(self, callable_keys: bool) -> None:
        self.z, self.name, self.batch = torch.tensor([1, 8]), ["water"], torch.zeros(2)
        self.keys: Any = (lambda: ["z", "name", "batch"]) if callable_keys else ["z", "name", "batch"]


@pytest.mark.parametrize("callable_keys", [True, False])
def test_samples_of_other_classes_become_pygs(callable_keys: bool) -> None:
    sample = Foreign(callable_keys)
    assert is_sample(sample)
    assert field_names(sample) == ["batch", "name", "z"]
    assert get_field(sample, "z") is sample.z
    assert get_field(sample, "absent") is get_field({}, "absent") is get_field(Data(), "absent") is None
    found = as_data(sample)
    assert set(found.keys()) == {"z", "name"}
    assert found.name == "water"
    assert not is_sample({"z": 1})
    assert join_samples([sample, sample]).name == ["water", "water"]
    with pytest.raises(BatchError, match="only some samples have the fields"):
        join_samples([sample, Data(x=sample.z)])


# --- data sets --------------------------------------------------------------------------------------------------------


class Squares(JoinedDataset):
    """Samples i with the field i * i."""

    def __len__(self) -> int:
        return 5

    def __getitems__(self, samples: Sequence[int]) -> Any:
        return join_samples([Data(square=torch.tensor([i * i])) for i in samples])


def test_a_joined_data_set_gives_samples_and_batches() -> None:
    dataset = Squares()
    assert [int(sample.square) for sample in dataset] == [0, 1, 4, 9, 16]
    assert int(dataset[-1].square) == 16
    for outside in (5, -6):
        with pytest.raises(IndexError, match="5"):
            dataset[outside]
    loader = DataLoader(Subset(dataset, [4, 2, 1]), batch_size=2, collate_fn=collate_joined)
    assert [batch.square.tolist() for batch in loader] == [[16, 4], [1]]
    for data in (dataset, Subset(dataset, range(5)), list(dataset)):
        batch = read_batch(data, [3, 1])
        assert batch.square.tolist() == [9, 1]
        assert isinstance(batch, Batch)
