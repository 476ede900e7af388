"""The density basis: the functions of every atom of an element."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ofdft_norm.data.elements import find_atomic_number, find_symbol
from ofdft_norm.data.files import import_optional, read_plain
from ofdft_norm.errors import BasisError

MAX_ATOMIC_NUMBER = 118
# an index that no array accepts; -1 would silently give the last element's values
UNKNOWN_ELEMENT = int(np.iinfo(np.int64).min)

SHELL_LETTERS = "spdfghiklmnoq"  # for l = 0 ... LARGEST_L
LARGEST_L = 12  # beyond any basis in use
_SHELL = re.compile(r"(\d{1,3})x(\d{1,2})([eo])?")
_BASIS_KEY = "(config: data.source.basis_info)"

ArrayOrTensor = TypeVar("ArrayOrTensor", npt.NDArray[Any], Tensor)
IntArray = npt.NDArray[np.int64]


def parse_irreps(irreps: str, atomic_number: int) -> list[tuple[int, int]]:
    """Parses ``"6x0e+2x1o"`` into ``[(6, 0), (2, 1)]``, pairs of multiplicity and angular momentum."""
    where = f"irreps_per_atom of element {atomic_number}: {irreps!r}"
    terms = [_SHELL.fullmatch(term) for term in str(irreps).replace(" ", "").split("+")]
    shells = [(int(term[1]), int(term[2])) for term in terms if term]
    if len(shells) < len(terms) or max(l for _, l in shells) > LARGEST_L:
        raise BasisError(f"{where}: expected terms such as '6x0e' joined by '+', with l up to {LARGEST_L}")
    if any(term and term[3] not in (None, "eo"[int(term[2]) % 2]) for term in terms):
        raise BasisError(f"{where}: expected the parity (-1)^l: 'e' for even l, 'o' for odd l")
    if not any(n for n, _ in shells):
        raise BasisError(f"{where} has no function")
    if any(lower > upper for (_, lower), (_, upper) in itertools.pairwise(shells)):
        raise BasisError(f"{where} is not sorted by angular momentum")
    return shells


def format_irreps(momenta: Iterable[int]) -> str:
    """Returns ``"2x0e+1x1o"`` for shells of angular momenta 0, 0, 1."""
    return "+".join(f"{len(list(group))}x{l}{'eo'[l % 2]}" for l, group in itertools.groupby(momenta))


def split_axis(values: ArrayOrTensor, lengths: Sequence[int], axis: int, what: str) -> tuple[ArrayOrTensor, ...]:
    """Splits an array or tensor into consecutive pieces of given lengths, which must fill the axis."""
    if values.shape[axis] != sum(lengths):
        raise BasisError(f"axis {axis} has {values.shape[axis]} entries, but {what} has {sum(lengths)} functions")
    if isinstance(values, np.ndarray):
        return tuple(np.split(values, np.cumsum(lengths)[:-1], axis=axis))
    return values.split(list(lengths), dim=axis)


def name_dimension(basis_info: BasisInfo, dimension: int) -> str:
    """Returns the name of a dimension of the basis, such as ``"F 3d, m = -1"``."""
    element = int(np.searchsorted(basis_info.offsets, dimension, side="right")) - 1
    l, m = int(basis_info.l_per_basis_func[dimension]), int(basis_info.m_per_basis_func[dimension])
    functions = basis_info.atom_ind_to_basis_function_ind[element]
    before = functions[(functions <= dimension) & (basis_info.l_per_basis_func[functions] == l)]
    shell = len(np.unique(basis_info.basis_func_to_shell[before]))
    name = f"{find_symbol(int(basis_info.atomic_numbers[element]))} {shell}{SHELL_LETTERS[l]}"
    return name if l == 0 else f"{name}, m = {m}"


def _as_integers(atomic_numbers: Any, context: str) -> IntArray:
    """Returns a vector of atomic numbers; refuses numbers that a cast to integers would change."""
    numbers = np.asarray(atomic_numbers)
    with np.errstate(invalid="ignore"):
        integers = numbers.astype(np.int64) if numbers.dtype.kind in "iuf" else None
    if integers is None or integers.ndim != 1 or not np.array_equal(integers, numbers):
        where = f"{context}: " if context else ""
        raise BasisError(f"{where}field 'atomic_numbers' is {numbers.tolist()!r}, expected a vector of whole numbers")
    return integers


@lru_cache(maxsize=16)
def _make_once(arguments: str) -> BasisInfo:
    """Makes a basis of the constructor's arguments as JSON, once in a process: every unpickled sample needs it."""
    return BasisInfo(**json.loads(arguments))


class BasisInfo:
    """Atom-centred density basis: an ordered list of shells for each element, sorted by angular momentum.

    Every per-dimension quantity of the package is a vector of length `n_basis`: the concatenation over the elements of
    `atomic_numbers`, with one entry for each function of an element.

    Args:
        atomic_numbers: The elements of the basis, each once, in the order of concatenation.
        irreps_per_atom: An e3nn-style string for each element, such as ``"6x0e+2x1o+1x2e"``: six s shells, two p
            shells, one d shell. A shell of angular momentum l has 2l+1 functions: p shells in the order x, y, z (m = 1,
            -1, 0), which is PySCF's and STRUCTURES25's, all others m = -l ... l.
        exponents_per_atom: For each element one Gaussian exponent [1/bohr^2] per shell, in the order of its irreps.
            None: not known; then integrals over the basis cannot be computed.

    Attributes:
        n_types: Number of elements.
        n_basis: Number of basis functions over all elements, the sum of `basis_dim_per_atom`.
        basis_dim_per_atom: (n_types,) functions per atom of each element.
        offsets: (n_types + 1,) first index of each element in the concatenation.
        l_per_basis_func: (n_basis,) angular momentum of each function.
        m_per_basis_func: (n_basis,) magnetic quantum number of each function.
        basis_func_to_shell: (n_basis,) running index of the shell of each function.
        exponent_per_shell: (n_shells,) Gaussian exponents [1/bohr^2], or None.
        atomic_number_to_atom_index: (119,) index of each element; `UNKNOWN_ELEMENT`, which no array accepts as an
            index, for elements that the basis lacks.
        atom_ind_to_basis_function_ind: For each element its slice of `arange(n_basis)`.

    Raises:
        BasisError: If an element is repeated or unknown, its irreps cannot be read or are not sorted by l, or there is
            not one positive exponent per shell.

    Examples:
        >>> basis_info = BasisInfo([1, 8], ["2x0e", "3x0e+1x1o"])
        >>> basis_info.n_basis, basis_info.basis_dim_per_atom.tolist()
        (8, [2, 6])
        >>> basis_info.m_per_basis_func.tolist()
        [0, 0, 0, 0, 0, 1, -1, 0]
    """

    def __init__(
        self,
        atomic_numbers: Sequence[int] | npt.NDArray[Any],
        irreps_per_atom: Sequence[str],
        exponents_per_atom: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.atomic_numbers = _as_integers(atomic_numbers, "")
        self.irreps_per_atom = list(map(str, irreps_per_atom))
        numbers, n_irreps = self.atomic_numbers.tolist(), len(self.irreps_per_atom)
        if not numbers or len(numbers) != n_irreps:
            raise BasisError(f"{len(numbers)} atomic_numbers and {n_irreps} irreps_per_atom: expected one per element")
        if len(set(numbers)) != len(numbers) or not all(1 <= z <= MAX_ATOMIC_NUMBER for z in numbers):
            raise BasisError(f"atomic_numbers is {numbers}, expected different numbers, 1 ... {MAX_ATOMIC_NUMBER}")
        shells = [parse_irreps(i, int(z)) for z, i in zip(self.atomic_numbers, self.irreps_per_atom, strict=True)]
        l_of_shell = np.array([l for element in shells for n, l in element for _ in range(n)], dtype=np.int64)
        self.exponent_per_shell: npt.NDArray[np.float64] | None = None
        if exponents_per_atom is not None:
            n_shells = [sum(n for n, _ in element) for element in shells]
            found = [np.asarray(exponents, dtype=np.float64).reshape(-1) for exponents in exponents_per_atom]
            joined = self.exponent_per_shell = np.concatenate(found)
            if list(map(len, found)) != n_shells or not ((joined > 0) & (joined < np.inf)).all():
                raise BasisError(f"exponents_per_atom: expected a positive number for each of {n_shells} shells")

        self.n_types = len(self.atomic_numbers)
        self.basis_dim_per_atom = np.array([sum(n * (2 * l + 1) for n, l in e) for e in shells], dtype=np.int64)
        self.n_basis = int(self.basis_dim_per_atom.sum())
        self.l_per_basis_func = np.repeat(l_of_shell, 2 * l_of_shell + 1)
        self.basis_func_to_shell = np.repeat(np.arange(len(l_of_shell)), 2 * l_of_shell + 1)
        m_of_shells = [(1, -1, 0) if l == 1 else range(-l, l + 1) for l in l_of_shell]
        self.m_per_basis_func = np.array([m for shell in m_of_shells for m in shell], dtype=np.int64)
        self.atomic_number_to_atom_index = np.full(MAX_ATOMIC_NUMBER + 1, UNKNOWN_ELEMENT, dtype=np.int64)
        self.atomic_number_to_atom_index[self.atomic_numbers] = np.arange(self.n_types)
        self.offsets: IntArray = np.concatenate([[0], np.cumsum(self.basis_dim_per_atom)]).astype(np.int64)
        self.atom_ind_to_basis_function_ind = [np.arange(a, b) for a, b in itertools.pairwise(self.offsets)]

    def atom_indices(self, atomic_numbers: npt.NDArray[Any], context: str = "") -> IntArray:
        """Returns (n_atom,) the index of each atom's element; `context` names file or molecule in the message."""
        numbers = _as_integers(atomic_numbers, context)
        if unknown := sorted(set(numbers.tolist()) - set(self.atomic_numbers.tolist())):
            what = f"field 'atomic_numbers' has the elements {unknown}, the basis has {self.atomic_numbers.tolist()}"
            raise BasisError(f"{context or 'sample'}: {what} (config: data.source.basis_info, data.source.exclude)")
        return self.atomic_number_to_atom_index[numbers]

    def basis_function_ind(self, atom_ind: IntArray) -> IntArray:
        """Returns, atom after atom, the index of every basis function in the concatenation over elements."""
        if not ((atom_ind >= 0) & (atom_ind < self.n_types)).all():  # a negative one would pick from the end
            raise BasisError(f"field 'atom_ind' is {sorted(set(atom_ind.tolist()))}, expected 0 ... {self.n_types - 1}")
        n_functions = self.basis_dim_per_atom[atom_ind]
        ends = n_functions.cumsum()
        found: IntArray = np.repeat(self.offsets[atom_ind] - (ends - n_functions), n_functions)
        found += np.arange(len(found))
        return found

    def split_field_by_atom_type(self, values: ArrayOrTensor, axis: int = 0) -> tuple[ArrayOrTensor, ...]:
        """Splits an array or tensor with `n_basis` entries along an axis into one view for each element."""
        return split_axis(values, self.basis_dim_per_atom.tolist(), axis, "the basis")

    def is_subset(self, other: BasisInfo) -> bool:
        """Returns whether each element of this basis has the same functions in the other basis."""
        return set(self._functions) <= set(other._functions)

    @cached_property
    def _functions(self) -> tuple[tuple[int, ...], ...]:
        """The atomic number of each element, and l of each of its functions."""
        pieces = self.split_field_by_atom_type(self.l_per_basis_func)
        return tuple((number, *l.tolist()) for number, l in zip(self.atomic_numbers.tolist(), pieces, strict=True))

    @classmethod
    def from_mol(cls, mol: Any) -> BasisInfo:
        """Describes the basis of the elements of a `pyscf.gto.Mole`, sorted by atomic number.

        Raises BasisError if functions are Cartesian or not sorted by angular momentum, or atoms of one element differ.
        """
        if mol.cart:
            raise BasisError("from_mol: the molecule has Cartesian functions (mol.cart), expected spherical ones")
        momenta: dict[int, list[int]] = {}
        for atom in range(mol.natm):
            found = [int(mol.bas_angular(i)) for i in mol.atom_shell_ids(atom) for _ in range(mol.bas_nctr(i))]
            number = find_atomic_number(mol.atom_pure_symbol(atom))
            if momenta.setdefault(number, found) != found:
                raise BasisError(f"from_mol: atoms of element {number} have different functions")
        return cls(sorted(momenta), [format_irreps(momenta[z]) for z in sorted(momenta)])

    @classmethod
    def from_atomic_numbers_with_even_tempered_basis(
        cls, atomic_numbers: Sequence[int] | npt.NDArray[Any], basis: str = "6-31G(2df,p)", beta: float = 2.5
    ) -> BasisInfo:
        """Makes the even-tempered density basis of an orbital basis, with its exponents, with PySCF's `aug_etb`.

        Args:
            atomic_numbers: The elements, each once, in the order of the basis.
            basis: Name of the orbital basis of the Kohn-Sham calculations.
            beta: Ratio of neighbouring exponents.

        Raises:
            BasisError: If PySCF lacks the orbital basis for one of the elements.
            ImportError: If PySCF is not installed.
        """
        numbers = _as_integers(atomic_numbers, "").tolist()
        gto, df = import_optional("pyscf.gto", "labels"), import_optional("pyscf.df", "labels")
        # one atom of each element, far apart: the basis depends on each element alone
        atoms = [(number, (0.0, 0.0, 10.0 * i)) for i, number in enumerate(numbers)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PySCF advises to install a package of more bases
                orbital = gto.M(atom=atoms, basis=basis, spin=None, verbose=0)
        except (KeyError, RuntimeError, ValueError) as error:
            raise BasisError(f"PySCF has no orbital basis {basis!r} for {numbers}: {error} {_BASIS_KEY}") from error
        mol = df.addons.make_auxmol(orbital, df.aug_etb(orbital, beta=beta))
        shells = [sorted(mol.atom_shell_ids(atom), key=mol.bas_angular) for atom in range(mol.natm)]
        irreps = [format_irreps(int(mol.bas_angular(i)) for i in atom_shells) for atom_shells in shells]
        return cls(numbers, irreps, [[float(mol.bas_exp(i)[0]) for i in atom_shells] for atom_shells in shells])

    @classmethod
    def from_dataset_info_yaml(cls, path: str | Path, atomic_numbers: Sequence[int] | npt.NDArray[Any]) -> BasisInfo:
        """Makes the density basis that a `dataset_info.yaml` of STRUCTURES25 names, for some elements in this order.

        The file has ``kohn_sham.basis`` and ``of_basis_set: even_tempered_2.5``. Raises BasisError if it cannot be read
        or names another kind of density basis; see also `from_atomic_numbers_with_even_tempered_basis`.
        """
        try:
            content = read_plain(path)
            orbital, density = str(content["kohn_sham"]["basis"]), str(content["of_basis_set"])
            beta = float(density.split("even_tempered_")[1])
        except (OSError, ValueError, LookupError, TypeError) as error:
            expected = "expected kohn_sham.basis and of_basis_set: even_tempered_<beta>"
            raise BasisError(f"{path}: {error!r}: {expected} {_BASIS_KEY}") from error
        return cls.from_atomic_numbers_with_even_tempered_basis(atomic_numbers, orbital, beta)

    @classmethod
    def from_json(cls, path: str | Path) -> BasisInfo:
        """Reads a JSON file with the constructor's arguments: `exponents_per_atom` may be missing.

        Raises BasisError, with the name of the file, if it cannot be read, lacks a key, describes no basis, or has
        another `p_order` than ``xyz``.
        """
        try:
            return cls.from_dict(read_plain(path))
        except (OSError, LookupError, AttributeError, TypeError, ValueError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else error
            raise BasisError(f"{path}: is no density basis: {what} {_BASIS_KEY}") from error

    @staticmethod
    def from_dict(described: Mapping[str, Any]) -> BasisInfo:
        """Inverse of `to_dict`, which ignores other entries; equal descriptions give one object."""
        if described.get("p_order", "xyz") != "xyz":
            raise BasisError("expected p_order 'xyz': ofdft_norm 0.2 wrote this basis, make basis and labels again")
        arguments = {name: described[name] for name in ("atomic_numbers", "irreps_per_atom")}
        if described.get("exponents_per_atom") is not None:
            arguments["exponents_per_atom"] = described["exponents_per_atom"]
        return _make_once(json.dumps(arguments))

    def to_dict(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python, e.g. for JSON or a checkpoint."""
        described = {"atomic_numbers": self.atomic_numbers.tolist(), "irreps_per_atom": list(self.irreps_per_atom)}
        if self.exponent_per_shell is not None:
            shells = self.split_field_by_atom_type(self.basis_func_to_shell)
            described["exponents_per_atom"] = [self.exponent_per_shell[np.unique(s)].tolist() for s in shells]
        return described

    @cached_property
    def _json(self) -> str:
        return json.dumps(self.to_dict())

    def fingerprint(self) -> str:
        """Returns a hex digest of the elements, their shells and known exponents."""
        return hashlib.sha256(self._json.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Compares elements and shells, and exponents where both know them."""
        if self is other:
            return True
        if not isinstance(other, BasisInfo) or self._functions != other._functions:
            return False
        a, b = self.exponent_per_shell, other.exponent_per_shell
        return a is None or b is None or np.allclose(a, b, rtol=1e-8, atol=0.0)

    def __hash__(self) -> int:
        return hash(self._functions)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as JSON."""
        return _make_once, (self._json,)

    def __repr__(self) -> str:
        elements = ", ".join(f"{z}: {i}" for z, i in zip(self.atomic_numbers, self.irreps_per_atom, strict=True))
        return f"BasisInfo({{{elements}}})"


def convert_basis(given: Any) -> BasisInfo:
    """Converts a basis of another class, such as STRUCTURES25's, by its elements and irreps."""
    return given if isinstance(given, BasisInfo) else BasisInfo(given.atomic_numbers, given.irreps_per_atom)
