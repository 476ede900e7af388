from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofdft_norm import BasisTransforms, LocalFrames, NaturalReparametrization
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.errors import BasisError, ConfigError
from ofdft_norm.transforms.natural_reparametrization import natural_coordinates

SEEDS = st.integers(0, 2**32 - 1)


def random_overlap(seed: int, n: int, smallest: float = 1e-3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    overlap = (q * np.geomspace(smallest, 5.0, n)) @ q.T
    return (overlap + overlap.T) / 2


@settings(max_examples=10)
@given(seed=SEEDS)
def test_the_samples_own_overlap_is_used_and_becomes_the_unit_matrix(seed: int, make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(seed))
    n = len(sample.coeffs)
    overlap = random_overlap(seed, n)
    sample.overlap_matrix = torch.tensor(overlap)
    for kind in ("symmetric", "canonical"):
        transform = NaturalReparametrization(kind)
        matrix, inverse = (t.numpy() for t in transform.matrix(sample))
        np.testing.assert_allclose(matrix.T @ matrix, overlap, atol=1e-12)  # M M^T = S
        np.testing.assert_allclose(inverse.T @ overlap @ inverse, np.eye(n), atol=1e-10)
        changed = transform(sample)
        norm = sample.coeffs.numpy() @ overlap @ sample.coeffs.numpy()
        assert float(changed.coeffs @ changed.coeffs) == pytest.approx(norm, rel=1e-11)
        torch.testing.assert_close(transform.inverse(changed).coeffs, sample.coeffs, rtol=1e-10, atol=1e-10)
    root = NaturalReparametrization().matrix(sample)[0].numpy()
    np.testing.assert_allclose(root, root.T, atol=1e-12)
    canonical = NaturalReparametrization("canonical").matrix(sample)[0].numpy()
    largest = np.abs(canonical).argmax(axis=1)
    assert (canonical[np.arange(n), largest] > 0).all()


def test_overlaps_of_a_batch_may_have_any_shape(make_molecule: Any, make_batch: Any) -> None:
    rng = np.random.default_rng(1)
    samples = [make_molecule(rng, numbers) for numbers in ([6, 8], [8, 1], [6, 8])]
    for i, sample in enumerate(samples):
        sample.overlap_matrix = torch.tensor(random_overlap(i, len(sample.coeffs)))
    expected = torch.cat([NaturalReparametrization()(sample).coeffs for sample in samples])
    for sample in samples:
        sample.overlap_matrix = sample.overlap_matrix.reshape(-1)  # PyG joins vectors of any length
    torch.testing.assert_close(NaturalReparametrization()(make_batch(samples)).coeffs, expected)


def test_local_frames_come_first_and_give_canonical_coordinates_that_know_no_rotation(
    make_molecule: Any, random_rotation: Any
) -> None:
    pytest.importorskip("pyscf")
    rng = np.random.default_rng(2)
    # atoms close to each other: no two eigenvalues nearly coincide
    pos = np.array([[0.0, 0.1, 0.2], [2.1, 0.3, -0.2], [-0.4, 2.3, 0.3], [0.7, -1.1, 1.6]])
    sample = make_molecule(rng, [6, 8, 6, 1], pos)
    transform = BasisTransforms([LocalFrames(), NaturalReparametrization("canonical")])
    turned = sample.clone()
    turned.pos = sample.pos @ torch.tensor(random_rotation(rng)).T
    frame, matrix = LocalFrames().matrix(sample)[0], transform.matrix(sample)[0]
    turned_frame, turned_matrix = LocalFrames().matrix(turned)[0], transform.matrix(turned)[0]
    torch.testing.assert_close(turned_matrix @ turned_frame.T, matrix @ frame.T, rtol=0, atol=1e-6)


def test_small_eigenvalues_are_refused_with_the_molecule_and_the_value(make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(3), [8, 1], mol_id="too_close")
    sample.overlap_matrix = torch.tensor(random_overlap(0, len(sample.coeffs), smallest=1e-10))
    with pytest.raises(BasisError, match=r"'too_close'.*is 1\.0\de-10|'too_close'.*is 9\.\d\de-11"):
        NaturalReparametrization()(sample)
    assert NaturalReparametrization(min_eigenvalue=1e-12)(sample).coordinates == "natural_symmetric"
    with pytest.raises(BasisError, match=r"'too_close'.*expected at least 1e-09"):  # accepted a moment ago by another
        NaturalReparametrization()(sample)
    indefinite = np.diag([-1.0, 1.0])
    with pytest.raises(BasisError, match=r"is -1\.00e\+00"):
        natural_coordinates(indefinite)
    with pytest.raises(ConfigError, match="orthogonalization = 'lowdin'"):
        NaturalReparametrization("lowdin")
    with pytest.raises(ConfigError, match="min_eigenvalue = -1"):
        NaturalReparametrization(min_eigenvalue=-1)


def hartree_error(name: str, embedded: Any) -> float:
    """Largest difference of 1/2 p.W p of the coefficients brought back from the Hartree energies that are stored."""
    from ofdft_norm.labelling.density_basis import build_density_basis
    from ofdft_norm.labelling.geometries import read_geometries
    from ofdft_norm.labelling.kohn_sham import build_molecule

    geometry = next(g for g in read_geometries([EMBEDDED_DATA / "geometries.xyz"]) if g.mol_id == name)
    coulomb = build_density_basis(build_molecule(geometry, "6-31G(2df,p)")).coulomb_metric()
    batch = embedded(name, energy_key="e_hartree").molecule_batch(0)
    assert set(batch.coordinates) == {"natural_symmetric"}
    raw = BasisTransforms([])(batch)
    p = raw.coeffs.reshape(len(batch.energy_label), -1).numpy()
    energies = np.einsum("ni,ij,nj->n", p, coulomb, p) / 2
    return float(np.abs(energies - batch.energy_label.numpy())[batch.has_energy_label.numpy()].max())


@pytest.mark.parametrize("name", ["water", "carbon_monoxide", "dihydrogen", "ethane", "formyl_fluoride", "furan"])
def test_embedded_coefficients_brought_back_have_the_hartree_energy_that_is_stored(name: str, embedded: Any) -> None:
    pytest.importorskip("pyscf")
    assert hartree_error(name, embedded) < 1e-8


@pytest.mark.slow
def test_all_embedded_coefficients_brought_back_have_the_hartree_energy_that_is_stored(embedded: Any) -> None:
    pytest.importorskip("pyscf")
    names = [path.name.removesuffix(".zarr.zip") for path in (EMBEDDED_DATA / "labels").glob("*.zarr.zip")]
    assert max(hartree_error(name, embedded) for name in names) < 1e-10
