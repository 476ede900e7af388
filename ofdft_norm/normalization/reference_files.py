"""Reads reference energies from the files that other programs keep them in, without ever unpickling code."""

from __future__ import annotations

import ast
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ofdft_norm.data.plain_files import read_json, read_yaml
from ofdft_norm.errors import StatisticsError

# Under this name stand the references of a file that names no target.
ONLY_TARGET = ""

_FAIRCHEM = "fairchem.core.modules.normalization.element_references"


class _Pickled:
    """Stands in for fairchem's modules of references, of versions 1 and 2, of which it keeps the tensors alone."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state["_buffers"])


def read_reference_file(path: Path) -> dict[str, Any]:
    """Reads references by target.

    Args:
        path: One of
            ``.pt``: a state dict or tensor, or one for each target; fairchem's pickled ``element_references.pt``;
            ``.ckpt``: a checkpoint of a training with linear references;
            ``.npz``: ``element_references`` or ``coeff`` (fairchem), ``atom_ref`` with a column for each of ``labels``
            (schnetpack), or a vector for each target; ``.npy``: a vector;
            ``.json``, ``.yaml``: energies by element (MACE's ``E0s.json``), a list by atomic number, or either for each
            target (lists of UMA).

    Returns:
        For each target a state dict, a vector or a mapping of elements; `ONLY_TARGET` where the file names none.

    Raises:
        StatisticsError: If the file is missing, of another kind, or would need unpickling of classes.
    """
    readers = {".npz": _read_npz, ".npy": _read_npz, ".json": _read_text, ".yaml": _read_text, ".yml": _read_text}
    readers |= dict.fromkeys((".pt", ".pth", ".ckpt"), _read_pt)
    if not path.is_file():
        raise StatisticsError(f"{path}: no such file of element references (config: data.reference.file)")
    if path.suffix not in readers:
        raise StatisticsError(
            f"{path}: element references are read from files of the kinds {sorted(readers)}, not {path.suffix!r} "
            "(config: data.reference.file)"
        )
    content = readers[path.suffix](path)
    if not isinstance(content, Mapping) or "element_references" in content or _is_of_elements(content):
        return {ONLY_TARGET: content}
    return {str(target): value for target, value in content.items()}


def parse_values(text: str) -> Any:
    """Returns what is written as ``"{1: -13.6}"``, as MACE's options have it.

    Args:
        text: A Python literal.

    Raises:
        ValueError: If it is no literal.
    """
    try:
        return ast.literal_eval(text)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _is_of_elements(content: Mapping[Any, Any]) -> bool:
    numbers = (int, float, torch.Tensor, np.ndarray, np.generic)
    return bool(content) and all(isinstance(value, numbers) and np.ndim(value) == 0 for value in content.values())


def _read_npz(path: Path) -> Any:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            return file
        with file:
            content = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise StatisticsError(f"{path}: cannot be read as plain arrays: {error}") from error
    if "element_references" not in content and "coeff" in content:
        content["element_references"] = content.pop("coeff")
    if "atom_ref" not in content:
        return content
    columns = np.atleast_2d(content["atom_ref"].T)
    labels = [str(label) for label in content.get("labels", range(len(columns)))]
    if len(labels) != len(columns):
        raise StatisticsError(f"{path}: 'atom_ref' has {len(columns)} columns, but 'labels' are {labels}")
    return columns[0] if len(columns) == 1 else dict(zip(labels, columns, strict=True))


def _read_text(path: Path) -> Any:
    try:
        content = read_json(path) if path.suffix == ".json" else read_yaml(path)
        if isinstance(content, Mapping) and "atomic_energies" in content:  # MACE's statistics.json
            content = content["atomic_energies"]
        return parse_values(content) if isinstance(content, str) else content
    except (ValueError, OSError) as error:
        raise StatisticsError(f"{path}: cannot be read: {error}") from error


def _read_pt(path: Path) -> Any:
    # torch builds nothing but tensors, plain containers and these
    stand_ins: list[Any] = [(_Pickled, f"{_FAIRCHEM}.{name}") for name in ("LinearReferences", "ElementReferences")]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, KeyError, TypeError) as error:
        raise StatisticsError(
            f"{path}: holds pickled objects, which are never loaded; where you trust the file, convert it once, where "
            f"the package that wrote it is installed: `import torch; modules = torch.load({str(path)!r}, "
            "weights_only=False); modules = modules if isinstance(modules, dict) else {'energy': modules}; "
            "torch.save({name: module.state_dict() for name, module in modules.items()}, 'references.pt')`"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise StatisticsError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, Mapping | torch.Tensor | _Pickled):
        raise StatisticsError(f"{path}: holds a {type(content).__name__}, expected a state dict, or a vector")
    if isinstance(content, Mapping) and "state_dict" in content:
        return _of_checkpoint(path, content)
    if isinstance(content, Mapping) and any(isinstance(value, _Pickled) for value in content.values()):
        return {name: value.state if isinstance(value, _Pickled) else value for name, value in content.items()}
    return content.state if isinstance(content, _Pickled) else content


def _of_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> Any:
    """Returns the state of the references that a checkpoint's data module holds."""
    states = [value for value in checkpoint.values() if isinstance(value, Mapping) and "normalizer" in value]
    reference = (states[0]["normalizer"] or {}).get("reference") if states else None
    if reference is None or reference["kind"] != "LinearReferences":
        found = "none" if reference is None else f"a {reference['kind']}"
        raise StatisticsError(
            f"{path}: has no references by element, but {found}: give a checkpoint that was trained with "
            "data/reference=linear or fixed (config: data.reference.base, data.reference.file)"
        )
    return reference["values"]
