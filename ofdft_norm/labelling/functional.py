"""Energies of densities in the density basis, and their derivatives with respect to the coefficients."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ofdft_norm.data.files import import_optional
from ofdft_norm.labelling.density_fit import integrate_coulomb, integrate_external
from ofdft_norm.labelling.geometries import Array
from ofdft_norm.labelling.kohn_sham import check_functional


@dataclass(frozen=True)
class Potentials:
    """Energies of several densities and their gradients dE/dp, by name: `e_hartree`, `e_ext`, and functionals."""

    energies: dict[str, Array]  # (n_density,) each [hartree]
    gradients: dict[str, Array]  # (n_density, n_basis) each [hartree]
    effective_energy: Array  # (n_density,) E_H + E_xc + E_ext; without E_xc if it was not asked for
    effective_potential: Array  # (n_density, n_basis) v_eff, the gradient of `effective_energy`


def evaluate_potentials(
    coeffs: Array,
    mol: Any,
    grid: Any,
    functionals: Mapping[str, str],
    coulomb: Array | None = None,
    energies_alone: Mapping[str, str] | None = None,
    kept: dict[int, Array] | None = None,
    max_memory_mb: float = 400.0,
) -> Potentials:
    """Evaluates E_H = 1/2 p.(w|w) p, E_ext = v_ext.p, and LDA and GGA functionals E[rho_p] by name, on a grid.

    dE/dp_mu = int (df/drho) w_mu + 2 (df/dsigma) grad(rho).grad(w_mu), sigma = |grad(rho)|^2; not of `energies_alone`.
    `coeffs` is (n_density, n_basis), `mol` has the density basis, `coulomb` is (w|w) where the caller has it. Values of
    basis functions take about `max_memory_mb` at a time; a dict `kept` keeps all of them for further calls.
    """
    numint = import_optional("pyscf.dft.numint", "labels").NumInt()
    all_functionals = {**functionals, **(energies_alone or {})}
    for functional in all_functionals.values():
        check_functional(functional)
    energies: dict[str, Array] = {name: np.zeros(len(coeffs)) for name in all_functionals}
    gradients: dict[str, Array] = {name: np.zeros_like(coeffs) for name in functionals}
    is_gga = {name: numint._xc_type(functional) == "GGA" for name, functional in all_functionals.items()}
    n_components = 4 if any(is_gga.values()) else 1
    block = max(256, int(max_memory_mb * 1e6 / (8 * n_components * mol.nao)))
    for start in range(0, len(grid.weights), block):
        points, weights = grid.coords[start : start + block], grid.weights[start : start + block]
        # (component, point, function): the value and, for a GGA, the three derivatives
        values = None if kept is None else kept.get(start)
        if values is None:
            values = np.asarray(numint.eval_ao(mol, points, deriv=n_components // 4))
            values = values.reshape(n_components, len(weights), -1)
        if kept is not None:
            kept[start] = values
        densities = coeffs @ values.transpose(0, 2, 1)
        for name, functional in all_functionals.items():
            rho = densities.reshape(n_components, -1)
            per_electron, derivatives = numint.eval_xc(functional, rho if is_gga[name] else rho[0], deriv=1)[:2]
            energies[name] += (densities[0] * per_electron.reshape(densities[0].shape)) @ weights
            if name not in gradients:
                continue
            fields = np.zeros_like(densities)
            fields[0] = weights * derivatives[0].reshape(densities[0].shape)
            if is_gga[name]:
                fields[1:] = 2.0 * weights * derivatives[1].reshape(densities[0].shape) * densities[1:]
            gradients[name] += (fields @ values).sum(axis=0)
    hartree, external = coeffs @ (integrate_coulomb(mol) if coulomb is None else coulomb), integrate_external(mol)
    energies |= {"e_hartree": 0.5 * np.einsum("kn,kn->k", coeffs, hartree), "e_ext": coeffs @ external}
    gradients |= {"e_hartree": hartree, "e_ext": np.broadcast_to(external, coeffs.shape)}
    effective_energy, effective_potential = (
        sum((array for name, array in arrays.items() if name in ("e_hartree", "e_xc", "e_ext")), np.zeros(()))
        for arrays in (energies, gradients)
    )
    return Potentials(energies, gradients, effective_energy, effective_potential)
