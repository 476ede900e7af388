"""Label files: one molecule each, with all densities along its SCF path, in STRUCTURES25's zarr v2 layout."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis_info import POrder
from ofdft_norm.data.p_order import stated_p_order
from ofdft_norm.data.zarr_v2 import ZarrReader
from ofdft_norm.errors import LabelFileError

FloatArray = npt.NDArray[np.float64]

# Whatever zip, zlib, JSON, numcodecs and numpy raise on bytes that are not what they should be.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, EOFError, IndexError, OverflowError)

_COEFFS = "of_labels/spatial/coeffs"
_INTEGRALS = "of_labels/spatial/dual_basis_integrals"
_HAS_LABEL = "ks_labels/energies/has_energy_label"


@dataclass(frozen=True)
class MoleculeLabels:
    """All selected densities of one label file; n rows, one for each SCF iteration.

    Attributes:
        path: The file.
        mol_id: Name of the molecule.
        pos: (n_atom, 3) [bohr].
        atomic_numbers: (n_atom,).
        n_scf_iterations: Length of the SCF path, n or more.
        scf_iterations: (n,) indices of the rows along the SCF path.
        coeffs: (n, n_basis).
        ground_state_coeffs: (n_basis,) coefficients of the last iteration, the converged density.
        gradient: (n, n_basis) [hartree].
        energy: (n,) [hartree].
        has_energy_label: (n,) bool.
        dual_basis_integrals: (n, n_basis) [electrons].
        p_order: Order of the functions of a p shell; None: the file does not say.
    """

    path: Path
    mol_id: str
    pos: FloatArray
    atomic_numbers: npt.NDArray[np.int64]
    n_scf_iterations: int
    scf_iterations: npt.NDArray[np.int64]
    coeffs: FloatArray
    ground_state_coeffs: FloatArray
    gradient: FloatArray
    energy: FloatArray
    has_energy_label: npt.NDArray[np.bool_]
    dual_basis_integrals: FloatArray
    p_order: POrder | None


@contextmanager
def _reading(path: Path) -> Iterator[ZarrReader]:
    """Opens a label file and turns whatever goes wrong inside into a `LabelFileError` that names it."""
    try:
        with ZarrReader(path) as reader:
            yield reader
    except LabelFileError:
        raise
    except FileNotFoundError as error:
        raise LabelFileError(f"{path}: no such label file (config: data.source)") from error
    except (*_UNREADABLE, KeyError, TypeError) as error:  # the latter two: metadata that are JSON, but not zarr's
        raise LabelFileError(
            f"{path}: cannot be read: {type(error).__name__}: {error}; the file is truncated or was not written "
            "as a zarr v2 label file: write it again or leave it out (config: data.source.exclude)"
        ) from error


class _LabelFile:
    """The arrays of an open label file; every complaint names the file, the molecule and the array."""

    def __init__(self, reader: ZarrReader) -> None:
        self.reader = reader
        self.where = str(reader.path)
        mol_id = self.read("geometry/mol_id").item()
        self.mol_id = mol_id.decode() if isinstance(mol_id, bytes) else str(mol_id)
        self.where = f"{reader.path}: molecule {self.mol_id!r}"

    def shape(self, name: str, config_key: str | None = None) -> tuple[int, ...]:
        """Returns an array's shape, or says which arrays there are instead and which config key chooses among them."""
        try:
            return self.reader.shape(name)
        except KeyError:
            names = self.reader.arrays()
            if name in names:  # it is there, its metadata lack something
                raise
        folder = name.rsplit("/", 1)[0] + "/"
        beside = [n.removeprefix(folder) for n in names if n.startswith(folder)]
        if config_key is not None and beside:
            hint = f"choose one of them (config: {config_key})"
        else:
            hint = "write it again with this array, or leave it out (config: data.source.exclude)"
        raise LabelFileError(f"{self.where}: lacks the array {name!r}; {folder} has {beside or 'nothing'}; {hint}")

    def read(
        self, name: str, shape: tuple[int, ...] | None = None, row: int | None = None, config_key: str | None = None
    ) -> npt.NDArray[Any]:
        """Reads an array, or one row of it, after checking that the whole array has the expected shape."""
        found = self.shape(name, config_key)
        if shape is not None and found != shape:
            raise LabelFileError(
                f"{self.where}: array {name!r} has shape {found}, expected {shape} to fit {_COEFFS!r}: make the label "
                "again, or leave the molecule out (config: data.source.exclude)"
            )
        return self.reader.read(name, row=row)

    def coeffs_shape(self) -> tuple[int, int]:
        """Returns the number of SCF iterations, at least one, and of basis functions."""
        shape = self.shape(_COEFFS)
        if len(shape) != 2 or shape[0] == 0:
            raise LabelFileError(
                f"{self.where}: array {_COEFFS!r} has shape {shape}, expected (SCF iterations, basis functions) with "
                "at least one iteration: make the label again, or leave the molecule out (config: data.source.exclude)"
            )
        return shape[0], shape[1]


def read_n_scf_iterations(path: str | Path) -> int:
    """Returns the number of SCF iterations in a label file.

    Raises:
        LabelFileError: If the file is missing or unreadable, or holds no coefficients.
    """
    with _reading(Path(path)) as reader:
        return _LabelFile(reader).coeffs_shape()[0]


def read_molecule(
    path: str | Path,
    energy_key: str,
    gradient_key: str,
    scf_iterations: Sequence[int] | npt.NDArray[np.int64] | None = None,
) -> MoleculeLabels:
    """Reads a label file, whole arrays together, or a few of its SCF iterations.

    Args:
        path: A ``.zarr`` directory or ``.zarr.zip`` file.
        energy_key: Name of the energy below ``of_labels/energies``.
        gradient_key: Name of the gradient below ``of_labels/spatial``.
        scf_iterations: Rows to return, by default all. A single row reads only that row's chunks.

    Returns:
        The molecule's labels in float64.

    Raises:
        LabelFileError: If the file is missing or truncated, an array is missing or has a wrong length, or a
            number that would be used (coefficients; labels where `has_energy_label`) is not finite.
    """
    path = Path(path)
    with _reading(path) as reader:
        file = _LabelFile(reader)
        n_rows, n_basis = file.coeffs_shape()
        rows = _check_rows(file, n_rows, scf_iterations)
        single = int(rows[0]) if len(rows) == 1 else None

        def spatial(name: str, config_key: str | None = None) -> FloatArray:
            values = file.read(name, (n_rows, n_basis), single, config_key).astype(np.float64, copy=False)
            return values[rows] if single is None else values[None]

        def per_row(name: str, config_key: str | None = None) -> npt.NDArray[Any]:
            return file.read(name, (n_rows,), config_key=config_key)[rows]

        atomic_numbers = file.read("geometry/atomic_numbers")
        labels = MoleculeLabels(
            path=path,
            mol_id=file.mol_id,
            pos=file.read("geometry/atom_pos", (len(atomic_numbers), 3)).astype(np.float64, copy=False),
            atomic_numbers=_check_atomic_numbers(file, atomic_numbers),
            n_scf_iterations=n_rows,
            scf_iterations=rows,
            coeffs=spatial(_COEFFS),
            ground_state_coeffs=file.read(_COEFFS, row=n_rows - 1).astype(np.float64, copy=False),
            gradient=spatial(f"of_labels/spatial/{gradient_key}", "data.source.gradient_key"),
            energy=per_row(f"of_labels/energies/{energy_key}", "data.source.energy_key").astype(np.float64),
            has_energy_label=per_row(_HAS_LABEL).astype(bool),
            dual_basis_integrals=spatial(_INTEGRALS),
            p_order=stated_p_order(reader.attributes(), file.where),
        )
    _check_labels(labels, file.where, energy_key, gradient_key)
    return labels


def _check_rows(
    file: _LabelFile, n_rows: int, scf_iterations: Sequence[int] | npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64]:
    if scf_iterations is None:
        return np.arange(n_rows)
    rows = np.asarray(scf_iterations, dtype=np.int64)
    outside = rows[(rows < 0) | (rows >= n_rows)].tolist()
    if outside:
        raise LabelFileError(
            f"{file.where}: SCF iterations {outside} were asked for, but array {_COEFFS!r} has {n_rows}: the file has "
            "changed, or the number of iterations given for it is wrong (config: data.split.file)"
        )
    return rows


def _check_atomic_numbers(file: _LabelFile, atomic_numbers: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if atomic_numbers.ndim != 1 or atomic_numbers.dtype.kind not in "iu":
        raise LabelFileError(
            f"{file.where}: array 'geometry/atomic_numbers' has dtype {atomic_numbers.dtype} and shape "
            f"{atomic_numbers.shape}, expected integers of shape (n_atom,): make the label again, or leave the "
            "molecule out (config: data.source.exclude)"
        )
    return atomic_numbers.astype(np.int64)


def _check_labels(labels: MoleculeLabels, where: str, energy_key: str, gradient_key: str) -> None:
    """Refuses numbers that would be used and are not finite."""
    rows, labelled = labels.scf_iterations, labels.has_energy_label
    _check_finite(f"{where}: field 'geometry/atom_pos'", labels.pos.reshape(1, -1), None, np.zeros(1, np.int64))
    _check_finite(f"{where}: field {_COEFFS!r}", labels.coeffs, None, rows)
    last = np.array([labels.n_scf_iterations - 1])
    _check_finite(f"{where}: field {_COEFFS!r}", labels.ground_state_coeffs[None], None, last)
    _check_finite(f"{where}: field {_INTEGRALS!r}", labels.dual_basis_integrals, None, rows)
    _check_finite(f"{where}: field 'of_labels/spatial/{gradient_key}'", labels.gradient, labelled, rows)
    _check_finite(f"{where}: field 'of_labels/energies/{energy_key}'", labels.energy[:, None], labelled, rows)


def _check_finite(
    what: str, values: FloatArray, used: npt.NDArray[np.bool_] | None, iterations: npt.NDArray[np.int64]
) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(values.sum()):  # NaN and inf survive a sum; no BLAS, whose threads cost more than they give here
            return
    bad = ~np.isfinite(values).all(axis=1)
    if used is not None:
        bad &= used
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        column = int(np.flatnonzero(~np.isfinite(values[row]))[0])
        raise LabelFileError(
            f"{what} is {values[row, column]} at SCF iteration {int(iterations[row])}, entry {column}; expected finite "
            "numbers: make the label again, or leave the molecule out (config: data.source.exclude)"
        )
