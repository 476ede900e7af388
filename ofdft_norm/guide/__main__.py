"""Renders the guide and the API as HTML: ``python -m ofdft_norm.guide site``. What pdoc warns of is an error."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from pkgutil import walk_packages

import pdoc

import ofdft_norm
import ofdft_norm.config


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
    pdoc.render.configure(docformat="google", math=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # types of classes that pydantic and NamedTuple make are shown as they are written
        warnings.filterwarnings("ignore", "Error parsing type annotation|Failed to run TYPE_CHECKING")
        pdoc.pdoc(*modules, output_directory=Path(folder))


def _left_out(name: str) -> bool:
    """Returns whether pdoc passes over a module because its package says by ``__all__`` what it offers."""
    package, _, own = name.rpartition(".")
    offered = getattr(sys.modules[package], "__all__", None)
    return offered is not None and own not in offered


if __name__ == "__main__":
    main(*sys.argv[1:])
