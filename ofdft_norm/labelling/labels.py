"""From a geometry to labels: energies and gradients at the fitted density of every Kohn-Sham iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ofdft_norm.data.label_file import LabelFileContent
from ofdft_norm.labelling.density_fit import FitMethod, build_density_mol, fit_densities, integrate_basis
from ofdft_norm.labelling.functional import evaluate_potentials
from ofdft_norm.labelling.geometries import Array, Geometry, IntArray
from ofdft_norm.labelling.kohn_sham import KohnShamSettings, run_kohn_sham
from ofdft_norm.labelling.perturbation import perturb
from ofdft_norm.settings import NonNegativeInt, Positive, Settings

Target = Literal["grad_kin", "grad_kin_plus_xc", "grad_kin_minus_apbe", "grad_tot"]
TARGET_NAMES: tuple[Target, ...] = get_args(Target)
DEFAULT_TARGETS: tuple[Target, ...] = ("grad_kin", "grad_kin_plus_xc", "grad_kin_minus_apbe")

# For each gradient: its energy, and the signed energies that add up to it. Names and formulas are those of
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
    perturbations: NonNegativeInt = 0  # densities of perturbed Fock matrices, see `perturb`
    weakest_perturbation: Positive = 0.01  # strengths [hartree] are spaced geometrically from the strongest ...
    strongest_perturbation: Positive = 0.2  # ... to the weakest

    config_key = "labels"


@dataclass(frozen=True)
class KohnShamLabels(LabelFileContent):
    """Labels of a molecule, and the Coulomb self-energies (n_scf,) of its residual densities in hartree.

    Row 0 is the initial guess: it has coefficients, but neither energies nor gradients (zeros). The rows of perturbed
    Fock matrices follow, then the SCF iterations. `compared` has, for each perturbed row, the labels of nearly the same
    potential, for `check_labels`.
    """

    perturbed: npt.NDArray[np.bool_] = field(kw_only=True)
    fit_residuals: Array = field(kw_only=True)
    compared: KohnShamLabels | None = field(kw_only=True, default=None)


def make_labels(geometry: Geometry, settings: LabelSettings | None = None) -> KohnShamLabels:
    """Makes the labels of a molecule, without checks; raises LabellingError if a calculation fails."""
    settings = settings or LabelSettings()
    trajectory = run_kohn_sham(geometry, settings.kohn_sham)
    mol = build_density_mol(trajectory.mol, settings.beta)
    n, limits = len(trajectory.iterations), (settings.strongest_perturbation, settings.weakest_perturbation)
    strengths = np.geomspace(*limits, settings.perturbations)
    perturbed, potentials_added = perturb(trajectory, mol, strengths, geometry.mol_id)
    densities = [*trajectory.iterations, *perturbed]
    coeffs, residuals = fit_densities(densities, trajectory.mol, mol, settings.density_fit)
    functionals = {"e_xc": settings.kohn_sham.xc}
    # kinetic energies of Thomas and Fermi and of von Weizsaecker, for comparison
    energies_alone = {"e_kin_tf": "LDA_K_TF", "e_kin_vw": "GGA_K_VW"}
    with_gradient = functionals if "grad_kin_minus_apbe" in settings.targets else energies_alone
    with_gradient["e_kinapbe"] = "GGA_K_APBE"
    potentials = evaluate_potentials(coeffs, mol, trajectory.grid, functionals, energies_alone=energies_alone)
    ks_energies = {name: np.array([d.energies[name] for d in densities]) for name in densities[0].energies}
    # with this kinetic energy, the total energy is that of the Kohn-Sham calculation
    energies = {**potentials.energies, "e_kin": ks_energies["e_electron"] - potentials.effective_energy}
    effective = potentials.effective_potential
    # Gamma_k minimises T_s + tr(V Gamma), V the potential of its Fock matrix, a mixture of those of earlier iterations,
    # so dT/dp = -V up to a multiple of w (Zhang et al., arXiv 2309.16578, section 4.3)
    weights = [iteration.fock_weights for iteration in trajectory.iterations]
    kinetic = [*(-pi @ effective[: len(pi)] for pi in weights), *-(effective[n - 1] + potentials_added)]
    gradients = {**potentials.gradients, "e_kin": np.stack(kinetic)}
    energies |= {energy: _combine(energies, parts) for energy, parts in TARGETS.values()}
    energies |= {name: ks_energies[name] for name in ("e_electron", "e_tot")}
    targets = {name: parts for name, (_, parts) in TARGETS.items() if name in settings.targets}

    def select_labels(rows: IntArray, **others: Any) -> KohnShamLabels:
        labelled = rows > 0
        return KohnShamLabels(
            mol_id=geometry.mol_id,
            atomic_numbers=geometry.atomic_numbers,
            positions=geometry.positions,
            coeffs=coeffs[rows],
            gradients={
                target: np.where(labelled[:, None], _combine(gradients, parts)[rows], 0.0)
                for target, parts in targets.items()
            },
            dual_basis_integrals=integrate_basis(mol),
            energies={name: np.where(labelled, values[rows], 0.0) for name, values in energies.items()},
            # the nuclear repulsion does not depend on the density: the initial guess has it, too
            ks_energies={
                name: values[rows] if name == "e_nuc_nuc" else np.where(labelled, values[rows], 0.0)
                for name, values in ks_energies.items()
            },
            has_energy_label=labelled,
            perturbed=rows >= n,
            density_basis=f"even_tempered_{settings.beta:g}",
            orbital_basis=settings.kohn_sham.basis,
            fit_residuals=residuals[rows],
            **others,
        )

    kept, compared = np.split(np.arange(n, len(densities)), 2)
    return select_labels(np.concatenate([[0], kept, np.arange(1, n)]), compared=select_labels(compared))


def _combine(values: dict[str, Array], parts: dict[str, float]) -> Array:
    return sum((sign * values[part] for part, sign in parts.items()), np.zeros(()))
