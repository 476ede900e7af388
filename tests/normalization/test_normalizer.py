from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import AtomRef, BasisInfo, DimensionWiseRescaling, LinearReferences, Normalizer, OFData
from ofdft_norm.errors import BatchError, ConfigError, NormalizationError
from ofdft_norm.normalization.transforms import NormalizeTransform, cast_floats

VECTORS = ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals")
REFERENCES = ["none", "atom_ref", "linear"]
RESCALINGS = ["none", "dimension_wise", "equivariant"]
SCALES = [1.0, 0.02, 37.0]
SETTINGS = list(itertools.product(REFERENCES, RESCALINGS, SCALES))


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
    out["energy_label"] = (float(sample.energy_label) - e_ref) / s
    out["energy_reference"] = e_ref
    return out


# --- formulas -----


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


def unchanged(before: Any, after: Any) -> None:
    """Asserts that a sample has the same fields, tensors and bits as before."""
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
        unchanged(before, raw)
        kept = normalised.clone()
        back = normalizer.denormalize(normalised)
        unchanged(kept, normalised)
        assert set(back.keys()) == set(raw.keys())
        for field in (*VECTORS, "energy_label"):
            assert back[field].dtype == torch.float64
            torch.testing.assert_close(back[field], raw[field], rtol=1e-12, atol=1e-11)


@given(data=st.data(), setting=st.sampled_from(SETTINGS))
def test_invariant_ii_autograd_agrees_in_both_coordinates(
    setting: Any, data: st.DataObject, some_samples: Any, make_batch: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    normalizer = build(basis, rng, *setting)
    raw = make_batch(samples)
    weight = torch.tensor(rng.normal(size=len(raw.coeffs)))

    def network(batch: Any) -> torch.Tensor:
        """Some energy of the normalised coefficients, not linear in them."""
        terms = torch.sin(batch.coeffs * weight) + 0.01 * batch.coeffs.square()
        return terms.new_zeros(len(samples)).index_add(0, batch.coeffs_batch, terms)

    raw.coeffs = raw.coeffs.clone().requires_grad_()
    normalised = normalizer.normalize(raw)
    energies = normalizer.denormalize_energy(network(normalised), normalised)
    (expected,) = torch.autograd.grad(energies.sum(), raw.coeffs)

    normalised = normalizer.normalize(raw)
    normalised.coeffs = normalised.coeffs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network(normalised).sum(), normalised.coeffs)
    denormalised = normalizer.denormalize_gradient(gradient, normalised)
    torch.testing.assert_close(denormalised, expected, rtol=1e-5, atol=1e-7)  # lambda + epsilon for lambda


@given(data=st.data(), setting=st.sampled_from(SETTINGS), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_moved_coefficients_have_the_energy_and_the_derivative_of_the_raw_chain(
    setting: Any, dtype: torch.dtype, data: st.DataObject, some_samples: Any, make_batch: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    normalizer = build(basis, rng, *setting)
    raw = make_batch(samples)
    weight = torch.tensor(rng.normal(size=len(raw.coeffs)))

    def network(batch: Any) -> torch.Tensor:
        terms = torch.sin(batch.coeffs.double() * weight)
        return terms.new_zeros(len(samples)).index_add(0, batch.coeffs_batch, terms)

    batch = NormalizeTransform(normalizer, dtype)(raw)
    predicted = torch.tensor(rng.normal(size=len(samples)))
    exact = predicted * normalizer.energy_scale + batch.energy_reference
    assert torch.equal(normalizer.denormalize_energy(predicted, batch), exact)  # not moved: to the last bit

    batch.coeffs.requires_grad_()
    with torch.no_grad():  # as an optimiser does
        batch.coeffs += torch.tensor(rng.normal(size=len(raw.coeffs)))
    energies = normalizer.denormalize_energy(network(batch), batch)
    (derivative,) = torch.autograd.grad(energies.sum(), batch.coeffs)

    # the raw chain: the moved coefficients, normalised anew
    moved = raw.clone()
    moved.coeffs = normalizer.denormalize_coeffs(batch.coeffs.detach(), batch).requires_grad_()
    again = normalizer.normalize(moved)
    expected = normalizer.denormalize_energy(network(again), again)
    (by_raw,) = torch.autograd.grad(expected.sum(), moved.coeffs)
    unit = 1.0 if normalizer.rescaling is None else normalizer.rescaling.lambda_z[raw.basis_function_ind]
    # float32: E_ref belongs to the raw coefficients, the moved ones carry the rounding of the cast
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(energies, expected, rtol=1e-11, atol=tolerance)
    torch.testing.assert_close(
        derivative.double() * unit, by_raw, rtol=1e-5 if dtype == torch.float32 else 1e-9, atol=tolerance
    )
    label = normalizer.denormalize(batch).energy_label
    torch.testing.assert_close(label, raw.energy_label, rtol=1e-6, atol=1e-3)


@given(data=st.data(), rescaling=st.sampled_from(RESCALINGS))
def test_the_number_of_electrons_is_kept(
    rescaling: str, data: st.DataObject, some_samples: Any, make_batch: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    normalizer = build(basis, rng, "atom_ref", rescaling, 0.1)
    batch = make_batch(samples)
    normalised = normalizer.normalize(batch)
    pbar = torch.zeros(basis.n_basis).double() if normalizer.rescaling is None else normalizer.rescaling.coeff_biases
    for i in range(len(samples)):
        own = batch.coeffs_batch == i
        n = batch.dual_basis_integrals[own] @ batch.coeffs[own]
        shifted = normalised.dual_basis_integrals[own] @ normalised.coeffs[own]
        n_again = shifted + batch.dual_basis_integrals[own] @ pbar[batch.basis_function_ind[own]]
        torch.testing.assert_close(n_again, n, rtol=1e-11, atol=1e-11)


# --- shapes of predictions -----


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_energies_come_back_in_float64_and_in_their_shape(
    dtype: torch.dtype, reference: str, basis_info: Any, make_sample: Any, make_batch: Any
) -> None:
    rng = np.random.default_rng(1)
    normalizer = build(basis_info, rng, reference, "dimension_wise", 0.1)
    batch = normalizer.normalize(make_batch([make_sample(basis_info, rng) for _ in range(3)]))
    predicted = torch.tensor([0.5, -1.0, 2.0], dtype=dtype)
    expected = [0.1 * p + float(e) for p, e in zip(predicted.tolist(), batch.energy_reference, strict=True)]
    for shape in ((3,), (3, 1)):
        energies = normalizer.denormalize_energy(predicted.reshape(shape), batch)
        assert energies.shape == shape
        assert energies.dtype == torch.float64
        assert energies.flatten().tolist() == pytest.approx(expected, rel=1e-14)
    raw = normalizer.denormalize(batch)
    raw.energy_label = raw.energy_label[:, None]
    column = normalizer.normalize(raw).energy_label
    assert column.shape == (3, 1)
    torch.testing.assert_close(column.squeeze(1), batch.energy_label, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 3), (2,), (4,), (3, 3), (), (3, 1, 1)])
def test_energies_of_another_shape_are_refused(
    shape: tuple[int, ...], basis_info: Any, make_sample: Any, make_batch: Any
) -> None:
    rng = np.random.default_rng(1)
    normalizer = build(basis_info, rng, "atom_ref", "none", 0.1)
    raw = make_batch([make_sample(basis_info, rng, mol_id=f"m{i}") for i in range(3)])
    batch = normalizer.normalize(raw)
    message = r"molecules \['m0', 'm1', 'm2'\]: '{}' has shape .*expected \(3,\) or \(3, 1\)"
    with pytest.raises(NormalizationError, match=message.format("energy")):
        normalizer.denormalize_energy(torch.zeros(shape), batch)
    raw.energy_label = torch.zeros(shape)
    with pytest.raises(NormalizationError, match=message.format("energy_label")):
        normalizer.normalize(raw)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("rescaling", RESCALINGS)
def test_predictions_of_another_length_are_refused(
    reference: str, rescaling: str, basis_info: Any, make_sample: Any, make_batch: Any
) -> None:
    rng = np.random.default_rng(1)
    normalizer = build(basis_info, rng, reference, rescaling, 0.1)
    batch = normalizer.normalize(make_batch([make_sample(basis_info, rng) for _ in range(2)]))
    for wrong in (batch.coeffs[:-1], batch.coeffs[:, None], batch.coeffs[None]):
        with pytest.raises(NormalizationError, match="has shape"):
            normalizer.denormalize_gradient(wrong, batch)
        with pytest.raises(NormalizationError, match="has shape"):
            normalizer.denormalize_integrals(wrong, batch)
        if rescaling != "none":
            with pytest.raises(NormalizationError, match="has shape"):
                normalizer.denormalize_coeffs(wrong, batch)


@pytest.mark.parametrize("rescaling", RESCALINGS)
@pytest.mark.parametrize("field", VECTORS)
def test_fields_of_a_wrong_length_are_refused(field: str, rescaling: str, basis_info: Any, make_sample: Any) -> None:
    rng = np.random.default_rng(1)
    normalizer = build(basis_info, rng, "atom_ref", rescaling, 0.1)
    for change in (lambda v: v[:-1], lambda v: v[:, None]):
        sample = make_sample(basis_info, rng, mol_id="water")
        sample[field] = change(sample[field])
        with pytest.raises(NormalizationError, match=rf"molecule 'water': '{field}' has shape"):
            normalizer.normalize(sample)


def test_the_difference_of_gradients_needs_no_reference(basis_info: Any, make_sample: Any) -> None:
    rng = np.random.default_rng(1)
    normalizer = build(basis_info, rng, "atom_ref", "dimension_wise", 0.1)
    batch = normalizer.normalize(make_sample(basis_info, rng))
    a, b = (torch.tensor(rng.normal(size=len(batch.coeffs))) for _ in range(2))
    difference = normalizer.denormalize_gradient(a, batch) - normalizer.denormalize_gradient(b, batch)
    torch.testing.assert_close(normalizer.denormalize_gradient_difference(a - b, batch), difference)


# --- exactly once -----


@pytest.mark.parametrize("collated", [False, True])
def test_twice_in_either_direction_is_an_error(
    collated: bool, basis_info: Any, make_sample: Any, make_batch: Any
) -> None:
    rng = np.random.default_rng(2)
    normalizer = build(basis_info, rng, "atom_ref", "dimension_wise", 0.1)
    raw = make_sample(basis_info, rng)
    raw = make_batch([raw, make_sample(basis_info, rng)]) if collated else raw
    normalised = normalizer.normalize(raw)
    with pytest.raises(NormalizationError, match="normalised already"):
        normalizer.normalize(normalised)
    with pytest.raises(NormalizationError, match="normalised already"):
        NormalizeTransform(normalizer)(normalised)
    for action in (
        normalizer.denormalize,
        lambda batch: normalizer.denormalize_energy(batch.energy_label, batch),
    ):
        with pytest.raises(NormalizationError, match="not normalised"):
            action(raw)
    with pytest.raises(NormalizationError, match="not normalised"):
        normalizer.denormalize(normalizer.denormalize(normalised))
    normalizer.normalize(normalizer.denormalize(normalised))


def test_samples_cut_from_a_normalised_batch_know_that_they_are(
    basis_info: Any, make_sample: Any, make_batch: Any
) -> None:
    rng = np.random.default_rng(2)
    normalizer = build(basis_info, rng, "atom_ref", "dimension_wise", 0.1)
    samples = [make_sample(basis_info, rng) for _ in range(3)]
    ways: list[Callable[[], Any]] = [
        lambda: normalizer.normalize(make_batch(samples)),
        lambda: make_batch([normalizer.normalize(sample) for sample in samples]),
    ]
    for way in ways:
        batch = way()
        parts = batch.to_data_list()
        for part, sample in zip(parts, samples, strict=True):
            with pytest.raises(NormalizationError, match="normalised already"):
                normalizer.normalize(part)
            torch.testing.assert_close(normalizer.denormalize(part).energy_label, sample.energy_label)
        raw = normalizer.denormalize(batch).to_data_list()
        assert set(raw[0].keys()) == set(samples[0].keys())
        torch.testing.assert_close(raw[2].coeffs, samples[2].coeffs)
    assert "normalized" not in make_batch(samples)


# --- what a sample may lack -----


def test_samples_without_labels_are_normalised(basis_info: Any, make_sample: Any) -> None:
    rng = np.random.default_rng(3)
    normalizer = build(basis_info, rng, "atom_ref", "dimension_wise", 0.1)
    full = make_sample(basis_info, rng)
    bare = full.clone()
    for field in ("energy_label", "gradient_label", "ground_state_coeffs", "dual_basis_integrals"):
        del bare[field]
    normalised = normalizer.normalize(bare)
    assert torch.equal(normalised.coeffs, normalizer.normalize(full).coeffs)
    assert torch.equal(normalised.energy_reference, normalizer.normalize(full).energy_reference)
    assert set(normalizer.denormalize(normalised).keys()) == set(bare.keys())


def test_labels_that_are_not_used_may_be_nan(basis_info: Any, make_sample: Any, make_batch: Any) -> None:
    rng = np.random.default_rng(3)
    normalizer = build(basis_info, rng, "atom_ref", "dimension_wise", 0.1)
    samples = [make_sample(basis_info, rng) for _ in range(2)]
    samples[0].energy_label *= torch.nan
    samples[0].gradient_label *= torch.nan
    batch = normalizer.normalize(make_batch(samples))
    assert batch.energy_label.isnan().tolist() == [True, False]
    assert torch.equal(batch.gradient_label.isnan(), batch.coeffs_batch == 0)
    assert not batch.energy_reference.isnan().any()


@pytest.mark.parametrize("setting", SETTINGS[::3])
def test_a_batch_without_coeffs_batch_says_how_to_get_one(
    setting: Any, basis_info: Any, make_sample: Any, make_batch: Any
) -> None:
    rng = np.random.default_rng(3)
    batch = make_batch([make_sample(basis_info, rng) for _ in range(2)])
    del batch.coeffs_batch
    with pytest.raises(BatchError, match=r"'coeffs_batch'.*follow_batch=\['coeffs'\]"):
        build(basis_info, rng, *setting).normalize(batch)


@pytest.mark.parametrize("field", ["coeffs", "atom_ind", "basis_function_ind"])
def test_what_the_atomic_reference_needs_is_named(field: str, basis_info: Any, make_sample: Any) -> None:
    rng = np.random.default_rng(3)
    sample = make_sample(basis_info, rng, mol_id="water")
    del sample[field]
    with pytest.raises(NormalizationError, match=rf"molecule 'water'.*'{field}'.*OFData.construct_new"):
        build(basis_info, rng, "atom_ref", "none", 1.0).normalize(sample)


def test_gradients_are_normalised_without_coefficients_or_not_at_all(basis_info: Any, make_sample: Any) -> None:
    rng = np.random.default_rng(3)
    normalizer = build(basis_info, rng, "none", "dimension_wise", 0.1)
    sample = make_sample(basis_info, rng)
    expected = normalizer.normalize(sample)
    del sample.coeffs
    assert torch.equal(normalizer.normalize(sample).gradient_label, expected.gradient_label)
    del sample.basis_function_ind
    with pytest.raises(NormalizationError, match="basis_function_ind"):
        normalizer.normalize(sample)


def test_samples_of_interatomic_potentials() -> None:
    forces = torch.ones(3, 3)
    sample = OFData(z=torch.tensor([8, 1, 1]), pos=torch.zeros(3, 3), y=torch.tensor([-76.0]), forces=forces)
    references = LinearReferences(torch.arange(119.0))
    normalizer = Normalizer(references, None, 2.0, energy_field="y", forces_field="forces")
    normalised = normalizer.normalize(sample)
    assert normalised.y.tolist() == [(-76.0 - 10.0) / 2.0]
    assert torch.equal(normalised.forces, forces.double() / 2)
    back = normalizer.denormalize(normalised)
    assert back.y.tolist() == [-76.0]
    assert torch.equal(back.forces, forces.double())


# --- elements -----


def test_elements_that_were_not_seen_name_molecule_element_and_config_key(
    basis_info: Any, make_sample: Any, make_batch: Any
) -> None:
    rng = np.random.default_rng(4)
    seen = torch.zeros(119, dtype=torch.bool)
    seen[[1, 8]] = True
    normalizer = Normalizer(None, None, 1.0, seen)
    water, methanol = make_sample(basis_info, rng, [8, 1, 1], "water"), make_sample(basis_info, rng, [6, 8], "methanol")
    normalizer.normalize(water)
    message = (
        r"field 'atomic_numbers' of {} has the elements \[6\].*\[1, 8\].*data\.split.*data\.unseen_elements=identity"
    )
    with pytest.raises(NormalizationError, match=message.format("molecule 'methanol'")):
        normalizer.normalize(methanol)
    with pytest.raises(NormalizationError, match=message.format(r"molecules \['methanol'\]")):
        normalizer.normalize(make_batch([water, methanol, water]))
    Normalizer(None, None, 1.0, None).normalize(methanol)


@pytest.mark.parametrize("number", [-1, 119, 1000])
def test_atomic_numbers_outside_the_table_never_pick_another_element(
    number: int, basis_info: Any, make_sample: Any
) -> None:
    sample = make_sample(basis_info, np.random.default_rng(4), [1, 1])
    sample.atomic_numbers = torch.tensor([1, number])
    with pytest.raises(NormalizationError, match=rf"\[{number}\]"):
        Normalizer(seen_elements=torch.ones(119, dtype=torch.bool)).normalize(sample)


# --- the rest -----


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_the_energy_scale_must_be_positive(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"energy_scale = {value}.*data\.energy_scale"):
        Normalizer(energy_scale=value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_transform_normalises_once_and_casts_all_but_the_reference_energy(
    dtype: torch.dtype, basis_info: Any, make_sample: Any
) -> None:
    rng = np.random.default_rng(5)
    normalizer = build(basis_info, rng, "atom_ref", "dimension_wise", 0.1)
    sample = make_sample(basis_info, rng)
    before = sample.clone()
    transformed = pickle.loads(pickle.dumps(NormalizeTransform(normalizer, dtype)))(sample)
    unchanged(before, sample)
    exact = normalizer.normalize(sample)
    for field in (*VECTORS, "pos", "energy_label"):
        assert transformed[field].dtype == dtype
        assert torch.equal(transformed[field], exact[field].to(dtype))
    assert transformed.energy_reference.dtype == torch.float64
    assert torch.equal(transformed.energy_reference, exact.energy_reference)
    assert transformed.atomic_numbers.dtype == torch.int64
    assert not any(value.requires_grad for _, value in transformed if isinstance(value, torch.Tensor))


def test_large_energies_keep_their_digits_through_low_precision(basis_info: Any, make_sample: Any) -> None:
    rng = np.random.default_rng(6)
    sample = make_sample(basis_info, rng)
    reference = AtomRef(rng.normal(size=3) * 1e5, 0.0, rng.normal(size=basis_info.n_basis))
    sample.energy_label = reference.sample_forward(sample) + 1e-3
    for dtype, tolerance in ((torch.float32, 1e-10), (torch.bfloat16, 1e-5)):
        low = NormalizeTransform(copy.deepcopy(Normalizer(reference)).to(dtype), dtype)(sample)
        energy = Normalizer(reference).denormalize_energy(low.energy_label, low)
        assert float(energy) == pytest.approx(float(sample.energy_label), rel=0, abs=tolerance)


def test_cast_floats_leaves_integers_and_names_alone() -> None:
    sample = OFData(a=torch.zeros(2, dtype=torch.float64), n=torch.arange(2), energy_reference=torch.ones(1).double())
    sample.mol_id = "water"
    cast_floats(sample, torch.float32)
    assert (sample.a.dtype, sample.n.dtype, sample.energy_reference.dtype) == (
        torch.float32,
        torch.int64,
        torch.float64,
    )
    assert sample.mol_id == "water"
