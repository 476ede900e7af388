from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pyscf")

from ofdft_norm import BasisInfo, BasisTransforms, LocalFrames, NaturalReparametrization
from ofdft_norm.data.sample import DUAL_VECTORS, PER_FUNCTION, VECTORS, join_samples
from ofdft_norm.errors import BasisError, BatchError, ConfigError
from ofdft_norm.transforms import coordinates, make_default_transforms
from ofdft_norm.transforms.coordinates import change_coordinates, find_transforms, list_molecules, to_coordinates
from ofdft_norm.transforms.overlap import compute_overlap
from tests.transforms.conftest import BASIS, make_molecule

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
DEFAULT = BasisTransforms([LocalFrames(), NaturalReparametrization()])
chains = pytest.mark.parametrize("name", CHAINS)


def assert_close(found: Any, expected: Any, atol: float = 1e-11) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=atol)


@chains
@settings(max_examples=5)
@given(seed=SEEDS)
def test_fields_change_by_the_matrix_and_come_back(name: str, seed: int) -> None:
    sample, transform = make_molecule(np.random.default_rng(seed)), BasisTransforms(CHAINS[name])
    assert transform.coordinates == name
    before, changed, (matrix, inverse) = sample.clone(), transform(sample), transform.matrix(sample)
    one_by_one = sample
    for change in CHAINS[name]:
        one_by_one = change(one_by_one)
    assert_close(one_by_one.coeffs, changed.coeffs)
    unit = torch.eye(len(sample.coeffs), dtype=torch.float64)
    assert_close(matrix @ inverse, unit)
    if "natural" in name:
        assert_close(inverse.T @ torch.tensor(compute_overlap(list_molecules(sample)[0][0])) @ inverse, unit)
    for field in VECTORS:
        assert_close(changed[field], matrix @ sample[field])
    for field in DUAL_VECTORS:
        assert_close(changed[field], inverse.T @ sample[field])
        assert_close(changed[field] @ changed.coeffs, sample[field] @ sample.coeffs)
    back = transform.inverse(changed)
    assert (changed.coordinates, back.coordinates, sample.coordinates) == (name, "raw", "raw")
    for field in sample.keys():
        if field in PER_FUNCTION:
            assert_close(back[field], sample[field])
        equal = sample[field] == before[field]
        assert equal if isinstance(equal, bool) else equal.all()


@chains
def test_a_batch_changes_as_its_samples_do(name: str) -> None:
    rng = np.random.default_rng(0)
    first, other = make_molecule(rng), make_molecule(rng, [8, 1])
    # two densities of one molecule, one of another, the first molecule again
    samples = [first, first.clone(), other, first.clone()]
    for sample in samples[1:]:
        sample.coeffs = torch.tensor(rng.normal(size=len(sample.coeffs)))
    transform = BasisTransforms(CHAINS[name])
    expected, changed = join_samples([transform(sample) for sample in samples]), transform(join_samples(samples))
    for field in PER_FUNCTION:
        assert_close(changed[field], expected[field])
    assert [sample.coordinates for sample in changed.to_data_list()] == changed.coordinates == [name] * 4
    assert_close(transform.inverse(changed).coeffs, join_samples(samples).coeffs)


def test_a_list_brings_samples_from_whichever_coordinates_they_are_in() -> None:
    sample = make_molecule(np.random.default_rng(2), [8, 1])
    for start in CHAINS.values():
        for target, chain in CHAINS.items():
            found, expected = BasisTransforms(chain)(BasisTransforms(start)(sample)), BasisTransforms(chain)(sample)
            assert_close(found.coeffs, expected.coeffs)
            assert_close(found.gradient_label, expected.gradient_label)
            assert_close(to_coordinates(expected, "raw").coeffs, sample.coeffs)
            assert found.coordinates == target


def test_autograd_goes_through_every_change() -> None:
    sample = make_molecule(np.random.default_rng(4), [8, 1])
    weight = torch.randn(len(sample.coeffs), dtype=torch.float64)
    sample.coeffs.requires_grad_()
    (DEFAULT(sample).coeffs @ weight).backward()
    # a gradient with respect to changed coefficients is a dual vector
    assert_close(sample.coeffs.grad, change_coordinates(weight, sample, True, DEFAULT.coordinates, "raw"))
    changed = change_coordinates(weight.float(), sample, False, "raw", DEFAULT.coordinates)
    assert changed.dtype == torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu_stay_there() -> None:
    batch = join_samples([make_molecule(np.random.default_rng(i), [8, 1]) for i in (1, 1, 2)])
    changed = DEFAULT(batch.to("cuda"))
    assert changed.coeffs.is_cuda
    assert_close(changed.coeffs.cpu(), DEFAULT(batch).coeffs)


def test_changes_that_cannot_follow_each_other_are_refused() -> None:
    sample, other = (make_molecule(np.random.default_rng(i)) for i in (6, 7))
    frames, natural, canonical = LocalFrames(), NaturalReparametrization(), NaturalReparametrization("canonical")
    for refused, message in [
        (lambda: frames(frames(sample)), r"each change of basis once.*data\.pre_transforms"),
        (lambda: BasisTransforms([natural, canonical]), "each change of basis once"),
        (lambda: BasisTransforms([canonical, frames]), "canonical NaturalReparametrization last"),
        (lambda: find_transforms("bent"), "'bent'.*expected 'raw'"),
        (lambda: BasisTransforms([frames]).inverse(sample), "cannot be undone"),
        (lambda: frames.inverse(natural(frames(sample))), "cannot be undone"),
    ]:
        with pytest.raises(ConfigError, match=message):
            refused()
    with pytest.raises(BatchError, match=r"mixes.*local_frames"):
        frames(join_samples([sample, frames(sample)]))
    with pytest.raises(BatchError, match="give it samples"):
        frames.matrix(join_samples([sample, other]))
    sample.coeffs = sample.coeffs + 0j
    with pytest.raises(BatchError, match=r"'coeffs' has dtype .*complex"):
        frames(sample)


@pytest.mark.parametrize("field", ["pos", "atomic_numbers", "basis_function_ind", "basis_info"])
def test_what_a_sample_lacks_is_named(field: str) -> None:
    sample = make_molecule(np.random.default_rng(7))
    del sample[field]
    with pytest.raises(BatchError, match=f"'molecule'.*{field}.*data.pre_transforms"):
        LocalFrames()(sample)


@pytest.mark.parametrize("target", [name for name in CHAINS if name != "raw"])
def test_integrals_of_another_basis_are_refused_by_every_change(target: str) -> None:
    sample = make_molecule(np.random.default_rng(3), [8, 1], mol_id="hydroxide")
    arguments = BASIS.to_dict()
    arguments["exponents_per_atom"][2][0] *= 1.001
    sample.basis_info = BasisInfo(**arguments)
    with pytest.raises(BasisError, match=r"'hydroxide'.*'dual_basis_integrals'.*O 1s.*another basis.*basis_info"):
        BasisTransforms(CHAINS[target])(sample)
    sample.dual_basis_integrals[0] = torch.nan
    with pytest.raises(BasisError, match="has nan"):
        BasisTransforms(CHAINS[target])(sample)
    sample.basis_info = BasisInfo(**{**arguments, "exponents_per_atom": None})
    if target == "local_frames":  # nothing to compare with, and no integrals needed
        assert BasisTransforms(CHAINS[target])(sample).coordinates == target


@pytest.mark.parametrize("stated", [name for name in CHAINS if "natural" in name])
def test_labels_in_other_coordinates_than_they_state_are_refused(stated: str) -> None:
    """In a batch, after correct samples; without a change of coordinates nothing is checked."""
    rng = np.random.default_rng(4)
    right = BasisTransforms(CHAINS[stated])(make_molecule(rng))
    other = NaturalReparametrization("symmetric" if "canonical" in stated else "canonical")
    wrong = other(make_molecule(rng, mol_id="wrong"))
    wrong.coordinates = stated
    batch = join_samples([right, wrong])
    assert BasisTransforms(CHAINS[stated])(batch).coordinates == [stated] * 2
    for target in ("raw", "local_frames"):
        with pytest.raises(BasisError, match=r"'wrong'.*'dual_basis_integrals'.*other axes than those of"):
            to_coordinates(batch, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fields_that_were_cast_to_the_training_dtype_are_accepted(dtype: torch.dtype) -> None:
    raw = make_molecule(np.random.default_rng(5))
    sample = DEFAULT(raw)
    sample.pos_float64, sample.pos = sample.pos, sample.pos.to(dtype)
    sample.dual_basis_integrals = sample.dual_basis_integrals.to(dtype).double()  # denormalised in float64
    assert_close(to_coordinates(sample, "raw").coeffs, raw.coeffs)
    sample.dual_basis_integrals[3] += 0.1 * sample.dual_basis_integrals.abs().max()
    with pytest.raises(BasisError, match="stored in other axes"):
        to_coordinates(sample, "raw")


def test_one_diagonalisation_serves_all_densities_of_a_molecule(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinates.forget_molecules()
    calls, eigh = [], np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: calls.append(len(matrix)) or eigh(matrix))
    first, other = (make_molecule(np.random.default_rng(i), [8, 6, 1]) for i in range(2))
    batch = join_samples([first, first.clone(), other, other.clone(), first.clone()])
    changed = batch
    for transform in make_default_transforms():
        changed = transform(changed)
    for name in ("raw", "natural_symmetric", "natural_symmetric+local_frames"):
        to_coordinates(changed, name)
        NaturalReparametrization()(first)
    assert len(calls) == 2
