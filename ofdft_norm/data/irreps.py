"""The shells of an element, written as e3nn writes irreducible representations of rotations: ``6x0e+2x1o``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from ofdft_norm.errors import BasisError

# far beyond any basis in use (l = 6, 40 shells): a misprint is refused before it takes memory
LARGEST_L = 12
MOST_SHELLS = 1000  # of one angular momentum

_SHELL = re.compile(r"(\d{1,9})x(\d{1,9})([eo])?")


def shells_to_irreps(momenta: Iterable[int]) -> str:
    """Returns e.g. ``"2x0e+1x1o"`` for shells of angular momenta 0, 0, 1, in this order."""
    return "+".join(f"{len(list(group))}x{l}{'eo'[l % 2]}" for l, group in itertools.groupby(momenta))


def parse_irreps(irreps: str, atomic_number: int) -> list[tuple[int, int]]:
    """Parses e.g. ``"6x0e+2x1o"`` into ``[(6, 0), (2, 1)]`` (multiplicity, angular momentum)."""
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
