from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pyscf")

from ofdft_norm import BasisTransforms, LocalFrames, OFData
from ofdft_norm.errors import BasisError
from ofdft_norm.transforms import make_default_transforms
from ofdft_norm.transforms.coordinates import list_molecules
from ofdft_norm.transforms.local_frames import find_local_axes
from ofdft_norm.transforms.overlap import compute_overlap
from ofdft_norm.transforms.real_harmonics import compute_wigner_matrices
from tests.transforms.conftest import TO_E3NN, Array, block_diagonal, make_molecule, random_rotation, rotated, wigner

SEEDS = st.integers(0, 2**32 - 1)
NUMBERS = np.array([6, 1, 8, 1, 8, 6, 1])
# three neighbours of the first atom at nearly equal distances; the nearest is neither the first nor the heaviest
NEARLY_TIED = np.array([[0, 0, 0], [2.60002, 0, 0], [0, 2.60001, 0], [0, 0, 2.6], [-1.5, -1.2, -1]])


def naive_axes(pos: Array, numbers: Array, atom: int, third: Array | None = None) -> Array:
    """Rows x, y, z by the published formula: from the two nearest heavy atoms, or another direction for the second."""
    heavy = [i for i in range(len(pos)) if i != atom and numbers[i] > 1]
    heavy.sort(key=lambda i: float(np.linalg.norm(pos[i] - pos[atom])))
    d1, d2 = pos[heavy[0]] - pos[atom], third if third is not None else pos[heavy[1]] - pos[atom]
    x = d1 / np.sqrt(d1 @ d1)
    z = np.cross(x, d2) / np.linalg.norm(np.cross(x, d2))
    return np.stack([x, np.cross(z, x), z])


def published_frames(sample: OFData, axes: Callable[[int], Array]) -> Array:
    """T of local frames by e3nn's Wigner matrices; those of l > 1 are first brought to e3nn's convention."""

    def block(atom: int, l: int) -> Array:
        frame = wigner(l, axes(atom)[[2, 0, 1]])
        return frame if l < 2 else frame @ wigner(l, TO_E3NN.T)

    return block_diagonal(sample, block)


def stored_in_natural_frames(sample: OFData, frames: Array) -> OFData:
    """The sample as stored labels in given frames and natural coordinates, computed with dense matrices."""
    values, vectors = np.linalg.eigh(frames @ compute_overlap(list_molecules(sample)[0][0]) @ frames.T)
    matrix = torch.tensor((vectors * np.sqrt(values)) @ vectors.T @ frames)
    out = sample.clone()
    for field in ("coeffs", "ground_state_coeffs"):
        out[field] = matrix @ sample[field]
    for field in ("gradient_label", "dual_basis_integrals"):
        out[field] = torch.linalg.solve(matrix.T, sample[field])
    out.coordinates = "local_frames+natural_symmetric"
    return out


@given(seed=SEEDS)
def test_axes_are_the_published_ones_in_any_order_of_the_atoms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pos, order = rng.normal(size=(7, 3)) * 2, rng.permutation(7)
    axes = find_local_axes(pos[order], NUMBERS[order])
    for i, atom in enumerate(order):
        np.testing.assert_allclose(axes[i], naive_axes(pos, NUMBERS, atom), atol=1e-12)


@pytest.mark.parametrize("pos", [None, NEARLY_TIED])
def test_labels_stored_in_the_published_frames_come_back(pos: Array | None) -> None:
    """Also if neighbours' distances differ by 1e-5 bohr: the nearest atom counts, not the first or the heaviest."""
    sample = make_molecule(np.random.default_rng(0), (6, 8, 6, 6, 1), pos)
    frames = published_frames(sample, lambda atom: naive_axes(sample.pos.numpy(), sample.atomic_numbers.numpy(), atom))
    np.testing.assert_allclose(LocalFrames().matrix(sample)[0], frames, atol=1e-7)
    found = BasisTransforms([])(stored_in_natural_frames(sample, frames))
    for field in ("coeffs", "gradient_label", "dual_basis_integrals"):
        torch.testing.assert_close(found[field], sample[field], rtol=0, atol=1e-6)


@pytest.mark.parametrize("numbers", [(6, 8), (6, 8, 1, 1)])
def test_labels_stored_in_random_frames_are_refused(numbers: tuple[int, ...]) -> None:
    """Frames of molecules without two heavy neighbours are random in STRUCTURES25's code."""
    rng = np.random.default_rng(1)
    sample = make_molecule(rng, numbers, mol_id="random axes")
    pos, random = sample.pos.numpy(), rng.normal(size=(len(numbers), 3))
    frames = published_frames(sample, lambda atom: naive_axes(pos, np.array(numbers), atom, random[atom]))
    stored = stored_in_natural_frames(sample, frames)
    if len(numbers) == 2:  # integrals of a linear molecule do not depend on the angle around its line
        torch.testing.assert_close(BasisTransforms([])(stored).dual_basis_integrals, sample.dual_basis_integrals)
    else:
        with pytest.raises(BasisError, match=r"'random axes'.*'dual_basis_integrals'.*stored in other axes"):
            BasisTransforms([])(stored)


@pytest.mark.parametrize("numbers", [(6, 8, 6, 1, 1), (8, 1, 1), (6, 1, 1, 1), (1, 1, 8, 1), (6, 6, 6, 8, 8, 6)])
def test_labels_after_the_default_pre_transforms_do_not_depend_on_rotation(numbers: list[int]) -> None:
    rng = np.random.default_rng(3)
    sample = make_molecule(rng, numbers)
    other = rotated(sample, random_rotation(rng))
    other.pos += torch.tensor([0.3, -1.0, 2.0])
    found, expected = other, sample
    for transform in make_default_transforms():
        found, expected = transform(found), transform(expected)
    assert found.coordinates == "local_frames+natural_symmetric"
    assert abs(float(expected.gradient_label @ expected.dual_basis_integrals)) < 1e-11
    for field in ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals"):
        torch.testing.assert_close(found[field], expected[field], rtol=0, atol=1e-6)
        assert not torch.allclose(found[field], sample[field], atol=1e-2)


def test_neighbours_at_equal_distance_keep_their_order_whatever_the_rounding() -> None:
    tetrahedron = np.array([[0.0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 1.4
    numbers = np.array([6, 9, 9, 17, 9])
    first = find_local_axes(tetrahedron, numbers)
    np.testing.assert_allclose(first[0, 0], tetrahedron[1] / np.linalg.norm(tetrahedron[1]))
    rng = np.random.default_rng(8)
    for _ in range(20):
        rotation = random_rotation(rng)
        np.testing.assert_allclose(find_local_axes(tetrahedron @ rotation.T, numbers) @ rotation, first, atol=1e-12)
    tetrahedron[3] *= 1 - 1e-8
    nearest = tetrahedron[3] / np.linalg.norm(tetrahedron[3])
    np.testing.assert_allclose(find_local_axes(tetrahedron, numbers)[0, 0], nearest)


@pytest.mark.parametrize("direction", [[0, 0, 1.0], [1.0, 0, 0], [0.3, -0.5, 0.8]])
def test_linear_molecules_have_axes_that_depend_on_nothing_else(direction: list[float]) -> None:
    along = np.array(direction) / np.linalg.norm(direction)
    pos, numbers = np.outer([0.0, 2.2, 4.5, -2.0], along), np.array([6, 7, 8, 1])
    axes = find_local_axes(pos, numbers)
    np.testing.assert_allclose(axes @ np.swapaxes(axes, 1, 2), np.broadcast_to(np.eye(3), axes.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(axes), 1.0)
    np.testing.assert_allclose(np.abs(axes[:, 0] @ along), 1.0)
    np.testing.assert_allclose(find_local_axes(pos + 1.0, numbers), axes, atol=1e-10)
    np.testing.assert_allclose(find_local_axes(pos[::-1], numbers[::-1]), axes[::-1], atol=1e-10)


def test_round_densities_of_linear_molecules_do_not_depend_on_rotation() -> None:
    rng = np.random.default_rng(4)
    sample = make_molecule(rng, [6, 8, 1], np.outer([0.0, 2.3, -2.1], [0, 0, 1.0]))
    sample.coeffs[sample.basis_info.m_per_basis_func[sample.basis_function_ind] != 0] = 0.0
    found, expected = LocalFrames()(rotated(sample, random_rotation(rng))), LocalFrames()(sample)
    torch.testing.assert_close(found.coeffs, expected.coeffs, rtol=0, atol=1e-6)


def test_a_single_atom_keeps_its_functions() -> None:
    sample = make_molecule(np.random.default_rng(5), [6])
    in_order_of_m = [*range(3), 4, 5, 3, 7, 8, 6, *range(9, 30)]  # y, z, x
    torch.testing.assert_close(LocalFrames()(sample).coeffs, sample.coeffs[in_order_of_m], rtol=0, atol=1e-14)


def test_hydrogen_atoms_come_after_heavy_ones_and_before_a_fixed_axis() -> None:
    # carbon with one heavy neighbour and three hydrogen atoms, the second of them the nearest
    pos = np.array([[0.0, 0, 0], [2.6, 0, 0], [-0.6, 1.9, 0.1], [-0.6, -0.9, 1.5], [-0.7, -1.0, -1.7]])
    axes = find_local_axes(pos, np.array([6, 8, 1, 1, 1]))
    np.testing.assert_allclose(axes[0], naive_axes(pos, np.array([6, 8, 1, 1, 1]), 0, pos[3]), atol=1e-12)
    # without any heavy neighbour hydrogen gives both
    alone = find_local_axes(np.delete(pos, 1, axis=0), np.array([6, 1, 1, 1]))
    np.testing.assert_allclose(alone[0, 0], pos[3] / np.linalg.norm(pos[3]))


@pytest.mark.parametrize("value", [[0.0, 0.0, 0.0], [np.nan, 0.0, 0.0], [np.inf, 0.0, 0.0]])
def test_positions_without_axes_are_refused(value: list[float]) -> None:
    sample = make_molecule(np.random.default_rng(9), [6, 8])
    sample.pos[0], sample.pos[1] = 0.0, torch.tensor(value)
    with pytest.raises(BasisError, match=r"'molecule'.*'pos'.*expected finite and different positions"):
        LocalFrames()(sample)


@settings(max_examples=5)
@given(seed=SEEDS)
def test_wigner_matrices_are_those_of_e3nn(seed: int) -> None:
    rotation = random_rotation(np.random.default_rng(seed))
    for l, found in enumerate(compute_wigner_matrices(6, rotation)):
        # e3nn takes angles by arc cosine, which keeps eight digits near the poles
        np.testing.assert_allclose(found, wigner(l, TO_E3NN @ rotation @ TO_E3NN.T), atol=1e-7)
