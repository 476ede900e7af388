"""The shells of an element, written as e3nn writes irreducible representations of rotations: ``6x0e+2x1o``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ofdft_norm.data.elements import symbol
from ofdft_norm.errors import BasisError

if TYPE_CHECKING:
    from ofdft_norm.data.basis_info import BasisInfo

SHELL_LETTERS = "spdfghiklmnoq"  # of l = 0 ... LARGEST_L

# far beyond any basis in use (l = 6, 40 shells): a misprint is refused before it takes memory
LARGEST_L = 12
MOST_SHELLS = 1000  # of one angular momentum

_SHELL = re.compile(r"(\d{1,9})x(\d{1,9})([eo])?")


def shells_to_irreps(momenta: Iterable[int]) -> str:
    """Returns e.g. ``"2x0e+1x1o"`` for shells of angular momenta 0, 0, 1, in this order.

    Args:
        momenta: Angular momentum of each shell.
    """
    return "+".join(f"{len(list(group))}x{l}{'eo'[l % 2]}" for l, group in itertools.groupby(momenta))


def parse_irreps(irreps: str, atomic_number: int) -> list[tuple[int, int]]:
    """Parses e.g. ``"6x0e+2x1o"`` into ``[(6, 0), (2, 1)]`` (multiplicity, angular momentum).

    Args:
        irreps: Terms joined by ``+``, sorted by angular momentum, as e3nn writes them.
        atomic_number: The element, for messages.

    Raises:
        BasisError: If a term cannot be read, has the wrong parity, is out of order, or there is no function at all.
    """
    shells = []
    for term in str(irreps).replace(" ", "").split("+"):
        match = _SHELL.fullmatch(term)
        if match is None:
            raise BasisError(
                f"irreps_per_atom of element {atomic_number}: cannot read {term!r} in {irreps!r}; "
                "expected e3nn-style terms joined by '+', such as '6x0e+2x1o+1x2e'"
            )
        n, l = int(match[1]), int(match[2])
        if n > MOST_SHELLS or l > LARGEST_L:
            raise BasisError(
                f"irreps_per_atom of element {atomic_number}: {term!r} in {irreps!r} is beyond {MOST_SHELLS} shells of "
                f"one angular momentum, or l = {LARGEST_L}"
            )
        if match[3] not in (None, "eo"[l % 2]):
            raise BasisError(
                f"irreps_per_atom of element {atomic_number}: {term!r} in {irreps!r} has the parity {match[3]!r}, but "
                f"atom-centred functions of l = {l} have the parity (-1)^l: expected '{n}x{l}{'eo'[l % 2]}'"
            )
        shells.append((n, l))
    if not any(n for n, _ in shells):
        raise BasisError(f"irreps_per_atom of element {atomic_number}: {irreps!r} has no function")
    momenta = [l for _, l in shells]
    if any(lower > upper for lower, upper in itertools.pairwise(momenta)):
        raise BasisError(f"irreps_per_atom of element {atomic_number}: {irreps!r} is not sorted by angular momentum")
    return shells


def dimension_name(basis_info: BasisInfo, dimension: int) -> str:
    """Names a basis function by its element, shell and component.

    Args:
        basis_info: The basis.
        dimension: Index in the concatenation over elements.

    Returns:
        For example ``"F 3d, m = -1"``, the component -1 of fluorine's third d shell.

    Example:
        >>> from ofdft_norm import BasisInfo
        >>> basis_info = BasisInfo([1, 8], ["2x0e", "3x0e+2x1o"])
        >>> [dimension_name(basis_info, i) for i in (1, 9)]
        ['H 2s', 'O 2p, m = 0']
    """
    element = int(np.searchsorted(basis_info.offsets, dimension, side="right")) - 1
    l, m = int(basis_info.l_per_basis_func[dimension]), int(basis_info.m_per_basis_func[dimension])
    own = basis_info.atom_ind_to_basis_function_ind[element]
    before = own[(own <= dimension) & (basis_info.l_per_basis_func[own] == l)]
    shell = len(np.unique(basis_info.basis_func_to_shell[before]))
    name = f"{symbol(int(basis_info.atomic_numbers[element]))} {shell}{SHELL_LETTERS[l]}"
    return name if l == 0 else f"{name}, m = {m}"
