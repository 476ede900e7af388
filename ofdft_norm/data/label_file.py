"""Label files: one molecule each, with all densities along its SCF path, zarr v2 in STRUCTURES25's layout.

Arrays::

    geometry/{mol_id, atom_pos (n_atom, 3) bohr, atomic_numbers (n_atom,)}
    of_labels/{basis, n_scf_steps, perturbed (n_scf,) bool, energies/e_* (n_scf,) hartree}
    of_labels/spatial/{coeffs, grad_*, dual_basis_integrals}  (n_scf, n_basis), one chunk per iteration
    ks_labels/{basis, energies/e_* (n_scf,) hartree, energies/has_energy_label (n_scf,) bool}

Vectors are those of the density basis as it is, p functions in the order x, y, z. Row 0 is the initial guess, without
label; rows of perturbed Fock matrices, off the SCF path, follow it; the last row is the converged density.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.zarr_v2 import Rows, ZarrError, ZarrGroup, write_zarr_arrays
from ofdft_norm.errors import LabelFileError

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# larger than any quantity of a molecule in atomic units: larger numbers are damaged, or of the wrong byte order
LARGEST_LABEL = 1e15

_MOL_ID, _POSITIONS, _ATOMIC_NUMBERS = "geometry/mol_id", "geometry/atom_pos", "geometry/atomic_numbers"
_COEFFS, _INTEGRALS = "of_labels/spatial/coeffs", "of_labels/spatial/dual_basis_integrals"
_PERTURBED = "of_labels/perturbed"
_HAS_LABEL, _N_SCF_STEPS = "ks_labels/energies/has_energy_label", "of_labels/n_scf_steps"
_REMEDY = "make the label again, or leave the molecule out (config: data.source.exclude)"


@dataclass(frozen=True)
class LabelHeader:
    """Molecule and length of the SCF path of a label file; `pos` (n_atom, 3) in bohr."""

    mol_id: str
    pos: FloatArray
    atomic_numbers: IntArray
    n_scf_iterations: int


@dataclass(frozen=True)
class MoleculeLabels(LabelHeader):
    """Some or all densities of one label file."""

    path: Path
    ground_state_coeffs: FloatArray  # (n_basis,) of the last iteration, the converged density
    rows: Mapping[str, Array]  # fields of `OFData`, with a row for each of these densities


@dataclass(frozen=True)
class LabelFileContent:
    """Content of a label file, for `write_label_file`; rows are SCF iterations, the initial guess first."""

    mol_id: str
    atomic_numbers: Array
    positions: Array  # (n_atom, 3) [bohr]
    coeffs: Array  # (n_scf, n_basis)
    gradients: Mapping[str, Array]  # by name (grad_kin, ...) (n_scf, n_basis) [hartree]
    dual_basis_integrals: Array  # (n_basis,) [electrons]
    energies: Mapping[str, Array]  # by name (e_kin, ...), of the fitted densities, (n_scf,) [hartree]
    ks_energies: Mapping[str, Array]  # by name, of the Kohn-Sham densities, (n_scf,) [hartree]
    has_energy_label: Array  # (n_scf,)
    perturbed: Array | None = None  # (n_scf,); None: no row is perturbed
    attributes: Mapping[str, Any] = field(default_factory=dict)
    density_basis: str = "even_tempered_2.5"
    orbital_basis: str = "6-31G(2df,p)"


@contextmanager
def _open_label_file(path: Path) -> Iterator[_LabelFile]:
    """Opens a label file; errors are `LabelFileError`s that name it."""
    try:
        with ZarrGroup(path) as group:
            yield _LabelFile(group)
    except FileNotFoundError as error:
        raise LabelFileError(f"{path}: no such label file (config: data.source)") from error
    except (ZarrError, OSError) as error:
        raise LabelFileError(f"{path}: is no zarr v2 label file, or damaged: {error}; {_REMEDY}") from error


class _LabelFile:
    """The arrays of an open label file; errors name the file, the molecule and the array."""

    def __init__(self, group: ZarrGroup) -> None:
        self.group = group
        self.where = str(group.path)
        name = self.read(_MOL_ID)
        text = name.item() if name.size == 1 and name.dtype.kind in "USiu" else ""
        self.mol_id = text.decode(errors="surrogateescape") if isinstance(text, bytes) else str(text)
        if not self.mol_id.isprintable() or not self.mol_id:
            raise self.make_error(f"array {_MOL_ID!r} is {name.tolist()!r}, expected a name of printable characters")
        self.where = f"{group.path}: molecule {self.mol_id!r}"

    def make_error(self, what: str) -> LabelFileError:
        return LabelFileError(f"{self.where}: {what}: {_REMEDY}")

    def shape(self, name: str) -> tuple[int, ...]:
        try:
            return self.group.shape(name)
        except KeyError:
            folder, _, key = name.rpartition("/")
            known = [n.rpartition("/")[2] for n in self.group.arrays() if n.startswith(f"{folder}/")]
            setting = {"e_": "energy_key", "gr": "gradient_key"}.get(key[:2])
            config = f" (config: data.source.{setting})" if setting else ""
        raise self.make_error(f"lacks the array {name!r}, {folder} has {known}{config}")

    def read(
        self, name: str, shape: tuple[int, ...] | None = None, row: int | None = None, may_lack: Rows | bool = False
    ) -> Array:
        """Reads numbers or text, or one row of them, after checking the shape of the whole array."""
        found = self.shape(name)
        if shape is not None and found != shape:
            raise self.make_error(f"array {name!r} has shape {found}, expected {shape} to fit {_COEFFS!r}")
        return self.group.read(name, row, may_lack)

    def read_numbers(self, name: str, shape: tuple[int, ...], **options: Any) -> FloatArray:
        values = self.read(name, shape, **options)
        if values.dtype.kind not in "iuf" or values.dtype.itemsize > 8:
            raise self.make_error(f"array {name!r} has dtype {values.dtype}, expected float64, float32 or integers")
        return values.astype(np.float64, copy=False)

    def read_header(self) -> LabelHeader:
        numbers, shape = self.read(_ATOMIC_NUMBERS), self.shape(_COEFFS)
        if numbers.ndim != 1 or numbers.size == 0 or numbers.dtype.kind not in "iu":
            raise self.make_error(f"array {_ATOMIC_NUMBERS!r} is {numbers.tolist()}, expected whole numbers (n_atom,)")
        if len(shape) != 2 or 0 in shape:
            raise self.make_error(f"array {_COEFFS!r} has shape {shape}, expected (SCF iterations, basis functions)")
        n_steps = self.group.read(_N_SCF_STEPS) if _N_SCF_STEPS in self.group else np.array(shape[0])
        if n_steps.ravel().tolist() != [shape[0]]:
            raise self.make_error(f"array {_N_SCF_STEPS!r} is {n_steps.tolist()}, but {_COEFFS!r} has shape {shape}")
        pos = self.read_numbers(_POSITIONS, (len(numbers), 3))
        self.check_range(_POSITIONS, pos, np.zeros(len(pos), dtype=np.int64))
        return LabelHeader(self.mol_id, pos, numbers.astype(np.int64), shape[0])

    def check_meaning(self) -> None:
        """Refuses labels in other coordinates or another order of p functions, as ofdft_norm 0.2 wrote them."""
        attributes = self.group.attributes()
        settings = attributes.get("settings")
        natural = isinstance(settings, dict) and settings.get("natural_reparametrization") is True
        if natural or (attributes.get("p_order", "xyz"), attributes.get("coordinates", "raw")) != ("xyz", "raw"):
            raise self.make_error("expected p_order 'xyz' and coordinates 'raw', but ofdft_norm 0.2 wrote this file")

    def find_labelled(self, energy: str, gradient: str, n_rows: int, n_basis: int) -> Rows:
        """Returns which rows have labels; without `has_energy_label` all but a first row of zeros."""
        if _HAS_LABEL in self.group:
            flags = self.read(_HAS_LABEL, (n_rows,))
            if flags.dtype.kind not in "biuf" or not ((flags == 0) | (flags == 1)).all():
                raise self.make_error(f"array {_HAS_LABEL!r} is {flags.tolist()[:10]}, expected booleans, or 0 and 1")
            return flags.astype(bool)
        found = np.ones(n_rows, dtype=bool)
        first = self.read_numbers(gradient, (n_rows, n_basis), row=0, may_lack=True)
        found[0] = self.read_numbers(energy, (n_rows,), may_lack=True)[0] != 0 or first.any()
        return found

    def find_perturbed(self, n_rows: int) -> Rows:
        """Returns which rows are densities off the SCF path."""
        return self.read(_PERTURBED, (n_rows,)).astype(bool) if _PERTURBED in self.group else np.zeros(n_rows, bool)

    def check_range(self, name: str, values: FloatArray, iterations: IntArray, used: Rows | bool = True) -> None:
        """Refuses numbers that are not finite, or absurdly large, in rows that are used."""
        if values.max() <= LARGEST_LABEL and values.min() >= -LARGEST_LABEL:  # false for NaN
            return
        rows = values.reshape(len(values), -1)
        bad = np.argwhere(~(np.abs(rows) <= LARGEST_LABEL) & np.reshape(used, (-1, 1)))
        if len(bad):
            row, column = bad[0].tolist()
            what = f"array {name!r} is {rows[row, column]} at SCF iteration {iterations[row]}, entry {column}"
            raise self.make_error(f"{what}, expected finite numbers of at most {LARGEST_LABEL:g}")


def read_header(path: str | Path) -> LabelHeader:
    """Reads the geometry and the length of the SCF path of a label file."""
    with _open_label_file(Path(path)) as file:
        return file.read_header()


def read_molecule(
    path: str | Path,
    energy_key: str,
    gradient_key: str,
    scf_iterations: Sequence[int] | IntArray | Callable[[int], IntArray] | None = None,
    fields: Collection[str] | None = None,
    other_energies: Sequence[str] = (),
) -> MoleculeLabels:
    """Reads a label file, or some of its SCF iterations; a function returns these for the length of the path.

    Gradients and integrals are read if `fields` is None or has them. Only rows without label may lack chunks, and only
    of energies and gradients.
    """
    with _open_label_file(Path(path)) as file:
        file.check_meaning()
        header = file.read_header()
        n_rows, n_basis = file.shape(_COEFFS)
        chosen = scf_iterations(n_rows) if callable(scf_iterations) else scf_iterations
        rows = np.arange(n_rows) if chosen is None else np.asarray(chosen, dtype=np.int64)
        if rows.min() < 0 or rows.max() >= n_rows:
            raise file.make_error(f"has {n_rows} SCF iterations, not all of {rows.tolist()} (config: data.split.file)")
        energies = {"energy_label": energy_key} | {name: name for name in other_energies}
        gradient = f"of_labels/spatial/{gradient_key}"
        has_label = file.find_labelled(f"of_labels/energies/{energy_key}", gradient, n_rows, n_basis)

        def read_rows(name: str, rows: IntArray, is_label: bool = False) -> FloatArray:
            row = int(rows[0]) if len(rows) == 1 else None
            values = file.read_numbers(name, (n_rows, n_basis), row=row, may_lack=~has_label if is_label else False)
            values = values[rows] if row is None else values[None]
            file.check_range(name, values, rows, has_label[rows] if is_label else True)
            return values

        found: dict[str, Array] = {"scf_iteration": rows}
        found |= {"has_energy_label": has_label[rows], "perturbed": file.find_perturbed(n_rows)[rows]}
        for name, key in energies.items():
            array = f"of_labels/energies/{key}"
            found[name] = file.read_numbers(array, (n_rows,), may_lack=~has_label)[rows]
            file.check_range(array, found[name], rows, has_label[rows])
        coeffs = found["coeffs"] = read_rows(_COEFFS, rows)
        last = coeffs if rows[-1] == n_rows - 1 else read_rows(_COEFFS, np.array([n_rows - 1]))
        if fields is None or "gradient_label" in fields:
            found["gradient_label"] = read_rows(gradient, rows, is_label=True)
        if fields is None or "dual_basis_integrals" in fields:
            found["dual_basis_integrals"] = read_rows(_INTEGRALS, rows)
        return MoleculeLabels(**vars(header), path=file.group.path, ground_state_coeffs=last[-1], rows=found)


def write_label_file(path: str | Path, content: LabelFileContent) -> None:
    """Writes the labels of one molecule, whole or not at all; replaces an existing file."""
    (n_scf, n_basis), coeffs = content.coeffs.shape, content.coeffs
    arrays = {
        _POSITIONS: (np.asarray(content.positions, dtype=np.float64), (len(content.atomic_numbers), 3)),
        _COEFFS: (coeffs, (n_scf, n_basis)),
        _INTEGRALS: (np.broadcast_to(content.dual_basis_integrals, coeffs.shape), (n_scf, n_basis)),
        **{f"of_labels/spatial/{name}": (array, coeffs.shape) for name, array in content.gradients.items()},
        **{f"of_labels/energies/{name}": (array, (n_scf,)) for name, array in content.energies.items()},
        **{f"ks_labels/energies/{name}": (array, (n_scf,)) for name, array in content.ks_energies.items()},
        _HAS_LABEL: (np.asarray(content.has_energy_label, dtype=bool), (n_scf,)),
        _PERTURBED: (np.zeros(n_scf, dtype=bool) if content.perturbed is None else content.perturbed, (n_scf,)),
    }
    for name, (array, shape) in arrays.items():
        if array.shape != shape or not np.isfinite(array).all():
            what = f"has shape {array.shape}, expected finite numbers of shape {shape}"
            raise LabelFileError(f"{path}: molecule {content.mol_id!r}: array {name!r} {what}")
    others = {
        _MOL_ID: np.array(content.mol_id),
        _ATOMIC_NUMBERS: np.asarray(content.atomic_numbers, dtype=np.uint8),
        "of_labels/basis": np.array(content.density_basis),
        "ks_labels/basis": np.array(content.orbital_basis),
        _N_SCF_STEPS: np.array(n_scf),
    }
    written = others | {name: array for name, (array, _) in arrays.items()}
    write_zarr_arrays(path, written, content.attributes, by_row=[name for name in arrays if "/spatial/" in name])
