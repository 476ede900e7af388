"""Comparisons of statistics, and weighers that take fields of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm import DatasetStatistics, SampleWeigher
from tests.naive_statistics import Values


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Keeps small tensor operations from waiting for one another's threads on busy machines."""
    torch.set_num_threads(1)


class FieldWeigher(SampleWeigher):
    """Takes each sample's weight from its field `weight`; its fields are unknown to the fit."""

    def get_weights(self, batch: Data) -> Tensor:
        return batch["weight"]

    def summary_string(self) -> str:
        return "field"


class OtherFieldWeigher(SampleWeigher):
    """Takes each sample's weight from its field `other_weight`."""

    fields = ("other_weight",)
    key = "other"

    def get_weights(self, batch: Data) -> Tensor:
        return batch["other_weight"]


def assert_statistics_close(statistics: DatasetStatistics, weigher: str, expected: Values, rtol: float = 1e-9) -> None:
    """Compares with absolute tolerances scaled by the data: energies by the largest energy, fields by theirs."""
    energy_scale = abs(expected["energy/mean"]) + expected["energy/abs_max"]
    for key, value in expected.items():
        field = key.split("/")[0]
        scale = np.max(np.abs(expected[f"{field}/abs_max"])) if field in ("coeffs", "gradient_label") else energy_scale
        found = statistics.load_statistic(weigher, key)
        np.testing.assert_allclose(found, value, rtol=rtol, atol=rtol * max(scale, 1.0), err_msg=key)


def comparable(arrays: dict[str, Any]) -> dict[str, Any]:
    """Squares R factors: where the rank is deficient, their rows may be rotated."""
    return {key: a.T @ a if key.endswith("_factor") else a for key, a in arrays.items()}


@pytest.fixture(scope="session")
def assert_same_statistics() -> Callable[..., None]:
    """`assert_same_statistics(found, expected, tol)`: all arrays, whatever their names, relative to their size or 1."""

    def check(found: dict[str, Any], expected: dict[str, Any], tol: float = 1e-11) -> None:
        a, b = comparable(found), comparable(expected)
        assert a.keys() == b.keys()
        for key, value in b.items():
            scale = max(float(np.max(np.abs(value))), 1.0)
            np.testing.assert_allclose(a[key], value, rtol=tol, atol=tol * scale, err_msg=key)

    return check


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """`assert_statistics_close(statistics, weigher, expected, rtol)`."""
    return assert_statistics_close


@pytest.fixture(scope="session")
def field_weighers() -> list[SampleWeigher]:
    """Weighers that take the samples' fields `weight` and `other_weight`."""
    return [FieldWeigher(), OtherFieldWeigher()]


@pytest.fixture(scope="session")
def molecules() -> list[list[int]]:
    """Compositions of H, C and O that determine all references."""
    return [[1, 6, 8], [1, 6, 8, 1], [1], [1, 6, 8, 1, 6, 8, 8], [8] * 3]
