"""Checks of what is handed to the normaliser, with messages that say what was expected."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.fields import PER_FUNCTION
from ofdft_norm.errors import NormalizationError


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
    index = batch.get("basis_function_ind")
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

    Raises:
        NormalizationError: If the shape is neither (n_molecules,) nor (n_molecules, 1), nor () for one molecule.
    """
    allowed = ((n_molecules,), (n_molecules, 1)) + (((),) if n_molecules == 1 else ())
    if tuple(energy.shape) not in allowed:
        raise NormalizationError(
            f"{_where(batch)}: {name!r} has shape {tuple(energy.shape)}, expected ({n_molecules},) or "
            f"({n_molecules}, 1): one energy for each molecule"
        )


def check_fields(fields: Mapping[str, Tensor], batch: Data, energy_field: str, n_molecules: int) -> None:
    """Refuses a raw sample's or batch's fields that do not fit its basis functions or its number of molecules.

    Raises:
        NormalizationError: See `check_vector` and `check_energy`.
    """
    for name in PER_FUNCTION:
        if name in fields:
            check_vector(name, fields[name], batch)
    if energy_field in fields:
        check_energy(energy_field, fields[energy_field], n_molecules, batch)


def check_seen_elements(seen_elements: Tensor, batch: Data) -> None:
    """Refuses atoms of elements whose statistics are unknown.

    Args:
        seen_elements: (119,) bool by atomic number.
        batch: A sample or batch with `atomic_numbers`.

    Raises:
        NormalizationError: If an element was not seen in fitting.
    """
    numbers = batch["atomic_numbers"]
    inside = (numbers >= 0) & (numbers < len(seen_elements))
    unseen = ~(inside & seen_elements[torch.where(inside, numbers, 0).long()])
    if unseen.any():
        elements = sorted(set(numbers[unseen].tolist()))
        raise NormalizationError(
            f"field 'atomic_numbers' of {_molecules_of_atoms(batch, unseen)} has the elements {elements}, which no "
            f"molecule of the training split has (fitted on {seen_elements.nonzero().squeeze(1).tolist()}): their "
            "statistics are unknown. Add such molecules to the training split (config: data.split), or set "
            "data.unseen_elements=identity to leave their coefficients as they are"
        )


def require_field(name: str, batch: Data, why: str) -> Tensor:
    """Returns a field of a sample or batch.

    Raises:
        NormalizationError: If the sample lacks it.
    """
    value = batch.get(name)
    if value is None:
        raise NormalizationError(
            f"{_where(batch)}: lacks the field {name!r}, which {why}; give it to OFData.construct_new"
        )
    return value


def _molecules_of_atoms(batch: Data, atoms: Tensor) -> str:
    """Names the molecules of some atoms, given as (n_atom,) bool: for example ``"molecules ['water', 'ammonia']"``."""
    names, index = batch.get("mol_id"), batch.get("batch")
    if isinstance(names, list) and index is not None:
        return f"molecules {sorted({str(names[i]) for i in index[atoms].tolist()})}"
    return "the sample" if names is None else f"molecule {names!r}"


def _where(batch: Data | Mapping[str, Tensor]) -> str:
    name = batch.get("mol_id")
    if isinstance(name, list):
        return f"the batch of the molecules {name[:3]}{' ...' if len(name) > 3 else ''}"
    return "the sample" if name is None else f"molecule {name!r}"
