"""The chemical elements by symbol and atomic number."""

from collections import Counter
from collections.abc import Iterable

from ofdft_norm.errors import ConfigError, did_you_mean

_IN_ORDER = """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo
    Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl
    Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
SYMBOLS = tuple(_IN_ORDER.split())


def find_symbol(atomic_number: int) -> str:
    """Returns the symbol of an element."""
    if not 1 <= atomic_number <= len(SYMBOLS):
        raise ConfigError(f"atomic number {atomic_number}: expected 1 ... {len(SYMBOLS)}")
    return SYMBOLS[atomic_number - 1]


def find_atomic_number(symbol: str) -> int:
    """Returns the atomic number of a symbol; case-sensitive: ``Co`` is not ``CO``."""
    if symbol in SYMBOLS:
        return SYMBOLS.index(symbol) + 1
    hint = did_you_mean(str(symbol), SYMBOLS, n=3, cutoff=0.5)
    raise ConfigError(f"unknown element {symbol!r}: expected a symbol such as 'H' or 'Cl'{hint}")


def format_formula(numbers: Iterable[int]) -> str:
    """Returns the molecular formula of some atoms in Hill's order: C, H, then by symbol; by symbol alone without C."""
    counts = Counter(find_symbol(int(z)) for z in numbers)
    first = ("C", "H") if "C" in counts else ()
    ordered = [*(name for name in first if name in counts), *sorted(counts.keys() - set(first))]
    return "".join(name + (str(counts[name]) if counts[name] > 1 else "") for name in ordered)
