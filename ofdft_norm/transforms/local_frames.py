"""Local frames: each atom's coefficients in axes that rotate with the molecule."""

import numpy as np
import torch
from torch import Tensor

from ofdft_norm.data.sample import IntArray
from ofdft_norm.errors import BasisError
from ofdft_norm.transforms.coordinates import Array, BasisTransform, Molecule, Step, Steps, register
from ofdft_norm.transforms.real_harmonics import compute_wigner_matrices

TIE = 1e-10  # relative; two distances that differ by less are equal but for rounding
COLLINEAR = 1e-3  # sine of an angle; vectors that enclose a smaller one are collinear
# neighbours of a single atom: its axes are those of space, so its functions do not change
_FIXED = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


class ShellRotation(Step):
    """An orthogonal T with one block for each shell of l > 0: vectors and dual vectors change alike.

    Its tensors are, for each l > 0, the functions of the shells, (n_shell, 2l+1), and blocks, (n_shell, 2l+1, 2l+1).
    """

    def apply(self, rows: Tensor, dual: Tensor, inverse: bool) -> Tensor:
        """See `Step`."""
        tensors, out = [tensor.to(rows.device) for tensor in self.tensors], rows.clone()
        for shells, blocks in zip(tensors[::2], tensors[1::2], strict=True):
            out[:, shells] = torch.einsum("sji,nsj->nsi" if inverse else "sij,nsj->nsi", blocks, rows[:, shells])
        return out


class LocalFrames(BasisTransform):
    """Rotates the shells of every atom into the atom's own axes.

    With d1 and d2 the vectors to an atom's nearest and second nearest heavy atoms (Z > 1, itself excluded):
    x = d1/|d1|, z = (x × d2)/|x × d2|, y = z × x. Within a shell the functions then have the order m = -l ... l of
    harmonics with x as polar axis and y and z as first and second axes; a p shell has the functions along z, x, y.

    If there is no second heavy atom, or it is collinear with the first, its place is taken by the next heavy atom that
    is not collinear, then by the nearest hydrogen atom, then by a fixed axis of space (z, x, y, the first that is not
    collinear with x). An atom without a heavy neighbour takes hydrogen atoms for both. No axis is random: all densities
    of a geometry get the same axes. The axes rotate with the molecule, with two exceptions:

    - If all atoms are collinear, the fixed axis decides the angle around their line; only m = 0 is invariant.
    - Neighbours at distances that are equal to rounding keep their order in the molecule, as in STRUCTURES25's code: a
      symmetric molecule has several equivalent frames.

    Axes change continuously with the geometry until two neighbours exchange ranks or become collinear. Labels that are
    stored in local frames and natural coordinates with other axes, such as random ones of linear molecules, are
    recognised by their integrals and refused; in local frames alone the integrals do not depend on the axes.
    Source: Zhang et al., arXiv 2309.16578, section 4.3; Remme et al., JACS 2025.
    """

    name = "local_frames"

    def step(self, molecule: Molecule, before: Steps) -> ShellRotation:
        """Returns one block for each shell; symmetric natural reparametrisation, which commutes, does not change it."""
        basis_info, functions = molecule.basis_info, molecule.functions
        axes = find_local_axes(molecule.pos, molecule.atomic_numbers, f"molecule {molecule.name!r}: ")
        polar = axes[:, [1, 2, 0]]  # polar axis x, first and second axes y and z
        element = basis_info.atomic_number_to_atom_index[molecule.atomic_numbers]
        atom = np.repeat(np.arange(len(axes)), basis_info.basis_dim_per_atom[element])
        l_of, m_of = basis_info.l_per_basis_func[functions], basis_info.m_per_basis_func[functions]
        tensors = []
        for l, rotations in enumerate(compute_wigner_matrices(int(l_of.max(initial=0)), polar)):
            shells = np.flatnonzero(l_of == l).reshape(-1, 2 * l + 1)
            if l and len(shells):
                blocks = rotations[:, :, m_of[shells[0]] + l]  # p functions have the order x, y, z
                tensors += [torch.from_numpy(shells), torch.from_numpy(blocks[atom[shells[:, 0]]])]
        return ShellRotation(tuple(tensors))


def find_local_axes(pos: Array, atomic_numbers: IntArray, where: str = "") -> Array:
    """Returns the axes x, y, z of each atom as rows, (n_atom, 3, 3); see `LocalFrames`."""
    fixed = np.broadcast_to(_FIXED, (len(pos), 3, 3))
    directions = np.concatenate([_find_directions(pos, atomic_numbers, where), fixed], axis=1)
    x = directions[:, 0]
    normals = np.cross(x[:, None], directions[:, 1:])
    sines = np.linalg.norm(normals, axis=2, keepdims=True)
    second = np.argmax(sines > COLLINEAR, axis=1, keepdims=True)  # the first that is not collinear
    z = np.take_along_axis(normals / np.maximum(sines, COLLINEAR), second, axis=1)[:, 0]
    return np.stack([x, np.cross(z, x), z], axis=1)


def _find_directions(pos: Array, atomic_numbers: IntArray, where: str) -> Array:
    """Returns each atom's unit vectors to the others, (n_atom, n_atom - 1, 3): heavy ones first, by distance."""
    with np.errstate(invalid="ignore"):
        vectors = pos - pos[:, None]
    distances = np.linalg.norm(vectors, axis=2)
    itself = np.eye(len(pos), dtype=bool)
    wrong = ~((distances > 0) & (distances < np.inf) | itself)
    if wrong.any():
        atom = pos[np.argwhere(wrong)[0, 0]].tolist()
        raise BasisError(f"{where}field 'pos' has an atom at {atom} bohr, expected finite and different positions")
    distances[itself] = np.inf
    by_distance = np.argsort(distances, axis=1, kind="stable")
    ascending = np.take_along_axis(distances, by_distance, axis=1)
    # the rank of a neighbour is its distance, or that of the first of several at equal distances
    ascending[:, 1:][np.diff(ascending, axis=1) <= TIE * ascending[:, :-1]] = 0.0
    ranks = np.empty_like(distances)
    np.put_along_axis(ranks, by_distance, np.maximum.accumulate(ascending, axis=1), axis=1)
    kinds = np.broadcast_to(atomic_numbers == 1, itself.shape) + 2 * itself  # 0 heavy, 1 hydrogen, 2 or 3 itself
    order = np.lexsort((ranks, kinds), axis=1)[:, :-1, None]  # stable: ties keep their order
    return np.asarray(np.take_along_axis(vectors / distances[:, :, None], order, axis=1))


register(LocalFrames())
