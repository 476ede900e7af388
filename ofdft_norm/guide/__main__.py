"""Renders the guide and the API as HTML: ``python -m ofdft_norm.guide site``. What pdoc warns of is an error."""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
import warnings
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType
from typing import Any

import pdoc
from pydantic.dataclasses import is_pydantic_dataclass

import ofdft_norm
import ofdft_norm.config

_SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)


def main(folder: str) -> None:
    """Writes the pages.

    Args:
        folder: Where to; it is made.
    """
    for package in (ofdft_norm, ofdft_norm.config):
        for name in dir(package):
            getattr(package, name)  # pdoc shows what was imported
    found = [module.name for module in walk_packages(ofdft_norm.__path__, "ofdft_norm.") if "._" not in module.name]
    modules = ["ofdft_norm", *(name for name in found if _left_out(name))]
    for name in found:
        _resolve_generated_types(importlib.import_module(name))
    pdoc.render.configure(docformat="google", math=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pdoc.pdoc(*modules, output_directory=Path(folder))


def _resolve_generated_types(module: ModuleType) -> None:
    """Lets pdoc see the arguments of constructors that NamedTuple and pydantic make."""
    for member in vars(module).values():
        if not inspect.isclass(member) or not member.__module__.startswith("ofdft_norm."):
            continue
        if issubclass(member, tuple):
            member.__new__.__annotations__.update(typing.get_type_hints(member))
        elif is_pydantic_dataclass(member):
            constructor: Any = inspect.unwrap(member.__init__)
            types = typing.get_type_hints(member)
            arguments = inspect.signature(member).parameters.values()
            shown = [argument.replace(annotation=types[argument.name]) for argument in arguments]
            constructor.__annotations__.clear()
            constructor.__signature__ = inspect.Signature([_SELF, *shown])


def _left_out(name: str) -> bool:
    """Returns whether pdoc passes over a module because its package says by ``__all__`` what it offers."""
    package, _, own = name.rpartition(".")
    offered = getattr(sys.modules[package], "__all__", None)
    return offered is not None and own not in offered


if __name__ == "__main__":
    main(*sys.argv[1:])
