"""PySCF is an optional dependency: it is imported where it is used, and nowhere else."""

from __future__ import annotations

import importlib
from typing import Any


def pyscf_module(name: str) -> Any:
    """Imports one module of PySCF.

    Args:
        name: Module name below `pyscf`, e.g. ``"gto"``.

    Returns:
        The module (untyped: PySCF ships no type information).

    Raises:
        ImportError: If PySCF is not installed.
    """
    try:
        return importlib.import_module(f"pyscf.{name}")
    except ImportError as error:
        raise ImportError(
            f"this needs PySCF (pyscf.{name} cannot be imported: {error}); "
            "install it with: pip install 'ofdft-norm[labels]'"
        ) from error
