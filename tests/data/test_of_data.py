from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Batch

from ofdft_norm import ConstantSampleWeigher, OFData, OFDataset, ProjectGradient
from ofdft_norm.data.of_data import molecule_index, n_molecules, with_added_fields
from ofdft_norm.errors import BasisError, BatchError, LabelFileError

# --- construct_new -----


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
    for field, shift in (
        ("coeffs", 0),
        ("ground_state_coeffs", 1),
        ("gradient_label", 2),
        ("dual_basis_integrals", 3),
    ):
        assert sample[field].dtype == torch.float64
        np.testing.assert_array_equal(sample[field].numpy(), values + shift)
    assert sample.energy_label.shape == sample.has_energy_label.shape == sample.scf_iteration.shape == (1,)
    assert float(sample.energy_label) == -76.5
    assert bool(sample.has_energy_label)
    assert sample.mol_id == "water"
    assert sample.scf_iteration.tolist() == [7]


def test_python_numbers_and_lists_lose_no_digits(basis_info: Any) -> None:
    energy = -12345.678901234567
    for default in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(default)
        try:
            sample = OFData.construct_new(
                basis_info, [[0.1, 0.2, 0.3]], [1], [0.1] * 5, energy_label=energy, dual_basis_integrals=[1] * 5
            )
        finally:
            torch.set_default_dtype(torch.float32)
        assert float(sample.energy_label) == energy
        assert sample.pos.tolist() == [[0.1, 0.2, 0.3]]
        assert sample.coeffs.tolist() == [0.1] * 5
        assert sample.dual_basis_integrals.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_keep_their_dtype(dtype: torch.dtype, basis_info: Any) -> None:
    sample = OFData.construct_new(basis_info, torch.zeros(1, 3, dtype=dtype), [1], torch.zeros(5, dtype=dtype))
    assert sample.pos.dtype == sample.coeffs.dtype == dtype


def test_arrays_that_cannot_be_written_are_copied(basis_info: Any) -> None:
    values = np.arange(5.0)
    values.flags.writeable = False
    assert OFData.construct_new(basis_info, np.zeros((1, 3)), [1], values).coeffs.tolist() == values.tolist()


def test_absent_fields_are_not_set_and_the_flag_follows_the_label(basis_info: Any) -> None:
    bare = OFData.construct_new(basis_info, np.zeros((1, 3)), [1], np.zeros(5))
    for field in ("ground_state_coeffs", "gradient_label", "energy_label", "dual_basis_integrals", "mol_id"):
        assert field not in bare
    assert not bool(bare.has_energy_label)
    labelled = OFData.construct_new(basis_info, np.zeros((1, 3)), [1], np.zeros(5), energy_label=1.0)
    assert bool(labelled.has_energy_label)
    unused = OFData.construct_new(
        basis_info, np.zeros((1, 3)), [1], np.zeros(5), energy_label=1.0, has_energy_label=False
    )
    assert not bool(unused.has_energy_label)


@pytest.mark.parametrize("field", ["coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals"])
@pytest.mark.parametrize("shape", [(14,), (16,), (15, 1), (1, 15), ()])
def test_a_wrong_length_names_molecule_field_and_config_key(
    field: str, shape: tuple[int, ...], basis_info: Any, make_sample: Any
) -> None:
    with pytest.raises(LabelFileError, match=rf"molecule 'w': field '{field}' has shape .*15.*data.source.basis_info"):
        make_sample(basis_info, np.random.default_rng(0), [8, 1], "w", **{field: np.zeros(shape)})


def test_wrong_positions_energies_and_elements_are_named(basis_info: Any) -> None:
    build = OFData.construct_new
    with pytest.raises(LabelFileError, match=r"molecule 'w': field 'pos' has shape \(2, 3\), expected \(1, 3\)"):
        build(basis_info, np.zeros((2, 3)), [1], np.zeros(5), mol_id="w")
    with pytest.raises(
        LabelFileError, match=r"molecule 'w': field 'energy_label' has shape \(2,\), expected one number"
    ):
        build(basis_info, np.zeros((1, 3)), [1], np.zeros(5), energy_label=[1.0, 2.0], mol_id="w")
    with pytest.raises(BasisError, match=r"molecule 'w': field 'atomic_numbers' has the elements \[7\].*data.source"):
        build(basis_info, np.zeros((1, 3)), [7], np.zeros(5), mol_id="w")
    with pytest.raises(BasisError, match=r"sample: field 'atomic_numbers' is 1.5"):
        build(basis_info, np.zeros((1, 3)), 1.5, np.zeros(5))


# --- which molecule an entry belongs to -----


@given(data=st.data())
def test_indices_count_molecules_in_batches_and_samples(
    data: st.DataObject, some_samples: Any, make_batch: Any
) -> None:
    _, samples, _ = data.draw(some_samples)
    batch = make_batch(samples)
    assert n_molecules(batch) == len(samples)
    assert molecule_index(batch).tolist() == [i for i, s in enumerate(samples) for _ in range(len(s.coeffs))]
    assert molecule_index(batch, "pos").tolist() == [i for i, s in enumerate(samples) for _ in range(len(s.pos))]
    for sample in samples:
        assert n_molecules(sample) == 1
        assert molecule_index(sample).tolist() == [0] * len(sample.coeffs)
        assert molecule_index(sample, "pos").tolist() == [0] * len(sample.pos)


def test_samples_without_positions_are_counted_by_their_elements() -> None:
    assert molecule_index(OFData(z=torch.tensor([1, 8])), "pos").tolist() == [0, 0]
    with pytest.raises(BatchError, match="'atomic_numbers', 'z', 'pos'"):
        molecule_index(OFData(), "pos")
    with pytest.raises(BatchError, match="'coeffs'"):
        molecule_index(OFData(pos=torch.zeros(1, 3)))


def test_a_batch_without_coeffs_batch_says_how_to_get_one(basis_info: Any, make_sample: Any, make_batch: Any) -> None:
    batch = make_batch([make_sample(basis_info, np.random.default_rng(0)) for _ in range(2)])
    del batch.coeffs_batch
    with pytest.raises(BatchError, match=r"no 'coeffs_batch': give PyG's DataLoader follow_batch=\['coeffs'\]"):
        molecule_index(batch)


# --- cutting -----


def test_fields_added_after_collation_are_cut_into_samples(
    basis_info: Any, make_sample: Any, make_batch: Any, assert_same_fields: Any
) -> None:
    rng = np.random.default_rng(0)
    samples = [make_sample(basis_info, rng) for _ in range(3)]
    batch = make_batch(samples)
    copied = batch.clone()
    copied.score = torch.arange(3.0)
    assert "score" not in copied.to_data_list()[0]  # PyG alone drops it
    with_added_fields(copied, {"score": None})
    assert [part.score.tolist() for part in copied.to_data_list()] == [[0.0], [1.0], [2.0]]
    assert_same_fields(batch[1], samples[1])
    sample = samples[0].clone()
    assert with_added_fields(sample, {"score": None}) is sample


WRAPPINGS = [bool, int, float, np.bool_, lambda v: [v], lambda v: (v,), np.array, lambda v: np.array([v]), torch.tensor]


@pytest.mark.parametrize("wrap", WRAPPINGS)
@pytest.mark.parametrize("flag", [True, False])
def test_has_energy_label_is_the_value_given_however_it_is_wrapped(basis_info: Any, wrap: Any, flag: bool) -> None:
    made = OFData.construct_new(basis_info, np.zeros((1, 3)), [1], np.ones(5), has_energy_label=wrap(flag))
    assert made.has_energy_label.tolist() == [flag]
    assert made.has_energy_label.dtype == torch.bool


@pytest.mark.parametrize("flag", [2, -1, 0.5, float("nan"), "False", [], [True, False], torch.ones(2), {"a": 1}])
def test_has_energy_label_that_is_neither_is_refused(basis_info: Any, flag: Any) -> None:
    with pytest.raises(LabelFileError, match=r"molecule 'water': field 'has_energy_label' is .*True or False"):
        OFData.construct_new(basis_info, np.zeros((1, 3)), [1], np.ones(5), has_energy_label=flag, mol_id="water")


@pytest.mark.parametrize("follow", [["coeffs"], []])
@pytest.mark.parametrize("n", [1, 3])
def test_molecules_are_counted_in_one_way_with_and_without_positions(
    basis_info: Any, make_sample: Any, follow: list[str], n: int
) -> None:
    samples = [make_sample(basis_info, np.random.default_rng(i)) for i in range(n)]
    with_positions = Batch.from_data_list(samples, follow_batch=follow)
    for sample in samples:
        del sample.pos
    without = Batch.from_data_list(samples, follow_batch=follow)
    assert "ptr" not in without
    assert n_molecules(without) == n_molecules(with_positions) == n
    if follow:
        assert torch.equal(molecule_index(without), molecule_index(with_positions))
        assert torch.equal(ProjectGradient()(without).gradient_label, ProjectGradient()(with_positions).gradient_label)
        assert ConstantSampleWeigher().get_weights(without).tolist() == [1.0] * n
    else:
        with pytest.raises(BatchError, match=r"no 'coeffs_batch'.*follow_batch=\['coeffs'\]"):
            molecule_index(without)
    with pytest.raises(BatchError, match="no 'batch': give the samples 'pos'"):
        molecule_index(without, "pos")


# --- STRUCTURES25's names ---


def test_a_file_gives_the_samples_of_its_data_set(labels: Any) -> None:
    paths = labels.write_several()
    dataset = OFDataset.from_directory(labels.folder, labels.basis_info, energy_key="e_tot", gradient_key="grad_tot")
    assert dataset.paths == sorted(paths)
    for i, expected in enumerate(list(dataset)[:4]):  # formaldehyde, five iterations
        for iteration in (i, i - 5):
            found = OFData.from_file(dataset.paths[0], iteration, labels.basis_info, "e_tot", "grad_tot")
            assert found.keys() == expected.keys()
            assert found.scf_iteration.tolist() == [i]
            assert torch.equal(found.gradient_label, expected.gradient_label)
            assert torch.equal(found.energy_label, expected.energy_label)
    with pytest.raises(LabelFileError, match="SCF iterations"):
        OFData.from_file(dataset.paths[0], 5, labels.basis_info)
    with pytest.raises(LabelFileError, match=r"no label file .*data\.source\.paths"):
        OFDataset.from_directory(labels.folder / "none", labels.basis_info)


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
        arrays = data.split_field_by_atom(np.stack([data.coeffs, data.coeffs]), axis=1)
        assert [array.shape for array in arrays] == [(2, n) for n in expected]
        with pytest.raises(BasisError, match="axis 0 has 3 entries, but the sample has"):
            data.split_field_by_atom(np.zeros(3))
    with pytest.raises(BatchError, match="lacks the field 'basis_info'"):
        _ = OFData(atom_ind=torch.zeros(1, dtype=torch.int64)).n_basis_per_atom
