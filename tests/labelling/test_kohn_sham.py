"""Kohn-Sham iterations against PySCF's own loop, and the mixing of Fock matrices."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyscf")

from pyscf import dft

from ofdft_norm.labelling import Geometry, KohnShamSettings, LabellingError, run_kohn_sham
from ofdft_norm.labelling.kohn_sham import KohnShamTrajectory, check_functional


@pytest.fixture
def mean_field(trajectory: KohnShamTrajectory) -> Any:
    mean_field = dft.RKS(trajectory.mol, xc="PBE")
    mean_field.grids, mean_field.conv_tol = trajectory.grid, 1e-10
    return mean_field


def test_each_density_diagonalises_its_mixed_fock_matrix(trajectory: KohnShamTrajectory, mean_field: Any) -> None:
    overlap, core = mean_field.get_ovlp(), mean_field.get_hcore()
    matrices = [iteration.density_matrix for iteration in trajectory.iterations]
    focks = [core + np.asarray(mean_field.get_veff(trajectory.mol, gamma)) for gamma in matrices]
    assert len(trajectory.iterations[0].fock_weights) == 0
    for k, iteration in enumerate(trajectory.iterations[1:], start=1):
        assert iteration.fock_weights.sum() == pytest.approx(1.0, abs=1e-12)
        fock = sum(w * f for w, f in zip(iteration.fock_weights, focks[:k], strict=True))
        commutator = fock @ matrices[k] @ overlap
        np.testing.assert_allclose(commutator, commutator.T, atol=1e-9)


def test_converges_to_the_energies_of_pyscfs_own_loop(trajectory: KohnShamTrajectory, mean_field: Any) -> None:
    energies = trajectory.iterations[-1].energies
    assert energies["e_tot"] == pytest.approx(mean_field.kernel(), abs=2e-7)
    kinetic = np.vdot(trajectory.mol.intor("int1e_kin"), mean_field.make_rdm1())
    assert energies["e_kin"] == pytest.approx(kinetic, abs=1e-3)
    parts = ("e_kin", "e_hartree", "e_xc", "e_ext", "e_nuc_nuc")
    assert energies["e_tot"] == pytest.approx(sum(energies[name] for name in parts), abs=1e-12)


@pytest.mark.parametrize(
    ("numbers", "settings", "message"),
    [
        ([8, 1], {}, "'pair' has 9 electrons; expected an even number"),
        ([19, 1], {}, r"'pair' has the elements \[1, 19\].*lacks.*'6-31G\(2df,p\)'.*option basis"),
        ([1, 1], {"max_iterations": 2, "min_labelled": 2}, "'pair': not converged after 2 iterations.*max_iterations"),
    ],
)
def test_molecules_without_labels_are_named(numbers: list[int], settings: dict[str, int], message: str) -> None:
    pair = Geometry("pair", np.array(numbers), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]]))
    with pytest.raises(LabellingError, match=message):
        run_kohn_sham(pair, KohnShamSettings(**settings))


@pytest.mark.parametrize("xc", ["B3LYP", "TPSS", "VV10", "PBEE"])
def test_functionals_of_more_than_the_density_are_refused(xc: str) -> None:
    with pytest.raises(LabellingError, match=rf"^xc: .*'{xc}'.* \(option xc\)"):
        check_functional(xc)
