"""The overlap of the density basis: the sample's own matrix, or PySCF's integrals over the basis's exponents."""

from typing import Any

import numpy as np

from ofdft_norm.data.elements import find_symbol
from ofdft_norm.data.files import import_optional
from ofdft_norm.errors import BasisError
from ofdft_norm.transforms.coordinates import Array, Molecule

_SYMMETRIC = 1e-6  # relative to the largest entry; a matrix has at least single precision


def compute_overlap(molecule: Molecule) -> Array:
    """Returns the overlap matrix S of a molecule's density basis, (n_basis, n_basis); symmetric, finite numbers."""
    if (overlap := molecule.overlap) is None:
        gto = import_optional("pyscf.gto", "labels")
        # gto.M takes a third of the time of a small molecule's integrals
        tables = gto.make_env(*_make_input(molecule), np.zeros(gto.mole.PTR_ENV_START))
        return np.asarray(gto.getints("int1e_ovlp_sph", *tables, hermi=1))
    finite = np.where(np.isfinite(overlap), overlap, np.nan)
    wrong = np.iscomplexobj(overlap) | ~(np.abs(finite - finite.T) <= _SYMMETRIC * np.nanmax(np.abs(finite), initial=0))
    if wrong.any():
        i, j = np.argwhere(wrong)[0]
        raise BasisError(
            f"molecule {molecule.name!r}: field 'overlap_matrix' has {overlap[i, j]} in row {i}, column {j}, and "
            f"{overlap[j, i]} in row {j}, column {i}, expected a real, finite, symmetric matrix"
        )
    return overlap.astype(np.float64, copy=False)


def build_pyscf_molecule(molecule: Molecule) -> Any:
    """Returns PySCF's molecule with the density basis, functions in the same order."""
    gto = import_optional("pyscf.gto", "labels")
    atoms, basis = _make_input(molecule)
    return gto.M(atom=atoms, basis=basis, unit="Bohr", spin=None, cart=False, verbose=0)


def _make_input(molecule: Molecule) -> tuple[list[tuple[str, tuple[float, ...]]], dict[str, list[list[Any]]]]:
    """Returns PySCF's input: atoms, and shells of each element (angular momentum, then exponents with coefficients)."""
    basis_info, exponents = molecule.basis_info, molecule.basis_info.exponent_per_shell
    if exponents is None:
        raise BasisError(
            f"molecule {molecule.name!r}: integrals over the density basis need exponents, which the basis lacks, and "
            "the sample has no field 'overlap_matrix': give a basis with exponents_per_atom "
            "(config: data.source.basis_info)"
        )
    atoms = [(find_symbol(int(z)), tuple(r)) for z, r in zip(molecule.atomic_numbers, molecule.pos, strict=True)]
    basis = {}
    for number in np.unique(molecule.atomic_numbers):
        functions = basis_info.atom_ind_to_basis_function_ind[int(basis_info.atomic_number_to_atom_index[number])]
        shells, first = np.unique(basis_info.basis_func_to_shell[functions], return_index=True)
        momenta = basis_info.l_per_basis_func[functions][first]
        # one shell for all of equal angular momentum, contracted with the unit matrix: this halves the time
        blocks = [(l, exponents[shells[momenta == l]]) for l in np.unique(momenta)]
        basis[find_symbol(int(number))] = [[int(l), *np.column_stack([a, np.eye(len(a))]).tolist()] for l, a in blocks]
    return atoms, basis
