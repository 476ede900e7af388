"""Label files, their basis, and a comparison of samples, for several tests of data."""

import json
from collections.abc import Callable
from pathlib import Path
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


@pytest.fixture
def paths(labels: Any) -> list[Path]:
    """Water, methane and formaldehyde, with 4, 3 and 5 SCF iterations."""
    return labels.write_several()


@pytest.fixture
def basis_file(basis_info: Any, tmp_path: Path) -> str:
    """A file with the basis of the label files."""
    (tmp_path / "basis_info.json").write_text(json.dumps(basis_info.to_dict()))
    return str(tmp_path / "basis_info.json")


@pytest.fixture(scope="session")
def assert_same_fields() -> Callable[[Any, Any], None]:
    """`assert_same_fields(a, b)`: two samples or batches have the same fields with the same values and dtypes."""

    def check(a: Any, b: Any) -> None:
        assert set(a.keys()) == set(b.keys())
        for field in a.keys():
            _assert_same(a[field], b[field], field)

    return check
