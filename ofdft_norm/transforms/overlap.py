"""The overlap of the density basis: what the sample brings, or PySCF's integrals over the basis's own functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.elements import symbol
from ofdft_norm.data.pyscf_import import pyscf_module
from ofdft_norm.errors import BasisError
from ofdft_norm.transforms.molecule import Molecule

Array = npt.NDArray[np.float64]

# Relative; stored integrals have at least single precision.
_SAME = 1e-5


def overlap_of(molecule: Molecule) -> Array:
    """Returns the overlap matrix S of a molecule's density basis, (n_basis, n_basis).

    Args:
        molecule: Geometry and basis.

    Raises:
        BasisError: If the sample brings none and the basis does not say its exponents, or if they are not those of the
            sample's integrals.
        ImportError: If PySCF is needed and not installed.
    """
    if molecule.overlap is not None:
        return molecule.overlap
    exponents = molecule.basis_info.exponent_per_shell
    if exponents is None:
        raise BasisError(
            f"molecule {molecule.name!r}: natural reparametrisation needs the overlap of the density basis, but the "
            "basis does not say its exponents, and the sample has no field 'overlap_matrix': give a basis with "
            "exponents_per_atom, as BasisInfo.from_dataset_info_yaml makes them (config: data.source.basis_info)"
        )
    _check_integrals(molecule, exponents[molecule.basis_info.basis_func_to_shell[molecule.functions]])
    gto = pyscf_module("gto")
    # what gto.M does besides costs a small molecule a third of its integrals
    tables = gto.make_env(_atoms(molecule), _basis(molecule, exponents), np.zeros(gto.mole.PTR_ENV_START))
    matrix = gto.getints("int1e_ovlp_sph", *tables, hermi=1)
    order = pyscf_order(molecule)
    same = (order == np.arange(len(order))).all()
    return np.asarray(matrix if same else matrix.take(order, axis=0).take(order, axis=1))


def pyscf_molecule(molecule: Molecule, exponents: Array) -> Any:
    """Returns PySCF's molecule with the density basis; see `pyscf_order` for the order of its functions.

    Args:
        molecule: Geometry and basis.
        exponents: Exponents of all shells, element by element.
    """
    atoms, basis = _atoms(molecule), _basis(molecule, exponents)
    return pyscf_module("gto").M(atom=atoms, basis=basis, unit="Bohr", spin=None, cart=False, verbose=0)


def _atoms(molecule: Molecule) -> list[tuple[str, tuple[float, ...]]]:
    return [(symbol(int(z)), tuple(r)) for z, r in zip(molecule.atomic_numbers, molecule.pos, strict=True)]


def _basis(molecule: Molecule, exponents: Array) -> dict[str, list[list[Any]]]:
    """Returns the shells of each of a molecule's elements."""
    numbers = sorted(set(molecule.atomic_numbers.tolist()))
    return {symbol(number): _shells(molecule.basis_info, number, exponents) for number in numbers}


def _shells(basis_info: BasisInfo, number: int, exponents: Array) -> list[list[Any]]:
    """Returns one element's shells as PySCF takes them: angular momentum, then exponents with their coefficients.

    Shells of equal angular momentum are one of PySCF's, contracted with the unit matrix: integrals take half the time.
    """
    own = basis_info.atom_ind_to_basis_function_ind[int(basis_info.atom_indices(np.array([number]))[0])]
    shells, first = np.unique(basis_info.basis_func_to_shell[own], return_index=True)
    momenta = basis_info.l_per_basis_func[own[first]]
    blocks = [(l, exponents[shells[momenta == l]]) for l in np.unique(momenta)]
    return [[int(l), *np.column_stack([of_l, np.eye(len(of_l))]).tolist()] for l, of_l in blocks]


def pyscf_order(molecule: Molecule) -> npt.NDArray[np.int64]:
    """Returns the index that each basis function of a molecule has in PySCF, whose p shells are x, y, z.

    Args:
        molecule: Geometry and basis.
    """
    basis_info, functions = molecule.basis_info, molecule.functions
    l, m = basis_info.l_per_basis_func[functions], basis_info.m_per_basis_func[functions]
    within = np.where(l == 1, (m + 2) % 3, m + l)  # m = 1, -1, 0 are x, y, z
    starts = np.flatnonzero(np.diff(_shell_of_molecule(molecule), prepend=-1))
    return np.repeat(starts, 2 * l[starts] + 1) + within


def _shell_of_molecule(molecule: Molecule) -> npt.NDArray[np.int64]:
    """Returns a number for each function that differs between neighbouring shells, also of equal atoms."""
    atom = np.repeat(np.arange(len(molecule.atomic_numbers)), molecule.functions_per_atom)
    n_shells = int(molecule.basis_info.basis_func_to_shell.max()) + 1
    return np.asarray(atom * n_shells + molecule.basis_info.basis_func_to_shell[molecule.functions])


def _check_integrals(molecule: Molecule, exponents: Array) -> None:
    """Refuses a basis that is not the one of the labels: a normalised s Gaussian integrates to (2 pi / a)^(3/4)."""
    if molecule.integrals is None:
        return
    scalar = molecule.basis_info.l_per_basis_func[molecule.functions] == 0
    expected = np.where(scalar, (2 * np.pi / exponents) ** 0.75, 0.0)
    wrong = np.abs(molecule.integrals - expected) > _SAME * np.abs(expected).max()
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise BasisError(
            f"molecule {molecule.name!r}: field 'dual_basis_integrals' has {molecule.integrals[i]:.6g} for basis "
            f"function {i}, but a normalised function with the basis's exponent {exponents[i]:.6g} integrates to "
            f"{expected[i]:.6g}: the labels were made with another basis, or are stored in other coordinates than they "
            "say (config: data.source.basis_info)"
        )
