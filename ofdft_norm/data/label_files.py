"""Label files: one molecule each, with all densities along its SCF path, in STRUCTURES25's zarr v2 layout."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis_info import POrder
from ofdft_norm.data.coordinates import stated_coordinates
from ofdft_norm.data.p_order import stated_p_order
from ofdft_norm.data.zarr_metadata import ZarrError
from ofdft_norm.data.zarr_v2 import ZarrReader
from ofdft_norm.errors import LabelFileError

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]

LARGEST_LABEL = 1e15
"""Largest absolute value of a coefficient, integral, gradient, energy or position that is read.

No quantity of a molecule in atomic units comes near it: larger ones are damaged or mistyped (floats read as integers,
the wrong byte order). Squares of smaller numbers do not overflow, and whole numbers up to it are exact in float64."""

_COEFFS = "of_labels/spatial/coeffs"
_INTEGRALS = "of_labels/spatial/dual_basis_integrals"
_HAS_LABEL = "ks_labels/energies/has_energy_label"
_N_SCF_STEPS = "of_labels/n_scf_steps"
_POSITIONS = "geometry/atom_pos"
_ATOMIC_NUMBERS = "geometry/atomic_numbers"

_REMEDY = "make the label again, or leave the molecule out (config: data.source.exclude)"


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
        coordinates: What coefficients, gradients and integrals are given in; ``raw``: the density basis as it is.
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
    coordinates: str


@contextmanager
def _reading(path: Path) -> Iterator[ZarrReader]:
    """Opens a label file and turns whatever goes wrong inside into a `LabelFileError` that names it."""
    try:
        with ZarrReader(path) as reader:
            yield reader
    except FileNotFoundError as error:
        raise LabelFileError(f"{path}: no such label file (config: data.source)") from error
    except (ZarrError, OSError, MemoryError) as error:
        raise LabelFileError(
            f"{path}: cannot be read: {type(error).__name__}: {error}; the file is truncated, damaged, or was not "
            "written as a zarr v2 label file: write it again or leave it out (config: data.source.exclude)"
        ) from error


class _LabelFile:
    """The arrays of an open label file; every complaint names the file, the molecule and the array."""

    def __init__(self, reader: ZarrReader) -> None:
        self.reader = reader
        self.where = str(reader.path)
        self.mol_id = self._mol_id()
        self.where = f"{reader.path}: molecule {self.mol_id!r}"

    def _mol_id(self) -> str:
        name = "geometry/mol_id"
        values = self.read(name)
        if values.size != 1 or values.dtype.kind not in "USiu":
            raise self.error(f"array {name!r} has dtype {values.dtype} and shape {values.shape}, expected one name")
        try:
            value = values.item()
            text = value.decode() if isinstance(value, bytes) else str(value)
        except ValueError as error:  # bytes or code points that are no text
            raise self.error(f"array {name!r} is no text: {error}") from error
        if not text or not text.isprintable():
            raise self.error(f"array {name!r} is {text!r}, expected a name of printable characters")
        return text

    def error(self, what: str) -> LabelFileError:
        """Returns the error that says what is wrong, where, and what can be done."""
        return LabelFileError(f"{self.where}: {what}: {_REMEDY}")

    def shape(self, name: str, config_key: str | None = None) -> tuple[int, ...]:
        """Returns an array's shape, or says which arrays there are instead and which config key chooses among them."""
        try:
            return self.reader.shape(name)
        except KeyError:
            names = self.reader.arrays()
        folder = name.rsplit("/", 1)[0] + "/"
        beside = [n.removeprefix(folder) for n in names if n.startswith(folder)]
        if config_key is not None and beside:
            hint = f"choose one of them (config: {config_key})"
        else:
            hint = "write it again with this array, or leave it out (config: data.source.exclude)"
        raise LabelFileError(f"{self.where}: lacks the array {name!r}; {folder} has {beside or 'nothing'}; {hint}")

    def read(
        self,
        name: str,
        shape: tuple[int, ...] | None = None,
        row: int | None = None,
        config_key: str | None = None,
        may_lack: npt.NDArray[np.bool_] | bool = False,
    ) -> npt.NDArray[Any]:
        """Reads an array, or one row of it, after checking that the whole array has the expected shape."""
        found = self.shape(name, config_key)
        if shape is not None and found != shape:
            raise self.error(f"array {name!r} has shape {found}, expected {shape} to fit {_COEFFS!r}")
        try:
            return self.reader.read(name, row, may_lack)
        except ZarrError as error:
            raise self.error(f"cannot be read: {error}; the file is truncated or damaged") from error

    def numbers(self, name: str, shape: tuple[int, ...], **options: Any) -> FloatArray:
        """Reads numbers, as float64; integers and shorter floats lose nothing."""
        values = self.read(name, shape, **options)
        if values.dtype.kind not in "iuf" or values.dtype.itemsize > 8:
            raise self.error(f"array {name!r} has dtype {values.dtype}, expected float64, float32 or integers")
        return values.astype(np.float64, copy=False)

    def flags(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Reads booleans, or numbers that are 0 or 1."""
        values = self.read(name, shape)
        if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
            raise self.error(
                f"array {name!r} has dtype {values.dtype} and values {values.ravel()[:10].tolist()}, expected "
                "booleans, or 0 and 1"
            )
        return values.astype(bool)

    def labelled(self, energy: str, gradient: str, n_rows: int, n_basis: int) -> npt.NDArray[np.bool_]:
        """Returns which rows have labels; where STRUCTURES25's files do not say: all but a first row of zeros."""
        try:
            self.reader.shape(_HAS_LABEL)
            said = True
        except KeyError:  # this package's own files say the order of p functions, and which rows have labels
            said = stated_p_order(self.reader.attributes(), self.where) is not None
        if said:
            return self.flags(_HAS_LABEL, (n_rows,))
        found = np.ones(n_rows, dtype=bool)
        first = self.numbers(gradient, (n_rows, n_basis), row=0, config_key="data.source.gradient_key", may_lack=True)
        energies = self.numbers(energy, (n_rows,), config_key="data.source.energy_key", may_lack=True)
        found[0] = energies[0] != 0 or first.any()
        _say_what_is_assumed(self.reader.path.parent)
        return found

    def coeffs_shape(self) -> tuple[int, int]:
        """Returns the number of SCF iterations, at least one, and of basis functions."""
        shape = self.shape(_COEFFS)
        if len(shape) != 2 or 0 in shape:
            raise self.error(
                f"array {_COEFFS!r} has shape {shape}, expected (SCF iterations, basis functions) with at least one of "
                "each"
            )
        try:
            n_steps = self.reader.read(_N_SCF_STEPS)
        except KeyError:  # not every writer says it a second time
            return shape[0], shape[1]
        if n_steps.size != 1 or n_steps.dtype.kind not in "iuf" or n_steps.item() != shape[0]:
            found = n_steps.ravel()[:3].tolist()
            raise self.error(f"array {_N_SCF_STEPS!r} is {found}, but {_COEFFS!r} has {shape[0]} SCF iterations")
        return shape[0], shape[1]

    def atomic_numbers(self) -> npt.NDArray[np.int64]:
        """Returns the elements of the atoms, at least one."""
        values = self.read(_ATOMIC_NUMBERS)
        if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iu":
            raise self.error(
                f"array {_ATOMIC_NUMBERS!r} has dtype {values.dtype} and shape {values.shape}, expected integers of "
                "shape (n_atom,), of one atom at least"
            )
        return values.astype(np.int64)


@functools.cache
def _say_what_is_assumed(folder: Path) -> None:
    logger.info(
        "%s: label files without the array %r: all rows are taken to have labels, but for a first one of zeros, the "
        "initial guess",
        folder,
        _HAS_LABEL,
    )


def read_n_scf_iterations(path: str | Path) -> int:
    """Returns the number of SCF iterations in a label file.

    Args:
        path: A label file, ``*.zarr.zip``.

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
    n_scf_iterations: int | None = None,
) -> MoleculeLabels:
    """Reads a label file, whole arrays together, or a few of its SCF iterations.

    Files of STRUCTURES25 that do not say which rows have labels (``ks_labels/energies/has_energy_label``) have them in
    all rows, but for a first one whose energy and gradient are zeros.

    A gradient or energy chunk of SCF iterations without label may be missing, as zarr leaves out chunks of zeros; any
    other missing chunk is an error, unless the file says otherwise (`ofdft_norm.data.zarr_v2.FILL_VALUES_ATTRIBUTE`).

    Args:
        path: A ``.zarr`` directory or ``.zarr.zip`` file.
        energy_key: Name of the energy below ``of_labels/energies``.
        gradient_key: Name of the gradient below ``of_labels/spatial``.
        scf_iterations: Rows to return, by default all. A single row reads only that row's chunks.
        n_scf_iterations: The number of SCF iterations that the file must have, where it is known.

    Returns:
        The molecule's labels in float64.

    Raises:
        LabelFileError: If the file is missing or truncated, an array is missing, is of another type or length, or a
            number that would be used (coefficients; labels where `has_energy_label`) is not finite, or larger than
            `LARGEST_LABEL`.
    """
    path = Path(path)
    with _reading(path) as reader:
        file = _LabelFile(reader)
        n_rows, n_basis = file.coeffs_shape()
        rows = _check_rows(file, n_rows, scf_iterations, n_scf_iterations)
        single = int(rows[0]) if len(rows) == 1 else None
        gradient, energy = f"of_labels/spatial/{gradient_key}", f"of_labels/energies/{energy_key}"
        has_label = file.labelled(energy, gradient, n_rows, n_basis)

        def spatial(name: str, **options: Any) -> FloatArray:
            values = file.numbers(name, (n_rows, n_basis), row=single, **options)
            return values[rows] if single is None else values[None]

        attributes = reader.attributes()
        atomic_numbers = file.atomic_numbers()
        labels = MoleculeLabels(
            path=path,
            mol_id=file.mol_id,
            pos=file.numbers(_POSITIONS, (len(atomic_numbers), 3)),
            atomic_numbers=atomic_numbers,
            n_scf_iterations=n_rows,
            scf_iterations=rows,
            coeffs=spatial(_COEFFS),
            ground_state_coeffs=file.numbers(_COEFFS, (n_rows, n_basis), row=n_rows - 1),
            gradient=spatial(gradient, config_key="data.source.gradient_key", may_lack=~has_label),
            energy=file.numbers(energy, (n_rows,), config_key="data.source.energy_key", may_lack=~has_label)[rows],
            has_energy_label=has_label[rows],
            dual_basis_integrals=spatial(_INTEGRALS),
            p_order=stated_p_order(attributes, file.where),
            coordinates=stated_coordinates(attributes, file.where),
        )
    _check_labels(labels, file.where, energy_key, gradient_key)
    return labels


def _check_rows(
    file: _LabelFile, n_rows: int, scf_iterations: Sequence[int] | npt.NDArray[np.int64] | None, expected: int | None
) -> npt.NDArray[np.int64]:
    if expected is not None and expected != n_rows:
        raise LabelFileError(
            f"{file.where}: {expected} SCF iterations were expected, but array {_COEFFS!r} has {n_rows}: the split "
            "file says another number than the label file, or the label file has changed (config: data.split.file)"
        )
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


def _check_labels(labels: MoleculeLabels, where: str, energy_key: str, gradient_key: str) -> None:
    """Refuses numbers that would be used and are not finite, or absurd."""
    rows, labelled = labels.scf_iterations, labels.has_energy_label
    _check_range(f"{where}: field {_POSITIONS!r}", labels.pos.reshape(1, -1), None, np.zeros(1, np.int64))
    _check_range(f"{where}: field {_COEFFS!r}", labels.coeffs, None, rows)
    last = np.array([labels.n_scf_iterations - 1])
    _check_range(f"{where}: field {_COEFFS!r}", labels.ground_state_coeffs[None], None, last)
    _check_range(f"{where}: field {_INTEGRALS!r}", labels.dual_basis_integrals, None, rows)
    _check_range(f"{where}: field 'of_labels/spatial/{gradient_key}'", labels.gradient, labelled, rows)
    _check_range(f"{where}: field 'of_labels/energies/{energy_key}'", labels.energy[:, None], labelled, rows)


def _check_range(
    what: str, values: FloatArray, used: npt.NDArray[np.bool_] | None, iterations: npt.NDArray[np.int64]
) -> None:
    if values.max() <= LARGEST_LABEL and values.min() >= -LARGEST_LABEL:  # false for NaN
        return
    bad = ~(np.abs(values) <= LARGEST_LABEL)
    if used is not None:
        bad &= used[:, None]
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise LabelFileError(
            f"{what} is {values[row, column]} at SCF iteration {int(iterations[row])}, entry {column}; expected finite "
            f"numbers, of at most {LARGEST_LABEL:g}: {_REMEDY}"
        )
