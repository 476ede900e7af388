"""Settings: frozen dataclasses; pydantic validates their values against the annotations when one is made."""

import functools
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, get_type_hints

import numpy as np
from omegaconf import Container, OmegaConf
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError
from typing_extensions import dataclass_transform

from ofdft_norm.errors import ConfigError, did_you_mean

# limits of a scale or weight, within which squares and quotients of labels are finite
SMALLEST_SCALE, LARGEST_SCALE = 1e-100, 1e100


def _check_scale(value: float) -> float:
    if not SMALLEST_SCALE <= value <= LARGEST_SCALE:
        raise PydanticCustomError("scale", f"should be a positive number, {SMALLEST_SCALE:g} ... {LARGEST_SCALE:g}")
    return value


Scale = Annotated[float, AfterValidator(_check_scale)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
AtomicNumber = Annotated[int, Field(ge=1, le=118)]

# strict: true and "3" are no numbers; an integer is accepted as a float, a float is not accepted as an integer
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, extra="forbid")


@dataclass_transform(frozen_default=True)
class Settings:
    """Base class of the settings: each subclass becomes a frozen dataclass with validated values.

    A `ConfigError` has one line for each wrong value, unknown or missing name. `__post_init__` may validate several
    values together.

    Examples:
        >>> class ExampleConfig(Settings):
        ...     batch_size: PositiveInt = 32
        ...     config_key = "data.loader"
        >>> ExampleConfig(batch_size=0)
        Traceback (most recent call last):
        ...
        ofdft_norm.errors.ConfigError: data.loader.batch_size = 0: should be greater than or equal to 1
    """

    config_key: ClassVar[str] = "data"  # key of the class in the configuration, for messages

    def __init_subclass__(cls, kw_only: bool = False) -> None:
        dataclass(cls, frozen=True, kw_only=kw_only, config=_STRICT)
        init = cls.__init__

        @functools.wraps(init)
        def validate_and_init(self: Settings, *args: Any, **kwargs: Any) -> None:
            names = list(cls.__dataclass_fields__)  # type: ignore[attr-defined]
            args, kwargs = to_builtin(args), {name: to_builtin(value) for name, value in kwargs.items()}
            try:
                init(self, *args, **kwargs)
            except ValidationError as error:
                given = {**dict(zip(names, args, strict=False)), **kwargs}
                raise ConfigError(_format_message(error, given, cls.config_key, names)) from None

        cls.__init__ = validate_and_init  # type: ignore[assignment,method-assign]


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any], key: str) -> None:
    """Validates a constructor's arguments against its annotations; `key` is the class's key in the configuration."""
    names, adapter = _make_adapter(function)
    given = {name: to_builtin(values[name]) for name in names}
    try:
        adapter.validate_python(tuple(given.values()))
    except ValidationError as error:
        raise ConfigError(_format_message(error, given, key, names)) from None


@functools.cache  # pydantic builds an adapter more slowly than it validates
def _make_adapter(function: Callable[..., Any]) -> tuple[list[str], TypeAdapter[Any]]:
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    # a tuple of all arguments: pydantic then reports positions, as for a dataclass's positional arguments
    hint: Any = tuple[tuple(hints.values())]  # type: ignore[misc]
    return list(hints), TypeAdapter(hint, config=_STRICT)


def to_builtin(value: Any) -> Any:
    """Converts paths to strings, and values of NumPy and OmegaConf to Python's own types."""
    if isinstance(value, Container):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) in (list, tuple):
        entries = [to_builtin(entry) for entry in value]
        # an unchanged list is returned itself, so that samples added to it later are seen
        return value if all(map(operator.is_, entries, value)) else type(value)(entries)
    return value


def _format_message(error: ValidationError, values: Mapping[str, Any], key: str, names: Sequence[str]) -> str:
    """Returns pydantic's findings as lines such as ``data.rescaling.s_grad = 0: should be greater than 0``."""
    lines: dict[str, list[str]] = {}
    for detail in error.errors():
        if not detail["loc"]:  # raised by __post_init__ with the keys in its message
            lines[str(detail["ctx"]["error"])] = []
            continue
        name, *inner = detail["loc"]
        name = names[name] if isinstance(name, int) and name < len(names) else str(name)
        what = detail["msg"].removeprefix("Input ").replace("an instance of Sequence", "a list")
        if detail["type"] == "unexpected_keyword_argument":
            what = f"no such setting{did_you_mean(name, names)}"
        shown = f" = {values[name]!r:.80}" if name in values else ""
        alternatives = lines.setdefault(f"{key}.{name}{shown}".removeprefix("."), [])
        if (text := _find_entry(inner, values.get(name)) + what) not in alternatives:
            alternatives.append(text)
    return "\n".join(": ".join(filter(None, [start, " or ".join(what)])) for start, what in lines.items())


def _find_entry(steps: Sequence[Any], value: Any) -> str:
    """Returns the entry of a list or mapping that is wrong; pydantic's steps also include the types it tried."""
    entry = ""
    for step in steps:
        is_index = isinstance(value, list | tuple) and isinstance(step, int)
        if is_index or (isinstance(value, Mapping) and step in value):
            entry, value = f"entry {step!r} ", value[step]
    return entry
