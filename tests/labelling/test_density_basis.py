"""The density basis: its shells, their order, their integrals."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pyscf")

from ofdft_norm.labelling.density_basis import DensityBasis, build_density_basis
from ofdft_norm.labelling.geometries import Geometry
from ofdft_norm.labelling.kohn_sham import KohnShamTrajectory, build_molecule
from tests.labelling.conftest import WATER


def test_basis_has_the_published_shells() -> None:
    heavy = "11x0e+8x1o+7x2e+4x3o+2x4e"
    for number, dimension, irreps in [
        (1, 20, "6x0e+3x1o+1x2e"),
        (6, 109, "11x0e+8x1o+7x2e+3x3o+2x4e"),
        (7, 116, heavy),
        (8, 116, heavy),
        (9, 116, heavy),
    ]:
        pair = Geometry("pair", np.array([number, number]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 3.0]]))
        basis = build_density_basis(build_molecule(pair, "6-31G(2df,p)"))
        assert basis.n_basis == 2 * dimension
        assert basis.irreps_per_atom == {number: irreps}


def test_shells_are_sorted_and_their_components_run_from_minus_l_to_l(basis: DensityBasis) -> None:
    names = [basis.mol.ao_labels(fmt=False)[i] for i in basis.order]
    momenta = ["spdfg".index(shell[-1]) for _, _, shell, _ in names[:116]]
    assert [atom for atom, *_ in names] == [0] * 116 + [1] * 20 + [2] * 20
    assert momenta == sorted(momenta)
    assert [component for *_, component in names[11:17]] == ["y", "z", "x"] * 2
    assert [component for *_, component in names[35:40]] == ["xy", "yz", "z^2", "xz", "x2-y2"]


def test_integrals_agree_with_quadrature(basis: DensityBasis, trajectory: KohnShamTrajectory) -> None:
    values = basis.mol.eval_gto("GTOval", trajectory.grid.coords)[:, basis.order]
    smooth = np.abs(basis.integrals) > 0.3
    np.testing.assert_allclose(trajectory.grid.weights @ values[:, smooth], basis.integrals[smooth], rtol=1e-4)
    np.testing.assert_allclose(trajectory.grid.weights @ values[:, ~smooth], basis.integrals[~smooth], atol=1e-2)

    distances = np.linalg.norm(trajectory.grid.coords[:, None] - WATER.positions, axis=-1)
    attraction = -(WATER.atomic_numbers / distances).sum(axis=1)
    expected = (trajectory.grid.weights * attraction) @ values[:, smooth]
    np.testing.assert_allclose(basis.external_potential()[smooth], expected, rtol=1e-3)
