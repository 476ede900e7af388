"""Reads reference energies from files, without ever unpickling code."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ofdft_norm.errors import StatisticsError


def read_reference_file(path: Path) -> dict[str, Any]:
    """Reads a ``.pt`` or ``.npz`` file of plain tensors.

    Args:
        path: The file. In ``.npz`` files the legacy key ``coeff`` is read as ``element_references``.

    Returns:
        Its content by name.

    Raises:
        StatisticsError: If the file is missing, of another kind, or would need unpickling of classes.
    """
    if not path.is_file():
        raise StatisticsError(f"{path}: no such file of element references (config: data.reference.file)")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in (".pt", ".pth", ".ckpt"):
        return _read_pt(path)
    raise StatisticsError(f"{path}: element references are read from .pt and .npz files, not {path.suffix!r}")


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise StatisticsError(f"{path}: cannot be read as plain arrays: {error}") from error
    if "element_references" not in content and "coeff" in content:
        content["element_references"] = content.pop("coeff")
    return content


def _read_pt(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StatisticsError(
            f"{path}: holds pickled objects, which are never loaded; where you trust the file, convert it once with "
            f"`references = torch.load({str(path)!r}, weights_only=False)` and "
            "`torch.save(references.state_dict(), 'references.pt')`"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise StatisticsError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise StatisticsError(f"{path}: holds a {type(content).__name__}, expected a state dict of tensors")
    return content
