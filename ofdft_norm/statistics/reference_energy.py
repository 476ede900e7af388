"""The energy of the atomic reference: one formula for the fit and for the module that applies it."""

from __future__ import annotations

import torch
from torch import Tensor


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
