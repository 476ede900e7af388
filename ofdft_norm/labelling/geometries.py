"""Molecular geometries from files that ASE reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.labelling.errors import GeometryError

# CODATA 2018
BOHR_IN_ANGSTROM = 0.529177210903
_CLOSEST_BOHR = 0.5
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


def read_geometries(paths: str | Path | Iterable[str | Path]) -> list[Geometry]:
    """Reads all frames of one or several files, XYZ or anything else that `ase.io.read` knows.

    A frame is named by ``mol_id=water`` in its comment line (an optional ``source="..."`` says where it comes from);
    without, by its formula and its index among all frames: ``H2O_17``.

    Args:
        paths: The file or files; positions in angstrom, as in ASE.

    Returns:
        The molecules, in the order of the files; positions in bohr.

    Raises:
        GeometryError: If a file cannot be read or holds no frame, a frame is charged or periodic, holds something
            other than atoms or coinciding ones, or has an id that makes no file name; or if two have the same id.
        ImportError: If ASE is not installed.
    """
    path_list = [paths] if isinstance(paths, str | Path) else list(paths)
    origin: dict[str, str] = {}
    geometries: list[Geometry] = []
    for path in map(Path, path_list):
        for index, atoms in enumerate(_frames(path)):
            place = f"{path}@{index}"
            geometry = _as_geometry(atoms, f"{atoms.get_chemical_formula()}_{len(geometries)}", place)
            if geometry.mol_id in origin:
                raise GeometryError(
                    f"{place}: molecule id {geometry.mol_id!r} was already used at "
                    f"{origin[geometry.mol_id]}; every frame needs an id of its own (mol_id=... in its comment line)"
                )
            origin[geometry.mol_id] = place
            geometries.append(geometry)
    if not geometries:
        raise GeometryError(f"no molecules in {[str(p) for p in path_list]}; expected at least one frame")
    return geometries


def _frames(path: Path) -> Iterator[Any]:
    """Yields the frames of one file as `ase.Atoms`."""
    try:
        from ase.io import iread
    except ImportError as error:
        raise ImportError(
            f"reading geometries needs ASE ({error}); install it with: pip install 'ofdft-norm[labels]'"
        ) from error
    if not path.is_file():
        raise GeometryError(f"{path}: no such file; expected one that ASE reads (argument xyz)")
    n_read, n_lines = 0, 0
    try:
        for atoms in iread(path, index=":"):
            yield atoms
            n_read, n_lines = n_read + 1, n_lines + len(atoms) + 2
    except Exception as error:  # the readers of ASE's many formats raise whatever goes wrong inside
        raise GeometryError(f"{path}@{n_read}: ASE cannot read this frame: {type(error).__name__}: {error}") from error
    if path.suffix in (".xyz", ".extxyz"):
        _refuse_rest(path, n_lines)


def _refuse_rest(path: Path, n_lines: int) -> None:
    """Refuses frames behind a blank line: ASE ends there without a word."""
    rest = path.read_text(encoding="utf-8").splitlines()[n_lines:]
    if rest and not rest[0].strip() and any(line.strip() for line in rest):
        raise GeometryError(f"{path}:{n_lines + 1}: a blank line, at which ASE stops; delete it: frames follow it")


def _as_geometry(atoms: Any, default_id: str, place: str) -> Geometry:
    mol_id = str(atoms.info.get("mol_id", default_id))
    if not _SAFE_ID.fullmatch(mol_id):
        raise GeometryError(
            f"{place}: molecule id {mol_id!r}; expected letters, digits, '.', '_' and '-' (it becomes a file name; "
            "mol_id=... in the comment line)"
        )
    where = f"{place}: molecule {mol_id!r}"
    numbers = np.asarray(atoms.numbers, dtype=np.int64)
    positions = np.asarray(atoms.positions, dtype=np.float64) / BOHR_IN_ANGSTROM
    charge = float(atoms.info.get("charge", 0)) + float(atoms.get_initial_charges().sum())
    if len(numbers) == 0 or (numbers < 1).any() or not np.isfinite(positions).all():
        raise GeometryError(f"{where}: has {atoms.symbols} at {positions.tolist()} bohr; expected atoms somewhere")
    if charge != 0 or atoms.pbc.any():
        raise GeometryError(
            f"{where}: has charge {charge:g} and periodic directions {atoms.pbc.tolist()}; expected a neutral molecule "
            "that repeats nowhere: labels are made for no other"
        )
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    closest = float((distances + np.diag(np.full(len(numbers), np.inf))).min())
    if closest < _CLOSEST_BOHR:
        raise GeometryError(
            f"{where}: has two atoms {closest:.3f} bohr apart; expected at least {_CLOSEST_BOHR} bohr (positions are "
            "read in angstrom)"
        )
    return Geometry(mol_id, numbers, positions, str(atoms.info.get("source", "")))
