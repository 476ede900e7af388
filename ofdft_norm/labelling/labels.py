"""From a Kohn-Sham trajectory to labels: energies and gradients at the fitted density of every iteration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ofdft_norm.labelling.density_basis import DensityBasis, build_density_basis
from ofdft_norm.labelling.density_fit import DensityFit, FitMethod, check_fit_method, fit_densities
from ofdft_norm.labelling.errors import LabellingError
from ofdft_norm.labelling.functional import Potentials, evaluate_potentials
from ofdft_norm.labelling.geometries import Geometry
from ofdft_norm.labelling.kohn_sham import KohnShamSettings, KohnShamTrajectory, run_kohn_sham
from ofdft_norm.transforms.basis_change import Stretch
from ofdft_norm.transforms.natural_reparametrization import natural_coordinates

Array = npt.NDArray[Any]

# Per target: the energy whose gradient it is, and the parts that are added to the kinetic ones.
TARGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "grad_kin": ("e_kin", ()),
    "grad_kin_plus_xc": ("e_kin_plus_xc", ("e_xc",)),
    "grad_tot": ("e_tot", ("e_hartree", "e_xc", "e_ext")),
}
DEFAULT_TARGETS = ("grad_kin", "grad_kin_plus_xc")


@dataclass(frozen=True)
class LabelSettings:
    """Everything that decides which numbers come out.

    Attributes:
        kohn_sham: Functional, orbital basis and self-consistency.
        beta: Ratio of neighbouring exponents of the density basis.
        density_fit: How densities are expanded, ``constrained`` or ``least_squares``; see `fit_densities`.
        natural_reparametrization: Whether coefficients and dual vectors are stored in natural coordinates.
        targets: Gradients to store, among `TARGETS`.
    """

    kohn_sham: KohnShamSettings = field(default_factory=KohnShamSettings)
    beta: float = 2.5
    density_fit: FitMethod = "constrained"
    natural_reparametrization: bool = True
    targets: tuple[str, ...] = DEFAULT_TARGETS

    def __post_init__(self) -> None:
        check_fit_method(self.density_fit)
        unknown = sorted(set(self.targets) - set(TARGETS))
        if unknown or not self.targets:
            raise LabellingError(
                f"targets: got {list(self.targets)}, expected some of {sorted(TARGETS)} (option targets)"
            )


@dataclass(frozen=True)
class KohnShamLabels:
    """Labels of one molecule; row 0 is the initial guess, which has none (zeros).

    Attributes:
        geometry: The molecule.
        coeffs: (n_scf, n_basis) p.
        gradients: Per target: (n_scf, n_basis), hartree.
        dual_basis_integrals: (n_basis,) w, electrons.
        energies: Of the expanded densities: (n_scf,) each, hartree.
        ks_energies: Of the Kohn-Sham densities: (n_scf,) each, hartree.
        has_energy_label: (n_scf,) bool.
        fit_residuals: (n_scf,) Coulomb self-energy of the residual density, hartree.
        irreps_per_atom: Per atomic number the shells of the density basis.
    """

    geometry: Geometry
    coeffs: Array
    gradients: dict[str, Array]
    dual_basis_integrals: Array
    energies: dict[str, Array]
    ks_energies: dict[str, Array]
    has_energy_label: Array
    fit_residuals: Array
    irreps_per_atom: dict[int, str]


def make_labels(geometry: Geometry, settings: LabelSettings | None = None) -> KohnShamLabels:
    """Makes all labels of one molecule (`checks.check_labels` says whether they are any good).

    Args:
        geometry: The molecule.
        settings: How; the defaults otherwise.

    Returns:
        The labels.

    Raises:
        LabellingError: If a step fails; subclasses say which.
    """
    settings = settings or LabelSettings()
    trajectory = run_kohn_sham(geometry, settings.kohn_sham)
    basis = build_density_basis(trajectory.mol, settings.beta)
    fit = fit_densities(trajectory, basis, settings.density_fit)
    potentials = evaluate_potentials(fit.coeffs, basis, fit.coulomb_metric, trajectory.grid, settings.kohn_sham.xc)
    labels = _assemble(geometry, trajectory, basis, fit, potentials, settings.targets)
    return reparametrize(labels, natural_coordinates(basis.overlap())) if settings.natural_reparametrization else labels


def kinetic_gradients(trajectory: KohnShamTrajectory, effective_potential: Array) -> Array:
    """Returns dT/dp of every iteration, up to a multiple of w.

    Gamma_k minimises T_s + tr(V Gamma) for the potential V that the extrapolated Fock matrix stands for, so
    the kinetic gradient at p_k is minus that potential: -sum_j pi_j v_eff(p_j) over the earlier iterations j
    < k.
    Source: Zhang et al., arXiv 2309.16578, section 4.3.

    Args:
        trajectory: The Kohn-Sham iterations with their Fock weights pi.
        effective_potential: (n_scf, n_basis) v_eff(p_k), hartree.

    Returns:
        (n_scf, n_basis) in hartree; row 0 is zero: the initial guess diagonalises nothing.
    """
    gradients = np.zeros_like(effective_potential)
    for k, iteration in enumerate(trajectory.iterations):
        if k > 0:
            gradients[k] = -iteration.fock_weights @ effective_potential[:k]
    return gradients


def reparametrize(labels: KohnShamLabels, natural: Stretch) -> KohnShamLabels:
    """Returns the labels in natural coordinates (see `natural_coordinates`); energies stay as they are.

    Args:
        labels: Labels of the density basis.
        natural: The change to natural coordinates, T and its inverse.
    """

    def turned(rows: Array, dual: bool) -> Array:
        given = torch.from_numpy(np.atleast_2d(rows))
        return natural.apply(given, torch.full((len(given),), dual), inverse=False).numpy().reshape(rows.shape)

    return KohnShamLabels(
        geometry=labels.geometry,
        coeffs=turned(labels.coeffs, dual=False),
        gradients={name: turned(gradient, dual=True) for name, gradient in labels.gradients.items()},
        dual_basis_integrals=turned(labels.dual_basis_integrals, dual=True),
        energies=labels.energies,
        ks_energies=labels.ks_energies,
        has_energy_label=labels.has_energy_label,
        fit_residuals=labels.fit_residuals,
        irreps_per_atom=labels.irreps_per_atom,
    )


def _assemble(
    geometry: Geometry,
    trajectory: KohnShamTrajectory,
    basis: DensityBasis,
    fit: DensityFit,
    potentials: Potentials,
    targets: tuple[str, ...],
) -> KohnShamLabels:
    labelled = np.arange(len(trajectory.iterations)) > 0
    names = list(trajectory.iterations[0].energies)
    kohn_sham = {name: np.array([iteration.energies[name] for iteration in trajectory.iterations]) for name in names}
    kinetic = kinetic_gradients(trajectory, potentials.effective_potential)
    gradients = {
        target: kinetic + sum((potentials.gradients[part] for part in TARGETS[target][1]), np.zeros(()))
        for target in targets
    }
    masked = {name: np.where(labelled, values, 0.0) for name, values in _energies(kohn_sham, potentials).items()}
    return KohnShamLabels(
        geometry=geometry,
        coeffs=fit.coeffs,
        gradients={name: np.where(labelled[:, None], gradient, 0.0) for name, gradient in gradients.items()},
        dual_basis_integrals=basis.integrals,
        energies=masked,
        # the nuclear repulsion does not depend on the density, so the initial guess has it too
        ks_energies={n: v if n == "e_nuc_nuc" else np.where(labelled, v, 0.0) for n, v in kohn_sham.items()},
        has_energy_label=labelled,
        fit_residuals=fit.residuals,
        irreps_per_atom=basis.irreps_per_atom,
    )


def _energies(kohn_sham: dict[str, Array], potentials: Potentials) -> dict[str, Array]:
    """Energies of the expanded densities: the kinetic one is what makes the electronic energy exact."""
    kinetic = kohn_sham["e_electron"] - potentials.effective_energy
    return {
        **potentials.energies,
        "e_kin": kinetic,
        "e_kin_plus_xc": kinetic + potentials.energies["e_xc"],
        "e_electron": kohn_sham["e_electron"],
        "e_tot": kohn_sham["e_tot"],
    }
