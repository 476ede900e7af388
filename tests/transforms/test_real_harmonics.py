import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm.transforms.real_harmonics import real_harmonics, rotations_of_harmonics

o3 = pytest.importorskip("e3nn.o3")
SEEDS = st.integers(0, 2**32 - 1)
# e3nn's axes: its polar axis is the second, so that its components of l = 1 are those of the vector
TO_E3NN = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])


def random_rotations(seed: int, n: int) -> npt.NDArray[np.float64]:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, 3, 3)))
    q = q * np.sign(np.einsum("nii->ni", r))[:, None, :]
    return q * np.sign(np.linalg.det(q))[:, None, None]


@pytest.mark.parametrize("l", range(7))
def test_harmonics_are_those_of_e3nn_in_turned_axes(l: int) -> None:
    directions = np.random.default_rng(l).normal(size=(20, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = o3.spherical_harmonics(l, torch.tensor(directions @ TO_E3NN.T), normalize=True, normalization="norm")
    np.testing.assert_allclose(real_harmonics(l, directions), expected.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("l", range(7))
@given(seed=SEEDS)
def test_wigner_matrices_are_those_of_e3nn(l: int, seed: int) -> None:
    rotations = random_rotations(seed, 3)
    torch.set_default_dtype(torch.float64)  # e3nn's own constants follow it
    try:
        expected = o3.Irrep(l, (-1) ** l).D_from_matrix(torch.tensor(TO_E3NN @ rotations @ TO_E3NN.T))
    finally:
        torch.set_default_dtype(torch.float32)
    # e3nn takes angles by arc cosine, which keeps eight digits near the poles
    np.testing.assert_allclose(rotations_of_harmonics(6, rotations)[l], expected.numpy(), atol=1e-7)


@given(seed=SEEDS)
def test_wigner_matrices_are_orthogonal_and_multiply_as_rotations_do(seed: int) -> None:
    first, second = random_rotations(seed, 2)
    ones, twos, products = (rotations_of_harmonics(4, rotation) for rotation in (first, second, second @ first))
    for l, (one, two, product) in enumerate(zip(ones, twos, products, strict=True)):
        np.testing.assert_allclose(one @ one.T, np.eye(2 * l + 1), atol=1e-13)
        np.testing.assert_allclose(product, two @ one, atol=1e-13)


@given(seed=SEEDS)
def test_rotated_positions_give_rotated_harmonics(seed: int) -> None:
    rotation = random_rotations(seed, 1)[0]
    directions = np.random.default_rng(seed).normal(size=(4, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for l, matrix in enumerate(rotations_of_harmonics(4, rotation)):
        expected = real_harmonics(l, directions) @ matrix.T
        np.testing.assert_allclose(real_harmonics(l, directions @ rotation.T), expected, atol=1e-13)
