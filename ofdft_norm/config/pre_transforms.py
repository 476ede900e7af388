"""What the files of ``configs/data/pre_transforms/`` instantiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def in_order(**transforms: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Returns named pre-transforms in the order of their config: names can be overridden, places in a list hardly.

    Args:
        **transforms: Transforms by name, in the order of application.
    """
    return list(transforms.values())
