"""Energies of a density and their derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("pyscf")

from ofdft_norm.labelling.density_basis import DensityBasis
from ofdft_norm.labelling.density_fit import DensityFit
from ofdft_norm.labelling.errors import LabellingError
from ofdft_norm.labelling.functional import evaluate_potentials, exchange_correlation
from ofdft_norm.labelling.kohn_sham import KohnShamTrajectory
from ofdft_norm.labelling.labels import KohnShamLabels

Array = npt.NDArray[Any]


@pytest.mark.parametrize("xc", ["PBE", "LDA,VWN"])
def test_potentials_are_the_derivatives_of_the_energies(
    trajectory: KohnShamTrajectory, basis: DensityBasis, fit: DensityFit, xc: str
) -> None:
    generator = np.random.default_rng(3)
    coeffs = fit.coeffs[-1:]
    direction, step = coeffs * generator.uniform(0.5, 1.5, size=coeffs.shape), 1e-4

    def evaluate(p: Array) -> Any:
        return evaluate_potentials(p, basis, fit.coulomb_metric, trajectory.grid, xc)

    here, ahead, behind = evaluate(coeffs), evaluate(coeffs + step * direction), evaluate(coeffs - step * direction)
    for name, gradient in here.gradients.items():
        expected = (ahead.energies[name] - behind.energies[name]) / (2 * step)
        assert (gradient * direction).sum() == pytest.approx(expected[0], rel=1e-6), name
    total = sum(here.energies.values())
    np.testing.assert_allclose(here.effective_energy, total)


def test_energies_agree_with_those_of_the_orbitals(labels: KohnShamLabels) -> None:
    rows = labels.has_energy_label
    for name, tolerance in {"e_ext": 1e-8, "e_hartree": 5e-3, "e_xc": 2e-3, "e_kin": 5e-3}.items():
        np.testing.assert_allclose(labels.energies[name][rows], labels.ks_energies[name][rows], atol=tolerance)


def test_blocks_do_not_change_the_integral(
    trajectory: KohnShamTrajectory, basis: DensityBasis, fit: DensityFit
) -> None:
    whole = exchange_correlation(fit.coeffs[-2:], basis, trajectory.grid, "PBE")
    blocks = exchange_correlation(fit.coeffs[-2:], basis, trajectory.grid, "PBE", max_memory_mb=20.0)
    np.testing.assert_allclose(blocks[0], whole[0], rtol=1e-12)
    np.testing.assert_allclose(blocks[1], whole[1], atol=1e-11)


def test_refuses_hybrid_meta_functionals(trajectory: KohnShamTrajectory, basis: DensityBasis, fit: DensityFit) -> None:
    with pytest.raises(LabellingError, match="'TPSS' is of type MGGA"):
        exchange_correlation(fit.coeffs, basis, trajectory.grid, "TPSS")
