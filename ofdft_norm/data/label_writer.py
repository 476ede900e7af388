"""Writes label files: one molecule, all its self-consistent field iterations, zarr v2 in a zip file.

The layout is STRUCTURES25's, so that its tools read these files and this package reads its::

    geometry/{mol_id, atom_pos (n_atom, 3) bohr, atomic_numbers (n_atom,) uint8}
    of_labels/{basis, n_scf_steps}
    of_labels/energies/e_*                       (n_scf,) hartree
    of_labels/spatial/{coeffs, grad_*}           (n_scf, n_basis), one chunk per iteration
    of_labels/spatial/dual_basis_integrals       (n_scf, n_basis), one chunk per iteration, the same row each time
    ks_labels/{basis, energies/e_*}              (n_scf,) hartree
    ks_labels/energies/has_energy_label          (n_scf,) bool

The root's attribute ``p_order`` says in which order the functions of a p shell stand: ``yzx`` (m = -1, 0, 1) or
``xyz``. STRUCTURES25's own files have no such attribute; their order is PySCF's, ``xyz``.

Two differences, invisible to a zarr reader: chunks are compressed without loss, and gradients that are all zero (those
of the initial guess, which has no label) are left out, since they read as zeros anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.buffer import Buffer

from ofdft_norm.data.basis_info import POrder
from ofdft_norm.data.files import write_zip
from ofdft_norm.errors import LabelFileError

Array = npt.NDArray[Any]


def write_label_file(
    path: str | Path,
    *,
    mol_id: str,
    atomic_numbers: Array,
    positions: Array,
    coeffs: Array,
    gradients: Mapping[str, Array],
    dual_basis_integrals: Array,
    energies: Mapping[str, Array],
    ks_energies: Mapping[str, Array],
    has_energy_label: Array,
    attributes: Mapping[str, Any] | None = None,
    p_order: POrder = "yzx",
    density_basis: str = "even_tempered_2.5",
    orbital_basis: str = "6-31G(2df,p)",
) -> None:
    """Writes one molecule; the file appears whole or not at all.

    Args:
        path: File to write, named ``*.zarr.zip``. An existing one is replaced.
        mol_id: Name of the molecule.
        atomic_numbers: (n_atom,).
        positions: (n_atom, 3) in bohr.
        coeffs: (n_scf, n_basis) density coefficients; the initial guess first, the converged density last.
        gradients: Per name (``grad_kin`` ...) the labels, (n_scf, n_basis) in hartree.
        dual_basis_integrals: (n_basis,) integrals of the basis functions, in electrons.
        energies: Per name (``e_kin`` ...) the energies of the expanded densities, (n_scf,) in hartree.
        ks_energies: The same for the Kohn-Sham densities.
        has_energy_label: (n_scf,) whether energies and gradients of an iteration are labels.
        attributes: JSON-like attributes of the file's root: how the labels were made.
        p_order: In which order the functions of a p shell stand, as in `BasisInfo`; becomes an attribute of the root.
        density_basis: Name of the density basis.
        orbital_basis: Name of the orbital basis.

    Raises:
        LabelFileError: If shapes disagree or a number is not finite; nothing is written then.
    """
    if coeffs.ndim != 2:
        raise LabelFileError(f"molecule {mol_id!r}, field 'coeffs': shape {coeffs.shape}, expected (n_scf, n_basis)")
    n_scf, n_basis = coeffs.shape
    _check(mol_id, {"spatial/dual_basis_integrals": dual_basis_integrals}, (n_basis,))
    spatial = {
        "coeffs": coeffs,
        "dual_basis_integrals": np.broadcast_to(dual_basis_integrals, coeffs.shape),
        **gradients,
    }
    of_labels = {f"spatial/{k}": v for k, v in spatial.items()} | {f"energies/{k}": v for k, v in energies.items()}
    ks_labels = {f"energies/{k}": v for k, v in ks_energies.items()}
    ks_labels["energies/has_energy_label"] = np.asarray(has_energy_label, dtype=bool)
    geometry = {"atom_pos": positions, "atomic_numbers": np.asarray(atomic_numbers, dtype=np.uint8)}
    _check(mol_id, {f"spatial/{name}": array for name, array in spatial.items()}, (n_scf, n_basis))
    _check(mol_id, {k: v for k, v in (of_labels | ks_labels).items() if k.startswith("energies/")}, (n_scf,))
    _check(mol_id, {"atom_pos": positions}, (len(atomic_numbers), 3))
    scalars = {"n_scf_steps": np.array(n_scf), "basis": np.array(density_basis)}
    groups = {
        "geometry": geometry | {"mol_id": np.array(mol_id)},
        "of_labels": of_labels | scalars,
        "ks_labels": ks_labels | {"basis": np.array(orbital_basis)},
    }
    write_zip(path, _zarr_files(groups, {**(attributes or {}), "p_order": p_order}))


def _zarr_files(groups: Mapping[str, Mapping[str, Array]], attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns the files of a zarr v2 store by name."""
    files: dict[str, Buffer] = {}
    root = zarr.open_group(zarr.storage.MemoryStore(files), mode="w", zarr_format=2, attributes=dict(attributes))
    for name, arrays in groups.items():
        _write(root, name, arrays)
    contents = {name: buffer.to_bytes() for name, buffer in files.items()}
    return {name: c for name, c in contents.items() if not (name.endswith(".zattrs") and c.strip() == b"{}")}


def _check(mol_id: str, arrays: Mapping[str, Array], shape: tuple[int, ...]) -> None:
    for name, array in arrays.items():
        if array.shape != shape:
            raise LabelFileError(f"molecule {mol_id!r}, field {name!r}: shape {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise LabelFileError(
                f"molecule {mol_id!r}, field {name!r}: {array[index]} at index {index}, expected a finite number"
            )


def _write(root: zarr.Group, group_name: str, arrays: Mapping[str, Array]) -> None:
    group = root.require_group(group_name)
    # Byte shuffling gathers signs and exponents, the only compressible part of converged coefficients.
    blosc = numcodecs.Blosc(cname="zstd", clevel=9, shuffle=numcodecs.Blosc.SHUFFLE)
    for name, array in sorted(arrays.items()):
        matrix = array.ndim == 2 and name.startswith("spatial/")
        created = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=(1, array.shape[1]) if matrix else array.shape,
            compressors=blosc if matrix else None,
            filters=None,
            # a missing chunk is an error of the reader, except where there is no label
            config={"write_empty_chunks": not name.startswith("spatial/grad")},
        )
        created[...] = array
