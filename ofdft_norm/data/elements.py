"""The chemical elements by symbol and atomic number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ofdft_norm.errors import ConfigError, did_you_mean

# one period after the other
# fmt: off
SYMBOLS: tuple[str, ...] = (
    "H", "He",
    "Li", "Be", "B", "C", "N", "O", "F", "Ne",
    "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar",
    "K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr",
    "Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I", "Xe",
    "Cs", "Ba", "La", "Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta",
    "W", "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn",
    "Fr", "Ra", "Ac", "Th", "Pa", "U", "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf", "Db",
    "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og",
)
# fmt: on

_NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS, start=1)}


def symbol(atomic_number: int) -> str:
    """Returns the symbol of an element."""
    if not 1 <= atomic_number <= len(SYMBOLS):
        raise ConfigError(f"atomic number {atomic_number}: expected 1 ... {len(SYMBOLS)}")
    return SYMBOLS[atomic_number - 1]


def atomic_number(symbol: str) -> int:
    """Returns the atomic number of a symbol; case-sensitive: ``Co`` is not ``CO``."""
    if symbol in _NUMBERS:
        return _NUMBERS[symbol]
    hint = did_you_mean(str(symbol), SYMBOLS, n=3, cutoff=0.5)
    raise ConfigError(f"unknown element {symbol!r}: expected a symbol such as 'H' or 'Cl'{hint}")


def hill_order(numbers: Iterable[int]) -> list[int]:
    """Sorts atomic numbers as a molecular formula does: C, H, then by symbol; by symbol alone without C."""
    elements = set(numbers)
    first = {6: 0, 1: 1} if 6 in elements else {}
    return sorted(elements, key=lambda z: (first.get(z, 2), symbol(z)))


def formula(numbers: Iterable[int]) -> str:
    """Returns the molecular formula of some atoms in Hill's order.

    Examples:
        >>> formula([8, 6, 1, 1, 1, 1])
        'CH4O'
    """
    counts = Counter(int(z) for z in numbers)
    return "".join(symbol(z) + (str(counts[z]) if counts[z] > 1 else "") for z in hill_order(counts))
