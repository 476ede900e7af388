from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyscf")

from ofdft_norm import BasisInfo, NaturalReparametrization
from ofdft_norm.errors import BasisError
from ofdft_norm.transforms.molecule import molecules_of
from ofdft_norm.transforms.overlap import overlap_of, pyscf_order
from ofdft_norm.transforms.real_harmonics import real_harmonics
from tests.transforms.conftest import EXPONENTS


@pytest.mark.parametrize("p_order", ["yzx", "xyz"])
def test_overlap_is_the_integral_over_products_of_normalised_gaussians(p_order: Any, make_molecule: Any) -> None:
    """By quadrature on a dense grid: only as exact as the grid, but it knows nothing of PySCF."""
    sample = make_molecule(np.random.default_rng(0), [8, 1], np.array([[0.1, -0.2, 0.3], [0.5, 1.3, -0.6]]), p_order)
    basis_info, functions = sample.basis_info, sample.basis_function_ind.numpy()
    overlap = overlap_of(molecules_of(sample)[0][0])
    axis = np.linspace(-5, 5, 51)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    exponents = basis_info.exponent_per_shell[basis_info.basis_func_to_shell[functions]]
    atoms = np.repeat([0, 1], basis_info.basis_dim_per_atom[sample.atom_ind.numpy()])
    smooth = np.flatnonzero(exponents < 2)  # the grid resolves these
    values = []
    for i in smooth:
        l, m = basis_info.l_per_basis_func[functions[i]], basis_info.m_per_basis_func[functions[i]]
        r = grid - sample.pos[atoms[i]].numpy()
        distance = np.linalg.norm(r, axis=1)
        angular = real_harmonics(l, r / np.maximum(distance, 1e-12)[:, None])[:, m + l]
        values.append(distance**l * angular * np.exp(-exponents[i] * distance**2))
    values = np.array(values) * (axis[1] - axis[0]) ** 1.5
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    np.testing.assert_allclose(overlap[np.ix_(smooth, smooth)], values @ values.T, atol=1e-6)


@pytest.mark.parametrize("p_order", ["yzx", "xyz"])
def test_overlap_is_that_of_pyscf_with_a_shell_for_each_exponent(p_order: Any, make_molecule: Any) -> None:
    from pyscf import gto

    sample = make_molecule(np.random.default_rng(4), [6, 8, 1, 6], p_order=p_order)
    mol = gto.M(
        atom=list(zip("COHC", sample.pos.tolist(), strict=True)),
        basis={
            "H": [[0, [3.0, 1]], [0, [0.4, 1]], [1, [0.8, 1]]],
            "O": [[0, [50.0, 1]], [0, [0.5, 1]], [1, [1.7, 1]], [2, [0.7, 1]]],
            "C": [[l, [exponent, 1]] for l, exponent in zip([0, 0, 0, 1, 1, 2, 3, 4], EXPONENTS[6], strict=True)],
        },
        unit="Bohr",
        spin=None,
    )
    order = np.arange(mol.nao)
    if p_order == "yzx":  # PySCF says which of its functions is which
        names = [label.split()[2] for label in mol.ao_labels()]
        for x in (i for i, name in enumerate(names) if name.endswith("px")):
            assert (names[x + 1][-2:], names[x + 2][-2:]) == ("py", "pz")
            order[x : x + 3] = x + 1, x + 2, x
    expected = mol.intor("int1e_ovlp")[np.ix_(order, order)]
    np.testing.assert_allclose(overlap_of(molecules_of(sample)[0][0]), expected, rtol=0, atol=1e-12)


def test_order_of_functions_is_a_permutation_that_only_moves_p_components(make_molecule: Any) -> None:
    for p_order in ("yzx", "xyz"):
        sample = make_molecule(np.random.default_rng(1), [6, 6, 1], p_order=p_order)
        order = pyscf_order(molecules_of(sample)[0][0])
        assert sorted(order) == list(range(len(order)))
        l_of = sample.basis_info.l_per_basis_func[sample.basis_function_ind.numpy()]
        assert (order == np.arange(len(order)))[l_of != 1].all()
        assert (order == np.arange(len(order)))[l_of == 1].all() == (p_order == "xyz")


def test_a_basis_without_exponents_says_what_to_give(basis_info: Any, make_sample: Any) -> None:
    sample = make_sample(basis_info, np.random.default_rng(2), mol_id="water")
    with pytest.raises(BasisError, match=r"'water'.*exponents.*'overlap_matrix'.*data\.source\.basis_info"):
        NaturalReparametrization()(sample)


def test_integrals_of_another_basis_are_refused(make_molecule: Any) -> None:
    sample = make_molecule(np.random.default_rng(3), [8, 1], mol_id="hydroxide")
    arguments = sample.basis_info.to_dict()
    arguments["exponents_per_atom"][2][0] *= 1.001
    sample.basis_info = BasisInfo(**arguments)
    with pytest.raises(BasisError, match=r"'hydroxide'.*'dual_basis_integrals'.*exponent 50\.05.*another basis"):
        NaturalReparametrization()(sample)
    sample.basis_info = BasisInfo(**{**arguments, "exponents_per_atom": None})
    with pytest.raises(BasisError, match="does not say its exponents"):
        NaturalReparametrization()(sample)
