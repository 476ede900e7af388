"""The reference energies: their names, and one formula for the fit and for the modules that apply them."""

from __future__ import annotations

import torch
from torch import Tensor

from ofdft_norm.data.basis_info import BasisInfo

# Every fit makes them all, for each weigher; statistics carry their names.
REFERENCES = ("atom_ref", "scalar_atom_ref", "linear_ref")


def reference_slope(name: str, gbar: Tensor, basis_info: BasisInfo) -> Tensor:
    """Returns a reference's (n_basis,) gradient with respect to the coefficients [hartree].

    Args:
        name: One of `REFERENCES`.
        gbar: (n_basis,) mean gradient.
        basis_info: The basis.
    """
    if name == "atom_ref":
        return gbar
    scalar = torch.as_tensor(basis_info.l_per_basis_func == 0)
    return torch.where(scalar, gbar, 0.0) if name == "scalar_atom_ref" else torch.zeros_like(gbar)


def reference_has_bias(name: str, with_bias: bool) -> bool:
    """Whether a reference has a constant; one that is linear in the composition alone never has."""
    return with_bias and name != "linear_ref"


def atom_ref_energy(
    coeffs: Tensor,
    basis_function_ind: Tensor,
    coeffs_batch: Tensor,
    atom_ind: Tensor,
    atom_batch: Tensor,
    g_z: Tensor,
    t_z: Tensor,
    t_global: Tensor,
    n_molecules: int,
) -> Tensor:
    """E_ref(p) = sum_mu g_b(mu) p_mu + sum_atoms t_Z + t_0, for each molecule.

    Args:
        coeffs: (N,) density coefficients; differentiable, the gradient is ``g_z[basis_function_ind]``.
        basis_function_ind: (N,).
        coeffs_batch: (N,) molecule of each coefficient.
        atom_ind: (n_atom,) element of each atom.
        atom_batch: (n_atom,) molecule of each atom.
        g_z: (n_basis,) [hartree].
        t_z: (n_types,) [hartree].
        t_global: () [hartree].
        n_molecules: Number of molecules.

    Returns:
        (n_molecules,) float64 [hartree].
    """
    linear = coeffs.to(torch.float64) * g_z[basis_function_ind]
    energy = linear.new_zeros(n_molecules).index_add(0, coeffs_batch, linear)
    return energy.index_add(0, atom_batch, t_z[atom_ind]) + t_global
