"""A folder with a few embedded molecules, for all tests of the worked example."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.labelled_molecules import LabelledMolecules, ignore_advice


@pytest.fixture(scope="session")
def labelled_molecules() -> Callable[[Path], LabelledMolecules]:
    """`LabelledMolecules(folder)`."""
    return LabelledMolecules


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ignore_advice(items, Path(__file__).parent)
