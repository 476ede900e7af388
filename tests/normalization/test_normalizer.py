"""The normaliser's formulas against loops, its two invariants, and its differences of gradients."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import AtomRef, BasisInfo, LinearReferences, Normalizer, OFData, project_gradient
from ofdft_norm.errors import BatchError, NormalizationError
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch

VECTORS = ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals")
SETTINGS = list(
    itertools.product(["none", "atom_ref", "linear"], ["none", "dimension_wise", "equivariant"], [1.0, 0.02, 37.0])
)


@pytest.fixture
def full(basis_info: Any, make_normalizer: Any) -> Normalizer:
    return make_normalizer(basis_info, 1)


@pytest.fixture
def raw(basis_info: Any, make_sample: Any, make_batch: Any) -> Any:
    rng = np.random.default_rng(2)
    return make_batch([make_sample(basis_info, rng, mol_id=f"m{i}") for i in range(3)])


def naive_normalize(normalizer: Normalizer, basis: BasisInfo, sample: OFData) -> dict[str, Any]:
    """E' = (E - E_ref) / s; g' = (g - gbar) / (s (lambda + epsilon)); p' = lambda (p - pbar); w' = w / lambda."""
    s, n = float(normalizer.energy_scale), basis.n_basis
    reference, rescaling = normalizer.reference, normalizer.rescaling
    lam, bias = ([1.0] * n, [0.0] * n) if rescaling is None else (rescaling.lambda_z, rescaling.coeff_biases)
    gbar = reference.g_z if isinstance(reference, AtomRef) else [0.0] * n
    epsilon = 0.0 if rescaling is None else rescaling.epsilon
    out: dict[str, Any] = {field: [] for field in VECTORS}
    e_ref, position = float(reference.t_global) if isinstance(reference, AtomRef) else 0.0, 0
    for z in sample.atomic_numbers.tolist():
        element = basis.atomic_numbers.tolist().index(z)
        if isinstance(reference, AtomRef):
            e_ref += float(reference.t_z[element])
        elif isinstance(reference, LinearReferences):
            e_ref += float(reference.element_references[z])
        for b in basis.atom_ind_to_basis_function_ind[element].tolist():
            p, p_star, g, w = (float(sample[field][position]) for field in VECTORS)
            e_ref += float(gbar[b]) * p
            new = [lam[b] * (p - bias[b]), lam[b] * (p_star - bias[b])]
            new += [(g - gbar[b]) / (s * (lam[b] + epsilon)), w / lam[b]]
            for field, value in zip(VECTORS, new, strict=True):
                out[field].append(float(value))
            position += 1
    return {**out, "energy_label": (float(sample.energy_label) - e_ref) / s, "energy_reference": e_ref}


# --- formulas and invariants -----


@pytest.mark.parametrize("setting", SETTINGS)
def test_equals_a_loop_over_atoms_alone_and_batched(
    setting: Any, basis_info: Any, make_sample: Any, make_batch: Any, make_normalizer: Any
) -> None:
    rng = np.random.default_rng(0)
    normalizer = make_normalizer(basis_info, rng, *setting, epsilon=0.3)
    samples = [make_sample(basis_info, rng, mol_id=f"m{i}") for i in range(4)]
    expected = [naive_normalize(normalizer, basis_info, sample) for sample in samples]
    batch = normalizer.normalize(make_batch(samples))
    for field in VECTORS:
        joined = [value for part in expected for value in part[field]]
        assert batch[field].tolist() == pytest.approx(joined, rel=1e-12, abs=1e-14)
    for field in ("energy_label", "energy_reference"):
        assert batch[field].tolist() == pytest.approx([part[field] for part in expected], rel=1e-11, abs=1e-11)
    assert batch.normalized.tolist() == [True] * 4
    for i, sample in enumerate(samples):
        single = normalizer.normalize(sample)
        for field in (*VECTORS, "energy_label", "energy_reference", "normalized"):
            torch.testing.assert_close(single[field], batch[i][field], rtol=1e-12, atol=1e-12)


def check_unchanged(before: Any, after: Any) -> None:
    assert list(before.keys()) == list(after.keys())
    for field in before.keys():
        if isinstance(before[field], torch.Tensor):
            torch.testing.assert_close(after[field], before[field], rtol=0, atol=0, equal_nan=True)
        else:
            assert before[field] == after[field]


@given(data=st.data(), setting=st.sampled_from(SETTINGS), epsilon=st.sampled_from([0.0, 1e-8, 0.5]))
def test_invariant_i_denormalising_is_the_inverse_and_arguments_stay_as_they_are(
    setting: Any, epsilon: float, data: st.DataObject, some_samples: Any, make_batch: Any, make_normalizer: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    normalizer = make_normalizer(basis, rng, *setting, epsilon=epsilon)
    for raw in (make_batch(samples), samples[0]):
        before = raw.clone()
        normalised = normalizer.normalize(raw)
        check_unchanged(before, raw)
        kept = normalised.clone()
        back = normalizer.denormalize(normalised)
        check_unchanged(kept, normalised)
        assert set(back.keys()) == set(raw.keys())
        for field in (*VECTORS, "energy_label"):
            assert back[field].dtype == torch.float64
            torch.testing.assert_close(back[field], raw[field], rtol=1e-12, atol=1e-11)
        for method, field in (("coeffs", "coeffs"), ("gradient", "gradient_label"), ("integrals", VECTORS[3])):
            single = getattr(normalizer, f"denormalize_{method}")(normalised[field], normalised)
            assert torch.equal(single, back[field])
        for _, value in back:  # it shares no memory with the normalised sample, nor that with the raw one
            if isinstance(value, torch.Tensor):
                value.zero_()
        check_unchanged(kept, normalised)


def energy_of_network(coeffs: torch.Tensor, batch: Any, weight: torch.Tensor) -> torch.Tensor:
    """Some energy of the normalised coefficients, not linear in them."""
    terms = torch.sin(coeffs.double() * weight) + 0.01 * coeffs.double().square()
    return terms.new_zeros(len(batch.energy_label)).index_add(0, batch.coeffs_batch, terms)


@given(data=st.data(), setting=st.sampled_from(SETTINGS), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_invariant_ii_moved_coefficients_have_the_energy_and_the_derivative_of_the_raw_chain(
    setting: Any, dtype: torch.dtype, data: st.DataObject, some_samples: Any, make_batch: Any, make_normalizer: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    normalizer, raw = make_normalizer(basis, rng, *setting), make_batch(samples)
    weight = torch.tensor(rng.normal(size=len(raw.coeffs)))
    batch = NormalizeBatch(normalizer, dtype)(raw)
    predicted = torch.tensor(rng.normal(size=len(samples)))
    exact = predicted * normalizer.energy_scale + batch.energy_reference
    assert torch.equal(normalizer.denormalize_energy(predicted, batch), exact)  # not moved: to the last bit
    batch.coeffs.requires_grad_()
    with torch.no_grad():  # as an optimiser does
        batch.coeffs += torch.tensor(rng.normal(size=len(raw.coeffs)))
    energies = normalizer.denormalize_energy(energy_of_network(batch.coeffs, raw, weight), batch)
    (derivative,) = torch.autograd.grad(energies.sum(), batch.coeffs)
    # the raw chain: the moved coefficients, normalised anew
    moved = raw.clone()
    moved.coeffs = normalizer.denormalize_coeffs(batch.coeffs.detach(), batch).requires_grad_()
    again = normalizer.normalize(moved)
    expected = normalizer.denormalize_energy(energy_of_network(again.coeffs, raw, weight), again)
    (by_raw,) = torch.autograd.grad(expected.sum(), moved.coeffs)
    unit = 1.0 if normalizer.rescaling is None else normalizer.rescaling.lambda_z[raw.basis_function_ind]
    # float32: E_ref belongs to the raw coefficients, the moved ones carry the rounding of the cast
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-3}
    torch.testing.assert_close(energies, expected, rtol=1e-11, atol=tolerance["atol"])
    torch.testing.assert_close(derivative.double() * unit, by_raw, **tolerance)
    (gradient,) = torch.autograd.grad(energy_of_network(batch.coeffs, raw, weight).sum(), batch.coeffs)
    found = normalizer.denormalize_gradient(gradient, batch)
    torch.testing.assert_close(found.detach(), by_raw, rtol=1e-5, atol=max(tolerance["atol"], 1e-7))  # lambda + epsilon
    label = normalizer.denormalize(batch).energy_label
    torch.testing.assert_close(label, raw.energy_label, rtol=1e-6, atol=1e-3)


# --- differences of gradients -----


@given(data=st.data(), setting=st.sampled_from(SETTINGS), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_gradient_difference_equals_a_projection_molecule_by_molecule(
    setting: Any, dtype: torch.dtype, data: st.DataObject, some_samples: Any, make_batch: Any, make_normalizer: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    normalizer = make_normalizer(basis, rng, *setting)
    batch = NormalizeBatch(normalizer, dtype)(make_batch(samples))
    predicted = torch.tensor(rng.normal(size=len(batch.coeffs))).to(dtype).requires_grad_()
    found = normalizer.gradient_difference(predicted, batch)
    g = normalizer.denormalize_gradient(predicted.detach(), batch)
    g = g - normalizer.denormalize_gradient(batch.gradient_label, batch)
    expected = torch.cat([project_gradient(g[batch.coeffs_batch == i], sample) for i, sample in enumerate(samples)])
    tolerance = (1e-9 if dtype == torch.float64 else 1e-4) * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=tolerance)
    of_first = batch.coeffs_batch == 0
    alone = normalizer.gradient_difference(predicted.detach()[of_first], batch[0])
    torch.testing.assert_close(alone, found[of_first].detach(), rtol=1e-6, atol=1e-6)
    (derivative,) = torch.autograd.grad(found.abs().sum(), predicted)
    assert derivative.dtype == dtype
    assert derivative.isfinite().all()
    assert not normalizer.gradient_difference(batch.gradient_label, batch).any()


# --- shapes and dtypes -----


def test_energies_come_back_in_float64_and_in_their_shape(full: Normalizer, raw: Any) -> None:
    batch = full.normalize(raw)
    predicted = torch.tensor([0.5, -1.0, 2.0], dtype=torch.bfloat16)
    expected = 0.1 * predicted.double() + batch.energy_reference
    for shape in ((3,), (3, 1)):
        assert torch.equal(full.denormalize_energy(predicted.reshape(shape), batch), expected.reshape(shape))
    raw.energy_label = raw.energy_label[:, None]
    assert torch.equal(full.normalize(raw).energy_label, batch.energy_label[:, None])


@pytest.mark.parametrize("shape", [(1, 3), (2,), (4,), (3, 3), (), (3, 1, 1)])
def test_energies_of_another_shape_are_refused(shape: tuple[int, ...], full: Normalizer, raw: Any) -> None:
    batch = full.normalize(raw)
    message = r"molecules \['m0', 'm1', 'm2'\]: '{}' has shape .*expected \(3,\)"
    with pytest.raises(NormalizationError, match=message.format("energy")):
        full.denormalize_energy(torch.zeros(shape), batch)
    raw.energy_label = torch.zeros(shape)
    with pytest.raises(NormalizationError, match=message.format("energy_label")):
        full.normalize(raw)


@pytest.mark.parametrize("field", VECTORS)
def test_vectors_of_another_length_are_refused(field: str, full: Normalizer, raw: Any) -> None:
    batch = full.normalize(raw)
    methods = ["denormalize_gradient", "denormalize_coeffs", "denormalize_integrals", "gradient_difference"]
    for wrong in (batch[field][:-1], batch[field][:, None], batch[field][None]):
        for method in (*methods, "denormalize_gradient_difference"):
            with pytest.raises(NormalizationError, match="has shape"):
                getattr(full, method)(wrong, batch)
        changed = raw.clone()
        changed[field] = wrong
        with pytest.raises(NormalizationError, match=f"'{field}' has shape"):
            full.normalize(changed)


# --- exactly once -----


@pytest.mark.parametrize("join_first", [False, True])
def test_twice_in_either_direction_is_an_error_for_batches_and_their_samples(
    join_first: bool, full: Normalizer, raw: Any, make_batch: Any
) -> None:
    samples = raw.to_data_list()
    batch = full.normalize(raw) if join_first else make_batch([full.normalize(sample) for sample in samples])
    for part, sample in zip([batch, *batch.to_data_list()], [raw, *samples], strict=True):
        with pytest.raises(NormalizationError, match="normalised already"):
            full.normalize(part)
        for action in (full.denormalize, lambda batch: full.denormalize_energy(batch.energy_label, batch)):
            with pytest.raises(NormalizationError, match="not normalised"):
                action(sample)
        back = full.denormalize(part)
        torch.testing.assert_close(back.energy_label, sample.energy_label)
        with pytest.raises(NormalizationError, match="not normalised"):
            full.denormalize(back)
        full.normalize(back)
    back = full.denormalize(batch).to_data_list()
    assert set(back[0].keys()) == set(samples[0].keys())
    torch.testing.assert_close(back[2].coeffs, samples[2].coeffs)


# --- fields that samples may lack, or have beside -----


def test_samples_without_labels_or_coefficients_are_normalised_and_unused_labels_may_be_nan(
    full: Normalizer, raw: Any, basis_info: Any, make_normalizer: Any
) -> None:
    bare = raw.clone()
    for field in ("energy_label", "gradient_label", "ground_state_coeffs", "dual_basis_integrals"):
        del bare[field]
    normalised = full.normalize(bare)
    for field in ("coeffs", "energy_reference"):
        assert torch.equal(normalised[field], full.normalize(raw)[field])
    assert set(full.denormalize(normalised).keys()) == set(bare.keys())
    without = make_normalizer(basis_info, 3, "none", "dimension_wise", 0.1)
    expected = without.normalize(raw).gradient_label
    bare.gradient_label = raw.gradient_label
    del bare.coeffs
    assert torch.equal(without.normalize(bare).gradient_label, expected)
    raw.energy_label[0], raw.gradient_label[raw.coeffs_batch == 0] = torch.nan, torch.nan
    batch = full.normalize(raw)
    assert batch.energy_label.isnan().tolist() == [True, False, False]
    assert torch.equal(batch.gradient_label.isnan(), batch.coeffs_batch == 0)
    assert not batch.energy_reference.isnan().any()


@pytest.mark.parametrize("setting", SETTINGS[::3])
def test_missing_fields_are_named(setting: Any, basis_info: Any, raw: Any, make_normalizer: Any) -> None:
    normalizer, full = make_normalizer(basis_info, 3, *setting), make_normalizer(basis_info)
    for field in ("coeffs", "atom_ind", "basis_function_ind"):
        sample = raw[0]
        del sample[field]
        with pytest.raises(NormalizationError, match=rf"molecule 'm0'.*'{field}'.*OFData\.construct_new"):
            full.normalize(sample)
    del raw.coeffs_batch
    with pytest.raises(BatchError, match=r"'coeffs_batch'.*follow_batch=\['coeffs'\]"):
        normalizer.normalize(raw)
