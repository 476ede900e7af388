"""From a geometry to labels: energies and gradients at the fitted density of every Kohn-Sham iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ofdft_norm.data.label_file import LabelFileContent
from ofdft_norm.labelling.density_fit import FitMethod, build_density_mol, fit_densities, integrate_basis
from ofdft_norm.labelling.functional import evaluate_potentials
from ofdft_norm.labelling.geometries import Geometry
from ofdft_norm.labelling.kohn_sham import KohnShamSettings, KohnShamTrajectory, run_kohn_sham
from ofdft_norm.settings import Settings

Array = npt.NDArray[np.float64]
Target = Literal["grad_kin", "grad_kin_plus_xc", "grad_kin_minus_apbe", "grad_tot"]
TARGET_NAMES: tuple[Target, ...] = get_args(Target)
DEFAULT_TARGETS: tuple[Target, ...] = ("grad_kin", "grad_kin_plus_xc", "grad_kin_minus_apbe")

# For each gradient: its energy, and the sum of energies that this one is. Names and formulas are those of
# STRUCTURES25; e_kinapbe is the kinetic energy of the functional APBE (libxc: GGA_K_APBE).
TARGETS: dict[str, tuple[str, dict[str, float]]] = {
    "grad_kin": ("e_kin", {"e_kin": 1.0}),
    "grad_kin_plus_xc": ("e_kin_plus_xc", {"e_kin": 1.0, "e_xc": 1.0}),
    "grad_kin_minus_apbe": ("e_kin_minus_apbe", {"e_kin": 1.0, "e_kinapbe": -1.0}),
    "grad_tot": ("e_tot", {"e_kin": 1.0, "e_hartree": 1.0, "e_xc": 1.0, "e_ext": 1.0}),
}


class LabelSettings(Settings):
    """All settings that decide the numbers of the labels."""

    kohn_sham: KohnShamSettings = KohnShamSettings()
    beta: Annotated[float, Field(gt=1)] = 2.5  # ratio of neighbouring exponents of the density basis
    density_fit: FitMethod = "least_squares"  # see `fit_densities`
    targets: Annotated[Sequence[Target], Field(min_length=1)] = DEFAULT_TARGETS  # gradients to store

    config_key = "labels"


@dataclass(frozen=True)
class KohnShamLabels(LabelFileContent):
    """Labels of a molecule, and the Coulomb self-energies (n_scf,) of its residual densities in hartree.

    Row 0 is the initial guess: it has coefficients, but neither energies nor gradients (zeros).
    """

    fit_residuals: Array = field(kw_only=True)


def make_labels(geometry: Geometry, settings: LabelSettings | None = None) -> KohnShamLabels:
    """Makes the labels of a molecule, without checks; raises LabellingError where a calculation fails."""
    settings = settings or LabelSettings()
    trajectory = run_kohn_sham(geometry, settings.kohn_sham)
    mol = build_density_mol(trajectory.mol, settings.beta)
    coeffs, residuals = fit_densities(trajectory, mol, settings.density_fit)
    functionals = {"e_xc": settings.kohn_sham.xc, "e_kinapbe": "GGA_K_APBE"}
    potentials = evaluate_potentials(coeffs, mol, trajectory.grid, functionals)
    iterations = trajectory.iterations
    ks_energies = {name: np.array([i.energies[name] for i in iterations]) for name in iterations[0].energies}
    # the kinetic energy makes the total energy that of Kohn and Sham
    energies = {**potentials.energies, "e_kin": ks_energies["e_electron"] - potentials.effective_energy}
    gradients = {**potentials.gradients, "e_kin": kinetic_gradients(trajectory, potentials.effective_potential)}
    energies |= {energy: _combine(energies, parts) for energy, parts in TARGETS.values()}
    energies |= {name: ks_energies[name] for name in ("e_electron", "e_tot")}
    labelled = np.arange(len(iterations)) > 0
    return KohnShamLabels(
        mol_id=geometry.mol_id,
        atomic_numbers=geometry.atomic_numbers,
        positions=geometry.positions,
        coeffs=coeffs,
        gradients={
            target: np.where(labelled[:, None], _combine(gradients, parts), 0.0)
            for target, (_, parts) in TARGETS.items()
            if target in settings.targets
        },
        dual_basis_integrals=integrate_basis(mol),
        energies={name: np.where(labelled, values, 0.0) for name, values in energies.items()},
        # the nuclear repulsion does not depend on the density: the initial guess has it, too
        ks_energies={n: e if n == "e_nuc_nuc" else np.where(labelled, e, 0.0) for n, e in ks_energies.items()},
        has_energy_label=labelled,
        density_basis=f"even_tempered_{settings.beta:g}",
        orbital_basis=settings.kohn_sham.basis,
        fit_residuals=residuals,
    )


def _combine(values: dict[str, Array], parts: dict[str, float]) -> Array:
    return sum((sign * values[part] for part, sign in parts.items()), np.zeros(()))


def kinetic_gradients(trajectory: KohnShamTrajectory, effective_potential: Array) -> Array:
    """Returns dT/dp of each iteration up to a multiple of w, (n_scf, n_basis) in hartree, from v_eff(p_k).

    Gamma_k minimises T_s + tr(V Gamma) for the potential V of the extrapolated Fock matrix. So the kinetic gradient at
    p_k is minus that potential, -sum_j pi_j v_eff(p_j) over the earlier iterations j < k (Zhang et al., arXiv
    2309.16578, section 4.3). The initial guess minimises nothing: its row is zero.
    """
    gradients = np.zeros_like(effective_potential)
    for k, iteration in enumerate(trajectory.iterations[1:], start=1):
        gradients[k] = -iteration.fock_weights @ effective_potential[:k]
    return gradients
