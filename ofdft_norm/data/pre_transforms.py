"""Pre-transforms as a list: composed into one, and described so that packed labels can tell what was applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch_geometric.transforms import Compose

from ofdft_norm.errors import ConfigError


def composed(transforms: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any] | None:
    """Returns the transforms as one; None for none.

    Args:
        transforms: Transforms in the order of application.
    """
    return None if not transforms else transforms[0] if len(transforms) == 1 else Compose(list(transforms))


def single_transforms(transform: Any) -> list[Callable[[Any], Any]]:
    """Returns what a transform is composed of, in the order of application; nothing for None.

    Args:
        transform: A transform, a composition of some, or None.
    """
    if transform is None:
        return []
    inner = getattr(transform, "transforms", None)
    return [transform] if inner is None else [single for t in inner for single in single_transforms(t)]


def described(transforms: Sequence[Callable[[Any], Any]]) -> list[str]:
    """Returns the class and settings of each transform, such as ``NaturalReparametrization(...)``.

    Args:
        transforms: Transforms in the order of application.

    Raises:
        ConfigError: If a transform's settings are objects that cannot be told apart by what they print.
    """
    descriptions = [_described(single) for transform in transforms for single in single_transforms(transform)]
    nameless = [d for d in descriptions if " at 0x" in d or "<lambda>" in d]
    if nameless:
        raise ConfigError(
            f"the pre-transforms {nameless} cannot be recognised when packed labels are read: use classes whose "
            "settings are plain values (config: data.pre_transforms)"
        )
    return descriptions


def _described(transform: Any) -> str:
    if isinstance(transform, type) or not hasattr(transform, "__dict__") or hasattr(transform, "__code__"):
        return f"{transform.__module__}.{transform.__qualname__}"
    settings = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(transform).items()))
    return f"{type(transform).__qualname__}({settings})"


def not_yet_applied(transform: Any, applied: Sequence[str], where: str) -> Callable[[Any], Any] | None:
    """Returns what is left of the wanted pre-transforms once labels were packed after the first of them.

    Args:
        transform: All that are wanted, composed; None: none.
        applied: Descriptions of those that were applied, from `described`.
        where: The packed set, for the message.

    Returns:
        The rest, composed; None: nothing is left.

    Raises:
        ConfigError: If the wanted ones do not begin with the applied ones.
    """
    wanted = single_transforms(transform)
    descriptions = described(wanted) if applied else []
    if descriptions[: len(applied)] != list(applied):
        raise ConfigError(
            f"{where}: was packed after the pre-transforms {list(applied)}, but the configuration asks for "
            f"{descriptions}: begin with those that were applied (config: data.pre_transforms), or give a set that was "
            "packed with others (config: data.source.paths)"
        )
    return composed(wanted[len(applied) :])
