"""The terms of the total energy that need no network: density optimisation adds them to a learned energy."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.files import import_optional
from ofdft_norm.errors import BatchError
from ofdft_norm.labelling.density_fit import integrate_coulomb
from ofdft_norm.labelling.functional import evaluate_potentials
from ofdft_norm.transforms.coordinates import list_molecules
from ofdft_norm.transforms.overlap import build_pyscf_molecule


class ExactTerms:
    """E_H + E_xc + E_ext + E_nn of one molecule, as a function of its coefficients in the density basis.

    E_H = 1/2 p.(w|w) p, E_xc[rho_p] by quadrature, E_ext the attraction by the nuclei, E_nn their repulsion (PySCF,
    extra ``labels``). A call with (n_basis,) coefficients returns hartree, float64, differentiable once. The values of
    the basis functions on the grid are kept: 0.2 GB for methanol at grid level 1.

    Args:
        sample_or_batch: One molecule, normalised or not: only its geometry and basis are used.
        xc: Exchange-correlation functional, LDA or GGA; None: without E_xc, for a model that learns it.
        grid_level: PySCF's level of the quadrature grid, 0 ... 9.

    Raises:
        BatchError: If the batch has several molecules.
        BasisError: If the basis lacks its exponents.
        ImportError: If PySCF is not installed.
    """

    def __init__(self, sample_or_batch: Data, xc: str | None = "PBE", grid_level: int = 3) -> None:
        molecules = list_molecules(sample_or_batch)
        if len(molecules) != 1:
            raise BatchError(f"exact terms need one molecule, and the batch has {len(molecules)}")
        self.mol = build_pyscf_molecule(molecules[0][0])
        self.functionals = {} if xc is None else {"e_xc": xc}
        self.coulomb = integrate_coulomb(self.mol)
        self.nuclear_repulsion = float(self.mol.energy_nuc())
        self.grid: Any = import_optional("pyscf.dft", "labels").gen_grid.Grids(self.mol)
        self.grid.level = grid_level
        if xc is None:
            self.grid.coords, self.grid.weights = np.zeros((0, 3)), np.zeros(0)
        else:
            self.grid.build()
        self._values: dict[int, npt.NDArray[np.float64]] = {}  # basis functions on the grid, by block

    def __call__(self, coeffs: Tensor) -> Tensor:
        """Returns the energy of (n_basis,) coefficients of the density basis, a scalar [hartree]."""
        return _Energy.apply(coeffs, self)


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coeffs: Tensor, terms: ExactTerms) -> Tensor:
        p = coeffs.detach().to("cpu", torch.float64).numpy()[None]
        found = evaluate_potentials(p, terms.mol, terms.grid, terms.functionals, terms.coulomb, kept=terms._values)
        ctx.save_for_backward(torch.from_numpy(found.effective_potential[0]).to(coeffs.device, coeffs.dtype))
        return coeffs.new_tensor(float(found.effective_energy[0]) + terms.nuclear_repulsion, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad_outputs[0].to(gradient.dtype) * gradient, None
