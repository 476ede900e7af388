"""Molecules in a small density basis with exponents, in both orders of p functions, and embedded labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ofdft_norm import BasisInfo, OFData, OFDataset
from ofdft_norm.data.basis_info import POrder
from ofdft_norm.data.embedded_data import EMBEDDED_DATA

Array = npt.NDArray[np.float64]
EXPONENTS = {1: [3.0, 0.4, 0.8], 6: [40.0, 5.0, 0.3, 2.0, 0.2, 0.9, 1.1, 1.3], 8: [50.0, 0.5, 1.7, 0.7]}
IRREPS = {1: "2x0e+1x1o", 6: "3x0e+2x1o+1x2e+1x3o+1x4e", 8: "2x0e+1x1o+1x2e"}


def small_basis(p_order: POrder = "yzx") -> BasisInfo:
    return BasisInfo(list(IRREPS), list(IRREPS.values()), p_order, list(EXPONENTS.values()))


def integrals_of(basis_info: BasisInfo, functions: npt.NDArray[np.int64]) -> Array:
    """Integrates normalised Gaussians: those of l > 0 vanish."""
    assert basis_info.exponent_per_shell is not None
    exponents = basis_info.exponent_per_shell[basis_info.basis_func_to_shell[functions]]
    return np.where(basis_info.l_per_basis_func[functions] == 0, (2 * np.pi / exponents) ** 0.75, 0.0)


@pytest.fixture(scope="session")
def basis_with_exponents() -> BasisInfo:
    return small_basis()


@pytest.fixture(scope="session")
def make_molecule() -> Callable[..., OFData]:
    """`make_molecule(rng, numbers=..., pos=..., p_order=...)`: random densities of one geometry in the small basis."""

    def make(
        rng: np.random.Generator,
        numbers: list[int] | None = None,
        pos: Array | None = None,
        p_order: POrder = "yzx",
        mol_id: str = "molecule",
    ) -> OFData:
        basis_info = small_basis(p_order)
        numbers = [6, 8, 6, 1, 1] if numbers is None else numbers
        if pos is None:  # atoms on a coarse grid, moved a little: none too close
            cells = rng.choice(27, len(numbers), replace=False)
            pos = 2.5 * np.stack(np.unravel_index(cells, (3, 3, 3)), axis=1) + rng.uniform(-0.4, 0.4, (len(numbers), 3))
        functions = basis_info.basis_function_ind(basis_info.atom_indices(np.array(numbers)))
        n = len(functions)
        return OFData.construct_new(
            basis_info,
            pos,
            numbers,
            rng.normal(size=n),
            rng.normal(size=n),
            rng.normal(size=n),
            rng.normal(),
            dual_basis_integrals=integrals_of(basis_info, functions),
            mol_id=mol_id,
            scf_iteration=1,
        )

    return make


@pytest.fixture(scope="session")
def embedded() -> Callable[..., OFDataset]:
    """`embedded("water", ...)`: the data set over some embedded label files."""
    basis_info = BasisInfo.from_json(EMBEDDED_DATA / "basis_info.json")

    def dataset(*names: str, **options: str) -> OFDataset:
        paths: list[Path] = [EMBEDDED_DATA / "labels" / f"{name}.zarr.zip" for name in names]
        return OFDataset(paths, basis_info, **options)

    return dataset


@pytest.fixture(scope="session")
def random_rotation() -> Callable[[np.random.Generator], Array]:
    """`random_rotation(rng)`: a proper rotation."""

    def rotation(rng: np.random.Generator) -> Array:
        q, r = np.linalg.qr(rng.normal(size=(3, 3)))
        q = q * np.sign(np.diag(r))
        return q * np.sign(np.linalg.det(q))

    return rotation
