"""References that are given, not fitted: energies by element or atomic number, state dicts, files of other programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from ofdft_norm.data.elements import atomic_number
from ofdft_norm.errors import ConfigError, StatisticsError, did_you_mean
from ofdft_norm.normalization.element_references import (
    EXTRA_STATE,
    LinearReferences,
    UnseenPolicy,
    without_entry_0,
)
from ofdft_norm.normalization.reference_files import ONLY_TARGET, parse_values, read_reference_file
from ofdft_norm.normalization.reference_summary import FitReport
from ofdft_norm.units import EnergyUnit, energy_in_hartree


def references_from_values(
    values: Mapping[Any, Any] | Sequence[Any] | Tensor | np.ndarray | str,
    max_num_elements: int = 118,
    unseen_elements: UnseenPolicy = "error",
    atomic_numbers_field: str = "atomic_numbers",
    unit: EnergyUnit = "hartree",
) -> LinearReferences:
    """Makes references of given energies, such as those of isolated atoms.

    Args:
        values: A mapping of symbols or atomic numbers to energies: exactly these elements have a reference, 0 included.
            Or a list, array or tensor indexed by atomic number, whose entry 0 is 0 or null: in it 0 and null mean "no
            reference". Or either as text, ``"{1: -13.6}"``, as MACE's options have it. Of an element with energies by
            charge, as fairchem's isolated atoms have, the neutral atom's is taken.
        max_num_elements: Largest atomic number.
        unseen_elements: See `LinearReferences`.
        atomic_numbers_field: See `LinearReferences`.
        unit: What the energies are given in; the references are in hartree.

    Raises:
        ConfigError: If an element is unknown, given twice or beyond `max_num_elements`, or a value is no finite number.
        StatisticsError: If a list has a value at index 0.

    Example:
        >>> references_from_values({"H": -0.5, 8: -75.06}).element_references[8].item()
        -75.06
    """
    if isinstance(values, str):
        values = _literal(values)
    if isinstance(values, Tensor | np.ndarray):
        values = _vector(values, "reference values").tolist()
    if isinstance(values, Mapping | DictConfig):
        pairs = [(_element(key), value) for key, value in values.items()]
    elif isinstance(values, Sequence | ListConfig) and not isinstance(values, str):
        pairs = _pairs_of_list(values)
    else:
        raise ConfigError(
            f"reference values are a {type(values).__name__}; expected a mapping of elements to energies, or a list "
            "indexed by atomic number (config: data.reference.values)"
        )
    references = torch.zeros(max_num_elements + 1, dtype=torch.float64)
    seen = torch.zeros(max_num_elements + 1, dtype=torch.bool)
    for number, value in pairs:
        if not 1 <= number <= max_num_elements:
            raise ConfigError(
                f"reference value for the atomic number {number}: expected 1 ... {max_num_elements} "
                "(config: data.reference.max_num_elements)"
            )
        if seen[number]:
            raise ConfigError(f"two reference values for the element {number} (config: data.reference.values)")
        references[number], seen[number] = _finite(value, number), True
    if not seen.any():
        raise ConfigError("no reference value is given (config: data.reference.values)")
    references *= energy_in_hartree(unit, "config: data.reference.unit")
    return LinearReferences(references, max_num_elements, seen, unseen_elements, atomic_numbers_field)


def _literal(text: str) -> Any:
    try:
        return parse_values(text)
    except ValueError as error:
        raise ConfigError(
            f"reference values {text!r:.80} are no mapping or list ({error}); expected such as '{{1: -0.5}}' "
            "(config: data.reference.values)"
        ) from None


def _element(key: Any) -> int:
    if isinstance(key, bool):
        raise ConfigError(
            f"reference values have the element {key}: YAML reads the symbol No as false; write it in quotes, or 102 "
            "(config: data.reference.values)"
        )
    if isinstance(key, Integral) or (isinstance(key, str) and key.isdecimal()):
        return int(key)
    return atomic_number(key)


def _pairs_of_list(values: Sequence[Any]) -> list[tuple[int, Any]]:
    if len(values) and isinstance(values[0], Real):
        without_entry_0(float(values[0]))
    return [(number, value) for number, value in enumerate(values) if number and value is not None and value != 0]


def _finite(value: Any, number: int) -> float:
    if isinstance(value, Mapping | DictConfig):
        value = value.get(0, value.get("0"))
    if isinstance(value, Tensor | np.ndarray) and np.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(
            f"reference value of the element {number} is {value!r}, expected a finite number "
            "(config: data.reference.values)"
        )
    return float(value)


def create_element_references(
    file: str | Path | None = None,
    state_dict: Mapping[str, Any] | None = None,
    target: str | None = None,
    unit: EnergyUnit = "hartree",
) -> LinearReferences:
    """Creates a reference module from a file or a state dict.

    Args:
        file: See `read_reference_file` for the formats. Nothing is unpickled.
        state_dict: A state dict with ``element_references``.
        target: Which references of a file that has those of several targets.
        unit: What the values are given in; the references are in hartree.

    Returns:
        The references.

    Raises:
        ConfigError: If both or neither are given, or the file has several targets and none is named.
        StatisticsError: If the file cannot be read or holds no references.
    """
    if (file is None) == (state_dict is None):
        raise ConfigError("create_element_references needs either a file or a state_dict (config: data.reference.file)")
    if file is None:
        return references_of(state_dict, "state_dict", unit)
    content = read_reference_file(Path(file))
    known = [name for name in content if name != ONLY_TARGET]
    if target is None and len(content) > 1:
        raise ConfigError(
            f"{file}: holds references of {known}: name one of them (argument target, config: data.reference.target)"
        )
    if target is not None and known and target not in content:
        raise ConfigError(
            f"{file}: has no references of {target!r}; it has {known}{did_you_mean(target, known)} (config: "
            "data.reference.target)"
        )
    name = target if target in content else next(iter(content))
    if name and target is None and isinstance(content[name], Tensor | np.ndarray):
        raise StatisticsError(
            f"{file}: lacks 'element_references'; it has {known}: name the one that holds references (argument target, "
            "config: data.reference.target)"
        )
    return references_of(content[name], f"{file}: {name!r}" if name else str(file), unit)


def references_of(content: Any, where: str, unit: EnergyUnit = "hartree") -> LinearReferences:
    """Makes references of what a file or a configuration has for one target.

    Args:
        content: A state dict, a vector, or what `references_from_values` takes.
        where: Where it stands, for messages.
        unit: What the values are given in.

    Raises:
        StatisticsError: If it holds no references.
        ConfigError: See `references_from_values`.
    """
    if isinstance(content, Mapping) and "element_references" in content:
        return _from_state(content, where, unit)
    if isinstance(content, Tensor | np.ndarray):
        return _from_state({"element_references": content}, where, unit)
    if not isinstance(content, Mapping | Sequence | DictConfig | ListConfig) or not len(content):
        raise StatisticsError(
            f"{where}: is {content!r:.80}, expected a state dict with 'element_references', a vector, or energies by "
            "element"
        )
    try:
        return references_from_values(content, unit=unit)
    except (ConfigError, StatisticsError) as error:
        raise type(error)(f"{where}: {error}") from None


def _from_state(state: Mapping[str, Any], where: str, unit: EnergyUnit) -> LinearReferences:
    references = _vector(state["element_references"], f"{where}: 'element_references'").to(torch.float64, copy=True)
    references[0] = without_entry_0(float(references[0]))
    # what other programs' classes do not have stands in the metadata of a state dict
    more = {**getattr(state, "_metadata", {}).get("", {}), **state}
    seen, report = more.get("seen_elements"), more.get(EXTRA_STATE)
    factor = energy_in_hartree(unit, "config: data.reference.unit")
    return LinearReferences(
        references * factor,
        seen_elements=None if seen is None else _vector(seen, f"{where}: 'seen_elements'"),
        fit_report=FitReport.from_plain(report) if report and factor == 1 else None,
    )


def _vector(value: Any, where: str) -> Tensor:
    """Returns one real number for each atomic number; a column or a row is a vector too."""
    try:
        tensor = torch.as_tensor(value).cpu().to_dense()
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        raise StatisticsError(f"{where} holds no numbers: {value!r:.80}") from None
    if tensor.is_complex():
        raise StatisticsError(f"{where} is complex ({tensor.dtype}), expected real numbers")
    if tensor.numel() < 2 or tensor.numel() != max(tensor.shape):
        raise StatisticsError(
            f"{where} has shape {tuple(tensor.shape)}, expected a vector of one value for each atomic number, from 0"
        )
    return tensor.reshape(-1)
