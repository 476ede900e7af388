"""Local frames: each atom's coefficients in axes of its own, which turn with the molecule."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import BasisError
from ofdft_norm.transforms.basis_change import BasisChange, Rotation
from ofdft_norm.transforms.basis_transforms import BasisTransform, register
from ofdft_norm.transforms.molecule import Molecule
from ofdft_norm.transforms.real_harmonics import rotation_of_harmonics

Array = npt.NDArray[np.float64]

# [bohr]; neighbours whose distances differ by less are equally near: symmetry that rounded positions hide
TIE = 1e-4
# sine of an angle; vectors that enclose a smaller one are collinear
COLLINEAR = 1e-3
# the axes of a single atom are those of space: with these in place of neighbours its functions stay as they are
_FIXED = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


class LocalFrames(BasisTransform):
    """Turns the shells of every atom into the atom's own axes.

    With d1 and d2 the vectors to an atom's nearest and second nearest heavy atoms (Z > 1, itself excluded):
    x = d1/|d1|, z = (x × d2)/|x × d2|, y = z × x. Within a shell the functions then stand in the order m = -l ... l of
    harmonics whose polar axis is x, and whose first and second axes are y and z; a p shell's are those along z, x, y.
    For a basis in either order of p functions the result is the same.

    Where there is no second heavy atom, or it lies in line with the first, the next heavy atom out of line takes its
    place, then the nearest hydrogen atom, then a fixed axis of space (z, x, y, the first out of line with x). An atom
    without a heavy neighbour takes hydrogen atoms for both. Nothing is drawn at random: all densities of a geometry
    get the same axes. They turn with the molecule and do not depend on the order of its atoms, but

    - with all atoms in line, the angle around that line is the fixed axis's: coefficients of m = 0 are invariant still;
    - neighbours at equal distances (to 1e-4 bohr) are sorted by atomic number, heaviest first, then by their order in
      the molecule: frames of symmetric molecules are one of several that a symmetry operation exchanges.

    Axes change continuously with the geometry until two neighbours exchange their ranks or come in line.
    Source: Zhang et al., arXiv 2309.16578, section 4.3; Remme et al., JACS 2025, whose axes these are.
    """

    @property
    def name(self) -> str:
        """``local_frames``."""
        return "local_frames"

    def step(self, molecule: Molecule, before: BasisChange) -> Rotation:
        """Returns one block for each atom; the same after symmetric natural reparametrisation, which commutes with it.

        Raises:
            BasisError: If two atoms coincide.
        """
        try:
            axes = local_axes(molecule.pos, molecule.atomic_numbers)
        except BasisError as error:
            raise BasisError(f"molecule {molecule.name!r}: {error}") from None
        basis_info = molecule.basis_info
        elements = basis_info.atom_indices(molecule.atomic_numbers, molecule.name)
        of_atom = [basis_info.atom_ind_to_basis_function_ind[i] for i in elements]
        largest = int(basis_info.l_per_basis_func.max(initial=0))
        # polar axis x, first and second axes y and z
        turned = [rotation_of_harmonics(l, axes[:, [1, 2, 0]]) for l in range(largest + 1)]
        blocks = [_block(basis_info, own, [t[atom] for t in turned]) for atom, own in enumerate(of_atom)]
        return Rotation(tuple(torch.from_numpy(block) for block in blocks))


def _block(basis_info: BasisInfo, functions: npt.NDArray[np.int64], turned: list[Array]) -> Array:
    """Returns the block of one atom: the Wigner matrix of each shell along the diagonal."""
    block = np.zeros((len(functions), len(functions)))
    l_of, m_of = basis_info.l_per_basis_func[functions], basis_info.m_per_basis_func[functions]
    for l, matrix in enumerate(turned):
        own = np.flatnonzero(l_of == l)
        if len(own):
            columns = matrix[:, m_of[own[: 2 * l + 1]] + l]
            block[np.ix_(own, own)] = np.kron(np.eye(len(own) // (2 * l + 1)), columns)
    return block


def local_axes(pos: Array, atomic_numbers: npt.NDArray[np.int64]) -> Array:
    """Returns the axes of each atom; see `LocalFrames`.

    Args:
        pos: (n_atom, 3).
        atomic_numbers: (n_atom,).

    Returns:
        (n_atom, 3, 3), orthonormal: the rows are x, y, z.

    Raises:
        BasisError: If two atoms coincide.
    """
    axes = np.empty((len(pos), 3, 3))
    for atom in range(len(pos)):
        directions = np.concatenate([_neighbours(pos, atomic_numbers, atom), _FIXED])
        x = directions[0]
        normals = np.cross(x, directions[1:])
        sines = np.linalg.norm(normals, axis=1)
        second = int(np.argmax(sines > COLLINEAR))
        z = normals[second] / sines[second]
        axes[atom] = x, np.cross(z, x), z
    return axes


def _neighbours(pos: Array, atomic_numbers: npt.NDArray[np.int64], atom: int) -> Array:
    """Returns unit vectors to the other atoms: heavy ones first, by distance."""
    vectors = np.delete(pos - pos[atom], atom, axis=0)
    numbers = np.delete(atomic_numbers, atom)
    distances = np.linalg.norm(vectors, axis=1)
    if not (distances > 0).all():
        raise BasisError(f"two atoms stand at the same place, {pos[atom].tolist()} bohr: expected a geometry")
    by_distance = np.argsort(distances, kind="stable")
    rank = np.empty(len(distances), dtype=np.int64)
    rank[by_distance] = np.cumsum(np.diff(distances[by_distance], prepend=0.0) > TIE)
    order = np.lexsort((np.arange(len(numbers)), -numbers, rank, numbers == 1))
    return np.asarray(vectors[order] / distances[order, None])


register(LocalFrames())
