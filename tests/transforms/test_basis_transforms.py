from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pyscf")

from ofdft_norm import BasisTransforms, LocalFrames, NaturalReparametrization, ProjectGradient, project_gradient
from ofdft_norm.data.fields import DUAL_VECTORS, VECTORS
from ofdft_norm.errors import BatchError, ConfigError
from ofdft_norm.transforms import basis_transforms as module
from ofdft_norm.transforms.basis_transforms import change_coordinates, transforms_of
from ofdft_norm.transforms.molecule import molecules_of
from ofdft_norm.transforms.overlap import overlap_of

SEEDS = st.integers(0, 2**32 - 1)
CHAINS = {
    "raw": [],
    "local_frames": [LocalFrames()],
    "natural_symmetric": [NaturalReparametrization()],
    "natural_canonical": [NaturalReparametrization("canonical")],
    "local_frames+natural_symmetric": [LocalFrames(), NaturalReparametrization()],
    "local_frames+natural_canonical": [LocalFrames(), NaturalReparametrization("canonical")],
    "natural_symmetric+local_frames": [NaturalReparametrization(), LocalFrames()],
}
chains = pytest.mark.parametrize("name", CHAINS)


def assert_close(found: Any, expected: Any, atol: float = 1e-11) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=atol)


@chains
@pytest.mark.parametrize("p_order", ["yzx", "xyz"])
@settings(max_examples=5)
@given(seed=SEEDS)
def test_fields_change_by_the_matrix_and_come_back(name: str, p_order: Any, seed: int, make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(seed), p_order=p_order)
    transform = BasisTransforms(CHAINS[name])
    assert transform.coordinates == name
    before = sample.clone()
    changed = transform(sample)
    matrix, inverse = transform.matrix(sample)
    n = len(sample.coeffs)
    assert matrix.dtype == torch.float64
    assert_close(matrix @ inverse, torch.eye(n, dtype=torch.float64))
    for field in VECTORS:
        assert_close(changed[field], matrix @ sample[field])
    for field in DUAL_VECTORS:
        assert_close(changed[field], inverse.T @ sample[field])
    assert_close(changed.dual_basis_integrals @ changed.coeffs, sample.dual_basis_integrals @ sample.coeffs)
    assert_close(changed.gradient_label @ changed.coeffs, sample.gradient_label @ sample.coeffs)
    back = transform.inverse(changed)
    for field in sample.keys():
        if field in (*VECTORS, *DUAL_VECTORS):
            assert_close(back[field], sample[field])
            assert torch.equal(sample[field], before[field])
        else:
            equal = back[field] == before[field]
            assert equal if isinstance(equal, bool) else equal.all()
    assert (changed.coordinates, back.coordinates, sample.coordinates) == (name, "raw", "raw")


@chains
def test_a_batch_changes_as_its_samples_do(name: str, make_molecule: Any, make_batch: Any) -> None:
    rng = np.random.default_rng(0)
    first, other = make_molecule(rng), make_molecule(rng, [8, 1])
    # two densities of one molecule, one of another, the first molecule again
    samples = [first, first.clone(), other, first.clone()]
    for sample in samples[1:]:
        sample.coeffs = torch.tensor(rng.normal(size=len(sample.coeffs)))
    transform = BasisTransforms(CHAINS[name])
    expected = make_batch([transform(sample) for sample in samples])
    changed = transform(make_batch(samples))
    for field in (*VECTORS, *DUAL_VECTORS):
        assert_close(changed[field], expected[field])
    assert changed.coordinates == [name] * 4
    assert changed[2].coordinates == name
    back = transform.inverse(changed)
    assert_close(back.coeffs, make_batch(samples).coeffs)


def test_transforms_one_by_one_are_their_list(make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(1))
    frames, natural = LocalFrames(), NaturalReparametrization("canonical")
    together, one_by_one = BasisTransforms([frames, natural])(sample), natural(frames(sample))
    assert_close(one_by_one.coeffs, together.coeffs)
    assert one_by_one.coordinates == together.coordinates
    step, _ = natural.matrix(frames(sample))
    assert_close(step @ frames.matrix(sample)[0], BasisTransforms([frames, natural]).matrix(sample)[0])
    assert_close(frames.inverse(natural.inverse(one_by_one)).coeffs, sample.coeffs)
    with pytest.raises(ConfigError, match="cannot be undone"):
        frames.inverse(one_by_one)


def test_a_list_brings_samples_from_whichever_coordinates_they_are_in(make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(2))
    target = BasisTransforms([LocalFrames(), NaturalReparametrization()])
    expected = target(sample)
    for start in CHAINS.values():
        found = target(BasisTransforms(start)(sample))
        assert_close(found.coeffs, expected.coeffs)
        assert_close(found.gradient_label, expected.gradient_label)
        assert_close(BasisTransforms([])(BasisTransforms(start)(sample)).coeffs, sample.coeffs)


def test_symmetric_reparametrisation_after_frames_is_the_root_of_the_turned_overlap(make_molecule: Any) -> None:
    """It is applied before the frames, with which it commutes; the published order gives the same numbers."""
    sample = make_molecule(np.random.default_rng(3))
    frame, turn_back = (t.numpy() for t in LocalFrames().matrix(sample))
    values, vectors = np.linalg.eigh(turn_back.T @ overlap_of(molecules_of(sample)[0][0]) @ turn_back)
    expected = (vectors * np.sqrt(values)) @ vectors.T @ frame
    for order in ([LocalFrames(), NaturalReparametrization()], [NaturalReparametrization(), LocalFrames()]):
        np.testing.assert_allclose(BasisTransforms(order).matrix(sample)[0].numpy(), expected, atol=1e-12)


def test_autograd_goes_through_every_change(make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(4), [8, 1])
    weight = torch.randn(len(sample.coeffs), dtype=torch.float64)
    transform = BasisTransforms([LocalFrames(), NaturalReparametrization()])
    sample.coeffs.requires_grad_()
    (transform(sample).coeffs @ weight).backward()
    # a gradient with respect to changed coefficients is a dual vector
    expected = change_coordinates(weight, sample, True, transform.coordinates, "raw")
    assert_close(sample.coeffs.grad, expected)


def test_projection_follows_in_the_new_coordinates(make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(5))
    changed = NaturalReparametrization()(sample)
    projected = ProjectGradient()(changed)
    assert abs(float(projected.gradient_label @ changed.dual_basis_integrals)) < 1e-11
    # it takes out a multiple of w~, thus of w: the same freedom, with another inner product
    difference = NaturalReparametrization().inverse(projected).gradient_label - sample.gradient_label
    assert_close(project_gradient(difference, sample), torch.zeros_like(difference))


def test_the_same_change_twice_is_refused_and_canonical_is_last(make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(6))
    for transform in (LocalFrames(), NaturalReparametrization()):
        with pytest.raises(ConfigError, match=r"comes twice.*data\.pre_transforms"):
            transform(transform(sample))
    with pytest.raises(ConfigError, match="comes twice"):
        BasisTransforms([NaturalReparametrization(), NaturalReparametrization("canonical")])
    with pytest.raises(ConfigError, match="put NaturalReparametrization last"):
        BasisTransforms([NaturalReparametrization("canonical"), LocalFrames()])
    with pytest.raises(ConfigError, match=r"'bent'.*expected 'raw'"):
        transforms_of("bent")
    with pytest.raises(ConfigError, match="cannot be undone"):
        BasisTransforms([LocalFrames()]).inverse(sample)


def test_what_a_sample_lacks_is_named(make_molecule: Any, make_batch: Any) -> None:
    rng = np.random.default_rng(7)
    sample = make_molecule(rng)
    for field in ("pos", "atomic_numbers", "basis_function_ind", "basis_info"):
        without = sample.clone()
        del without[field]
        with pytest.raises(BatchError, match=field):
            LocalFrames()(without)
    batch = make_batch([sample, LocalFrames()(sample)])
    with pytest.raises(BatchError, match=r"mixes samples.*local_frames"):
        LocalFrames()(batch)
    with pytest.raises(BatchError, match="give it samples"):
        LocalFrames().matrix(make_batch([sample, sample]))


def test_transforms_are_pickled_and_print_what_they_are(make_molecule: Any) -> None:
    transform = BasisTransforms([LocalFrames(), NaturalReparametrization("canonical", 1e-7)])
    assert repr(transform) == (
        "BasisTransforms([LocalFrames(), NaturalReparametrization('canonical', min_eigenvalue=1e-07)])"
    )
    copied = pickle.loads(pickle.dumps(transform))
    assert repr(copied) == repr(transform)
    sample = make_molecule(np.random.default_rng(8))
    assert torch.equal(copied(pickle.loads(pickle.dumps(sample))).coeffs, transform(sample).coeffs)


def test_iterations_of_a_molecule_share_one_diagonalisation(
    embedded: Any, monkeypatch: pytest.MonkeyPatch, make_batch: Any
) -> None:
    module.forget_molecules()
    calls = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: calls.append(len(matrix)) or eigh(matrix))
    dataset = embedded("water", "methane")
    transform = BasisTransforms([LocalFrames(), NaturalReparametrization()])
    expected = []
    for molecule in range(2):
        dataset.transform = transform
        expected.append(dataset.molecule_batch(molecule))
    once = len(calls)
    single = make_batch(list(dataset))
    assert len(calls) == once  # single samples of molecules that were seen
    assert_close(single.coeffs, torch.cat([batch.coeffs for batch in expected]))
    # stored coordinates and wanted ones are natural both: one for water, one for methane
    assert once == 2


def test_few_changes_are_remembered(monkeypatch: pytest.MonkeyPatch, make_molecule: Any) -> None:
    module.forget_molecules()
    monkeypatch.setattr(module, "_CACHE_BYTES", 3.5 * 8 * 40**2)
    rng = np.random.default_rng(9)
    for _ in range(20):
        NaturalReparametrization()(make_molecule(rng, [6, 8]))
    assert 1 <= len(module._cache) <= 3
