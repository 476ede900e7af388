"""The terms of the total energy that need no network: what density optimisation adds to a learned kinetic energy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.pyscf_import import pyscf_module
from ofdft_norm.errors import BasisError, BatchError
from ofdft_norm.labelling.density_basis import DensityBasis
from ofdft_norm.labelling.functional import evaluate_potentials
from ofdft_norm.transforms.molecule import molecules_of
from ofdft_norm.transforms.overlap import pyscf_molecule, pyscf_order


class ExactTerms:
    """E_H + E_xc + E_ext + E_nn of one molecule, as a function of its coefficients in the density basis.

    E_H = 1/2 p.(w|w) p, E_xc[rho_p] by quadrature, E_ext the attraction by the nuclei, E_nn their repulsion (PySCF,
    extra ``labels``). Called with (n_basis,) coefficients, it returns hartree, float64, differentiable.

    Args:
        sample_or_batch: One molecule, normalised or not: its geometry and basis count.
        xc: Exchange-correlation functional, LDA or GGA.
        grid_level: PySCF's level of the quadrature grid, 0 ... 9.

    Raises:
        BatchError: If the batch has several molecules.
        BasisError: If the basis does not say its exponents.
        ImportError: If PySCF is not installed.
    """

    def __init__(self, sample_or_batch: Data, xc: str = "PBE", grid_level: int = 3) -> None:
        molecules = molecules_of(sample_or_batch)
        if len(molecules) != 1:
            raise BatchError(f"exact terms are of one molecule, and the batch has {len(molecules)}")
        molecule = molecules[0][0]
        if molecule.basis_info.exponent_per_shell is None:
            raise BasisError(
                f"molecule {molecule.name!r}: exact terms need the exponents of the density basis, which it does not "
                "say (config: data.source.basis_info)"
            )
        mol = pyscf_molecule(molecule, molecule.basis_info.exponent_per_shell)
        self.xc = xc
        self.basis = DensityBasis(mol, pyscf_order(molecule), {}, {}, np.zeros(0))
        self.coulomb = self.basis.coulomb_metric()
        self.nuclear_repulsion = float(mol.energy_nuc())
        self.grid: Any = pyscf_module("dft").gen_grid.Grids(mol)
        self.grid.level = grid_level
        self.grid.build()

    def __call__(self, coeffs: Tensor) -> Tensor:
        """Returns the energy of (n_basis,) coefficients of the density basis, a scalar [hartree]."""
        return _Energy.apply(coeffs, self)

    def energy_and_gradient(self, coeffs: Tensor) -> tuple[float, Tensor]:
        """Returns the energy [hartree] and its derivative, (n_basis,) float64.

        Args:
            coeffs: (n_basis,) coefficients of the density basis, float64.
        """
        p = coeffs.detach().to("cpu", torch.float64).numpy()[None]
        potentials = evaluate_potentials(p, self.basis, self.coulomb, self.grid, self.xc)
        gradient = torch.from_numpy(potentials.effective_potential[0])
        return float(potentials.effective_energy[0]) + self.nuclear_repulsion, gradient


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coeffs: Tensor, terms: ExactTerms) -> Tensor:
        energy, gradient = terms.energy_and_gradient(coeffs)
        ctx.save_for_backward(gradient.to(coeffs.device, coeffs.dtype))
        return coeffs.new_tensor(energy, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad_outputs[0].to(gradient.dtype) * gradient, None
