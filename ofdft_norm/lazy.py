"""Packages whose names are imported when they are first used, so that importing the package costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns a package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Args:
        package: The package's ``__name__``.
        modules: The module, below the package that all are in, of each name that the package offers.

    Example:
        >>> find, names = lazy_names("ofdft_norm.data", {"RAW": "data.coordinates"})
        >>> find("RAW"), names()
        ('raw', ['RAW'])
    """
    root = package.partition(".")[0]

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{root}.{modules[name]}"), name)

    return find, lambda: sorted(modules)
