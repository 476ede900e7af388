"""Molecular geometries from (extended) XYZ files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.elements import SYMBOLS, symbol
from ofdft_norm.labelling.errors import GeometryError

# CODATA 2018
BOHR_IN_ANGSTROM = 0.529177210903
# The elements whose density basis has been checked against published labels.
DEFAULT_ELEMENTS = (1, 6, 7, 8, 9)

_KEY_VALUE = re.compile(r"""([\w.-]+)=("[^"]*"|'[^']*'|\S+)""")
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Geometry:
    """One neutral molecule.

    Attributes:
        mol_id: Unique, readable name; becomes the name of the label file.
        atomic_numbers: (n_atom,).
        positions: (n_atom, 3) in bohr.
        source: Where the geometry comes from, free text.
    """

    mol_id: str
    atomic_numbers: npt.NDArray[np.int64]
    positions: npt.NDArray[np.float64]
    source: str = ""

    @property
    def n_electrons(self) -> int:
        """Number of electrons of the neutral molecule."""
        return int(self.atomic_numbers.sum())


def read_geometries(
    paths: str | Path | Iterable[str | Path], allowed_elements: Collection[int] = DEFAULT_ELEMENTS
) -> list[Geometry]:
    """Reads all frames of one or several XYZ files (positions in angstrom).

    The comment line of a frame names the molecule, either as ``mol_id=water`` (extended XYZ, with an optional
    ``source="..."``) or as its first word.

    Args:
        paths: The file or files.
        allowed_elements: Atomic numbers that may occur.

    Returns:
        The molecules, in the order of the files; positions in bohr.

    Raises:
        GeometryError: If a file cannot be read, a frame is malformed, holds another element or coinciding
            atoms, lacks an id, or if two frames have the same id.
    """
    path_list = [paths] if isinstance(paths, str | Path) else list(paths)
    origin: dict[str, str] = {}
    geometries = []
    for path in map(Path, path_list):
        for geometry, line in _frames(path, allowed_elements):
            place = f"{path}:{line}"
            if geometry.mol_id in origin:
                raise GeometryError(
                    f"{place}: molecule id {geometry.mol_id!r} was already used at "
                    f"{origin[geometry.mol_id]}; every frame needs an id of its own "
                    "(mol_id=... in its comment line)"
                )
            origin[geometry.mol_id] = place
            geometries.append(geometry)
    if not geometries:
        raise GeometryError(f"no molecules in {[str(p) for p in path_list]}; expected at least one XYZ frame")
    return geometries


def _frames(path: Path, allowed_elements: Collection[int]) -> Iterator[tuple[Geometry, int]]:
    """Yields the molecules of one file, each with the number of its first line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GeometryError(f"{path}: cannot read the geometries: {error}") from error
    start = 0
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        place = f"{path}:{start + 1}"
        try:
            n_atom = int(lines[start])
        except ValueError:
            raise GeometryError(f"{place}: expected the number of atoms of a frame, got {lines[start]!r}") from None
        stop = start + 2 + n_atom
        if n_atom < 1 or stop > len(lines):
            raise GeometryError(f"{place}: {n_atom} atoms announced, but {len(lines) - start - 2} lines are left")
        yield _parse_frame(lines[start + 1], lines[start + 2 : stop], place, allowed_elements), start + 1
        start = stop


def _parse_frame(comment: str, atoms: list[str], place: str, allowed_elements: Collection[int]) -> Geometry:
    mol_id, source = _parse_comment(comment, place)
    numbers, positions = [], []
    for line in atoms:
        fields = line.split()
        try:
            position = [float(x) for x in fields[1:4]]
        except ValueError:
            position = []
        if len(position) != 3 or not np.isfinite(position).all():
            raise GeometryError(f"{place}: molecule {mol_id!r}: expected 'symbol x y z', got {line!r}")
        numbers.append(_atomic_number(fields[0], mol_id, place, allowed_elements))
        positions.append(position)
    coordinates = np.array(positions) / BOHR_IN_ANGSTROM
    distances = np.linalg.norm(coordinates[:, None] - coordinates[None], axis=-1)
    closest = float((distances + np.diag(np.full(len(atoms), np.inf))).min())
    if closest < 0.5:
        raise GeometryError(
            f"{place}: molecule {mol_id!r} has two atoms {closest:.3f} bohr apart; "
            "expected at least 0.5 bohr (positions are read in angstrom)"
        )
    return Geometry(mol_id, np.array(numbers, dtype=np.int64), coordinates, source)


def _parse_comment(comment: str, place: str) -> tuple[str, str]:
    """Returns the molecule id and the source of a comment line."""
    pairs = {key: value.strip("\"'") for key, value in _KEY_VALUE.findall(comment)}
    words = comment.split()
    mol_id = pairs.get("mol_id", words[0] if words and "=" not in words[0] else "")
    if not _SAFE_ID.fullmatch(mol_id):
        raise GeometryError(
            f"{place}: molecule id {mol_id!r} in the comment line {comment!r}; "
            "expected mol_id=NAME with letters, digits, '.', '_' and '-' (it becomes a file name)"
        )
    return mol_id, pairs.get("source", "")


def _atomic_number(name: str, mol_id: str, place: str, allowed_elements: Collection[int]) -> int:
    number = SYMBOLS.index(name.capitalize()) + 1 if name.capitalize() in SYMBOLS else 0
    if number not in allowed_elements:
        names = [symbol(z) for z in sorted(allowed_elements)]
        raise GeometryError(
            f"{place}: molecule {mol_id!r} has the element {name!r}; the density basis covers {names} "
            "(argument allowed_elements)"
        )
    return number
