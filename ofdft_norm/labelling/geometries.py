"""Geometries of molecules, from files that ASE reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.files import optional_module
from ofdft_norm.errors import OFDFTNormError

BOHR_IN_ANGSTROM = 0.529177210903  # CODATA 2018
_CLOSEST_BOHR = 0.5
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class LabellingError(OFDFTNormError):
    """Labels of a molecule, or of all, cannot be made."""


@dataclass(frozen=True)
class Geometry:
    """A neutral molecule: name, atomic numbers (n_atom,), positions (n_atom, 3) in bohr, and origin as free text."""

    mol_id: str
    atomic_numbers: npt.NDArray[np.int64]
    positions: npt.NDArray[np.float64]
    source: str = ""

    @property
    def n_electrons(self) -> int:
        """Number of electrons."""
        return int(self.atomic_numbers.sum())


def read_geometries(paths: str | Path | Sequence[str | Path]) -> list[Geometry]:
    """Reads all frames of one or several files in angstrom: XYZ, or any other format of `ase.io.read`.

    ``mol_id=water`` in the comment line names a frame, ``source="..."`` states its origin. A frame without a name is
    named after its formula and its index among all frames: ``H2O_17``.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    places: dict[str, str] = {}
    geometries: list[Geometry] = []
    for path in files:
        for index, atoms in enumerate(_read_frames(path)):
            place = f"{path}@{index}"
            geometry = _to_geometry(atoms, f"{atoms.get_chemical_formula()}_{len(geometries)}", place)
            if geometry.mol_id in places:
                raise LabellingError(
                    f"{place}: molecule id {geometry.mol_id!r} is also the id of {places[geometry.mol_id]}; expected "
                    "one id for each frame (mol_id=... in its comment line)"
                )
            places[geometry.mol_id] = place
            geometries.append(geometry)
    if not geometries:
        raise LabellingError(f"no molecules in {[str(path) for path in files]}; expected at least one frame")
    return geometries


def _read_frames(path: Path) -> Iterator[Any]:
    """Yields the frames of a file as `ase.Atoms`."""
    ase_io = optional_module("ase.io", "labels")
    if not path.is_file():
        raise LabellingError(f"{path}: no such file; expected one that ASE reads")
    n_frames = n_lines = 0
    try:
        for atoms in ase_io.iread(path, index=":", do_not_split_by_at_sign=True):
            yield atoms
            n_frames, n_lines = n_frames + 1, n_lines + len(atoms) + 2
        rest = path.read_text(encoding="utf-8").splitlines()[n_lines:] if path.suffix in (".xyz", ".extxyz") else []
    except Exception as error:  # ASE's readers raise errors of any class
        what = f"{type(error).__name__}: {error}"
        raise LabellingError(f"{path}@{n_frames}: ASE cannot read this frame: {what}") from error
    if any(line.strip() for line in rest):  # ASE ends at a blank line without an error
        raise LabellingError(f"{path}:{n_lines + 1}: ASE stops at this blank line; delete it: frames follow it")


def _to_geometry(atoms: Any, default_id: str, place: str) -> Geometry:
    """Validates a frame and converts it to bohr."""
    mol_id = str(atoms.info.get("mol_id", default_id))
    if not _SAFE_ID.fullmatch(mol_id):
        raise LabellingError(
            f"{place}: molecule id {mol_id!r}; expected at most 200 letters, digits, '.', '_' and '-', because it "
            "becomes a file name (mol_id=... in the comment line)"
        )
    where = f"{place}: molecule {mol_id!r}"
    numbers = np.asarray(atoms.numbers, dtype=np.int64)
    positions = np.asarray(atoms.positions, dtype=np.float64) / BOHR_IN_ANGSTROM
    if len(numbers) == 0 or (numbers < 1).any() or not np.isfinite(positions).all():
        found = f"{atoms.symbols} at {positions.tolist()} bohr"
        raise LabellingError(f"{where}: has {found}; expected elements at finite positions")
    charge = float(atoms.info.get("charge", 0)) + float(atoms.get_initial_charges().sum())
    if charge != 0 or atoms.pbc.any():
        periodic = atoms.pbc.tolist()
        raise LabellingError(
            f"{where}: has charge {charge:g} and periodic directions {periodic}; expected a neutral molecule without "
            "periodic directions"
        )
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    closest = float((distances + np.diag(np.full(len(numbers), np.inf))).min())
    if closest < _CLOSEST_BOHR:
        raise LabellingError(
            f"{where}: has two atoms {closest:.3f} bohr apart; expected at least {_CLOSEST_BOHR} bohr (positions are "
            "read in angstrom)"
        )
    return Geometry(mol_id, numbers, positions, str(atoms.info.get("source", "")))
