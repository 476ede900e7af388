"""Energies of expanded densities and their derivatives with respect to the coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.pyscf_import import pyscf_module
from ofdft_norm.labelling.density_basis import DensityBasis
from ofdft_norm.labelling.errors import LabellingError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Potentials:
    """Energies of several densities and their gradients dE/dp (the potentials in the density basis).

    Attributes:
        energies: `e_hartree`, `e_xc`, `e_ext`: (n_density,) each, hartree.
        gradients: The same keys: (n_density, n_basis) each, hartree.
    """

    energies: dict[str, Array]
    gradients: dict[str, Array]

    @property
    def effective_energy(self) -> Array:
        """(n_density,) E_H + E_xc + E_ext."""
        return sum(self.energies.values(), np.zeros(()))

    @property
    def effective_potential(self) -> Array:
        """(n_density, n_basis) v_eff, the derivative of `effective_energy`."""
        return sum(self.gradients.values(), np.zeros(()))


def evaluate_potentials(coeffs: Array, basis: DensityBasis, coulomb_metric: Array, grid: Any, xc: str) -> Potentials:
    """Evaluates Hartree, exchange-correlation and external energy of expanded densities.

    E_H = 1/2 p.(w|w) p, E_ext = v_ext.p, and E_xc[rho_p] by quadrature.

    Args:
        coeffs: (n_density, n_basis) p.
        basis: The density basis.
        coulomb_metric: (n_basis, n_basis) (w|w).
        grid: PySCF's quadrature grid.
        xc: The functional, LDA or GGA.

    Returns:
        Energies and gradients.
    """
    hartree = coeffs @ coulomb_metric
    external = basis.external_potential()
    e_xc, v_xc = exchange_correlation(coeffs, basis, grid, xc)
    energies = {
        "e_hartree": 0.5 * np.einsum("kn,kn->k", coeffs, hartree),
        "e_xc": e_xc,
        "e_ext": coeffs @ external,
    }
    gradients = {"e_hartree": hartree, "e_xc": v_xc, "e_ext": np.broadcast_to(external, coeffs.shape)}
    return Potentials(energies, gradients)


def exchange_correlation(
    coeffs: Array, basis: DensityBasis, grid: Any, xc: str, max_memory_mb: float = 400.0
) -> tuple[Array, Array]:
    """Integrates E_xc[rho_p] and its gradient on a grid, block by block.

    dE_xc/dp_mu = int (df/drho) w_mu + 2 (df/dsigma) grad(rho).grad(w_mu), sigma = |grad(rho)|^2.

    Args:
        coeffs: (n_density, n_basis) p.
        basis: The density basis.
        grid: PySCF's quadrature grid (`coords` in bohr, `weights`).
        xc: The functional, LDA or GGA.
        max_memory_mb: Bound on the basis functions held at a time; sets the number of points per block.

    Returns:
        (n_density,) energies and (n_density, n_basis) gradients, in hartree.

    Raises:
        LabellingError: If the functional is neither LDA nor GGA.
    """
    numint = pyscf_module("dft").numint.NumInt()
    kind = numint._xc_type(xc)
    if kind not in ("LDA", "GGA"):
        raise LabellingError(
            f"functional {xc!r} is of type {kind}; labels are made with LDA or GGA functionals (option xc)"
        )
    in_pyscf_order = np.empty_like(coeffs)
    in_pyscf_order[:, basis.order] = coeffs
    energies, gradients = np.zeros(len(coeffs)), np.zeros_like(coeffs)
    n_components = 4 if kind == "GGA" else 1
    block = max(256, int(max_memory_mb * 1e6 / (8 * n_components * basis.n_basis)))
    for start in range(0, len(grid.weights), block):
        points, weights = grid.coords[start : start + block], grid.weights[start : start + block]
        functions = numint.eval_ao(basis.mol, points, deriv=n_components // 4)
        # (component, point, function): the value and, for a GGA, the three derivatives
        functions = np.asarray(functions).reshape(n_components, len(weights), -1)
        energy, gradient = _block(numint, xc, functions, in_pyscf_order, weights)
        energies += energy
        gradients += gradient
    return energies, np.ascontiguousarray(gradients[:, basis.order])


def _block(numint: Any, xc: str, functions: Array, coeffs: Array, weights: Array) -> tuple[Array, Array]:
    """Contribution of one block of points to energies and gradients (in PySCF's order)."""
    energies, gradients = np.zeros(len(coeffs)), np.zeros_like(coeffs)
    densities = np.einsum("cpn,kn->kcp", functions, coeffs, optimize=True)
    fields = np.empty_like(densities)
    for k, density in enumerate(densities):
        rho = density if len(density) > 1 else density[0]
        per_electron, derivatives = numint.eval_xc(xc, rho, spin=0, deriv=1)[:2]
        energies[k] = np.dot(weights, density[0] * per_electron)
        fields[k, 0] = weights * derivatives[0]
        fields[k, 1:] = 2.0 * weights * derivatives[1] * density[1:] if len(density) > 1 else 0.0
    gradients = np.einsum("kcp,cpn->kn", fields, functions, optimize=True)
    return energies, gradients
