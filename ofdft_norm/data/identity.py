"""The identity of a transform or weigher: a digest by which another process recognises an equal object.

An object is its class, its arguments as pickling writes them, and the source files of the modules of all classes and
functions in it. Modules of this package have no source in it: the versions of its statistics and packs stand for them.

Not noticed: changes in modules that those modules import from, and values that are set into a module at run time.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
import sys
from importlib import metadata
from operator import attrgetter
from types import FunctionType
from typing import Any

import numpy as np
import torch

from ofdft_norm.data.files import file_digest

PACKAGE = __name__.partition(".")[0]


def identity(value: Any) -> str | None:
    """Returns a hex digest of an object, equal in every process; None where it cannot be recognised there.

    Lambdas, local classes and functions, open files and everything else that cannot be pickled have none.
    """
    try:
        return hashlib.sha256(_content(value)).hexdigest()
    except Exception:  # pickling runs the object's own code
        return None


def _content(value: Any) -> bytes:
    file = io.BytesIO()
    _Identifier(file).dump(value)
    return file.getvalue()


class _Identifier(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=4)
        self.fast = True  # without references to what was written before: equal strings need not be one object

    def persistent_id(self, value: Any) -> Any:
        """Replaces objects that pickle writes differently in another process, or without their content."""
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu().reshape(-1).view(torch.uint8).numpy()
            return "tensor", str(value.dtype), tuple(value.shape), array.tobytes()
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return "array", value.dtype.str, value.shape, value.tobytes()
        if isinstance(value, set | frozenset):
            return type(value).__name__, sorted(_content(entry) for entry in value)
        if isinstance(value, FunctionType) or (isinstance(value, type) and value.__module__ != "builtins"):
            if attrgetter(value.__qualname__)(sys.modules[value.__module__]) is not value:  # lambdas and locals raise
                raise pickle.PicklingError(f"{value!r} is not found under its name")
            classes = value.__mro__ if isinstance(value, type) else (value,)
            return value.__qualname__, [(_name(c.__module__), _origin(c.__module__)) for c in classes]
        return None


def _name(module: str) -> str:
    return "__main__" if module == "__mp_main__" else module  # a spawned process's name of the main script


def _origin(module: str) -> tuple[str, ...]:
    """Returns version of the installed package and digest of the source file of a module, where it has them."""
    top = _name(module).partition(".")[0]
    if top == PACKAGE or (top in sys.stdlib_module_names and top != "__main__"):
        return ()
    file = getattr(sys.modules[module], "__file__", None) or ""
    has_source = file.endswith(".py") and os.path.isfile(file)
    found = (_version(top), _digest(file, os.stat(file).st_mtime_ns) if has_source else "")
    if not any(found):
        raise pickle.PicklingError(f"module {module!r} has no source file, as in a notebook")
    return found


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@functools.cache
def _digest(file: str, mtime_ns: int) -> str:
    return file_digest(file)
