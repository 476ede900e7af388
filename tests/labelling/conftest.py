"""One molecule's Kohn-Sham iterations, fit and labels; and workers that need not import PySCF anew."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from ofdft_norm.labelling.density_basis import DensityBasis, build_density_basis
from ofdft_norm.labelling.density_fit import DensityFit, fit_densities
from ofdft_norm.labelling.geometries import Geometry
from ofdft_norm.labelling.kohn_sham import KohnShamTrajectory, run_kohn_sham
from ofdft_norm.labelling.labels import KohnShamLabels, LabelSettings, make_labels
from tests.processes import context

# Deliberately without symmetry: a swapped axis must not go unnoticed.
WATER = Geometry("bent", np.array([8, 1, 1]), np.array([[0.1, -0.2, 0.3], [0.4, 1.3, -0.8], [-1.2, -1.0, -0.7]]), "")


@pytest.fixture(scope="session")
def trajectory() -> KohnShamTrajectory:
    return run_kohn_sham(WATER)


@pytest.fixture(scope="session")
def basis(trajectory: KohnShamTrajectory) -> DensityBasis:
    return build_density_basis(trajectory.mol)


@pytest.fixture(scope="session")
def fit(trajectory: KohnShamTrajectory, basis: DensityBasis) -> DensityFit:
    return fit_densities(trajectory, basis)


@pytest.fixture(scope="session")
def labels() -> KohnShamLabels:
    targets = ("grad_kin", "grad_kin_plus_xc", "grad_tot")
    return make_labels(WATER, LabelSettings(natural_reparametrization=False, targets=targets))


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the generator's processes start at once; its own are spawned."""
    forked = SimpleNamespace(get_context=lambda _: context())
    module = importlib.import_module("ofdft_norm.labelling.generate")  # the package has a function of this name
    monkeypatch.setattr(module, "multiprocessing", forked)
