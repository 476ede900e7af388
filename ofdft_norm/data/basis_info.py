"""The density basis: which functions every atom of an element carries."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ofdft_norm.data.dataset_info import read_dataset_info
from ofdft_norm.data.elements import atomic_number
from ofdft_norm.data.irreps import parse_irreps, shells_to_irreps
from ofdft_norm.data.plain_files import read_json
from ofdft_norm.data.pyscf_import import pyscf_module
from ofdft_norm.errors import BasisError

MAX_ATOMIC_NUMBER = 118
# An index that no array accepts: unlike -1 it can never silently pick the last element's values.
UNKNOWN_ELEMENT = int(np.iinfo(np.int64).min)

POrder = Literal["yzx", "xyz"]
P_ORDERS: tuple[POrder, ...] = get_args(POrder)
# m of the three functions of a p shell: real harmonics of m = -1, 0, 1 are proportional to y, z, x
_P_SHELL_M: dict[str, tuple[int, int, int]] = {"yzx": (-1, 0, 1), "xyz": (1, -1, 0)}

ArrayOrTensor = TypeVar("ArrayOrTensor", npt.NDArray[Any], Tensor)


def split_axis(values: ArrayOrTensor, lengths: Sequence[int], axis: int, what: str) -> tuple[ArrayOrTensor, ...]:
    """Splits an array or tensor into consecutive pieces of given lengths.

    Args:
        values: Array or tensor with at least `axis` + 1 axes.
        lengths: Length of each piece.
        axis: Which axis is split.
        what: What the values are, for the message.

    Raises:
        BasisError: If they do not sum to the length of the axis.
    """
    if values.shape[axis] != sum(lengths):
        raise BasisError(f"axis {axis} has {values.shape[axis]} entries, but {what} has {sum(lengths)} functions")
    if isinstance(values, np.ndarray):
        return tuple(np.split(values, np.cumsum(lengths)[:-1], axis=axis))
    return values.split(list(lengths), dim=axis)


def _as_integers(atomic_numbers: Any, context: str) -> npt.NDArray[np.int64]:
    """Returns a vector of atomic numbers; refuses what a cast to integers would change."""
    numbers = np.asarray(atomic_numbers)
    with np.errstate(invalid="ignore"):
        integers = numbers.astype(np.int64) if numbers.dtype.kind in "iuf" else None
    if integers is None or integers.ndim != 1 or not np.array_equal(integers, numbers):
        raise BasisError(
            f"{context + ': ' if context else ''}field 'atomic_numbers' is {numbers.tolist()!r}, expected a vector of "
            "whole numbers"
        )
    return integers


@lru_cache(maxsize=16)
def _unpickled(arguments: str) -> BasisInfo:
    return BasisInfo(**json.loads(arguments))


class BasisInfo:
    """Atom-centred density basis: per element, an ordered list of shells sorted by angular momentum.

    All per-dimension quantities of the package are vectors of length `n_basis`, the concatenation over the
    elements of `atomic_numbers`: one entry for each pair of an element and one of its functions.

    Args:
        atomic_numbers: The elements of the basis, each once, in the order in which they are concatenated.
        irreps_per_atom: Per element an e3nn-style string such as ``"6x0e+2x1o+1x2e"``: six s shells, two p
            shells, one d shell; a shell of angular momentum l has 2l+1 functions, m = -l ... l.
        p_order: In which order the functions of a p shell stand: ``"yzx"`` is m = -1, 0, 1, as in every other shell;
            ``"xyz"`` is PySCF's, and that of STRUCTURES25's label files. Shells of other l are the same in both.
        exponents_per_atom: Per element one Gaussian exponent [1/bohr^2] for each shell, in the order of its irreps.
            None: they are not known, and nothing that needs integrals over the basis can be computed.

    Attributes:
        n_types: Number of elements.
        n_basis: Number of basis functions over all elements, the sum of `basis_dim_per_atom`.
        basis_dim_per_atom: (n_types,) functions per atom of each element.
        l_per_basis_func: (n_basis,) angular momentum of each function.
        m_per_basis_func: (n_basis,) magnetic quantum number of each function.
        basis_func_to_shell: (n_basis,) running index of the shell that each function belongs to.
        exponent_per_shell: (n_shells,) Gaussian exponents; None where they are not known.
        atomic_number_to_atom_index: (119,) index of each element; `UNKNOWN_ELEMENT` where it is not part of the
            basis (an index that raises, never one that picks another element).
        atom_ind_to_basis_function_ind: Per element, the slice of `arange(n_basis)` that is its own.

    Raises:
        BasisError: If an element is repeated, unknown, or its irreps cannot be read or are not sorted by l, if
            `p_order` is neither of the two, or if there is not one positive exponent for each shell.

    Example:
        >>> basis_info = BasisInfo([1, 8], ["2x0e", "3x0e+1x1o"])
        >>> basis_info.n_basis, basis_info.basis_dim_per_atom.tolist()
        (8, [2, 6])
        >>> basis_info.m_per_basis_func.tolist()
        [0, 0, 0, 0, 0, -1, 0, 1]
    """

    def __init__(
        self,
        atomic_numbers: Sequence[int] | npt.NDArray[Any],
        irreps_per_atom: Sequence[str],
        p_order: POrder = "yzx",
        exponents_per_atom: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.atomic_numbers = _as_integers(atomic_numbers, "")
        self.irreps_per_atom = [str(irreps) for irreps in irreps_per_atom]
        self.p_order = p_order
        self._check_elements()
        if p_order not in P_ORDERS:
            raise BasisError(f"p_order is {p_order!r}, expected one of {list(P_ORDERS)}")
        shells = [parse_irreps(i, int(z)) for z, i in zip(self.atomic_numbers, self.irreps_per_atom, strict=True)]
        l_of_shell = np.array([l for element in shells for n, l in element for _ in range(n)], dtype=np.int64)
        self.exponent_per_shell = self._exponents(exponents_per_atom, [sum(n for n, _ in e) for e in shells])

        self.n_types = len(self.atomic_numbers)
        self.basis_dim_per_atom = np.array([sum(n * (2 * l + 1) for n, l in e) for e in shells], dtype=np.int64)
        self.n_basis = int(self.basis_dim_per_atom.sum())
        self.l_per_basis_func = np.repeat(l_of_shell, 2 * l_of_shell + 1)
        self.basis_func_to_shell = np.repeat(np.arange(len(l_of_shell)), 2 * l_of_shell + 1)
        m_of_shells = [_P_SHELL_M[p_order] if l == 1 else range(-l, l + 1) for l in l_of_shell]
        self.m_per_basis_func = np.array([m for shell in m_of_shells for m in shell], dtype=np.int64)
        self.atomic_number_to_atom_index = np.full(MAX_ATOMIC_NUMBER + 1, UNKNOWN_ELEMENT, dtype=np.int64)
        self.atomic_number_to_atom_index[self.atomic_numbers] = np.arange(self.n_types)
        # offsets[i] is where element i starts in the concatenation
        self.offsets = np.concatenate([[0], np.cumsum(self.basis_dim_per_atom)]).astype(np.int64)
        self.atom_ind_to_basis_function_ind = [
            np.arange(start, stop) for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        ]

    def _check_elements(self) -> None:
        if len(self.atomic_numbers) != len(self.irreps_per_atom):
            raise BasisError(
                f"{len(self.atomic_numbers)} atomic_numbers but {len(self.irreps_per_atom)} irreps_per_atom: "
                "expected one string of irreps for each element"
            )
        if len(self.atomic_numbers) == 0:
            raise BasisError("atomic_numbers is empty, expected at least one element")
        if len(set(self.atomic_numbers.tolist())) != len(self.atomic_numbers):
            raise BasisError(f"atomic_numbers {self.atomic_numbers.tolist()} names an element twice")
        bad = [z for z in self.atomic_numbers.tolist() if not 1 <= z <= MAX_ATOMIC_NUMBER]
        if bad:
            raise BasisError(f"atomic_numbers: {bad} outside 1 ... {MAX_ATOMIC_NUMBER}")

    def _exponents(
        self, per_atom: Sequence[Sequence[float]] | None, n_shells: list[int]
    ) -> npt.NDArray[np.float64] | None:
        if per_atom is None:
            return None
        found = [np.asarray(exponents, dtype=np.float64).reshape(-1) for exponents in per_atom]
        if [len(exponents) for exponents in found] != n_shells:
            raise BasisError(
                f"exponents_per_atom has {[len(exponents) for exponents in found]} exponents for the elements "
                f"{self.atomic_numbers.tolist()}, expected {n_shells}: one for each shell of irreps_per_atom"
            )
        joined = np.concatenate([*found, np.zeros(0)])
        if not (np.isfinite(joined) & (joined > 0)).all():
            raise BasisError("exponents_per_atom has an exponent that is not a positive number")
        return joined

    def atom_indices(self, atomic_numbers: npt.NDArray[Any], context: str = "") -> npt.NDArray[np.int64]:
        """Returns the index of each atom's element.

        Args:
            atomic_numbers: (n_atom,) atomic numbers.
            context: What the atoms belong to (file, molecule), for the message.

        Returns:
            (n_atom,) indices into `atomic_numbers` of the basis.

        Raises:
            BasisError: If an element is not part of the basis, or the numbers are not a vector of whole numbers.
        """
        numbers = _as_integers(atomic_numbers, context)
        inside = (numbers >= 0) & (numbers <= MAX_ATOMIC_NUMBER)
        indices = self.atomic_number_to_atom_index[np.where(inside, numbers, 0)]
        if (indices == UNKNOWN_ELEMENT).any():
            unknown = sorted(set(numbers[indices == UNKNOWN_ELEMENT].tolist()))
            raise BasisError(
                f"{context + ': ' if context else ''}field 'atomic_numbers' has the elements {unknown}, which the "
                f"basis lacks (it has {self.atomic_numbers.tolist()}); give a basis with these elements (config: "
                "data.source.basis_info) or leave the molecule out (config: data.source.exclude)"
            )
        return indices

    def basis_function_ind(self, atom_ind: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns, atom after atom, the index of every basis function in the concatenation over elements.

        Args:
            atom_ind: (n_atom,) element indices, from `atom_indices`.

        Returns:
            (n_basis of the molecule,) indices into any per-dimension statistic.

        Raises:
            BasisError: If an index is not one of an element: a negative one would pick from the end.
        """
        if len(atom_ind) == 0:
            return np.zeros(0, dtype=np.int64)
        lowest, highest = int(atom_ind.min()), int(atom_ind.max())
        if lowest < 0 or highest >= self.n_types:
            raise BasisError(f"field 'atom_ind' has {lowest} ... {highest}, expected 0 ... {self.n_types - 1}")
        # the functions of an element stand one after the other
        n_functions = self.basis_dim_per_atom[atom_ind]
        ends = n_functions.cumsum()
        found: npt.NDArray[np.int64] = np.repeat(self.offsets[atom_ind] - (ends - n_functions), n_functions)
        found += np.arange(len(found))
        return found

    def split_field_by_atom_type(self, values: ArrayOrTensor, axis: int = 0) -> tuple[ArrayOrTensor, ...]:
        """Splits a per-dimension quantity by element.

        Args:
            values: An array or tensor with `n_basis` entries along `axis`, such as a statistic.
            axis: The axis.

        Returns:
            One array or tensor (a view) for each element, `basis_dim_per_atom` entries long.

        Raises:
            BasisError: If the length is another.
        """
        return split_axis(values, self.basis_dim_per_atom.tolist(), axis, "the basis")

    def is_subset(self, other: BasisInfo) -> bool:
        """Returns whether each element of this basis has the same functions, in the same order, in the other basis.

        Args:
            other: The basis that may have more elements.
        """
        own, others = self._functions(), other._functions()
        return all(others.get(number) == functions for number, functions in own.items())

    def _functions(self) -> dict[int, list[list[int]]]:
        """Returns, for each element, l and m of each of its functions."""
        functions = np.stack([self.l_per_basis_func, self.m_per_basis_func])
        return {
            number: functions[:, index].tolist()
            for number, index in zip(self.atomic_numbers.tolist(), self.atom_ind_to_basis_function_ind, strict=True)
        }

    @classmethod
    def from_mol(cls, mol: Any) -> BasisInfo:
        """Describes the basis of a molecule of PySCF, as it is: its elements only, p functions ordered x, y, z.

        Args:
            mol: A `pyscf.gto.Mole` with spherical functions, which in every atom are sorted by angular momentum.

        Returns:
            The basis, elements sorted by atomic number.

        Raises:
            BasisError: If functions are Cartesian or not sorted, or atoms of one element differ.
        """
        if mol.cart:
            raise BasisError("from_mol: the molecule has Cartesian functions (mol.cart), expected spherical ones")
        momenta: dict[int, list[int]] = {}
        for atom in range(mol.natm):
            own = [int(mol.bas_angular(i)) for i in mol.atom_shell_ids(atom) for _ in range(mol.bas_nctr(i))]
            number = atomic_number(mol.atom_pure_symbol(atom))
            if momenta.setdefault(number, own) != own:
                raise BasisError(f"from_mol: atoms of element {number} have different functions")
        irreps = {z: shells_to_irreps(momenta[z]) for z in sorted(momenta)}
        return cls(list(irreps), list(irreps.values()), p_order="xyz")

    @classmethod
    def from_atomic_numbers_with_even_tempered_basis(
        cls,
        atomic_numbers: Sequence[int] | npt.NDArray[Any],
        basis: str = "6-31G(2df,p)",
        beta: float = 2.5,
        p_order: POrder = "xyz",
    ) -> BasisInfo:
        """Makes the even-tempered density basis that belongs to an orbital basis, with PySCF's `aug_etb`.

        Args:
            atomic_numbers: The elements, each once, in the order of the basis.
            basis: Name of the orbital basis of the Kohn-Sham calculations.
            beta: Ratio of neighbouring exponents.
            p_order: Order of the functions of p shells; ``"xyz"`` is that of STRUCTURES25's label files.

        Returns:
            The basis, with its exponents.

        Raises:
            BasisError: If PySCF lacks the orbital basis for one of the elements.
            ImportError: If PySCF is not installed.
        """
        numbers = _as_integers(atomic_numbers, "").tolist()
        gto, df = pyscf_module("gto"), pyscf_module("df")
        # one atom of each element, far apart: the basis depends on each element alone
        atoms = [(number, (0.0, 0.0, 10.0 * i)) for i, number in enumerate(numbers)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PySCF advises to install a package of more bases
                orbital = gto.M(atom=atoms, basis=basis, spin=None, verbose=0)
        except (KeyError, RuntimeError, ValueError) as error:
            raise BasisError(
                f"PySCF has no orbital basis {basis!r} for the elements {numbers}: {error} (config: "
                "data.source.atomic_numbers, data.source.basis_info)"
            ) from error
        mol = df.addons.make_auxmol(orbital, df.aug_etb(orbital, beta=beta))
        shells = [sorted(mol.atom_shell_ids(atom), key=mol.bas_angular) for atom in range(mol.natm)]
        irreps = [shells_to_irreps(int(mol.bas_angular(i)) for i in own) for own in shells]
        return cls(numbers, irreps, p_order, [[float(mol.bas_exp(i)[0]) for i in own] for own in shells])

    @classmethod
    def from_dataset_info_yaml(
        cls, path: str | Path, atomic_numbers: Sequence[int] | npt.NDArray[Any], p_order: POrder = "xyz"
    ) -> BasisInfo:
        """Makes the density basis that a `dataset_info.yaml` of STRUCTURES25 names.

        Args:
            path: The file, with ``kohn_sham.basis`` and ``of_basis_set: even_tempered_2.5``.
            atomic_numbers: The elements, each once, in the order of the basis.
            p_order: Order of the functions of p shells; ``"xyz"`` is that of STRUCTURES25's label files.

        Raises:
            BasisError: If the file cannot be read or names another kind of density basis, or PySCF lacks the orbital
                basis for one of the elements.
            ImportError: If PySCF is not installed.
        """
        info = read_dataset_info(Path(path))
        return cls.from_atomic_numbers_with_even_tempered_basis(atomic_numbers, info.orbital_basis, info.beta, p_order)

    @classmethod
    def from_json(cls, path: str | Path, p_order: POrder | Callable[[], POrder] = "yzx") -> BasisInfo:
        """Reads a JSON file with the constructor's arguments; `p_order` and `exponents_per_atom` may be left out.

        Args:
            path: The file.
            p_order: Order within p shells where the file does not say it, or what finds it out then.

        Raises:
            BasisError: If the file cannot be read, lacks a key, or describes no basis; the message names the file.
        """
        key = "(config: data.source.basis_info)"
        try:
            content = read_json(Path(path))
        except (OSError, ValueError) as error:  # ValueError: neither JSON nor text
            raise BasisError(f"{path}: cannot read the basis: {error} {key}") from error
        names = sorted(content) if isinstance(content, dict) else []
        missing = sorted({"atomic_numbers", "irreps_per_atom"} - set(names))
        if missing:
            raise BasisError(f"{path}: lacks {missing}; it has {names} {key}")
        order = content["p_order"] if "p_order" in content else p_order() if callable(p_order) else p_order
        try:
            return cls(
                content["atomic_numbers"],
                content["irreps_per_atom"],
                order,
                content.get("exponents_per_atom"),
            )
        except (BasisError, TypeError, ValueError) as error:  # a value is null, a number, or a word among numbers
            raise BasisError(f"{path}: {error} {key}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python, e.g. for JSON or a checkpoint."""
        exponents = None
        if self.exponent_per_shell is not None:
            shells = [self.basis_func_to_shell[own] for own in self.atom_ind_to_basis_function_ind]
            exponents = [self.exponent_per_shell[np.unique(own)].tolist() for own in shells]
        return {
            "atomic_numbers": self.atomic_numbers.tolist(),
            "irreps_per_atom": list(self.irreps_per_atom),
            "p_order": self.p_order,
            **({} if exponents is None else {"exponents_per_atom": exponents}),
        }

    @cached_property
    def _json(self) -> str:
        return json.dumps(self.to_dict())

    def fingerprint(self) -> str:
        """Returns a hex digest of the elements, their shells, the order within p shells and known exponents."""
        return hashlib.sha256(self._json.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Compares elements, shells and order, and exponents where both know them."""
        if not isinstance(other, BasisInfo) or self._shells != other._shells:
            return False
        a, b = self.exponent_per_shell, other.exponent_per_shell
        return a is None or b is None or np.allclose(a, b, rtol=1e-8, atol=0.0)

    @property
    def _shells(self) -> tuple[Any, ...]:
        return (*self.atomic_numbers.tolist(), *self.irreps_per_atom, self.p_order)

    def __hash__(self) -> int:
        return hash(self._shells)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as JSON, and is made once in each process: samples carry their basis."""
        return _unpickled, (self._json,)

    def __repr__(self) -> str:
        elements = ", ".join(f"{z}: {i}" for z, i in zip(self.atomic_numbers, self.irreps_per_atom, strict=True))
        order = "" if self.p_order == "yzx" else f", p_order={self.p_order!r}"
        return f"BasisInfo({{{elements}}}{order})"
