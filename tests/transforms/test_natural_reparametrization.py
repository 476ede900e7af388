from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofdft_norm import BasisInfo, NaturalReparametrization
from ofdft_norm.data.sample import join_samples
from ofdft_norm.errors import BasisError, BatchError, ConfigError
from ofdft_norm.transforms.coordinates import list_molecules
from ofdft_norm.transforms.overlap import build_pyscf_molecule, compute_overlap
from tests.transforms.conftest import BASIS, EXPONENTS, Array, make_molecule

SEEDS = st.integers(0, 2**32 - 1)


def random_overlap(seed: int, n: int, smallest: float = 1e-3) -> Array:
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    overlap = (q * np.geomspace(smallest, 5.0, n)) @ q.T
    return (overlap + overlap.T) / 2


@settings(max_examples=10)
@given(seed=SEEDS)
def test_the_samples_own_overlap_is_used_and_becomes_the_unit_matrix(seed: int) -> None:
    sample = make_molecule(np.random.default_rng(seed))
    del sample.dual_basis_integrals  # those of the basis belong to another overlap
    overlap = random_overlap(seed, len(sample.coeffs))
    sample.overlap_matrix = torch.tensor(overlap)
    for kind in ("symmetric", "canonical"):
        transform = NaturalReparametrization(kind)
        matrix, inverse = (t.numpy() for t in transform.matrix(sample))
        np.testing.assert_allclose(matrix.T @ matrix, overlap, atol=1e-12)  # M M^T = S
        np.testing.assert_allclose(inverse.T @ overlap @ inverse, np.eye(len(overlap)), atol=1e-10)
        changed = transform(sample)
        norm = sample.coeffs.numpy() @ overlap @ sample.coeffs.numpy()
        assert float(changed.coeffs @ changed.coeffs) == pytest.approx(norm, rel=1e-11)
        torch.testing.assert_close(transform.inverse(changed).coeffs, sample.coeffs, rtol=1e-10, atol=1e-10)
    root = NaturalReparametrization().matrix(sample)[0].numpy()
    np.testing.assert_allclose(root, root.T, atol=1e-12)
    canonical = NaturalReparametrization("canonical").matrix(sample)[0].numpy()
    assert (np.diff(np.linalg.norm(canonical, axis=1)) > 0).all()
    assert (np.take_along_axis(canonical, np.abs(canonical).argmax(axis=1)[:, None], axis=1) > 0).all()


def test_overlaps_of_a_batch_may_have_any_shape() -> None:
    rng = np.random.default_rng(1)
    samples = [make_molecule(rng, numbers) for numbers in ([6, 8], [8, 1], [6, 8])]
    for i, sample in enumerate(samples):
        del sample.dual_basis_integrals
        sample.overlap_matrix = torch.tensor(random_overlap(i, len(sample.coeffs)))
    expected = torch.cat([NaturalReparametrization()(sample).coeffs for sample in samples])
    for sample in samples:
        sample.overlap_matrix = sample.overlap_matrix.reshape(-1)  # PyG joins vectors of any length
    torch.testing.assert_close(NaturalReparametrization()(join_samples(samples)).coeffs, expected)
    samples[1].overlap_matrix = samples[1].overlap_matrix[:-1]
    with pytest.raises(BatchError, match=r"'overlap_matrix'.*expected \d+: \(n_basis, n_basis\)"):
        NaturalReparametrization()(join_samples(samples))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s + 0j, "expected a real, finite, symmetric matrix"),
        (lambda s: s + np.where(np.arange(len(s)) == 3, np.nan, 0.0), "nan in row .*expected a real, finite"),
        (lambda s: s + np.eye(len(s), k=2) * 1e-3, r"in row 0, column 2, and .* in row 2, column 0, expected"),
        (lambda s: s * 0, r"smallest eigenvalue of the field 'overlap_matrix' is 0\.00e\+00"),
        (lambda s: s - np.eye(len(s)), "smallest eigenvalue of the field 'overlap_matrix' is -"),
    ],
)
def test_a_matrix_that_is_no_overlap_is_refused(change: Any, message: str) -> None:
    sample = make_molecule(np.random.default_rng(4), [8, 1], mol_id="strange")
    sample.overlap_matrix = torch.tensor(change(random_overlap(0, len(sample.coeffs))))
    for least in (1e-9, 0.0):
        with pytest.raises(BasisError, match=f"'strange'.*{message}"):
            NaturalReparametrization(min_eigenvalue=least)(sample)


def test_small_eigenvalues_are_refused_by_the_settings_limit() -> None:
    sample = make_molecule(np.random.default_rng(3), [8, 1], mol_id="too_close")
    del sample.dual_basis_integrals
    sample.overlap_matrix = torch.tensor(random_overlap(0, len(sample.coeffs), smallest=1e-10))
    assert NaturalReparametrization(min_eigenvalue=1e-12)(sample).coordinates == "natural_symmetric"
    with pytest.raises(BasisError, match=r"'too_close'.*'overlap_matrix'.*(1\.0\de-10|9\.\d\de-11).*at least 1e-09"):
        NaturalReparametrization()(sample)  # another instance accepted it a moment ago
    with pytest.raises(ConfigError, match="orthogonalization = 'lowdin'"):
        NaturalReparametrization("lowdin")


def test_a_basis_without_exponents_names_the_remedy() -> None:
    basis_info = BasisInfo(BASIS.atomic_numbers, BASIS.irreps_per_atom)
    sample = make_molecule(np.random.default_rng(2), [8, 1], mol_id="water", basis_info=basis_info)
    with pytest.raises(BasisError, match=r"'water'.*exponents.*'overlap_matrix'.*data\.source\.basis_info"):
        NaturalReparametrization()(sample)


def test_overlap_is_that_of_pyscf_with_a_shell_for_each_exponent() -> None:
    gto = pytest.importorskip("pyscf.gto")
    sample = make_molecule(np.random.default_rng(4), [6, 8, 1, 6])
    molecule = list_molecules(sample)[0][0]
    momenta = {"H": [0, 0, 1], "O": [0, 0, 1, 2], "C": [0, 0, 0, 1, 1, 2, 3, 4]}
    exponents = {"H": EXPONENTS[1], "O": EXPONENTS[8], "C": EXPONENTS[6]}
    shells = {e: [[l, [a, 1]] for l, a in zip(momenta[e], exponents[e], strict=True)] for e in momenta}
    mol = gto.M(atom=list(zip("COHC", sample.pos.tolist(), strict=True)), basis=shells, unit="Bohr", spin=None)
    expected = mol.intor("int1e_ovlp")
    np.testing.assert_allclose(compute_overlap(molecule), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(build_pyscf_molecule(molecule).intor("int1e_ovlp"), expected, rtol=0, atol=1e-12)
