"""Label files: one molecule each, with all densities along its SCF path, in STRUCTURES25's zarr v2 layout."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.zarr_v2 import ZarrReader
from ofdft_norm.errors import LabelFileError

FloatArray = npt.NDArray[np.float64]

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
        scf_iterations: (n,) indices of the rows along the SCF path.
        coeffs: (n, n_basis).
        ground_state_coeffs: (n_basis,) coefficients of the last iteration, the converged density.
        gradient: (n, n_basis) [hartree].
        energy: (n,) [hartree].
        has_energy_label: (n,) bool.
        dual_basis_integrals: (n, n_basis) [electrons].
    """

    path: Path
    mol_id: str
    pos: FloatArray
    atomic_numbers: npt.NDArray[np.int64]
    scf_iterations: npt.NDArray[np.int64]
    coeffs: FloatArray
    ground_state_coeffs: FloatArray
    gradient: FloatArray
    energy: FloatArray
    has_energy_label: npt.NDArray[np.bool_]
    dual_basis_integrals: FloatArray


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
    except KeyError as error:
        raise LabelFileError(_missing_array_message(path, str(error.args[0]))) from error
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError) as error:
        raise LabelFileError(
            f"{path}: cannot be read: {error}; the file is truncated or was not written as a zarr v2 label file: "
            "write it again or leave it out of the split"
        ) from error


def _missing_array_message(path: Path, name: str) -> str:
    with ZarrReader(path) as reader:
        names = reader.arrays()
    folder = name.rsplit("/", 1)[0] + "/"
    beside = [n.removeprefix(folder) for n in names if n.startswith(folder)]
    key = {"of_labels/energies/": "data.source.energy_key", "of_labels/spatial/": "data.source.gradient_key"}
    hint = f"; choose one of them (config: {key[folder]})" if folder in key else ""
    return f"{path}: lacks the array {name!r}; {folder} has {beside or 'nothing'}{hint}"


def read_n_scf_iterations(path: str | Path) -> int:
    """Returns the number of SCF iterations in a label file.

    Raises:
        LabelFileError: If the file is missing or unreadable.
    """
    with _reading(Path(path)) as reader:
        return int(reader.shape(_COEFFS)[0])


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
        n_rows = reader.shape(_COEFFS)[0]
        rows = np.arange(n_rows) if scf_iterations is None else np.asarray(scf_iterations, dtype=np.int64)
        single = int(rows[0]) if len(rows) == 1 else None

        def spatial(name: str) -> FloatArray:
            if single is not None:
                return reader.read(name, row=single).astype(np.float64, copy=False)[None]
            return reader.read(name).astype(np.float64, copy=False)[rows]

        labels = MoleculeLabels(
            path=path,
            mol_id=str(reader.read("geometry/mol_id")[()]),
            pos=reader.read("geometry/atom_pos").astype(np.float64, copy=False),
            atomic_numbers=reader.read("geometry/atomic_numbers").astype(np.int64),
            scf_iterations=rows,
            coeffs=spatial(_COEFFS),
            ground_state_coeffs=reader.read(_COEFFS, row=n_rows - 1).astype(np.float64, copy=False),
            gradient=spatial(f"of_labels/spatial/{gradient_key}"),
            energy=_per_row(reader, f"of_labels/energies/{energy_key}", n_rows)[rows].astype(np.float64),
            has_energy_label=_per_row(reader, _HAS_LABEL, n_rows)[rows].astype(bool),
            dual_basis_integrals=spatial(_INTEGRALS),
        )
    _check(labels, energy_key, gradient_key)
    return labels


def _per_row(reader: ZarrReader, name: str, n_rows: int) -> npt.NDArray[Any]:
    values = reader.read(name)
    if values.shape != (n_rows,):
        raise LabelFileError(
            f"{reader.path}: array {name!r} has shape {values.shape}, expected ({n_rows},), one value for each "
            f"row of {_COEFFS!r}"
        )
    return values


def _check(labels: MoleculeLabels, energy_key: str, gradient_key: str) -> None:
    where = f"{labels.path}: molecule {labels.mol_id!r}"
    shape = labels.coeffs.shape
    if labels.pos.shape != (len(labels.atomic_numbers), 3):
        raise LabelFileError(
            f"{where}: field 'geometry/atom_pos' has shape {labels.pos.shape}, expected "
            f"({len(labels.atomic_numbers)}, 3) for its {len(labels.atomic_numbers)} atoms"
        )
    labelled = labels.has_energy_label
    fields: dict[str, tuple[FloatArray, npt.NDArray[np.bool_] | None]] = {
        "coeffs": (labels.coeffs, None),
        "dual_basis_integrals": (labels.dual_basis_integrals, None),
        gradient_key: (labels.gradient, labelled),
    }
    for name, (values, used) in fields.items():
        if values.shape != shape:
            raise LabelFileError(
                f"{where}: field 'of_labels/spatial/{name}' has shape {values.shape}, expected {shape} like 'coeffs'"
            )
        _check_finite(f"{where}: field 'of_labels/spatial/{name}'", values, used, labels.scf_iterations)
    _check_finite(
        f"{where}: field 'of_labels/energies/{energy_key}'", labels.energy[:, None], labelled, labels.scf_iterations
    )
    _check_finite(f"{where}: field 'geometry/atom_pos'", labels.pos.reshape(1, -1), None, np.zeros(1, np.int64))


def _check_finite(
    what: str, values: FloatArray, used: npt.NDArray[np.bool_] | None, iterations: npt.NDArray[np.int64]
) -> None:
    if np.isfinite(np.dot(values.ravel(), np.zeros(values.size))):  # one BLAS call: 0 * NaN and 0 * inf are NaN
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
