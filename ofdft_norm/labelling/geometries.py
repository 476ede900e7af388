"""Geometries of molecules, from files that ASE reads."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.files import import_optional
from ofdft_norm.errors import OFDFTNormError

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

BOHR_IN_ANGSTROM = 0.529177210903  # CODATA 2018
_CLOSEST_BOHR = 0.5
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class LabellingError(OFDFTNormError):
    """Labels of one or all molecules cannot be made."""


@dataclass(frozen=True)
class Geometry:
    """A neutral molecule: name, atomic numbers (n_atom,), positions (n_atom, 3) in bohr, and origin as free text."""

    mol_id: str
    atomic_numbers: IntArray
    positions: Array
    source: str = ""

    @property
    def n_electrons(self) -> int:
        """Number of electrons."""
        return int(self.atomic_numbers.sum())


def make_seeded_generator(name: str) -> np.random.Generator:
    """Returns a random generator with the SHA-256 of a molecule's name as seed."""
    return np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))


def read_geometries(paths: str | Path | Sequence[str | Path]) -> list[Geometry]:
    """Reads all frames of one or several files in angstrom: XYZ, or any other format of `ase.io.read`.

    ``mol_id=water`` in the comment line names a frame, ``source="..."`` states its origin. A frame without a name is
    named after its formula and its index among all frames: ``H2O_17``.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    geometries: dict[str, tuple[Geometry, str]] = {}
    for path in files:
        for index, atoms in enumerate(_read_frames(path)):
            place = f"{path}@{index}"
            geometry = _to_geometry(atoms, f"{atoms.get_chemical_formula()}_{len(geometries)}", place)
            if geometry.mol_id in geometries:
                raise LabellingError(
                    f"{place}: molecule id {geometry.mol_id!r} is also the id of {geometries[geometry.mol_id][1]}; "
                    "expected one id for each frame (mol_id=... in its comment line)"
                )
            geometries[geometry.mol_id] = geometry, place
    if not geometries:
        raise LabellingError(f"no molecules in {[str(path) for path in files]}; expected at least one frame")
    return [geometry for geometry, _ in geometries.values()]


def _read_frames(path: Path) -> Iterator[Any]:
    """Yields frames as `ase.Atoms`."""
    ase_io = import_optional("ase.io", "labels")
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
            f"{place}: molecule id {mol_id!r} becomes a file name; expected at most 200 letters, digits, '.', '_' and "
            "'-' (mol_id=... in the comment line)"
        )
    numbers = np.asarray(atoms.numbers, dtype=np.int64)
    positions = np.asarray(atoms.positions, dtype=np.float64) / BOHR_IN_ANGSTROM
    charge = float(atoms.info.get("charge", 0)) + float(atoms.get_initial_charges().sum())
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1) + np.diag(np.full(len(numbers), np.inf))
    closest, wrong = distances.min(initial=np.inf), ""
    if len(numbers) == 0 or (numbers < 1).any() or not np.isfinite(positions).all():
        wrong = f"has {atoms.symbols} at {positions.tolist()} bohr; expected elements at finite positions"
    elif charge != 0 or atoms.pbc.any():
        wrong = f"has charge {charge:g} and periodic directions {atoms.pbc.tolist()}; expected a neutral molecule"
    elif closest < _CLOSEST_BOHR:
        wrong = f"has two atoms {closest:.3f} bohr apart; expected at least {_CLOSEST_BOHR} (files are in angstrom)"
    if wrong:
        raise LabellingError(f"{place}: molecule {mol_id!r}: {wrong}")
    return Geometry(mol_id, numbers, positions, str(atoms.info.get("source", "")))
