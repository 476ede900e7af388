"""Tells whether a transform or weigher is the one that statistics were fitted with, in another process and later on.

The rule: an object is identified by its class's qualified name, the source of the modules that the class and its bases
live in, and its arguments, which are what pickling would write; a function by its qualified name, the source of its
module, and what it encloses. Modules of this package count by name alone: the statistics' version stands for them.
Whatever has no such identity (a lock, an open file, a class defined in a notebook) has none at all, and statistics that
depend on it are fitted each time.

What the rule does not see: another module of the user's that the module imports functions from; values that are set
into a module while it runs; compiled extensions, which count by the version of their package.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import types
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import torch

PACKAGE = __name__.partition(".")[0]


class NoIdentityError(Exception):
    """An object holds something that cannot be recognised in another process; the message says what."""


def identity(value: Any) -> Any:
    """Returns what tells an object from others, as plain JSON-able data.

    Args:
        value: A transform, weigher, function, or any argument of one.

    Returns:
        Nested lists, strings and numbers: equal in every process for an unchanged object.

    Raises:
        NoIdentityError: If the object, or something it holds, cannot be identified.
    """
    return _identity(value, type(value).__qualname__, ())


def _identity(value: Any, where: str, within: tuple[int, ...]) -> Any:
    """`where` says how the value is reached, for the message; `within` are the ids of the objects around it."""
    if value is None or type(value) in (bool, int, str):
        return [type(value).__name__, value]
    if type(value) in (float, complex, bytes):
        return [type(value).__name__, repr(value)]
    if id(value) in within:  # an object that holds itself
        return ["within", len(within) - within.index(id(value))]
    within = (*within, id(value))
    if isinstance(value, torch.Tensor) or type(value) is np.ndarray:
        return _array(value, where)
    if type(value) in (list, tuple):
        return [type(value).__name__, [_identity(v, f"{where}[{i}]", within) for i, v in enumerate(value)]]
    if type(value) in (set, frozenset):
        return [type(value).__name__, sorted((_identity(v, f"{where}{{}}", within) for v in value), key=repr)]
    if type(value) is dict:
        return [
            "dict",
            [[_identity(k, where, within), _identity(v, f"{where}[{k!r}]", within)] for k, v in value.items()],
        ]
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__, _source(value.__name__, where)]
    if isinstance(value, type):
        return ["class", _class(value, where)]
    if isinstance(value, types.FunctionType):
        return _function(value, where, within)
    if isinstance(value, types.BuiltinFunctionType | types.MethodType):
        owner = getattr(value, "__self__", None)
        owner = None if isinstance(owner, types.ModuleType) else owner
        function = _identity(value.__func__, where, within) if isinstance(value, types.MethodType) else value.__module__
        return ["method", value.__qualname__, function, _identity(owner, where, within)]
    return _object(value, where, within)


def _object(value: Any, where: str, within: tuple[int, ...]) -> Any:
    """Asks an object for what pickling would write of it: a function to call, its arguments, and the state."""
    if isinstance(value, functools.partial):
        parts: tuple[Any, ...] = (value.func, value.args, value.keywords)
    else:
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:  # pickling runs the object's own code
            raise NoIdentityError(f"{where} is a {type(value).__qualname__}: {error}") from None
        if isinstance(reduced, str):  # the name of something in a module
            return ["global", _class(type(value), where), reduced]
        # list and dict items come as iterators
        parts = tuple(list(part) if i > 2 and part is not None else part for i, part in enumerate(reduced))
    names = ("()", "()", "", "[]", "{}", "")
    found = []
    for part, name in zip(parts, names, strict=False):
        if name == "" and isinstance(part, Mapping):  # attributes, by name whatever the order they were set in
            found.append([[k, _identity(v, f"{where}.{k}", within)] for k, v in sorted(part.items(), key=repr)])
        else:
            found.append(_identity(part, f"{where}{name}", within))
    return ["object", _class(type(value), where), found]


def _class(cls: type, where: str) -> Any:
    """Identifies a class: its name, and the source of its module and of the modules of all its bases."""
    if "<locals>" in cls.__qualname__:
        raise NoIdentityError(f"{where}: the class {cls.__qualname__} is defined inside a function")
    modules = dict.fromkeys(base.__module__ for base in cls.__mro__)
    return [
        f"{_module_name(cls.__module__)}.{cls.__qualname__}",
        [[_module_name(name), _source(name, where)] for name in modules],
    ]


def _function(function: types.FunctionType, where: str, within: tuple[int, ...]) -> Any:
    code = function.__code__
    enclosed = {}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            enclosed[name] = cell.cell_contents
        except ValueError:  # not yet set
            continue
    return [
        "function",
        _module_name(function.__module__),
        function.__qualname__,
        # two lambdas of a module share their name
        [code.co_firstlineno, code.co_code.hex(), list(code.co_names)],
        _identity([c for c in code.co_consts if not isinstance(c, types.CodeType)], where, within),
        _source(function.__module__, where),
        _identity(enclosed, f"{where} encloses", within),
        _identity([function.__defaults__, function.__kwdefaults__], f"{where}'s default", within),
    ]


def _module_name(name: str) -> str:
    """Returns a module's name; a spawned process calls the main script by another one."""
    return "__main__" if name == "__mp_main__" else name


def _array(value: Any, where: str) -> Any:
    if isinstance(value, torch.Tensor):
        if value.is_meta or value.layout != torch.strided:
            raise NoIdentityError(f"{where} is a tensor without values, or not dense")
        content = value.detach().cpu().reshape(-1).view(torch.uint8).numpy()
        return ["Tensor", str(value.dtype), list(value.shape), hashlib.sha256(content.tobytes()).hexdigest()]
    if value.dtype.hasobject:
        raise NoIdentityError(f"{where} is an array of Python objects")
    return ["ndarray", value.dtype.str, list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]


def _source(name: str, where: str) -> str:
    """Returns a digest of a module's source, or the version of what has none; nothing for this package's own."""
    top = name.partition(".")[0]
    if top == PACKAGE:
        return ""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is not None and file.endswith(".py") and os.path.isfile(file):
        status = os.stat(file)
        return _file_digest(file, status.st_size, status.st_mtime_ns)
    if top in sys.stdlib_module_names and top != "__main__":
        return sys.version
    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:
        raise NoIdentityError(f"{where}: its module {name!r} has no source file, as in a notebook") from None


@functools.cache
def _file_digest(file: str, size: int, mtime_ns: int) -> str:
    with open(file, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()
