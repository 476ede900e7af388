"""What several tests of data compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


def _assert_same(a: Any, b: Any, where: str) -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _assert_same(a[key], b[key], f"{where}[{key!r}]")
    else:
        assert a == b, where


@pytest.fixture(scope="session")
def assert_same_fields() -> Callable[[Any, Any], None]:
    """`assert_same_fields(a, b)`: two samples or batches have the same fields with the same values and dtypes."""

    def check(a: Any, b: Any) -> None:
        assert set(a.keys()) == set(b.keys())
        for field in a.keys():
            _assert_same(a[field], b[field], field)

    return check
