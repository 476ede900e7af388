"""Restricted Kohn-Sham calculations that keep every iteration and the Fock mixing behind it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.pyscf_import import pyscf_module
from ofdft_norm.labelling.diis import RecordingDIIS
from ofdft_norm.labelling.errors import KohnShamError
from ofdft_norm.labelling.geometries import Geometry

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KohnShamSettings:
    """How the Kohn-Sham densities are made.

    Attributes:
        xc: Exchange-correlation functional, a semi-local (LDA or GGA) one, in PySCF's spelling.
        basis: Orbital basis.
        initial_guess: PySCF's name of the initial guess.
        grid_level: PySCF's level of the quadrature grid, 0 ... 9.
        energy_tolerance: Converged when the energy changes by less, hartree ...
        commutator_tolerance: ... and the orbital gradient's norm is below this, hartree.
        min_labelled: Iterations to run after the initial guess even if converged earlier.
        max_iterations: More iterations than this is a failure.
        diis_space: Iterations that Pulay's extrapolation mixes.
        damping: Share of the previous Fock matrix in the next one, while far from convergence; 0 is none.
        damping_threshold: Damping ends once the orbital gradient's norm is below this, hartree.
    """

    xc: str = "PBE"
    basis: str = "6-31G(2df,p)"
    initial_guess: str = "minao"
    grid_level: int = 3
    energy_tolerance: float = 1e-7
    commutator_tolerance: float = 3e-4
    min_labelled: int = 5
    max_iterations: int = 50
    diis_space: int = 8
    damping: float = 0.8
    damping_threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.min_labelled <= self.max_iterations:
            raise KohnShamError(
                f"min_labelled {self.min_labelled} and max_iterations {self.max_iterations}: "
                "expected 1 <= min_labelled <= max_iterations"
            )
        if not 0.0 <= self.damping < 1.0:
            raise KohnShamError(f"damping: got {self.damping}, expected 0 <= damping < 1")


@dataclass(frozen=True)
class KohnShamIteration:
    """One density of the self-consistent field procedure.

    Attributes:
        density_matrix: (n_ao, n_ao) Gamma_k.
        energies: `e_kin`, `e_hartree`, `e_xc`, `e_ext`, `e_electron` (their sum), `e_nuc_nuc`, `e_tot`;
            hartree.
        fock_weights: (k,) pi: Gamma_k diagonalises sum_j fock_weights[j] F_j over the earlier iterations j <
            k. Empty for the initial guess, which diagonalises nothing.
    """

    density_matrix: Array
    energies: dict[str, float]
    fock_weights: Array


@dataclass(frozen=True)
class KohnShamTrajectory:
    """All iterations of one molecule, the initial guess first and the converged density last.

    Attributes:
        mol: PySCF's molecule with the orbital basis.
        grid: PySCF's quadrature grid.
        iterations: The densities.
        converged: Whether the last one meets the tolerances.
    """

    mol: Any
    grid: Any
    iterations: list[KohnShamIteration]
    converged: bool


def build_molecule(geometry: Geometry, basis: str) -> Any:
    """Builds PySCF's molecule.

    Args:
        geometry: The molecule.
        basis: Name of the orbital basis.

    Raises:
        KohnShamError: If the number of electrons is odd (restricted calculations only), or PySCF lacks the orbital
            basis for an element.
    """
    if geometry.n_electrons % 2:
        raise KohnShamError(
            f"molecule {geometry.mol_id!r} has {geometry.n_electrons} electrons; expected an even number: "
            "labels are made with restricted (closed-shell) Kohn-Sham theory"
        )
    atoms = list(zip(geometry.atomic_numbers.tolist(), geometry.positions.tolist(), strict=True))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PySCF advises to install a package of more bases
            return pyscf_module("gto").M(atom=atoms, basis=basis, unit="Bohr", verbose=0)
    except (RuntimeError, KeyError) as error:
        raise KohnShamError(
            f"molecule {geometry.mol_id!r} has the elements {np.unique(geometry.atomic_numbers).tolist()}, and PySCF "
            f"lacks the orbital basis {basis!r} for one of them: {str(error).strip()} (option basis)"
        ) from error


def check_functional(xc: str) -> None:
    """Refuses functionals whose energy is more than one of the density and its gradient.

    Exact exchange and the kinetic energy density belong to orbitals: labels made with them would hold in the kinetic
    energy what they lack elsewhere.

    Args:
        xc: The functional, in PySCF's spelling.

    Raises:
        KohnShamError: If it is a hybrid, a meta-GGA, has a non-local correlation, or PySCF does not know it.
    """
    libxc = pyscf_module("dft.libxc")
    try:
        semi_local = libxc.xc_type(xc) in ("LDA", "GGA") and not libxc.is_hybrid_xc(xc) and not libxc.is_nlc(xc)
    except (KeyError, ValueError) as error:
        raise KohnShamError(f"xc: PySCF does not know the functional {xc!r}: {error} (option xc)") from error
    if not semi_local:
        raise KohnShamError(
            f"xc: got {xc!r}, which is a hybrid, a meta-GGA, or has a non-local correlation; expected an LDA or GGA "
            "functional: its energy must follow from the density alone, such as PBE (option xc)"
        )


def run_kohn_sham(geometry: Geometry, settings: KohnShamSettings | None = None) -> KohnShamTrajectory:
    """Runs the self-consistent field loop and keeps every iteration.

    Args:
        geometry: The molecule.
        settings: Functional, basis, tolerances; the defaults otherwise.

    Returns:
        The trajectory.

    Raises:
        KohnShamError: If it does not converge, the molecule is not closed-shell, or the functional not semi-local.
    """
    settings = settings or KohnShamSettings()
    check_functional(settings.xc)
    mol = build_molecule(geometry, settings.basis)
    mean_field = pyscf_module("dft").RKS(mol, xc=settings.xc)
    mean_field.grids.level = settings.grid_level
    mean_field.grids.build(with_non0tab=True)
    trajectory = _iterate(mol, mean_field, settings)
    if not trajectory.converged:
        last = [iteration.energies["e_tot"] for iteration in trajectory.iterations[-2:]]
        raise KohnShamError(
            f"molecule {geometry.mol_id!r}: not converged after {settings.max_iterations} iterations "
            f"(last energy change {last[1] - last[0]:.2e} Ha, expected below "
            f"{settings.energy_tolerance:.0e}; option max_iterations)"
        )
    return trajectory


def _iterate(mol: Any, mean_field: Any, settings: KohnShamSettings) -> KohnShamTrajectory:
    overlap = mean_field.get_ovlp()
    kinetic, core = mol.intor_symmetric("int1e_kin"), mean_field.get_hcore()
    root = _inverse_square_root(overlap)
    density = np.asarray(mean_field.get_init_guess(key=settings.initial_guess))
    weights: Array = np.zeros(0)
    diis = RecordingDIIS(settings.diis_space, settings.damping, settings.damping_threshold)
    iterations: list[KohnShamIteration] = []
    converged = False
    for k in range(settings.max_iterations + 1):
        effective = mean_field.get_veff(mol, density)
        energies = _energies(mol, density, kinetic, core, effective)
        iterations.append(KohnShamIteration(density, energies, weights))
        fock = core + np.asarray(effective)
        commutator = fock @ density @ overlap
        error = root @ (commutator - commutator.T) @ root
        if k > 0:
            change = abs(energies["e_tot"] - iterations[-2].energies["e_tot"])
            small = float(np.linalg.norm(error)) < settings.commutator_tolerance
            converged = change < settings.energy_tolerance and small
        if converged and k >= settings.min_labelled:
            break
        mixed, weights = diis.extrapolate(fock, error)
        density = _lowest_orbitals(mixed, root, mol.nelectron // 2)
    return KohnShamTrajectory(mol, mean_field.grids, iterations, converged)


def _inverse_square_root(overlap: Array) -> Array:
    values, vectors = np.linalg.eigh(overlap)
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T)


def _lowest_orbitals(fock: Array, root: Array, n_pairs: int) -> Array:
    """Returns the density matrix that fills the lowest orbitals of a Fock matrix with pairs."""
    _, vectors = np.linalg.eigh(root @ fock @ root)
    occupied = root @ vectors[:, :n_pairs]
    return np.asarray(2.0 * occupied @ occupied.T)


def _energies(mol: Any, density: Array, kinetic: Array, core: Array, effective: Any) -> dict[str, float]:
    """Splits the energy of one density matrix into its parts, hartree."""
    parts = {
        "e_kin": float(np.vdot(kinetic, density)),
        "e_hartree": float(effective.ecoul),
        "e_xc": float(effective.exc),
        "e_ext": float(np.vdot(core - kinetic, density)),
    }
    electronic, nuclear = sum(parts.values()), float(mol.energy_nuc())
    return {**parts, "e_electron": electronic, "e_nuc_nuc": nuclear, "e_tot": electronic + nuclear}
