"""Kohn-Sham iterations, density basis and labels of one molecule, with both density fits."""

from typing import Any, get_args

import numpy as np
import pytest

from ofdft_norm.labelling import Geometry, KohnShamLabels, KohnShamSettings, LabelSettings, make_labels, run_kohn_sham
from ofdft_norm.labelling.density_fit import FitMethod, build_density_mol
from ofdft_norm.labelling.kohn_sham import KohnShamTrajectory
from ofdft_norm.labelling.labels import TARGET_NAMES

# without symmetry: a swapped axis changes the numbers
WATER = Geometry("bent", np.array([8, 1, 1]), np.array([[0.1, -0.2, 0.3], [0.4, 1.3, -0.8], [-1.2, -1.0, -0.7]]))
COARSE = KohnShamSettings(grid_level=1)


@pytest.fixture(scope="session")
def trajectory() -> KohnShamTrajectory:
    return run_kohn_sham(WATER, COARSE)


@pytest.fixture(scope="session")
def mol(trajectory: KohnShamTrajectory) -> Any:
    """PySCF's molecule with the density basis."""
    return build_density_mol(trajectory.mol)


@pytest.fixture(scope="session")
def both() -> dict[str, KohnShamLabels]:
    """Labels of all targets, by density fit."""
    options: Any = {"targets": TARGET_NAMES, "perturbations": 3, "strongest_perturbation": 0.1}
    settings = {fit: LabelSettings(COARSE, density_fit=fit, **options) for fit in get_args(FitMethod)}
    return {fit: make_labels(WATER, settings[fit]) for fit in get_args(FitMethod)}


@pytest.fixture
def labels(both: dict[str, KohnShamLabels]) -> KohnShamLabels:
    return both["least_squares"]
