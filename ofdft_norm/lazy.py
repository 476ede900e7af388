"""Packages whose names are imported when they are first used, so that importing the package costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns a package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Args:
        package: The package's ``__name__``.
        modules: The module, below the package that all are in, of each name that the package offers.

    Example:
        >>> import ofdft_norm.data
        >>> find, names = lazy_names("ofdft_norm.data", {"RAW": "data.coordinates"})
        >>> find("RAW"), names()
        ('raw', ['RAW'])
    """
    root = package.partition(".")[0]

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{root}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)  # found at once the next time
        return value

    return find, lambda: sorted(modules)
