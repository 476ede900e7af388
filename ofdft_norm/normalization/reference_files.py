"""Given references: energies by element, state dicts, files of other programs; nothing is unpickled."""

import ast
import inspect
import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ofdft_norm.data.elements import find_atomic_number
from ofdft_norm.data.files import read_plain, write_whole
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.normalization.fit_references import fit_linear_references
from ofdft_norm.normalization.linear_references import (
    EXTRA_STATE,
    LinearReferences,
    LinearReferencesConfig,
    UnseenPolicy,
    check_unseen_policy,
)
from ofdft_norm.settings import to_builtin
from ofdft_norm.statistics.distributed import find_ranks
from ofdft_norm.units import EnergyUnit, find_factor

ONLY_TARGET = ""  # key of the references of a file without named targets
CHECKPOINT_NAME = "element_references.pt"

_ROUNDING = 1e-12  # entry 0 belongs to no element; published lists have rounding there, such as -8e-19
_FAIRCHEM = "fairchem.core.modules.normalization.element_references"
_KEY = "config: data.reference.values"
_UNIT_KEY = "config: data.reference.unit"


def references_from_values(
    values: Mapping[Any, Any] | Sequence[Any] | Tensor | np.ndarray | str,
    max_num_elements: int = 118,
    unseen_elements: UnseenPolicy = "error",
    atomic_numbers_field: str = "atomic_numbers",
    unit: EnergyUnit = "hartree",
) -> LinearReferences:
    """Makes references from given energies, such as those of isolated atoms.

    Args:
        values: A mapping of symbols or atomic numbers to energies: exactly these elements have a reference, 0 included.
            Or a list, array or tensor indexed by atomic number, with 0 or null at index 0: in it 0 and null mean "no
            reference". Or either as text, ``"{1: -13.6}"``, as in MACE's options. From energies by charge of one
            element, as fairchem's isolated atoms have, the neutral atom's is taken.
        max_num_elements: Largest atomic number.
        unseen_elements: See `LinearReferences`.
        atomic_numbers_field: See `LinearReferences`.
        unit: Unit of the given energies; the references are in hartree.

    Returns:
        The references.

    Raises:
        ConfigError: If an element is unknown, given twice or beyond `max_num_elements`, or a value is no finite number.
        StatisticsError: If a list has a value at index 0.

    Examples:
        >>> references_from_values({"H": -0.5, 8: -75.06}).element_references[8].item()
        -75.06
    """
    values = to_builtin(values)
    if isinstance(values, str):
        try:
            values = ast.literal_eval(values)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ConfigError(f"reference values {values!r:.80} are no mapping or list: {error} ({_KEY})") from None
    if isinstance(values, Mapping):
        pairs = [(_parse_element(key), value) for key, value in values.items()]
    else:
        listed = [0 if value is None else value for value in values] if isinstance(values, list | tuple) else values
        pairs = [(number, value) for number, value in enumerate(_as_vector(listed).tolist()) if value != 0]
    numbers = [number for number, _ in pairs]
    if not pairs or len(set(numbers)) < len(pairs) or not all(1 <= number <= max_num_elements for number in numbers):
        expected = f"one for each of some elements 1 ... {max_num_elements}"
        raise ConfigError(f"reference values for the atomic numbers {sorted(numbers)}: expected {expected} ({_KEY})")
    references = torch.zeros(max_num_elements + 1, dtype=torch.float64)
    references[numbers] = torch.tensor([_parse_energy(value, number) for number, value in pairs], dtype=torch.float64)
    references *= find_factor(unit, "hartree", _UNIT_KEY)
    seen = torch.zeros_like(references, dtype=torch.bool).index_fill(0, torch.tensor(numbers), True)
    return LinearReferences(references, max_num_elements, seen, unseen_elements, atomic_numbers_field)


def _parse_element(key: Any) -> int:
    if isinstance(key, bool):
        raise ConfigError(f"the element {key}: YAML reads the symbol No as false; write it in quotes, or 102 ({_KEY})")
    return int(key) if isinstance(key, Integral) or str(key).isdecimal() else find_atomic_number(key)


def _parse_energy(value: Any, number: int) -> float:
    if isinstance(value, Mapping):  # energies by charge of the atom
        value = value.get(0, value.get("0"))
    if isinstance(value, Tensor | np.ndarray) and np.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"reference value of the element {number} is {value!r}, expected a finite number ({_KEY})")
    return float(value)


def _as_vector(value: Any) -> Tensor:
    """Returns one real number for each atomic number, of a vector, a column or a row; index 0 must be 0."""
    try:
        array = np.array(value, dtype=np.float64) if isinstance(value, list) else value  # torch would make float32
        tensor = torch.as_tensor(array).cpu().to_dense()
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        raise StatisticsError(f"reference values are no numbers: {value!r:.80} ({_KEY})") from None
    if tensor.is_complex() or tensor.numel() < 2 or tensor.numel() != max(tensor.shape):
        found = f"dtype {tensor.dtype} and shape {tuple(tensor.shape)}"
        raise StatisticsError(f"reference values have {found}, expected real numbers by atomic number from 0 ({_KEY})")
    vector = tensor.reshape(-1).to(torch.float64, copy=True)
    if abs(vector[0]) >= _ROUNDING:
        raise StatisticsError(f"references by atomic number have {vector[0]:g} at index 0, expected 0 ({_KEY})")
    vector[0] = 0
    return vector


def create_element_references(
    file: str | Path | None = None,
    state_dict: Mapping[str, Any] | None = None,
    target: str | None = None,
    unit: EnergyUnit = "hartree",
) -> LinearReferences:
    """Creates references from a file or a state dict.

    Args:
        file: See `read_reference_file` for the formats. Nothing is unpickled.
        state_dict: A state dict with ``element_references``.
        target: Name of the target in a file with references of several targets.
        unit: Unit of the values; the references are in hartree.

    Returns:
        The references.

    Raises:
        ConfigError: If both or neither are given, or the file has several targets and none is named.
        StatisticsError: If the file cannot be read or has no references.
    """
    if (file is None) == (state_dict is None):
        raise ConfigError("create_element_references needs either a file or a state_dict (config: data.reference.file)")
    factor = find_factor(unit, "hartree", _UNIT_KEY)
    return _make_references(state_dict, "state_dict", factor) if file is None else _read_file(file, target, factor)


def read_given_references(config: LinearReferencesConfig, unit: str) -> LinearReferences | None:
    """Returns the references that a configuration gives, or its base, in a unit; None if it gives none."""
    factor, file = find_factor(config.unit or unit, unit, _UNIT_KEY), config.file or config.base
    if config.values is None:
        return None if file is None else _read_file(file, config.target, factor)
    references = references_from_values(config.values, config.max_num_elements)
    references.element_references *= factor
    return references


def _read_file(file: str | Path, target: str | None, factor: float) -> LinearReferences:
    content = read_reference_file(Path(file))
    name = ONLY_TARGET if ONLY_TARGET in content else target
    # a single tensor may be the state dict of another module
    if name is None and len(content) == 1 and not isinstance(next(iter(content.values())), Tensor | np.ndarray):
        (name,) = content
    if name not in content:
        raise ConfigError(f"{file}: target is {target!r}, expected {sorted(content)} (config: data.reference.target)")
    return _make_references(content[name], f"{file}: {name!r}" if name else str(file), factor)


def _make_references(content: Any, where: str, factor: float = 1.0) -> LinearReferences:
    """Makes references, times a factor, from a state dict, a vector, or the values of `references_from_values`."""
    try:
        if isinstance(content, Tensor | np.ndarray):
            references = LinearReferences(_as_vector(content))
        elif not isinstance(content, Mapping) or "element_references" not in content:
            references = references_from_values(content)
        else:
            # entries of a state dict that other packages lack are in its metadata
            entries = {**getattr(content, "_metadata", {}).get("", {}), **content}
            report, seen = entries.get(EXTRA_STATE), entries.get("seen_elements")
            seen = None if seen is None else _as_vector(seen)
            references = LinearReferences(_as_vector(content["element_references"]), seen_elements=seen)
            references.set_extra_state(report if factor == 1 else None)
    except (ConfigError, StatisticsError) as error:
        raise type(error)(f"{where}: {error}") from None
    references.element_references *= factor
    return references


def read_reference_file(path: Path) -> dict[str, Any]:
    """Reads references by target: state dicts, vectors or mappings of elements; `ONLY_TARGET` if none is named.

    ``.pt``: a state dict or tensor, or one for each target; fairchem's pickled ``element_references.pt``
    ``.ckpt``: a checkpoint of a training with linear references
    ``.npz``: ``element_references`` or ``coeff`` (fairchem), ``atom_ref`` with a column for each of ``labels``
    (schnetpack), or a vector for each target; ``.npy``: a vector
    ``.json``, ``.yaml``: energies by element (MACE's ``E0s.json``, ``statistics.json``), a list by atomic number, or
    either for each target (UMA's lists)
    """
    readers = {".npz": _read_npz, ".npy": _read_npz, ".json": read_plain, ".yaml": read_plain, ".yml": read_plain}
    readers |= dict.fromkeys((".pt", ".pth", ".ckpt"), _read_pt)
    if path.suffix not in readers:
        raise StatisticsError(f"{path}: expected a file of {sorted(readers)} (config: data.reference.file)")
    try:
        content = readers[path.suffix](path)
    except StatisticsError:
        raise
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise StatisticsError(f"{path}: cannot be read: {error} (config: data.reference.file)") from error
    if isinstance(content, Mapping) and "atomic_energies" in content:  # MACE's statistics.json
        content = content["atomic_energies"]
    if not isinstance(content, Mapping) or "element_references" in content:
        return {ONLY_TARGET: content}
    by_element = not any(isinstance(value, Sequence | Mapping) or np.ndim(value) for value in content.values())
    return {ONLY_TARGET: content} if content and by_element else {str(key): value for key, value in content.items()}


def _read_npz(path: Path) -> Any:
    file = np.load(path, allow_pickle=False)
    if isinstance(file, np.ndarray):
        return file
    with file:
        content = {name: file[name] for name in file.files}
    if "element_references" not in content and "coeff" in content:
        content["element_references"] = content.pop("coeff")
    if "atom_ref" not in content:
        return content
    columns = np.atleast_2d(content["atom_ref"].T)
    labels = [str(label) for label in content.get("labels", range(len(columns)))]
    return columns[0] if len(columns) == 1 else dict(zip(labels, columns, strict=True))


class _Buffers(dict[str, Any]):
    """Stands for fairchem's modules of references, versions 1 and 2, and keeps only their tensors."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.update(state["_buffers"])


def _read_pt(path: Path) -> Any:
    # torch builds only tensors, plain containers and these
    modules: list[Any] = [(_Buffers, f"{_FAIRCHEM}.{name}") for name in ("LinearReferences", "ElementReferences")]
    try:
        with torch.serialization.safe_globals(modules):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, KeyError, TypeError) as error:
        message = "has pickled objects, which are never loaded: save state_dict() with the package that wrote the file"
        raise StatisticsError(f"{path}: {message}") from error
    return _find_in_checkpoint(path, content) if isinstance(content, Mapping) and "state_dict" in content else content


def _find_in_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> Any:
    """Returns the values of the linear references in a checkpoint, of the model or the data module."""
    pending: list[Mapping[str, Any]] = [checkpoint]
    for mapping in pending:
        part = mapping["parts"]["reference"] if {"format", "parts"} <= mapping.keys() else None
        if part is not None and part["class"] == "LinearReferences":
            return part["values"]
        pending += [value for value in mapping.values() if isinstance(value, Mapping)]
    raise StatisticsError(f"{path}: has no references of data/reference=linear or fixed (config: data.reference.file)")


def load_references_from_config(
    config: Mapping[str, Any], dataset: Any, seed: int = 0, checkpoint_dir: str | Path | None = None
) -> dict[str, LinearReferences]:
    """Creates the references of all targets that a configuration names; each target has one source.

    Keys:
        file: A file with the references of several targets: a state dict, or a vector, for each.
        fit: Arguments of `fit_linear_references` (without the data set).
        <target>: References of one target: ``{file: ...}`` (with ``target`` for a file of several targets),
            ``{state_dict: ...}`` or ``{values: ...}``, each with `unseen_elements`, and with the ``unit`` of its
            values, such as eV, if they are to become hartree; or the values themselves, see `references_from_values`.

    Args:
        config: The configuration; a mapping or a `DictConfig`.
        dataset: Samples to fit on; not read unless there is something to fit.
        seed: Seed of the fit's shuffling, unless `fit` has its own.
        checkpoint_dir: Folder where all references are written as ``element_references.pt``, a `file` for later runs,
            which loads with ``torch.load(weights_only=True)``. Under torch.distributed rank 0 writes.

    Returns:
        References by target.

    Raises:
        ConfigError: If a key is unknown, or a target has no source or several.
        StatisticsError: If a file cannot be read, or lacks a target.
    """
    entries = {str(target): to_builtin(config[target]) for target in config}
    file, fit = entries.pop("file", None), entries.pop("fit", None) or {"targets": [], "batch_size": 1}
    arguments = {*inspect.signature(fit_linear_references).parameters} - {"dataset"}
    is_fit = isinstance(fit, Mapping) and {"targets", "batch_size"} <= fit.keys() <= arguments
    if not is_fit or isinstance(fit["targets"], str):
        raise ConfigError(f"fit = {fit!r}: expected a list of targets, batch_size, perhaps {sorted(arguments)}")
    in_file = {} if file is None else read_reference_file(Path(file))
    if ONLY_TARGET in in_file:
        raise StatisticsError(f"{file}: has the references of a single target; expected <target>: {{file: {file}}}")
    names = [*entries, *in_file, *fit["targets"]]
    if not names or len(set(names)) < len(names):
        expected = "expected 'file', 'fit', or an entry, for each once"
        raise ConfigError(f"references of the targets {sorted(names)}: {expected}")
    references = {target: _make_references(content, f"{file}: {target!r}") for target, content in in_file.items()}
    references |= {target: _read_target(target, entry) for target, entry in entries.items()}
    if fit["targets"]:
        references |= fit_linear_references(dataset=dataset, **{"seed": seed, **fit})
    if checkpoint_dir is not None and find_ranks().rank == 0:
        with write_whole(Path(checkpoint_dir) / CHECKPOINT_NAME, replace=True) as path:
            torch.save({target: module.state_dict() for target, module in references.items()}, path)
    return references


def _read_target(target: str, entry: Any) -> LinearReferences:
    """Reads the entry of one target: values, or a mapping with a file, values or a state dict and options."""
    sources = {"file", "values", "state_dict"}.intersection(entry if isinstance(entry, Mapping) else ())
    if not sources:
        return _make_references(entry, target)
    if len(sources) > 1 or not {*entry} <= {*sources, "target", "unit", "unseen_elements"}:
        expected = "one of file, values, state_dict, and perhaps target, unit, unseen_elements"
        raise ConfigError(f"{target} has the keys {[*entry]}: expected {expected}")
    unit = entry.get("unit", "hartree")
    if "file" in entry:
        references = create_element_references(entry["file"], target=entry.get("target"), unit=unit)
    else:
        references = _make_references(entry[sources.pop()], target, find_factor(unit, "hartree", _UNIT_KEY))
    references.unseen_elements = check_unseen_policy(entry.get("unseen_elements", "error"))
    return references
