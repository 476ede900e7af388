"""Restricted Kohn-Sham calculations that keep every iteration, and the weights with which Fock matrices were mixed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ofdft_norm.data.files import optional_module
from ofdft_norm.errors import ConfigError
from ofdft_norm.labelling.geometries import Geometry, LabellingError
from ofdft_norm.settings import NonNegative, Positive, PositiveInt, Settings

Array = npt.NDArray[np.float64]


class KohnShamSettings(Settings):
    """How the Kohn-Sham densities of a molecule are made."""

    xc: str = "PBE"  # LDA or GGA functional, in PySCF's spelling
    basis: str = "6-31G(2df,p)"  # orbital basis
    initial_guess: Literal["minao", "atom", "huckel", "1e"] = "minao"
    grid_level: Annotated[int, Field(ge=0, le=9)] = 3  # PySCF's quadrature grid
    energy_tolerance: Positive = 1e-7  # converged when the energy changes by less [hartree] ...
    commutator_tolerance: Positive = 3e-4  # ... and the norm of the orbital gradient is below this [hartree]
    min_labelled: PositiveInt = 5  # iterations after the initial guess that always run
    max_iterations: PositiveInt = 50  # more iterations are a failure
    diis_space: PositiveInt = 8  # number of iterations that Pulay's extrapolation mixes
    damping: Annotated[float, Field(ge=0, lt=1)] = 0.8  # share of the previous Fock matrix, far from convergence
    damping_threshold: NonNegative = 0.5  # damping ends below this norm of the orbital gradient [hartree]

    config_key = "labels"

    def __post_init__(self) -> None:
        if self.min_labelled > self.max_iterations:
            raise ConfigError(
                f"labels.min_labelled = {self.min_labelled} and labels.max_iterations = {self.max_iterations}: "
                "expected min_labelled <= max_iterations"
            )


@dataclass(frozen=True)
class KohnShamIteration:
    """A density of the self-consistent field procedure.

    The density matrix Gamma_k (n_ao, n_ao) diagonalises sum_j fock_weights[j] F_j over the earlier iterations j < k.
    The initial guess diagonalises nothing and has no weights. Energies are in hartree.
    """

    density_matrix: Array
    energies: dict[str, float]
    fock_weights: Array


@dataclass(frozen=True)
class KohnShamTrajectory:
    """All iterations of a molecule, from the initial guess to the converged density, with PySCF's molecule and grid."""

    mol: Any
    grid: Any
    iterations: list[KohnShamIteration]


def build_molecule(geometry: Geometry, basis: str) -> Any:
    """Builds PySCF's molecule; open shells and elements without the orbital basis raise LabellingError."""
    if geometry.n_electrons % 2:
        n = geometry.n_electrons
        raise LabellingError(f"molecule {geometry.mol_id!r} has {n} electrons; expected an even number (closed shells)")
    atoms = list(zip(geometry.atomic_numbers.tolist(), geometry.positions.tolist(), strict=True))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PySCF recommends to install a package of more bases
            return optional_module("pyscf.gto", "labels").M(atom=atoms, basis=basis, unit="Bohr", verbose=0)
    except (RuntimeError, KeyError) as error:
        raise LabellingError(
            f"molecule {geometry.mol_id!r} has the elements {np.unique(geometry.atomic_numbers).tolist()}; PySCF lacks "
            f"the orbital basis {basis!r} for one of them: {str(error).strip()} (option basis)"
        ) from error


def check_functional(xc: str) -> None:
    """Raises LabellingError for functionals whose energy depends on more than the density and its gradient.

    Exact exchange and the kinetic energy density belong to orbitals: the kinetic label would contain their difference.
    """
    libxc = optional_module("pyscf.dft.libxc", "labels")
    try:
        semi_local = libxc.xc_type(xc) in ("LDA", "GGA") and not libxc.is_hybrid_xc(xc) and not libxc.is_nlc(xc)
    except (KeyError, ValueError) as error:
        raise LabellingError(f"xc: PySCF does not know the functional {xc!r}: {error} (option xc)") from error
    if not semi_local:
        raise LabellingError(f"xc: got {xc!r}; expected an LDA or GGA without exact exchange, such as PBE (option xc)")


def run_kohn_sham(geometry: Geometry, settings: KohnShamSettings | None = None) -> KohnShamTrajectory:
    """Runs the self-consistent field loop and keeps every iteration; raises LabellingError if it does not converge."""
    settings = settings or KohnShamSettings()
    check_functional(settings.xc)
    mol = build_molecule(geometry, settings.basis)
    mean_field = optional_module("pyscf.dft", "labels").RKS(mol, xc=settings.xc)
    mean_field.grids.level = settings.grid_level
    mean_field.grids.build(with_non0tab=True)
    overlap, kinetic, core = mean_field.get_ovlp(), mol.intor_symmetric("int1e_kin"), mean_field.get_hcore()
    values, vectors = np.linalg.eigh(overlap)
    root = (vectors / np.sqrt(values)) @ vectors.T  # S^(-1/2)
    density, weights, change = np.asarray(mean_field.get_init_guess(key=settings.initial_guess)), np.zeros(0), np.inf
    iterations: list[KohnShamIteration] = []
    focks: list[Array] = []
    errors: list[Array] = []
    for k in range(settings.max_iterations + 1):
        effective = mean_field.get_veff(mol, density)
        energies = {
            "e_kin": float(np.vdot(kinetic, density)),
            "e_hartree": float(effective.ecoul),
            "e_xc": float(effective.exc),
            "e_ext": float(np.vdot(core - kinetic, density)),
        }
        energies["e_electron"], energies["e_nuc_nuc"] = sum(energies.values()), float(mol.energy_nuc())
        energies["e_tot"] = energies["e_electron"] + energies["e_nuc_nuc"]
        iterations.append(KohnShamIteration(density, energies, weights))
        focks.append(core + np.asarray(effective))
        commutator = focks[-1] @ density @ overlap
        errors.append(root @ (commutator - commutator.T) @ root)
        if k >= settings.min_labelled:
            change = energies["e_tot"] - iterations[-2].energies["e_tot"]
            if abs(change) < settings.energy_tolerance and np.linalg.norm(errors[-1]) < settings.commutator_tolerance:
                return KohnShamTrajectory(mol, mean_field.grids, iterations)
        weights = mixing_weights(errors, weights, settings)
        _, orbitals = np.linalg.eigh(root @ np.tensordot(weights, focks, axes=1) @ root)
        occupied = root @ orbitals[:, : mol.nelectron // 2]
        density = 2.0 * occupied @ occupied.T
    raise LabellingError(
        f"molecule {geometry.mol_id!r}: not converged after {settings.max_iterations} iterations (last energy change "
        f"{change:.2e} Ha, expected below {settings.energy_tolerance:.0e}; option max_iterations)"
    )


def pulay_weights(errors: list[Array]) -> Array:
    """Returns pi that minimises |sum_k pi_k e_k| under sum_k pi_k = 1 (P. Pulay, J. Comput. Chem. 3, 556, 1982)."""
    n = len(errors)
    vectors = np.stack([error.ravel() for error in errors])
    overlaps = vectors @ vectors.T
    # Late errors are 1e-6 of the first: without scaling, the constraint would dominate the system.
    scale = float(np.diag(overlaps).min())
    if scale <= 0.0:
        return np.asarray(np.eye(n)[int(np.diag(overlaps).argmin())])
    system = np.ones((n + 1, n + 1))
    system[:n, :n], system[n, n] = overlaps / scale, 0.0
    weights = np.linalg.lstsq(system, np.eye(n + 1)[n], rcond=None)[0][:n]
    # lstsq cuts nearly dependent directions, after which the sum may differ slightly from 1.
    return np.asarray(weights / weights.sum())


def mixing_weights(errors: list[Array], previous: Array, settings: KohnShamSettings) -> Array:
    """Returns Pulay's weights of all Fock matrices so far, from their commutators; 0 outside of the subspace.

    The gradient label of the next density is built with exactly these weights. Far from convergence they are mixed with
    the `previous` ones: without damping, the first steps rotate up to one electron pair into other orbitals, and energy
    differences over such a step do not follow from the gradients at its ends.
    """
    first, weights = max(0, len(errors) - settings.diis_space), np.zeros(len(errors))
    weights[first:] = pulay_weights(errors[first:])
    if len(previous) and np.linalg.norm(errors[-1]) > settings.damping_threshold:
        weights *= 1.0 - settings.damping
        weights[:-1] += settings.damping * previous
    return weights
