"""Samples of somebody else, each looked at as it is read: fields that are named are there, and can be right."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import MAX_ATOMIC_NUMBER
from ofdft_norm.data.of_data import field_names, get_field, is_sample, samples_at
from ofdft_norm.errors import BatchError, did_you_mean


@dataclass(frozen=True)
class SampleFields:
    """The fields of samples that are normalised.

    Attributes:
        energy: Field of the energy.
        forces: Field of the forces; None: there are none.
        atomic_numbers: Field of the atomic numbers; where a sample lacks it, PyG's ``z`` is used.
        labelled: Whether every sample needs energy (and forces): samples to predict on do not.
    """

    energy: str
    forces: str | None
    atomic_numbers: str
    labelled: bool = True


class CheckedSamples(Dataset[Data]):
    """A data set whose samples are checked as they are read, see `checked`.

    Args:
        dataset: Somebody else's, of `Data`.
        part: Name of the split, for messages.
        fields: What is to be there.
    """

    def __init__(self, dataset: Any, part: str, fields: SampleFields) -> None:
        self.dataset = dataset
        self.part = part
        self.fields = fields

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Data:
        """Returns a sample; numbers that are no tensors become some, in a copy."""
        return self._checked(index, self.dataset[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Data]:
        """Returns several samples, read at once where the data set can."""
        samples = samples_at(self.dataset, indices)
        return [self._checked(i, sample) for i, sample in zip(indices, samples, strict=True)]

    def _checked(self, index: int, sample: Any) -> Data:
        name = getattr(sample, "mol_id", None)
        where = f"sample {index} of the {self.part} data" + ("" if name is None else f" (molecule {name!r})")
        return checked(sample, where, self.fields)


def checked(sample: Any, where: str, fields: SampleFields) -> Data:
    """Refuses a sample that lacks a field, or has one of another shape or with numbers that are not finite.

    Of a sample whose `has_energy_label` is false, energy and forces are not asked for.

    Args:
        sample: A sample.
        where: Names it.
        fields: What is to be there: one energy; forces (n_atom, 3); atomic numbers (n_atom,).

    Returns:
        The sample, or a copy of it in which numbers and arrays are tensors, those of Python in float64.

    Raises:
        BatchError: With sample, field, value, and the setting that names the field.
    """
    if not is_sample(sample):
        raise BatchError(
            f"{where} is a {type(sample).__name__}, expected a torch_geometric.data.Data (config: data.source)"
        )
    numbers_field = fields.atomic_numbers if fields.atomic_numbers in sample else "z"
    given = {"atomic_numbers_field": numbers_field, "energy_field": fields.energy, "forces_field": fields.forces}
    labelled = get_field(sample, "has_energy_label")
    if labelled is not None and not bool(torch.as_tensor(labelled).all()):
        given = {"atomic_numbers_field": numbers_field}
    converted: dict[str, Tensor] = {}
    n_atoms = 0
    for setting, field in given.items():
        if field is None or (field not in sample and not fields.labelled and setting != "atomic_numbers_field"):
            continue
        place = f"{where}: field {field!r}", f"(argument {setting}, config: data.source.{setting})"
        if field not in sample:
            named = fields.atomic_numbers if setting == "atomic_numbers_field" else field
            known = field_names(sample)
            raise BatchError(
                f"{where}: lacks the field {named!r}; it has {known}{did_you_mean(named, known)} {place[1]}"
            )
        value = _tensor(sample[field], *place)
        if value is not sample[field]:
            converted[field] = value
        if setting == "atomic_numbers_field":
            n_atoms = len(check_atomic_numbers(value, *place))
        else:
            shape = (n_atoms, 3) if setting == "forces_field" else None
            check_numbers(value, shape, *place)
    if converted:
        sample = copy.copy(sample)
        for field, value in converted.items():
            sample[field] = value
    return sample


def _tensor(value: Any, where: str, setting: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float64)
    except (TypeError, ValueError):
        raise BatchError(f"{where} is {value!r:.60}, expected a tensor of numbers {setting}") from None
    return torch.from_numpy(np.atleast_1d(array))


def check_atomic_numbers(value: Tensor, where: str, setting: str) -> Tensor:
    """Returns (n_atom,) atomic numbers, unless they are of another shape, or some are no element's.

    Args:
        value: What a sample has.
        where: Sample and field, for messages.
        setting: What to change, in brackets, for messages.

    Raises:
        BatchError: If they are not, with the first atom that is wrong.
    """
    if value.ndim != 1:
        raise BatchError(f"{where} has shape {tuple(value.shape)}, expected (n_atom,) atomic numbers {setting}")
    bad = (value != value.round() if value.is_floating_point() else value < 0) | (value < 1)
    bad |= value > MAX_ATOMIC_NUMBER
    if bad.any():
        atom = int(bad.nonzero()[0])
        raise BatchError(
            f"{where} is {value[atom].item()} at atom {atom}, expected atomic numbers 1 ... {MAX_ATOMIC_NUMBER} "
            f"{setting}"
        )
    return value


def check_numbers(value: Tensor, shape: tuple[int, ...] | None, where: str, setting: str) -> None:
    """Refuses another shape (None: one number in any), and numbers that are not finite.

    Args:
        value: What a sample has.
        shape: Expected shape; None: one number, in any.
        where: Sample and field, for messages.
        setting: What to change, in brackets, for messages.

    Raises:
        BatchError: For another shape, or with the first entry that is not finite.
    """
    if tuple(value.shape) != shape if shape is not None else value.numel() != 1:
        expected = "one number" if shape is None else f"{shape}: three numbers for each atom"
        raise BatchError(f"{where} has shape {tuple(value.shape)}, expected {expected} {setting}")
    if not torch.isfinite(value).all():
        entry = (~torch.isfinite(value)).nonzero()[0].tolist()
        at = f" at atom {entry[0]}, component {entry[1]}" if shape is not None else ""
        raise BatchError(
            f"{where} is {value[tuple(entry)].item()}{at}, expected finite numbers: correct the label, leave the "
            f"sample out, or mark it by has_energy_label=False {setting}"
        )
