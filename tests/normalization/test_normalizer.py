"""The normaliser's formulas against loops, its inverse, its gradients, and its equivariance against e3nn's matrices."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st

from ofdft_norm import (
    AtomRef,
    BasisInfo,
    DatasetStatistics,
    DimensionWiseRescaling,
    LinearReferences,
    Normalizer,
    OFData,
)
from ofdft_norm.errors import BatchError, NormalizationError
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch
from ofdft_norm.normalization.training_range import TrainingRange

VECTORS = ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals")
KINDS = list(itertools.product(["none", "atom_ref", "linear"], ["none", "dimension_wise", "equivariant"]))
SETTINGS = [(*kind, scale) for kind in KINDS for scale in (1.0, 0.02, 37.0)]


@pytest.fixture
def full(basis_info, make_normalizer) -> Normalizer:
    return make_normalizer(basis_info, 1)


@pytest.fixture
def raw(basis_info, make_sample, make_batch):
    rng = np.random.default_rng(2)
    return make_batch([make_sample(basis_info, rng, mol_id=f"m{i}") for i in range(3)])


def naive_normalize(normalizer: Normalizer, basis: BasisInfo, samples: list[OFData]) -> dict[str, list[float]]:
    """E' = (E - E_ref) / s; g' = (g - gbar) / (s (lambda + epsilon)); p' = lambda (p - pbar); w' = w / lambda."""
    s, n = float(normalizer.energy_scale), basis.n_basis
    reference, rescaling = normalizer.reference, normalizer.rescaling
    lam, bias = ([1.0] * n, [0.0] * n) if rescaling is None else (rescaling.lambda_z, rescaling.coeff_biases)
    gbar = reference.g_z if isinstance(reference, AtomRef) else [0.0] * n
    epsilon = 0.0 if rescaling is None else rescaling.epsilon
    out: dict[str, list[float]] = {field: [] for field in (*VECTORS, "energy_label", "energy_reference")}
    for sample in samples:
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
        out["energy_label"].append((float(sample.energy_label) - e_ref) / s)
        out["energy_reference"].append(e_ref)
    return out


# --- formulas and invariants -----


def check_unchanged(before: Any, after: Any) -> None:
    assert list(before.keys()) == list(after.keys())
    for field in before.keys():
        if isinstance(before[field], torch.Tensor):
            torch.testing.assert_close(after[field], before[field], rtol=0, atol=0, equal_nan=True)
        else:
            assert before[field] == after[field]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@given(data=st.data(), scale=st.sampled_from([1.0, 0.02, 37.0]), epsilon=st.sampled_from([0.0, 1e-8, 0.5]))
def test_normalising_equals_a_loop_over_atoms_and_denormalising_inverts_it(
    kind, scale, epsilon, data, some_samples, make_batch, make_normalizer
):
    basis, samples, rng = data.draw(some_samples)
    normalizer = make_normalizer(basis, rng, *kind, scale, epsilon)
    for raw, members in ((make_batch(samples), samples), (samples[0], samples[:1])):
        before = raw.clone()
        normalised = normalizer.normalize(raw)
        check_unchanged(before, raw)
        for field, values in naive_normalize(normalizer, basis, members).items():
            assert normalised[field].tolist() == pytest.approx(values, rel=1e-11, abs=1e-11 / scale)
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
def test_moved_coefficients_have_the_energy_and_the_derivative_of_the_raw_chain(
    setting, dtype, data, some_samples, make_batch, make_normalizer
):
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


# --- rotations -----


def rotated(sample: OFData, basis: BasisInfo, rotation: torch.Tensor) -> OFData:
    """Rotates positions and every per-function field, atom after atom; p functions are in the order x, y, z."""
    matrices = [o3.Irreps(basis.irreps_per_atom[i]).D_from_matrix(rotation) for i in sample.atom_ind.tolist()]
    block = torch.block_diag(*[matrix.to(torch.float64) for matrix in matrices])
    out = sample.clone()
    for field in VECTORS:
        out[field] = block @ sample[field]
    out.pos = sample.pos @ rotation.T
    return out


@given(data=st.data(), seed=st.integers(0, 1000))
def test_equivariant_rescaling_and_the_scalar_reference_commute_with_rotations(data, seed, some_samples):
    basis, samples, rng = data.draw(some_samples)
    torch.manual_seed(seed)
    # from statistics that differ within each shell
    n = basis.n_basis
    arrays = {name: rng.normal(size=n) for name in ("coeffs/mean", "gradient_label/mean")}
    arrays |= {name: rng.uniform(0.01, 3, n) for name in ("coeffs/std", "gradient_max_after_scalar_atom_ref")}
    arrays |= {
        "scalar_atom_ref_atom_type_bias": rng.normal(size=basis.n_types),
        "scalar_atom_ref_global_bias": np.ones(()),
    }
    statistics = DatasetStatistics.from_arrays({f"has_energy_label/{key}": value for key, value in arrays.items()})
    reference = AtomRef.from_dataset_statistics(statistics, basis, scalar_only=True)
    normalizer = Normalizer(
        reference, DimensionWiseRescaling.from_dataset_statistics(statistics, basis, equivariant=True)
    )
    rotation = o3.rand_matrix(dtype=torch.float64)
    after = rotated(normalizer.normalize(samples[0]), basis, rotation)
    before = normalizer.normalize(rotated(samples[0], basis, rotation))
    for field in (*VECTORS, "energy_label", "energy_reference"):  # e3nn's matrices are good to 1e-7
        torch.testing.assert_close(
            after[field], before[field], rtol=0, atol=1e-6 * (1 + float(before[field].abs().max()))
        )


# --- training range -----


@settings(max_examples=10)
@given(drawn=st.data())
def test_the_excess_over_the_training_range_equals_a_loop_for_raw_and_normalised_batches(
    some_samples, make_batch, drawn
):
    basis_info, samples, rng = drawn.draw(some_samples)
    n = basis_info.n_basis
    lowest = rng.normal(size=n)
    highest = lowest + rng.choice([0.0, 1.0, 3.0], size=n)  # 0: all training samples are equal
    zero = rng.random(n) < 0.1  # by symmetry: the range is 0 alone
    lowest[zero] = highest[zero] = 0
    n_atoms = rng.integers(0, 2, size=basis_info.n_types)  # 0: an element that no sample has
    unseen = np.repeat(n_atoms == 0, basis_info.basis_dim_per_atom)
    lowest[unseen] = highest[unseen] = 0
    arrays = {"coeffs_range/minimum": lowest, "coeffs_range/maximum": highest, "n_atoms": n_atoms}
    statistics = DatasetStatistics.from_arrays({f"has_energy_label/{name}": values for name, values in arrays.items()})
    rescaling = DimensionWiseRescaling(rng.normal(size=n), rng.uniform(0.1, 2, size=n), rng.uniform(0, 1, size=n))
    training_range = TrainingRange.from_dataset_statistics(statistics, basis_info)
    normalizer = Normalizer(rescaling=rescaling, basis_info=basis_info, training_range=training_range)
    batch, shell = make_batch(samples), basis_info.basis_func_to_shell
    smallest = 1e-9 * max(abs(lowest).max(), abs(highest).max())
    found = normalizer.range_excess(batch)
    assert found is not None
    for i, sample in enumerate(samples):
        excess = []
        for b, p in zip(sample.basis_function_ind.tolist(), sample.coeffs.tolist(), strict=True):
            width = max(highest[b] - lowest[b], 0.01 * max((highest - lowest)[shell == shell[b]]), smallest)
            width = width if width > 0 else 1.0
            excess.append(0.0 if unseen[b] else max(p - highest[b], lowest[b] - p, 0.0) / width)
        excess = [e if e >= 1e-6 else 0.0 for e in excess]  # rounding of float32
        np.testing.assert_allclose(float(found.excess[i]), max(excess), rtol=1e-12)
        if max(excess) > 0:
            assert int(found.dimension[i]) == int(sample.basis_function_ind[int(np.argmax(excess))])
    of_normalised = normalizer.range_excess(normalizer.normalize(batch))
    assert of_normalised is not None
    np.testing.assert_allclose(of_normalised.excess, found.excess, rtol=1e-6, atol=1e-6)


# --- shapes and dtypes -----


def test_energies_come_back_in_float64_and_in_their_shape(full, raw):
    batch = full.normalize(raw)
    predicted = torch.tensor([0.5, -1.0, 2.0], dtype=torch.bfloat16)
    expected = 0.1 * predicted.double() + batch.energy_reference
    for shape in ((3,), (3, 1)):
        assert torch.equal(full.denormalize_energy(predicted.reshape(shape), batch), expected.reshape(shape))
    raw.energy_label = raw.energy_label[:, None]
    assert torch.equal(full.normalize(raw).energy_label, batch.energy_label[:, None])


def test_energies_and_vectors_of_another_shape_are_refused(full, raw):
    batch = full.normalize(raw)
    for shape in ((1, 3), (2,), (4,), (3, 3), (), (3, 1, 1)):
        with pytest.raises(NormalizationError, match=r"\['m0', 'm1', 'm2'\]: 'energy' has shape .*expected \(3,\)"):
            full.denormalize_energy(torch.zeros(shape), batch)
        with pytest.raises(NormalizationError, match=r"'energy_label' has shape .*expected \(3,\)"):
            full.normalize(raw.clone().update({"energy_label": torch.zeros(shape)}))
    methods = ["denormalize_gradient", "denormalize_coeffs", "denormalize_integrals", "gradient_difference"]
    for field, pick in itertools.product(VECTORS, (slice(-1), (slice(None), None), None)):
        wrong = batch[field][pick]
        for method in methods:
            with pytest.raises(NormalizationError, match="has shape"):
                getattr(full, method)(wrong, batch)
        with pytest.raises(NormalizationError, match=f"'{field}' has shape"):
            full.normalize(raw.clone().update({field: wrong}))


# --- exactly once -----


@pytest.mark.parametrize("join_first", [False, True])
def test_twice_in_either_direction_is_an_error_for_batches_and_their_samples(join_first, full, raw, make_batch):
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
    full, raw, basis_info, make_normalizer
):
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
def test_missing_fields_are_named(setting, basis_info, raw, make_normalizer):
    normalizer, full = make_normalizer(basis_info, 3, *setting), make_normalizer(basis_info)
    for field in ("coeffs", "atom_ind", "basis_function_ind"):
        sample = raw[0]
        del sample[field]
        with pytest.raises(NormalizationError, match=rf"molecule 'm0'.*'{field}'.*OFData\.construct_new"):
            full.normalize(sample)
    del raw.coeffs_batch
    with pytest.raises(BatchError, match=r"'coeffs_batch'.*follow_batch=\['coeffs'\]"):
        normalizer.normalize(raw)
