"""Kohn-Sham iterations against PySCF's own loop."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pyscf")

from ofdft_norm.data.pyscf_import import pyscf_module
from ofdft_norm.labelling.errors import KohnShamError
from ofdft_norm.labelling.geometries import Geometry
from ofdft_norm.labelling.kohn_sham import KohnShamSettings, KohnShamTrajectory, run_kohn_sham


def test_every_density_diagonalises_its_recorded_mixture_of_fock_matrices(trajectory: KohnShamTrajectory) -> None:
    mean_field = pyscf_module("dft").RKS(trajectory.mol, xc="PBE")
    mean_field.grids = trajectory.grid
    overlap, core = mean_field.get_ovlp(), mean_field.get_hcore()
    matrices = [iteration.density_matrix for iteration in trajectory.iterations]
    focks = [core + np.asarray(mean_field.get_veff(trajectory.mol, gamma)) for gamma in matrices]

    assert len(trajectory.iterations[0].fock_weights) == 0
    for k, iteration in enumerate(trajectory.iterations[1:], start=1):
        assert len(iteration.fock_weights) == k
        assert iteration.fock_weights.sum() == pytest.approx(1.0, abs=1e-12)
        fock = sum(w * f for w, f in zip(iteration.fock_weights, focks[:k], strict=True))
        commutator = fock @ matrices[k] @ overlap
        np.testing.assert_allclose(commutator, commutator.T, atol=1e-9)


def test_converges_to_the_energy_of_pyscfs_own_loop(trajectory: KohnShamTrajectory) -> None:
    mean_field = pyscf_module("dft").RKS(trajectory.mol, xc="PBE")
    mean_field.grids = trajectory.grid
    mean_field.conv_tol = 1e-10
    assert trajectory.converged
    assert trajectory.iterations[-1].energies["e_tot"] == pytest.approx(mean_field.kernel(), abs=2e-7)


def test_refuses_open_shells_and_elements_without_a_basis_and_reports_failed_convergence() -> None:
    radical = Geometry("hydroxyl", np.array([8, 1]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.8]]))
    with pytest.raises(KohnShamError, match="'hydroxyl' has 9 electrons; expected an even number"):
        run_kohn_sham(radical)
    potassium = Geometry("KH", np.array([19, 1]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 4.2]]))
    with pytest.raises(KohnShamError, match=r"'KH' has the elements \[1, 19\].*lacks.*'6-31G\(2df,p\)'.*option basis"):
        run_kohn_sham(potassium)
    hydrogen = Geometry("H2", np.array([1, 1]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]]))
    with pytest.raises(KohnShamError, match=r"'H2': not converged after 2 iterations.*max_iterations"):
        run_kohn_sham(hydrogen, KohnShamSettings(max_iterations=2, min_labelled=2))
