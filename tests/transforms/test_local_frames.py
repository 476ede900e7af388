from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofdft_norm import BasisTransforms, LocalFrames, NaturalReparametrization, OFData
from ofdft_norm.errors import BasisError
from ofdft_norm.transforms.local_frames import local_axes
from ofdft_norm.transforms.molecule import molecules_of
from ofdft_norm.transforms.overlap import overlap_of
from ofdft_norm.transforms.real_harmonics import real_harmonics

SEEDS = st.integers(0, 2**32 - 1)


def naive_axes(pos: np.ndarray, numbers: np.ndarray, atom: int) -> np.ndarray:
    """The published formula, for an atom with two heavy neighbours out of line."""
    heavy = [i for i in range(len(pos)) if i != atom and numbers[i] > 1]
    heavy.sort(key=lambda i: float(np.linalg.norm(pos[i] - pos[atom])))
    d1, d2 = pos[heavy[0]] - pos[atom], pos[heavy[1]] - pos[atom]
    x = d1 / np.sqrt(d1 @ d1)
    z = np.cross(x, d2) / np.linalg.norm(np.cross(x, d2))
    return np.stack([x, np.cross(z, x), z])


@given(seed=SEEDS)
def test_axes_are_the_published_ones_where_two_heavy_neighbours_determine_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pos, numbers = rng.normal(size=(7, 3)) * 2, np.array([6, 1, 8, 1, 7, 6, 1])
    axes = local_axes(pos, numbers)
    for atom in range(7):
        np.testing.assert_allclose(axes[atom], naive_axes(pos, numbers, atom), atol=1e-12)


@settings(max_examples=10)
@given(seed=SEEDS)
def test_a_p_shell_is_projected_on_the_axes_z_x_y(seed: int, make_molecule: Any) -> None:
    """p functions are proportional to x, y, z: their coefficients are a vector, in whichever order they are stored."""
    rng = np.random.default_rng(seed)
    for p_order, names in (("yzx", [1, 2, 0]), ("xyz", [0, 1, 2])):
        sample = make_molecule(rng, p_order=p_order)
        x, y, z = np.moveaxis(local_axes(sample.pos.numpy(), sample.atomic_numbers.numpy()), 1, 0)
        changed = LocalFrames()(sample)
        sizes = sample.basis_info.basis_dim_per_atom[sample.atom_ind.numpy()]
        start = 0
        for atom, size in enumerate(sizes):
            own = sample.basis_function_ind.numpy()[start : start + size]
            first = start + int(np.flatnonzero(sample.basis_info.l_per_basis_func[own] == 1)[0])
            vector = np.empty(3)
            vector[names] = sample.coeffs[first : first + 3].numpy()
            expected = [axis[atom] @ vector for axis in (z, x, y)]
            np.testing.assert_allclose(changed.coeffs[first : first + 3].numpy(), expected, atol=1e-12)
            start += size


def test_every_shell_is_the_same_function_in_the_atoms_axes(make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(1), [6, 8, 6])
    changed = LocalFrames()(sample)
    axes = local_axes(sample.pos.numpy(), sample.atomic_numbers.numpy())[0]
    directions = np.random.default_rng(2).normal(size=(10, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    in_frame = directions @ axes[[1, 2, 0]].T  # polar axis x
    own = sample.basis_function_ind.numpy()[:30]
    for shell in np.unique(sample.basis_info.basis_func_to_shell[own]):
        where = np.flatnonzero(sample.basis_info.basis_func_to_shell[own] == shell)
        l = int(sample.basis_info.l_per_basis_func[own[where[0]]])
        before = real_harmonics(l, directions) @ sample.coeffs[where].numpy()
        np.testing.assert_allclose(real_harmonics(l, in_frame) @ changed.coeffs[where].numpy(), before, atol=1e-12)


def moved(sample: OFData, rotation: np.ndarray, order: np.ndarray, p_order: Any) -> OFData:
    """The same geometry elsewhere, with its atoms in another order and no densities."""
    basis = sample.basis_info
    other = type(basis)(**{**basis.to_dict(), "p_order": p_order})
    pos = (sample.pos.numpy() @ rotation.T + [1.0, -2.0, 0.5])[order]
    return OFData.construct_new(other, pos, sample.atomic_numbers[order], torch.zeros(len(sample.coeffs)))


@settings(max_examples=10)
@given(seed=SEEDS)
def test_overlap_in_local_frames_knows_neither_rotation_nor_order(
    seed: int, make_molecule: Any, random_rotation: Any
) -> None:
    """PySCF's integrals over turned molecules: the frames' conventions are those of its functions."""
    pytest.importorskip("pyscf")
    rng = np.random.default_rng(seed)
    sample = make_molecule(rng, [6, 8, 6, 1, 8])
    order = rng.permutation(5)

    def overlap(of: OFData) -> np.ndarray:
        _, inverse = LocalFrames().matrix(of)
        return inverse.numpy().T @ overlap_of(molecules_of(of)[0][0]) @ inverse.numpy()

    sizes = sample.basis_info.basis_dim_per_atom[sample.atom_ind.numpy()]
    blocks = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
    functions = np.concatenate([blocks[i] for i in order])
    expected = overlap(sample)[np.ix_(functions, functions)]
    for p_order in ("yzx", "xyz"):
        found = overlap(moved(sample, random_rotation(rng), order, p_order))
        np.testing.assert_allclose(found, expected, atol=1e-12)


def turned_densities(sample: OFData, rotation: np.ndarray) -> OFData:
    """The same densities of a turned molecule, by Wigner matrices of e3nn."""
    o3 = pytest.importorskip("e3nn.o3")
    to_e3nn = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    out = sample.clone()
    out.pos = sample.pos @ torch.tensor(rotation).T
    torch.set_default_dtype(torch.float64)  # e3nn's own constants follow it
    try:
        inside = to_e3nn @ torch.tensor(rotation) @ to_e3nn.T
        wigner = [o3.Irrep(l, 1).D_from_matrix(inside) for l in range(5)]
    finally:
        torch.set_default_dtype(torch.float32)
    l_of = sample.basis_info.l_per_basis_func[sample.basis_function_ind.numpy()]
    start = 0
    while start < len(l_of):
        shell = slice(start, start + 2 * l_of[start] + 1)
        for field in ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals"):
            out[field][shell] = wigner[l_of[start]] @ sample[field][shell]
        start = shell.stop
    return out


@pytest.mark.parametrize("chain", [[LocalFrames()], [LocalFrames(), NaturalReparametrization()]])
def test_real_labels_are_invariant_to_rotation(chain: Any, embedded: Any, random_rotation: Any) -> None:
    pytest.importorskip("pyscf")
    transform = BasisTransforms(chain)
    for name in ("methanol", "acetamide", "water_dimer", "nitromethane"):
        sample = BasisTransforms([])(embedded(name)[2])
        turned = turned_densities(sample, random_rotation(np.random.default_rng(3)))
        found, expected = transform(turned), transform(sample)
        for field in ("coeffs", "gradient_label", "dual_basis_integrals"):
            torch.testing.assert_close(found[field], expected[field], rtol=0, atol=1e-6 * float(expected[field].std()))


def test_linear_molecules_are_invariant_too_since_their_densities_are_round(
    embedded: Any, random_rotation: Any
) -> None:
    for name in ("hydrogen_cyanide", "dihydrogen", "carbon_dioxide", "ethyne", "difluorine"):
        sample = embedded(name)[1]  # in symmetric natural coordinates, which commute with rotations
        turned = turned_densities(sample, random_rotation(np.random.default_rng(4)))
        found, expected = LocalFrames()(turned).coeffs, LocalFrames()(sample).coeffs
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))


def test_a_single_atom_keeps_its_functions(make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(5), [6])
    torch.testing.assert_close(LocalFrames()(sample).coeffs, sample.coeffs, rtol=0, atol=1e-14)
    other = make_molecule(np.random.default_rng(5), [6], p_order="xyz")
    changed = LocalFrames()(other)
    assert_order = [*range(3), 4, 5, 3, 7, 8, 6, *range(9, 30)]  # y, z, x
    torch.testing.assert_close(changed.coeffs, other.coeffs[assert_order], rtol=0, atol=1e-14)


@pytest.mark.parametrize("direction", [[0, 0, 1.0], [1.0, 0, 0], [0.3, -0.5, 0.8]])
def test_linear_molecules_have_axes_that_depend_on_nothing_else(direction: list[float]) -> None:
    along = np.array(direction) / np.linalg.norm(direction)
    pos = np.outer([0.0, 2.2, 4.4, -2.0], along)
    numbers = np.array([6, 7, 8, 1])
    axes = local_axes(pos, numbers)
    np.testing.assert_allclose(axes @ np.swapaxes(axes, 1, 2), np.broadcast_to(np.eye(3), axes.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(axes), 1.0)
    np.testing.assert_allclose(np.abs(axes[:, 0] @ along), 1.0)
    np.testing.assert_allclose(local_axes(pos + 1.0, numbers), axes, atol=1e-10)
    np.testing.assert_allclose(local_axes(pos[::-1], numbers[::-1]), axes[::-1], atol=1e-10)


def test_hydrogen_atoms_stand_in_before_a_fixed_axis() -> None:
    # carbon with one heavy neighbour and three hydrogen atoms, the second of them the nearest
    pos = np.array([[0.0, 0, 0], [2.6, 0, 0], [-0.6, 1.9, 0.1], [-0.6, -0.9, 1.5], [-0.7, -1.0, -1.7]])
    axes = local_axes(pos, np.array([6, 8, 1, 1, 1]))
    x = np.array([1.0, 0, 0])
    z = np.cross(x, pos[3])
    np.testing.assert_allclose(axes[0], [x, np.cross(z, x) / np.linalg.norm(z), z / np.linalg.norm(z)], atol=1e-12)
    # without any heavy neighbour hydrogen gives both
    alone = local_axes(np.delete(pos, 1, axis=0), np.array([6, 1, 1, 1]))
    np.testing.assert_allclose(alone[0, 0], pos[3] / np.linalg.norm(pos[3]))


def test_axes_follow_the_geometry_continuously(make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(6))
    pos, numbers = sample.pos.numpy(), sample.atomic_numbers.numpy()
    step = np.random.default_rng(7).normal(size=pos.shape)
    changes = [np.abs(local_axes(pos + h * step, numbers) - local_axes(pos, numbers)).max() for h in (1e-4, 1e-6)]
    assert changes[0] < 1e-3
    assert changes[1] == pytest.approx(changes[0] / 100, rel=0.01)


def test_neighbours_at_equal_distance_are_ranked_alike_whatever_the_rounding(random_rotation: Any) -> None:
    tetrahedron = np.array([[0.0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 1.4
    numbers = np.array([6, 9, 9, 17, 9])
    first = local_axes(tetrahedron, numbers)
    np.testing.assert_allclose(first[0, 0], tetrahedron[3] / np.linalg.norm(tetrahedron[3]))  # the heaviest
    rng = np.random.default_rng(8)
    for _ in range(20):
        rotation = random_rotation(rng)
        moved = tetrahedron @ rotation.T + rng.normal(size=(5, 3)) * 1e-7
        np.testing.assert_allclose(local_axes(moved, numbers) @ rotation, first, atol=1e-5)


def test_atoms_at_one_place_are_refused(make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(9), [6, 8])
    sample.pos[1] = sample.pos[0]
    with pytest.raises(BasisError, match=r"'molecule'.*same place"):
        LocalFrames()(sample)
