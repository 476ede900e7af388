"""Molecules in a small density basis with exponents, and independent oracles for how their densities rotate."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import torch

from ofdft_norm import BasisInfo, OFData
from ofdft_norm.data.sample import PER_FUNCTION

Array = npt.NDArray[np.float64]
EXPONENTS = {1: [3.0, 0.4, 0.8], 6: [40.0, 5.0, 0.3, 2.0, 0.2, 0.9, 1.1, 1.3], 8: [50.0, 0.5, 1.7, 0.7]}
IRREPS = {1: "2x0e+1x1o", 6: "3x0e+2x1o+1x2e+1x3o+1x4e", 8: "2x0e+1x1o+1x2e"}
BASIS = BasisInfo(list(IRREPS), list(IRREPS.values()), list(EXPONENTS.values()))
# e3nn's second axis is the distinguished one: in these axes its harmonics are those of PySCF, m = -l ... l
TO_E3NN = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])


def random_rotation(rng: np.random.Generator) -> Array:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def wigner(l: int, rotation: Array) -> Array:
    """Wigner matrix of e3nn, in its own axes; those of l = 1 are the rotation itself."""
    o3 = pytest.importorskip("e3nn.o3")
    torch.set_default_dtype(torch.float64)  # e3nn's own constants follow it
    try:
        return o3.Irrep(l, (-1) ** l).D_from_matrix(torch.tensor(rotation)).numpy()
    finally:
        torch.set_default_dtype(torch.float32)


def block_diagonal(sample: OFData, block: Callable[[int, int], Array]) -> Array:
    """Dense matrix with `block(atom, l)` for each shell."""
    l_of = sample.basis_info.l_per_basis_func[sample.basis_function_ind.numpy()]
    atom_of = np.repeat(np.arange(len(sample.pos)), sample.n_basis_per_atom.numpy())
    blocks, start = [], 0
    while start < len(l_of):
        blocks.append(block(int(atom_of[start]), int(l_of[start])))
        start += 2 * l_of[start] + 1
    return np.asarray(scipy.linalg.block_diag(*blocks))


def rotated(sample: OFData, rotation: Array) -> OFData:
    """The same densities of a rotated molecule: p shells are vectors, others harmonics of e3nn in its own axes."""
    matrix = block_diagonal(sample, lambda atom, l: rotation if l == 1 else wigner(l, TO_E3NN @ rotation @ TO_E3NN.T))
    out = sample.clone()
    out.pos = sample.pos @ torch.tensor(rotation).T
    for field in PER_FUNCTION:
        out[field] = torch.tensor(matrix) @ sample[field]
    return out


def make_molecule(
    rng: np.random.Generator,
    numbers: Sequence[int] = (6, 8, 6, 1, 1),
    pos: Array | None = None,
    mol_id: str = "molecule",
    basis_info: BasisInfo = BASIS,
) -> OFData:
    """Random densities of one geometry in the small basis, with the integrals of its normalised Gaussians."""
    if pos is None:  # atoms on a coarse grid, moved a little: none too close
        cells = rng.choice(27, len(numbers), replace=False)
        pos = 2.5 * np.stack(np.unravel_index(cells, (3, 3, 3)), axis=1) + rng.uniform(-0.4, 0.4, (len(numbers), 3))
    functions = basis_info.basis_function_ind(basis_info.atom_indices(np.array(numbers)))
    exponents = BASIS.exponent_per_shell[basis_info.basis_func_to_shell[functions]]
    integrals = np.where(basis_info.l_per_basis_func[functions] == 0, (2 * np.pi / exponents) ** 0.75, 0.0)
    labels = *rng.normal(size=(3, len(functions))), rng.normal()
    fields = {"dual_basis_integrals": integrals, "mol_id": mol_id, "scf_iteration": 1}
    return OFData.construct_new(basis_info, pos, numbers, *labels, **fields)
