"""Workers of the generator that are forked from the tests' server: they need not import PySCF anew."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

from tests.processes import context


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the generator's processes start at once; its own are spawned."""
    forked = SimpleNamespace(get_context=lambda _: context())
    module = importlib.import_module("ofdft_norm.labelling.generate")  # the package has a function of this name
    monkeypatch.setattr(module, "multiprocessing", forked)
