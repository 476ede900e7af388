"""Checks of what is handed to the normaliser, with messages that say what was expected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.fields import PER_FUNCTION
from ofdft_norm.data.of_data import field_names, get_field, is_sample, molecule_index, n_molecules
from ofdft_norm.errors import BatchError, NormalizationError
from ofdft_norm.transforms.basis_transforms import coordinates_of

IntArray = npt.NDArray[np.int64]


def check_vector(name: str, values: Tensor, batch: Data | Mapping[str, Tensor]) -> Tensor:
    """Returns `basis_function_ind` of a sample or batch whose functions the values belong to.

    Without this check a prediction of shape (n_basis, 1) would broadcast against (n_basis,) factors to a matrix.

    Args:
        name: What the values are, for the message.
        values: (n_basis,).
        batch: The sample or batch, or its fields.

    Returns:
        (n_basis,) indices.

    Raises:
        NormalizationError: If the sample has no `basis_function_ind`, or the values are not one for each function.
    """
    index = get_field(batch, "basis_function_ind")
    if index is None:
        raise NormalizationError(
            f"{_where(batch)}: field {name!r} cannot be normalised or denormalised without the field "
            "'basis_function_ind'; build samples with OFData.construct_new"
        )
    if values.shape != index.shape:
        raise NormalizationError(
            f"{_where(batch)}: {name!r} has shape {tuple(values.shape)}, expected {tuple(index.shape)}: one entry for "
            "each basis function, as in 'basis_function_ind' (a trailing axis of length 1 is removed with squeeze(-1))"
        )
    return index


def check_energy(name: str, energy: Tensor, n_molecules: int, batch: Data | Mapping[str, Tensor]) -> None:
    """Refuses energies that are not one for each molecule.

    Args:
        name: Name of the field, for the message.
        energy: Energies.
        n_molecules: Number of molecules of the batch.
        batch: The batch, to name it in the message.

    Raises:
        NormalizationError: If the shape is neither (n_molecules,) nor (n_molecules, 1), nor () for one molecule.
    """
    allowed = ((n_molecules,), (n_molecules, 1)) + (((),) if n_molecules == 1 else ())
    if tuple(energy.shape) not in allowed:
        raise NormalizationError(
            f"{_where(batch)}: {name!r} has shape {tuple(energy.shape)}, expected ({n_molecules},) or "
            f"({n_molecules}, 1): one energy for each molecule"
        )


def check_forces(name: str, forces: Tensor, batch: Data) -> None:
    """Refuses forces that are not three for each atom.

    Args:
        name: Name of the field, for the message.
        forces: Forces.
        batch: The batch whose atoms they act on.

    Raises:
        NormalizationError: If the shape is not (n_atom, 3).
    """
    expected = (molecule_index(batch, "pos").numel(), 3)
    if tuple(forces.shape) != expected:
        raise NormalizationError(
            f"{_where(batch)}: {name!r} has shape {tuple(forces.shape)}, expected {expected}: three for each atom"
        )


def check_fields(
    fields: Mapping[str, Tensor], batch: Data, energy_field: str, n_molecules: int, forces_field: str | None = None
) -> None:
    """Refuses a raw sample's or batch's fields that do not fit its basis functions, molecules or atoms.

    Args:
        fields: Fields by name.
        batch: The sample or batch that they belong to.
        energy_field: Name of the energies.
        n_molecules: Number of molecules of the batch.
        forces_field: Name of the forces; None: there are none.

    Raises:
        NormalizationError: See `check_vector`, `check_energy` and `check_forces`.
    """
    for name in PER_FUNCTION:
        if name in fields:
            check_vector(name, fields[name], batch)
    if energy_field in fields:
        check_energy(energy_field, fields[energy_field], n_molecules, batch)
    if forces_field is not None and forces_field in fields:
        check_forces(forces_field, fields[forces_field], batch)


def check_is_sample(batch: Any) -> None:
    """Refuses what is no sample or batch, or has no values.

    Args:
        batch: What came.

    Raises:
        NormalizationError: With what came instead.
    """
    if not is_sample(batch):
        raise NormalizationError(
            f"expected a sample or batch (torch_geometric.data.Data, such as OFData), got a {type(batch).__name__}"
        )
    values = {name: get_field(batch, name) for name in field_names(batch)}
    on_meta = [name for name, value in values.items() if isinstance(value, Tensor) and value.is_meta]
    if on_meta:
        raise NormalizationError(f"{_where(batch)}: the fields {on_meta} are on the meta device, which has no values")


def check_values(batch: Data, basis_info: BasisInfo | None) -> None:
    """Refuses a raw sample's or batch's coefficients and indices that cannot be right.

    Indices: which molecule each atom and each function belongs to, in order and without gaps at the end; and, where the
    basis is known, which element each atom is of and which function each coefficient belongs to. What cannot be seen:
    atoms that were permuted among those of one element.

    Args:
        batch: A raw sample or batch.
        basis_info: Its basis; None: indices are not compared with the elements.

    Raises:
        NormalizationError: If a coefficient is NaN or infinite.
        BatchError: If an index is wrong; with field, position, value and expectation.
    """
    coeffs = get_field(batch, "coeffs")
    # the sum is finite where all entries are, as far as they are labels; a sum is faster than looking at each entry
    if coeffs is not None and not math.isfinite(float(coeffs.detach().sum())) and not torch.isfinite(coeffs).all():
        entry = int((~torch.isfinite(coeffs.reshape(-1))).nonzero()[0])
        raise NormalizationError(
            f"{_where(batch)}: 'coeffs' holds {coeffs.reshape(-1)[entry].item()} at entry {entry}, expected finite "
            "numbers: density coefficients are known for every sample, whether it has labels or not"
        )
    molecules = {
        name: _integers(batch, name) for name in ("batch", "coeffs_batch") if get_field(batch, name) is not None
    }
    known = (
        basis_info is not None
        and get_field(batch, "atomic_numbers") is not None
        and get_field(batch, "atom_ind") is not None
    )
    n = n_molecules(batch)
    for name, index in molecules.items():
        if name == "batch" or not known or len(molecules) == 1:  # where both are known, they are compared below
            _check_molecule_index(batch, name, index, n)
    if basis_info is None or not known:
        return
    atom_ind = basis_info.atom_indices(_integers(batch, "atomic_numbers"), _where(batch))
    _compare(batch, "atom_ind", atom_ind, "the elements in 'atomic_numbers'")
    if get_field(batch, "basis_function_ind") is not None:
        expected = basis_info.basis_function_ind(atom_ind)
        _compare(batch, "basis_function_ind", expected, "the elements in 'atomic_numbers'")
    if len(molecules) == 2:
        functions = np.repeat(molecules["batch"], basis_info.basis_dim_per_atom[atom_ind])
        _compare(batch, "coeffs_batch", functions, "each atom's molecule in 'batch'")


def _integers(batch: Data, name: str) -> IntArray:
    values: IntArray = batch[name].detach().cpu().numpy()
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise BatchError(
            f"{_where(batch)}: field {name!r} has dtype {batch[name].dtype} and shape {values.shape}, expected "
            "integers in one dimension"
        )
    return values


def _check_molecule_index(batch: Data, name: str, index: IntArray, n_molecules: int) -> None:
    counts = {"batch": ("pos", "atomic_numbers", "z"), "coeffs_batch": ("coeffs",)}[name]
    fields = [field for field in counts if get_field(batch, field) is not None]
    if fields and len(batch[fields[0]]) != len(index):
        raise BatchError(
            f"{_where(batch)}: field {name!r} has {len(index)} entries, expected {len(batch[fields[0]])}, one for each "
            f"entry of {fields[0]!r}"
        )
    decreases = index[1:] < index[:-1]
    if len(index) and (index[0] < 0 or index[-1] >= n_molecules or decreases.any()):
        found = f"decreases at entry {int(decreases.argmax()) + 1}" if decreases.any() else "does not"
        raise BatchError(
            f"{_where(batch)}: field {name!r} runs from {index.min()} to {index.max()} and {found}, expected molecules "
            f"in order, 0 ... {n_molecules - 1}: collate samples with PyG's DataLoader or Batch.from_data_list"
        )


def _compare(batch: Data, name: str, expected: IntArray, source: str) -> None:
    found = _integers(batch, name)
    if found.shape != expected.shape:
        raise BatchError(
            f"{_where(batch)}: field {name!r} has {len(found)} entries, expected {len(expected)}, as follows from "
            f"{source}"
        )
    wrong = found != expected
    if wrong.any():
        entry = int(wrong.argmax())
        raise BatchError(
            f"{_where(batch)}: field {name!r} is {found[entry]} at entry {entry}, expected {expected[entry]}, as "
            f"follows from {source}: build samples with OFData.construct_new and the basis of data.source.basis_info"
        )


def check_coordinates(fitted: str | None, batch: Data) -> None:
    """Refuses samples that say they are in other coordinates than the normaliser was fitted in.

    Args:
        fitted: Of the normaliser; None: no check.
        batch: A raw sample or batch.

    Raises:
        NormalizationError: With both.
    """
    if fitted is None or get_field(batch, "coordinates") is None or coordinates_of(batch) == fitted:
        return
    raise NormalizationError(
        f"{_where(batch)}: is in the coordinates {coordinates_of(batch)!r}, but the normaliser was fitted in "
        f"{fitted!r}: bring samples there (config: data.pre_transforms), use statistics of these coordinates (config: "
        "data.statistics.path), or correct what the sample says (argument coordinates of OFData.construct_new)"
    )


def check_seen_elements(seen_elements: Tensor, batch: Data) -> None:
    """Refuses atoms of elements whose statistics are unknown.

    Args:
        seen_elements: (119,) bool by atomic number.
        batch: A sample or batch with `atomic_numbers`.

    Raises:
        NormalizationError: If an element was not seen in fitting.
    """
    numbers = batch["atomic_numbers"]
    inside = numbers.clamp(0, len(seen_elements) - 1).long()
    if not (seen_elements[inside] & (inside == numbers)).all():
        unseen = ~seen_elements[inside] | (inside != numbers)
        elements = sorted(set(numbers[unseen].tolist()))
        raise NormalizationError(
            f"field 'atomic_numbers' of {molecules_of_atoms(batch, unseen)} has the elements {elements}, which no "
            f"molecule of the training split has (fitted on {seen_elements.nonzero().squeeze(1).tolist()}): their "
            "statistics are unknown. Add such molecules to the training split (config: data.split), or set "
            "data.unseen_elements=identity to leave their coefficients as they are"
        )


def require_field(name: str, batch: Data, why: str) -> Tensor:
    """Returns a field of a sample or batch.

    Args:
        name: Name of the field.
        batch: A sample or batch.
        why: What it is needed for, for the message.

    Raises:
        NormalizationError: If the sample lacks it.
    """
    value = get_field(batch, name)
    if value is None:
        raise NormalizationError(
            f"{_where(batch)}: lacks the field {name!r}, which {why}; give it to OFData.construct_new"
        )
    return value


def molecules_of_atoms(batch: Data, atoms: Tensor) -> str:
    """Names the molecules of some atoms, for example ``"molecules ['water', 'ammonia']"``.

    Args:
        batch: A sample or batch.
        atoms: (n_atom,) bool, which atoms.
    """
    names, index = get_field(batch, "mol_id"), get_field(batch, "batch")
    if isinstance(names, list) and index is not None:
        return f"molecules {sorted({str(names[i]) for i in index[atoms].tolist()})}"
    return "the sample" if names is None else f"molecule {names!r}"


def _where(batch: Data | Mapping[str, Tensor]) -> str:
    name = get_field(batch, "mol_id")
    if isinstance(name, list):
        return f"the batch of the molecules {name[:3]}{' ...' if len(name) > 3 else ''}"
    return "the sample" if name is None else f"molecule {name!r}"
