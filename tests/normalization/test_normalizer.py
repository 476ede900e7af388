"""The normaliser's formulas against loops, its two invariants, and its differences of gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import AtomRef, BasisInfo, DimensionWiseRescaling, LinearReferences, Normalizer, OFData
from ofdft_norm.errors import BatchError, ConfigError, NormalizationError
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch

VECTORS = ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals")
SETTINGS = list(
    itertools.product(["none", "atom_ref", "linear"], ["none", "dimension_wise", "equivariant"], [1.0, 0.02, 37.0])
)
FULL = ("atom_ref", "dimension_wise", 0.1)


def build(
    basis: BasisInfo, rng: np.random.Generator, reference: str, rescaling: str, scale: float, epsilon: float = 1e-8
) -> Normalizer:
    """A normaliser of a given kind with random parameters."""
    n = basis.n_basis
    references: dict[str, Any] = {
        "none": None,
        "atom_ref": AtomRef(rng.normal(size=basis.n_types) - 40, rng.normal(), rng.normal(size=n)),
        "linear": LinearReferences(torch.tensor([0.0, *(rng.normal(size=118) - 40)], dtype=torch.float64)),
    }
    stds, max_grads, biases = rng.uniform(0.01, 200, n), rng.uniform(0, 5, n), rng.normal(size=n)
    if rescaling == "equivariant":
        first = [basis.basis_func_to_shell.tolist().index(shell) for shell in basis.basis_func_to_shell]
        stds, max_grads, biases = stds[first], max_grads[first], np.where(basis.l_per_basis_func == 0, biases, 0)
    module = None if rescaling == "none" else DimensionWiseRescaling(biases, stds, max_grads, epsilon=epsilon)
    return Normalizer(references[reference], module, scale)


@pytest.fixture
def full(basis_info: Any) -> Normalizer:
    return build(basis_info, np.random.default_rng(1), *FULL)


@pytest.fixture
def raw(basis_info: Any, make_sample: Any, make_batch: Any) -> Any:
    rng = np.random.default_rng(2)
    return make_batch([make_sample(basis_info, rng, mol_id=f"m{i}") for i in range(3)])


def naive_normalize(normalizer: Normalizer, basis: BasisInfo, sample: OFData) -> dict[str, Any]:
    """E' = (E - E_ref) / s; g' = (g - gbar) / (s (lambda + epsilon)); p' = lambda (p - pbar); w' = w / lambda."""
    s = float(normalizer.energy_scale)
    reference, rescaling = normalizer.reference, normalizer.rescaling
    out: dict[str, Any] = {field: [] for field in VECTORS}
    e_ref = float(reference.t_global) if isinstance(reference, AtomRef) else 0.0
    position = 0
    for z in sample.atomic_numbers.tolist():
        element = basis.atomic_numbers.tolist().index(z)
        if isinstance(reference, AtomRef):
            e_ref += float(reference.t_z[element])
        elif isinstance(reference, LinearReferences):
            e_ref += float(reference.element_references[z])
        for b in basis.atom_ind_to_basis_function_ind[element].tolist():
            p, p_star, g, w = (float(sample[field][position]) for field in VECTORS)
            gbar = float(reference.g_z[b]) if isinstance(reference, AtomRef) else 0.0
            lam = 1.0 if rescaling is None else float(rescaling.lambda_z[b])
            bias = 0.0 if rescaling is None else float(rescaling.coeff_biases[b])
            epsilon = 0.0 if rescaling is None else rescaling.epsilon
            e_ref += gbar * p
            out["coeffs"].append(lam * (p - bias))
            out["ground_state_coeffs"].append(lam * (p_star - bias))
            out["gradient_label"].append((g - gbar) / (s * (lam + epsilon)))
            out["dual_basis_integrals"].append(w / lam)
            position += 1
    return {**out, "energy_label": (float(sample.energy_label) - e_ref) / s, "energy_reference": e_ref}


# --- formulas and invariants -----


@pytest.mark.parametrize(("reference", "rescaling", "scale"), SETTINGS)
def test_equals_a_loop_over_atoms_alone_and_batched(
    reference: str, rescaling: str, scale: float, basis_info: Any, make_sample: Any, make_batch: Any
) -> None:
    rng = np.random.default_rng(0)
    normalizer = build(basis_info, rng, reference, rescaling, scale, epsilon=0.3)
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
            assert before[field].dtype == after[field].dtype
            assert before[field].numpy().tobytes() == after[field].numpy().tobytes()
        else:
            assert before[field] == after[field]


@given(data=st.data(), setting=st.sampled_from(SETTINGS), epsilon=st.sampled_from([0.0, 1e-8, 0.5]))
def test_invariant_i_denormalising_is_the_inverse_and_arguments_stay_as_they_are(
    setting: Any, epsilon: float, data: st.DataObject, some_samples: Any, make_batch: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    normalizer = build(basis, rng, *setting, epsilon=epsilon)
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


@given(data=st.data(), setting=st.sampled_from(SETTINGS))
def test_invariant_ii_autograd_agrees_in_both_coordinates(
    setting: Any, data: st.DataObject, some_samples: Any, make_batch: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    normalizer, raw = build(basis, rng, *setting), make_batch(samples)
    weight = torch.tensor(rng.normal(size=len(raw.coeffs)))
    raw.coeffs = raw.coeffs.clone().requires_grad_()
    normalised = normalizer.normalize(raw)
    energies = normalizer.denormalize_energy(energy_of_network(normalised.coeffs, raw, weight), normalised)
    (expected,) = torch.autograd.grad(energies.sum(), raw.coeffs)
    coeffs = normalised.coeffs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(energy_of_network(coeffs, raw, weight).sum(), coeffs)
    denormalised = normalizer.denormalize_gradient(gradient, normalised)
    torch.testing.assert_close(denormalised.detach(), expected, rtol=1e-5, atol=1e-7)  # lambda + epsilon for lambda


@given(data=st.data(), setting=st.sampled_from(SETTINGS), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_moved_coefficients_have_the_energy_and_the_derivative_of_the_raw_chain(
    setting: Any, dtype: torch.dtype, data: st.DataObject, some_samples: Any, make_batch: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    normalizer, raw = build(basis, rng, *setting), make_batch(samples)
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
    label = normalizer.denormalize(batch).energy_label
    torch.testing.assert_close(label, raw.energy_label, rtol=1e-6, atol=1e-3)


@given(data=st.data(), rescaling=st.sampled_from(["none", "dimension_wise", "equivariant"]))
def test_the_number_of_electrons_is_kept(
    rescaling: str, data: st.DataObject, some_samples: Any, make_batch: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    normalizer, batch = build(basis, rng, "atom_ref", rescaling, 0.1), make_batch(samples)
    normalised = normalizer.normalize(batch)
    pbar = torch.zeros(basis.n_basis).double() if normalizer.rescaling is None else normalizer.rescaling.coeff_biases
    w, p, w_, p_ = batch.dual_basis_integrals, batch.coeffs, normalised.dual_basis_integrals, normalised.coeffs
    for i in range(len(samples)):
        own = batch.coeffs_batch == i
        again = w_[own] @ p_[own] + w[own] @ pbar[batch.basis_function_ind[own]]
        torch.testing.assert_close(again, w[own] @ p[own], rtol=1e-11, atol=1e-11)


# --- differences of gradients -----


@given(data=st.data(), setting=st.sampled_from(SETTINGS), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_gradient_difference_equals_a_projection_molecule_by_molecule(
    setting: Any, dtype: torch.dtype, data: st.DataObject, some_samples: Any, make_batch: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    normalizer = build(basis, rng, *setting)
    batch = NormalizeBatch(normalizer, dtype)(make_batch(samples))
    predicted = torch.tensor(rng.normal(size=len(batch.coeffs))).to(dtype).requires_grad_()
    found = normalizer.gradient_difference(predicted, batch)
    g = normalizer.denormalize_gradient(predicted.detach(), batch)
    g = g - normalizer.denormalize_gradient(batch.gradient_label, batch)
    by_difference = normalizer.denormalize_gradient_difference(predicted.detach() - batch.gradient_label, batch)
    torch.testing.assert_close(by_difference, g, rtol=1e-4, atol=1e-4)
    expected = []
    for i, sample in enumerate(samples):
        w, own = sample.dual_basis_integrals.tolist(), g[batch.coeffs_batch == i].tolist()
        share = sum(a * b for a, b in zip(w, own, strict=True)) / sum(a * a for a in w)
        expected += [b - a * share for a, b in zip(w, own, strict=True)]
    tolerance = (1e-9 if dtype == torch.float64 else 1e-4) * max(1.0, max(map(abs, expected)))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.tolist(), expected, rtol=0, atol=tolerance)
    of_first = batch.coeffs_batch == 0
    alone = normalizer.gradient_difference(predicted.detach()[of_first], batch[0])
    torch.testing.assert_close(alone, found[of_first].detach(), rtol=1e-6, atol=1e-6)
    (derivative,) = torch.autograd.grad(found.abs().sum(), predicted)
    assert derivative.dtype == dtype
    assert derivative.isfinite().all()
    assert not normalizer.gradient_difference(batch.gradient_label, batch).any()


def test_a_gradient_difference_names_what_it_needs(full: Normalizer, raw: Any) -> None:
    batch = full.normalize(raw)
    with pytest.raises(NormalizationError, match="not normalised"):
        full.gradient_difference(raw.gradient_label, raw)
    for field, error in (("dual_basis_integrals", BatchError), ("gradient_label", NormalizationError)):
        lacking = batch.clone()
        del lacking[field]
        with pytest.raises(error, match=f"'{field}'"):
            full.gradient_difference(batch.gradient_label, lacking)


# --- shapes and dtypes -----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_energies_come_back_in_float64_and_in_their_shape(dtype: torch.dtype, full: Normalizer, raw: Any) -> None:
    batch = full.normalize(raw)
    predicted = torch.tensor([0.5, -1.0, 2.0], dtype=dtype)
    expected = [0.1 * p + float(e) for p, e in zip(predicted.tolist(), batch.energy_reference, strict=True)]
    for shape in ((3,), (3, 1)):
        energies = full.denormalize_energy(predicted.reshape(shape), batch)
        assert (energies.shape, energies.dtype) == (shape, torch.float64)
        assert energies.flatten().tolist() == pytest.approx(expected, rel=1e-14)
    raw.energy_label = raw.energy_label[:, None]
    column = full.normalize(raw).energy_label
    assert column.shape == (3, 1)
    torch.testing.assert_close(column.squeeze(1), batch.energy_label, rtol=1e-9, atol=1e-9)


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
@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: v[:, None], lambda v: v[None]])
def test_vectors_of_another_length_are_refused(
    change: Callable[[Any], Any], field: str, full: Normalizer, raw: Any
) -> None:
    batch = full.normalize(raw)
    wrong = change(batch[field])
    for method in ("gradient", "coeffs", "integrals", "gradient_difference"):
        with pytest.raises(NormalizationError, match="has shape"):
            getattr(full, f"denormalize_{method}")(wrong, batch)
    with pytest.raises(NormalizationError, match="has shape"):
        full.gradient_difference(wrong, batch)
    raw[field] = wrong
    with pytest.raises(NormalizationError, match=f"'{field}' has shape"):
        full.normalize(raw)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_the_energy_scale_must_be_positive(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"energy_scale = {value}.*data\.energy_scale"):
        Normalizer(energy_scale=value)


# --- exactly once -----


@pytest.mark.parametrize("collated", [False, True])
def test_twice_in_either_direction_is_an_error(collated: bool, full: Normalizer, raw: Any) -> None:
    raw = raw if collated else raw[0]
    normalised = full.normalize(raw)
    with pytest.raises(NormalizationError, match="normalised already"):
        full.normalize(normalised)
    for action in (full.denormalize, lambda batch: full.denormalize_energy(batch.energy_label, batch)):
        with pytest.raises(NormalizationError, match="not normalised"):
            action(raw)
    with pytest.raises(NormalizationError, match="not normalised"):
        full.denormalize(full.denormalize(normalised))
    full.normalize(full.denormalize(normalised))


@pytest.mark.parametrize("join_first", [False, True])
def test_samples_cut_from_a_normalised_batch_are_normalised(
    join_first: bool, full: Normalizer, raw: Any, make_batch: Any
) -> None:
    samples = raw.to_data_list()
    batch = full.normalize(raw) if join_first else make_batch([full.normalize(sample) for sample in samples])
    for part, sample in zip(batch.to_data_list(), samples, strict=True):
        with pytest.raises(NormalizationError, match="normalised already"):
            full.normalize(part)
        torch.testing.assert_close(full.denormalize(part).energy_label, sample.energy_label)
    back = full.denormalize(batch).to_data_list()
    assert set(back[0].keys()) == set(samples[0].keys())
    torch.testing.assert_close(back[2].coeffs, samples[2].coeffs)


# --- fields that samples may lack, or have beside -----


def test_samples_without_labels_are_normalised_and_unused_labels_may_be_nan(full: Normalizer, raw: Any) -> None:
    bare = raw.clone()
    for field in ("energy_label", "gradient_label", "ground_state_coeffs", "dual_basis_integrals"):
        del bare[field]
    normalised = full.normalize(bare)
    for field in ("coeffs", "energy_reference"):
        assert torch.equal(normalised[field], full.normalize(raw)[field])
    assert set(full.denormalize(normalised).keys()) == set(bare.keys())
    raw.energy_label[0], raw.gradient_label[raw.coeffs_batch == 0] = torch.nan, torch.nan
    batch = full.normalize(raw)
    assert batch.energy_label.isnan().tolist() == [True, False, False]
    assert torch.equal(batch.gradient_label.isnan(), batch.coeffs_batch == 0)
    assert not batch.energy_reference.isnan().any()


@pytest.mark.parametrize("setting", SETTINGS[::3])
def test_a_batch_without_coeffs_batch_names_the_option(setting: Any, basis_info: Any, raw: Any) -> None:
    del raw.coeffs_batch
    with pytest.raises(BatchError, match=r"'coeffs_batch'.*follow_batch=\['coeffs'\]"):
        build(basis_info, np.random.default_rng(3), *setting).normalize(raw)


@pytest.mark.parametrize("field", ["coeffs", "atom_ind", "basis_function_ind"])
def test_missing_fields_are_named(field: str, full: Normalizer, raw: Any) -> None:
    sample = raw[0]
    del sample[field]
    with pytest.raises(NormalizationError, match=rf"molecule 'm0'.*'{field}'.*OFData\.construct_new"):
        full.normalize(sample)


def test_gradients_are_normalised_without_coefficients(basis_info: Any, raw: Any) -> None:
    normalizer = build(basis_info, np.random.default_rng(3), "none", "dimension_wise", 0.1)
    expected = normalizer.normalize(raw)
    del raw.coeffs
    assert torch.equal(normalizer.normalize(raw).gradient_label, expected.gradient_label)


def test_samples_of_interatomic_potentials() -> None:
    sample = OFData(z=torch.tensor([8, 1, 1]), pos=torch.zeros(3, 3), y=torch.tensor([-76.0]), forces=torch.ones(3, 3))
    normalizer = Normalizer(LinearReferences(torch.arange(119.0)), None, 2.0, energy_field="y", forces_field="forces")
    normalised = normalizer.normalize(sample)
    assert normalised.y.tolist() == [(-76.0 - 10.0) / 2.0]
    assert torch.equal(normalised.forces, sample.forces.double() / 2)
    back = normalizer.denormalize(normalised)
    assert back.y.tolist() == [-76.0]
    assert torch.equal(back.forces, sample.forces.double())
    assert torch.equal(normalizer.denormalize_forces(normalised.forces, normalised), back.forces)
    sample.forces = sample.forces[:2]
    with pytest.raises(NormalizationError, match=r"'forces' has shape \(2, 3\).*expected \(3, 3\)"):
        normalizer.normalize(sample)
