"""Checks configuration values against their annotations: a wrong type or range is refused where it enters."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from ofdft_norm.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Bounds of a number, as metadata of `Annotated`.

    Attributes:
        low: Smallest value.
        high: Largest value.
        open_low: Whether `low` itself is excluded.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False

    def holds(self, value: float) -> bool:
        """Tells whether a number lies within the bounds; NaN and infinity never do."""
        return (
            math.isfinite(value) and (self.low < value if self.open_low else self.low <= value) and value <= self.high
        )

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"in {self.low:g} ... {self.high:g}"
        return f"{'>' if self.open_low else '>='} {self.low:g}"


Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
AtomicNumber = Annotated[int, Range(1, 118)]


class CheckedConfig:
    """Base of the configuration's dataclasses: every field is checked against its annotation.

    Attributes:
        config_key: Where the class stands in the configuration, for messages.

    Example:
        >>> @dataclass(frozen=True)
        ... class Loader(CheckedConfig):
        ...     batch_size: PositiveInt = 32
        ...     config_key = "data.loader"
        >>> Loader(batch_size="many")
        Traceback (most recent call last):
        ...
        ofdft_norm.errors.ConfigError: data.loader.batch_size = 'many': expected an integer >= 1
    """

    config_key: ClassVar[str] = "data"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):  # type: ignore[arg-type]
            check_value(getattr(self, field.name), hints[field.name], f"{self.config_key}.{field.name}")


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any], key: str) -> None:
    """Checks a constructor's arguments against its annotations; call it first, with ``locals()``.

    Args:
        function: The constructor.
        values: Arguments by name; other names are passed over.
        key: Where the class stands in the configuration.

    Raises:
        ConfigError: If a value is of another type or out of range.
    """
    for name, hint in get_type_hints(function, include_extras=True).items():
        if name in values and name != "return":
            check_value(values[name], hint, f"{key}.{name}")


def check_value(value: Any, hint: Any, key: str) -> None:
    """Checks one value against a type hint.

    Args:
        value: The value.
        hint: A hint made of plain types, `Literal`, `Sequence`, `Mapping`, unions, and `Annotated` with `Range`.
        key: The configuration key, for the message.

    Raises:
        ConfigError: If the value is of another type or out of range.
    """
    if not _matches(value, hint):
        raise ConfigError(f"{key} = {_shown(value)}: expected {_described(hint)}")


def _matches(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return _matches(value, arguments[0]) and all(bounds.holds(value) for bounds in arguments[1:])
    if origin in (Union, UnionType):
        return any(_matches(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is Callable:
        return callable(value)
    if origin is Sequence:
        return (
            isinstance(value, Sequence) and not isinstance(value, str) and all(_matches(v, arguments[0]) for v in value)
        )
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _matches(k, arguments[0]) and _matches(v, arguments[1]) for k, v in value.items()
        )
    return _is_a(value, hint)


def _is_a(value: Any, kind: type) -> bool:
    if kind in (int, float):  # true is no number; numpy's numbers are; an integer is a float, not the other way round
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is str:  # wherever a string is a path, Python callers may give a Path
        return isinstance(value, str | os.PathLike)
    return isinstance(value, kind)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _described(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([_described(arguments[0]), *map(str, arguments[1:])])
    if origin in (Union, UnionType):
        return " or ".join(_described(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if origin is Callable:
        return "a callable"
    if origin is Sequence:
        return f"a list of {_plural(arguments[0])}"
    if origin is Mapping:
        return f"a mapping of {_plural(arguments[0])} to {_plural(arguments[1])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string", NoneType: "null"}
    return names.get(hint) or f"a {hint.__name__}"


def _plural(hint: Any) -> str:
    names = {int: "integers", float: "numbers", str: "strings"}
    if get_origin(hint) is Callable:
        return "callables"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_plural(argument) for argument in get_args(hint))
    return names.get(hint) or f"{getattr(hint, '__name__', 'value')}s"
