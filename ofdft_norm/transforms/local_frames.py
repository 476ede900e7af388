"""Local frames: each atom's coefficients in axes of its own, which turn with the molecule."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ofdft_norm.errors import BasisError
from ofdft_norm.transforms.basis_change import BasisChange, ShellRotation
from ofdft_norm.transforms.basis_transforms import BasisTransform, register
from ofdft_norm.transforms.molecule import Molecule
from ofdft_norm.transforms.real_harmonics import rotations_of_harmonics

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

    def step(self, molecule: Molecule, before: BasisChange) -> ShellRotation:
        """Returns one block for each shell; the same after symmetric natural reparametrisation, which commutes with it.

        Raises:
            BasisError: If two atoms coincide.
        """
        try:
            axes = local_axes(molecule.pos, molecule.atomic_numbers)
        except BasisError as error:
            raise BasisError(f"molecule {molecule.name!r}: {error}") from None
        polar = axes[:, [1, 2, 0]]  # polar axis x, first and second axes y and z
        basis_info, atom = molecule.basis_info, np.repeat(np.arange(len(axes)), molecule.functions_per_atom)
        l_of, m_of = (of[molecule.functions] for of in (basis_info.l_per_basis_func, basis_info.m_per_basis_func))
        blocks = []
        for l, rotations in enumerate(rotations_of_harmonics(int(l_of.max(initial=0)), polar)):
            own = np.flatnonzero(l_of == l)
            if l and len(own):
                turned = rotations[:, :, m_of[own[: 2 * l + 1]] + l]
                blocks.append(torch.from_numpy(turned[atom[own[:: 2 * l + 1]]]))
        return ShellRotation(torch.from_numpy(np.argsort(l_of, kind="stable")), tuple(blocks))


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
    neighbours = _neighbours(pos, atomic_numbers)
    fixed = np.broadcast_to(_FIXED, (len(pos), 3, 3))
    directions = np.concatenate([neighbours, fixed], axis=1)
    x = directions[:, 0]
    normals = np.cross(x[:, None], directions[:, 1:])
    sines = np.linalg.norm(normals, axis=2, keepdims=True)
    second = np.argmax(sines > COLLINEAR, axis=1, keepdims=True)  # of each atom the first that is out of line
    z = np.take_along_axis(normals / np.maximum(sines, COLLINEAR), second, axis=1)[:, 0]
    return np.stack([x, np.cross(z, x), z], axis=1)


def _neighbours(pos: Array, atomic_numbers: npt.NDArray[np.int64]) -> Array:
    """Returns each atom's unit vectors to the others, (n_atom, n_atom - 1, 3): heavy ones first, by distance."""
    n = len(pos)
    vectors = pos - pos[:, None]
    distances = np.linalg.norm(vectors, axis=2)
    distances[np.diag_indices(n)] = np.inf  # an atom is the last of its own neighbours, and left out
    if not (distances > 0).all():
        atom = int(np.argwhere(~(distances > 0))[0, 0])
        raise BasisError(f"two atoms stand at the same place, {pos[atom].tolist()} bohr: expected a geometry")
    by_distance = np.argsort(distances, axis=1, kind="stable")
    gaps = np.diff(np.take_along_axis(distances, by_distance, 1), axis=1, prepend=0.0) > TIE
    rank = np.empty((n, n), dtype=np.int64)
    np.put_along_axis(rank, by_distance, np.cumsum(gaps, axis=1), axis=1)
    keys = np.broadcast_arrays(np.arange(n), -atomic_numbers, rank, atomic_numbers == 1, np.eye(n))
    order = np.lexsort(keys, axis=1)[:, :-1, None]
    return np.asarray(np.take_along_axis(vectors / distances[:, :, None], order, axis=1))


register(LocalFrames())
