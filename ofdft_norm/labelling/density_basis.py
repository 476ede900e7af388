"""The even-tempered, atom-centred basis in which densities are expanded, and its integrals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.pyscf_import import pyscf_module
from ofdft_norm.labelling.errors import LabellingError

Array = npt.NDArray[np.float64]
_PARITY = "eo"


@dataclass(frozen=True)
class DensityBasis:
    """A density basis for one molecule, in the order of this package.

    The functions come atom after atom; within an atom sorted by angular momentum l, shell after shell, and
    m = -l ... l within a shell. PySCF orders p shells x, y, z; here they are y, z, x.

    Attributes:
        mol: PySCF's molecule holding the basis.
        order: (n_basis,) PySCF's index of each function.
        irreps_per_atom: Per atomic number an e3nn-style string, e.g. ``"6x0e+3x1o+1x2e"``.
        exponents_per_atom: Per atomic number the exponent of each shell, in 1/bohr^2.
        integrals: (n_basis,) w, the integral of each function, in electrons.
    """

    mol: Any
    order: npt.NDArray[np.int64]
    irreps_per_atom: dict[int, str]
    exponents_per_atom: dict[int, list[float]]
    integrals: Array

    @property
    def n_basis(self) -> int:
        """Number of density basis functions of the molecule."""
        return len(self.order)

    def coulomb_metric(self) -> Array:
        """Returns (w|w), (n_basis, n_basis), in hartree."""
        return self._ordered(self.mol.intor("int2c2e", hermi=1))

    def overlap(self) -> Array:
        """Returns the overlap matrix S, (n_basis, n_basis)."""
        return self._ordered(self.mol.intor("int1e_ovlp", hermi=1))

    def external_potential(self) -> Array:
        """Returns the attraction of each function to the nuclei, (n_basis,), in hartree."""
        gto = pyscf_module("gto")
        nuclei = gto.fakemol_for_charges(self.mol.atom_coords())
        attraction = gto.intor_cross("int2c2e", self.mol, nuclei)
        return np.asarray(-(attraction @ self.mol.atom_charges())[self.order])

    def project_density(self, orbital_mol: Any, density_matrices: list[Array]) -> Array:
        """Returns (w_mu | rho_Gamma), the Coulomb integrals of each function with densities.

        Args:
            orbital_mol: PySCF's molecule with the orbital basis.
            density_matrices: (n_ao, n_ao) each, symmetric.

        Returns:
            (len(density_matrices), n_basis), in hartree.
        """
        three_centre = pyscf_module("df").incore.aux_e2(orbital_mol, self.mol, "int3c2e", aosym="s2ij")
        rows, columns = np.tril_indices(orbital_mol.nao)
        # The packed triangle holds every off-diagonal pair once.
        weights = np.where(rows == columns, 1.0, 2.0)
        packed = np.stack([gamma[rows, columns] * weights for gamma in density_matrices])
        return np.asarray((packed @ three_centre)[:, self.order])

    def _ordered(self, matrix: Array) -> Array:
        return np.ascontiguousarray(matrix[np.ix_(self.order, self.order)])


def build_density_basis(orbital_mol: Any, beta: float = 2.5) -> DensityBasis:
    """Builds the even-tempered density basis that belongs to an orbital basis.

    Args:
        orbital_mol: PySCF's molecule with the orbital basis.
        beta: Ratio of neighbouring exponents.

    Returns:
        The basis.

    Raises:
        LabellingError: If PySCF returns contracted functions, whose integrals this module does not know.
    """
    df = pyscf_module("df")
    mol = df.addons.make_auxmol(orbital_mol, df.aug_etb(orbital_mol, beta=beta))
    atom_of, momentum = mol._bas[:, 0], mol._bas[:, 1]
    if (mol._bas[:, 2:4] != 1).any():
        raise LabellingError("the density basis has contracted functions; expected an uncontracted, even-tempered one")
    shells = np.lexsort((np.arange(mol.nbas), momentum, atom_of))
    start = mol.ao_loc_nr()
    order = [np.array(start[shell] + _component_order(int(momentum[shell]))) for shell in shells]
    exponents = {
        int(mol.atom_charge(atom)): [float(mol.bas_exp(shell)[0]) for shell in shells if atom_of[shell] == atom]
        for atom in range(mol.natm)
    }
    functions = np.concatenate(order)
    return DensityBasis(mol, functions, _irreps(mol), exponents, _integrals(mol)[functions])


def _component_order(l: int) -> npt.NDArray[np.int64]:
    """Returns the positions of m = -l ... l in PySCF's shells (p shells are stored as x, y, z)."""
    return np.array([1, 2, 0]) if l == 1 else np.arange(2 * l + 1)


def _irreps(mol: Any) -> dict[int, str]:
    irreps = {}
    for atom in range(mol.natm):
        momenta = mol._bas[mol._bas[:, 0] == atom, 1]
        counts = [(int((momenta == l).sum()), l) for l in np.unique(momenta).tolist()]
        irreps[int(mol.atom_charge(atom))] = "+".join(f"{n}x{l}{_PARITY[l % 2]}" for n, l in counts)
    return irreps


def _integrals(mol: Any) -> Array:
    """Integrates every function (PySCF's order): (2 pi / a)^(3/4) for a normalised s Gaussian, else 0."""
    integrals = np.zeros(mol.nao)
    start = mol.ao_loc_nr()
    for shell in range(mol.nbas):
        if mol.bas_angular(shell) == 0:
            integrals[start[shell]] = (2.0 * np.pi / mol.bas_exp(shell)[0]) ** 0.75
    return integrals
