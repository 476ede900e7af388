"""Energies of densities in the density basis, and their derivatives with respect to the coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.files import optional_module
from ofdft_norm.labelling.density_fit import coulomb_metric, external_potential
from ofdft_norm.labelling.kohn_sham import check_functional

Array = npt.NDArray[np.float64]
EFFECTIVE = ("e_hartree", "e_xc", "e_ext")


@dataclass(frozen=True)
class Potentials:
    """Energies of several densities and their gradients dE/dp, by name.

    Attributes:
        energies: (n_density,) each [hartree]: `e_hartree`, `e_ext`, and those of the functionals.
        gradients: (n_density, n_basis) each [hartree], under the same names.
    """

    energies: dict[str, Array]
    gradients: dict[str, Array]

    @property
    def effective_energy(self) -> Array:
        """(n_density,) E_H + E_xc + E_ext."""
        return sum((self.energies[name] for name in EFFECTIVE), np.zeros(()))

    @property
    def effective_potential(self) -> Array:
        """(n_density, n_basis) v_eff, the gradient of `effective_energy`."""
        return sum((self.gradients[name] for name in EFFECTIVE), np.zeros(()))


def evaluate_potentials(
    coeffs: Array,
    mol: Any,
    grid: Any,
    functionals: Mapping[str, str],
    coulomb: Array | None = None,
    energies_alone: Mapping[str, str] | None = None,
    kept: dict[int, Array] | None = None,
) -> Potentials:
    """Evaluates E_H = 1/2 p.(w|w) p, E_ext = v_ext.p, and functionals of the density; `coeffs` is (n_density, n_basis).

    `mol` is PySCF's molecule with the density basis; `functionals` maps names to functionals in PySCF's spelling, such
    as ``{"e_xc": "PBE"}``, those in `energies_alone` have no gradients; `coulomb` is (w|w) where the caller has it;
    `kept`: see `integrate_functionals`.
    """
    hartree = coeffs @ (coulomb_metric(mol) if coulomb is None else coulomb)
    external = external_potential(mol)
    values, gradients = integrate_functionals(coeffs, mol, grid, functionals, energies_alone, kept=kept)
    return Potentials(
        {"e_hartree": 0.5 * np.einsum("kn,kn->k", coeffs, hartree), "e_ext": coeffs @ external, **values},
        {"e_hartree": hartree, "e_ext": np.broadcast_to(external, coeffs.shape), **gradients},
    )


def integrate_functionals(
    coeffs: Array,
    mol: Any,
    grid: Any,
    functionals: Mapping[str, str],
    energies_alone: Mapping[str, str] | None = None,
    max_memory_mb: float = 400.0,
    kept: dict[int, Array] | None = None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Integrates LDA and GGA functionals E[rho_p], of exchange and correlation or kinetic, on a grid block by block.

    dE/dp_mu = int (df/drho) w_mu + 2 (df/dsigma) grad(rho).grad(w_mu), sigma = |grad(rho)|^2.
    The values of basis functions that are held at a time take about `max_memory_mb`; a dict `kept` keeps all of them,
    which makes further calls with the same molecule and grid many times faster.
    """
    numint = optional_module("pyscf.dft.numint", "labels").NumInt()
    all_functionals = {**functionals, **(energies_alone or {})}
    for functional in all_functionals.values():
        check_functional(functional)
    energies = {name: np.zeros(len(coeffs)) for name in all_functionals}
    gradients = {name: np.zeros_like(coeffs) for name in functionals}
    is_gga = {name: numint._xc_type(functional) == "GGA" for name, functional in all_functionals.items()}
    n_components = 4 if any(is_gga.values()) else 1
    block = max(256, int(max_memory_mb * 1e6 / (8 * n_components * mol.nao)))
    for start in range(0, len(grid.weights), block):
        points, weights = grid.coords[start : start + block], grid.weights[start : start + block]
        # (component, point, function): the value and, for a GGA, the three derivatives
        known = None if kept is None else kept.get(start)
        values = np.asarray(numint.eval_ao(mol, points, deriv=n_components // 4)) if known is None else known
        values = values.reshape(n_components, len(weights), -1)
        if kept is not None:
            kept[start] = values
        densities = coeffs @ values.transpose(0, 2, 1)
        for name, functional in all_functionals.items():
            rho = densities.reshape(n_components, -1)
            found = numint.eval_xc(functional, rho if is_gga[name] else rho[0], spin=0, deriv=1)
            per_electron, derivatives = found[0].reshape(densities[0].shape), found[1]
            energies[name] += (densities[0] * per_electron) @ weights
            if name not in gradients:
                continue
            fields = np.zeros_like(densities)
            fields[0] = weights * derivatives[0].reshape(densities[0].shape)
            if is_gga[name]:
                fields[1:] = 2.0 * weights * derivatives[1].reshape(densities[0].shape) * densities[1:]
            gradients[name] += (fields @ values).sum(axis=0)
    return energies, gradients
