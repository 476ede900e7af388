"""The identity of a transform or weigher: a digest by which another process recognises an equal object.

It covers class, pickled arguments and source files of their modules; of this package, the versions of its statistics
and packs count instead. Changes in modules that these modules import are not detected.
"""

import functools
import hashlib
import io
import os
import pickle
import sys
from operator import attrgetter
from types import FunctionType
from typing import Any

import numpy as np
import torch

from ofdft_norm.data.files import NOT_INSTALLED, find_package_version, hash_file

PACKAGE = __name__.partition(".")[0]


def identify(value: Any) -> str | None:
    """Returns a hex digest of an object, equal in every process; None for objects that cannot be pickled."""
    file = io.BytesIO()
    pickler = _Identifier(file, protocol=4)
    pickler.fast = True  # without references to earlier objects: equal strings may be one object, or several
    try:
        pickler.dump(value)
    except Exception:  # pickling runs the object's own code
        return None
    return hashlib.sha256(file.getvalue()).hexdigest()


class _Identifier(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        """Replaces objects that pickle writes differently in another process, or without their content."""
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu().reshape(-1).view(torch.uint8).numpy()
            return "tensor", str(value.dtype), tuple(value.shape), array.tobytes()
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return "array", value.dtype.str, value.shape, value.tobytes()
        if isinstance(value, set | frozenset):
            entries = set(map(identify, value))
            if None in entries:
                raise pickle.PicklingError(f"an entry of {value!r} cannot be recognised")
            return type(value).__name__, sorted(map(str, entries))
        if isinstance(value, FunctionType) or (isinstance(value, type) and value.__module__ != "builtins"):
            if attrgetter(value.__qualname__)(sys.modules[value.__module__]) is not value:  # lambdas and locals raise
                raise pickle.PicklingError(f"{value!r} is not found under its name")
            return value.__qualname__, list(map(_find_origin, value.__mro__ if isinstance(value, type) else (value,)))
        return None


def _find_origin(value: Any) -> tuple[str, ...]:
    """Returns the module of a class or function, version of its package and digest of its source, where it has them."""
    module = value.__module__
    name = "__main__" if module == "__mp_main__" else module  # a spawned process's name of the main script
    top = name.partition(".")[0]
    if top == PACKAGE or (top in sys.stdlib_module_names and top != "__main__"):
        return (name,)
    file = getattr(sys.modules[module], "__file__", None) or ""
    has_source = file.endswith(".py") and os.path.isfile(file)
    version = find_package_version(top)
    if version == NOT_INSTALLED and not has_source:
        raise pickle.PicklingError(f"module {module!r} has no source file, as in a notebook")
    return name, version, _hash_version(file, os.stat(file).st_mtime_ns) if has_source else ""


_hash_version = functools.cache(lambda file, mtime_ns: hash_file(file))  # once for each time of modification
