import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm.transforms.real_harmonics import harmonics_up_to, rotations_of_harmonics
from tests.transforms.conftest import TO_E3NN, random_rotation, wigner

SEEDS = st.integers(0, 2**32 - 1)


def random_directions(seed: int, n: int) -> np.ndarray:
    directions = np.random.default_rng(seed).normal(size=(n, 3))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


@pytest.mark.parametrize("l", range(7))
def test_harmonics_are_those_of_e3nn_in_its_axes(l: int) -> None:
    o3 = pytest.importorskip("e3nn.o3")
    directions = random_directions(l, 20)
    expected = o3.spherical_harmonics(l, torch.tensor(directions @ TO_E3NN.T), normalize=True, normalization="norm")
    np.testing.assert_allclose(harmonics_up_to(l, directions)[:, l * l :], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("l", range(7))
@given(seed=SEEDS)
def test_wigner_matrices_are_those_of_e3nn(l: int, seed: int) -> None:
    rotation = random_rotation(np.random.default_rng(seed))
    # e3nn takes angles by arc cosine, which keeps eight digits near the poles
    expected = wigner(l, TO_E3NN @ rotation @ TO_E3NN.T)
    np.testing.assert_allclose(rotations_of_harmonics(6, rotation)[l], expected, atol=1e-7)


@given(seed=SEEDS)
def test_wigner_matrices_rotate_harmonics_and_multiply_as_rotations_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = random_rotation(rng), random_rotation(rng)
    matrices = zip(*(rotations_of_harmonics(4, r) for r in (first, second, second @ first)), strict=True)
    directions = random_directions(seed, 4)
    for l, (one, two, product) in enumerate(matrices):
        np.testing.assert_allclose(one @ one.T, np.eye(2 * l + 1), atol=1e-13)
        np.testing.assert_allclose(product, two @ one, atol=1e-13)
        expected = harmonics_up_to(l, directions)[:, l * l :] @ one.T
        np.testing.assert_allclose(harmonics_up_to(l, directions @ first.T)[:, l * l :], expected, atol=1e-13)
