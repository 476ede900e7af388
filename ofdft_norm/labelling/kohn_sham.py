"""Restricted Kohn-Sham calculations that keep every iteration, and the weights with which Fock matrices were mixed."""

import warnings
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ofdft_norm.data.files import import_optional
from ofdft_norm.errors import ConfigError
from ofdft_norm.labelling.geometries import Array, Geometry, LabellingError
from ofdft_norm.settings import NonNegative, Positive, PositiveInt, Settings


class KohnShamSettings(Settings):
    """How the Kohn-Sham densities of a molecule are made."""

    xc: str = "PBE"  # LDA or GGA functional, in PySCF's spelling
    basis: str = "6-31G(2df,p)"  # orbital basis
    initial_guess: Literal["minao", "atom", "huckel", "1e"] = "minao"
    grid_level: Annotated[int, Field(ge=0, le=9)] = 3  # PySCF's quadrature grid
    energy_tolerance: Positive = 1e-7  # largest last energy change of a converged calculation [hartree]
    commutator_tolerance: Positive = 3e-4  # largest norm of its orbital gradient [hartree]
    min_labelled: PositiveInt = 5  # smallest number of iterations after the initial guess
    max_iterations: PositiveInt = 50  # largest number of iterations
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
    """All iterations of a molecule, from the initial guess to the converged density."""

    mean_field: Any  # PySCF's calculation
    mol: Any  # PySCF's molecule with the orbital basis
    grid: Any  # PySCF's quadrature grid
    iterations: list[KohnShamIteration]
    fock: Array  # (n_ao, n_ao) of the converged density


def build_molecule(geometry: Geometry, basis: str) -> Any:
    """Builds PySCF's molecule; open shells and elements without the orbital basis raise LabellingError."""
    if (n := geometry.n_electrons) % 2:
        raise LabellingError(f"molecule {geometry.mol_id!r} has {n} electrons; expected an even number (closed shells)")
    atoms = list(zip(geometry.atomic_numbers.tolist(), geometry.positions.tolist(), strict=True))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PySCF recommends to install a package of more bases
            return import_optional("pyscf.gto", "labels").M(atom=atoms, basis=basis, unit="Bohr", verbose=0)
    except (RuntimeError, KeyError) as error:
        raise LabellingError(
            f"molecule {geometry.mol_id!r} has the elements {np.unique(geometry.atomic_numbers).tolist()}; PySCF lacks "
            f"the orbital basis {basis!r} for one of them: {str(error).strip()} (option basis)"
        ) from error


def detach_file(mean_field: Any) -> Any:
    """Returns a calculation of PySCF without the temporary file that it would keep open."""
    mean_field.chkfile = None
    vars(mean_field).pop("_chkfile", None)
    return mean_field


def check_functional(xc: str) -> None:
    """Raises LabellingError for functionals that depend on more than the density and its gradient.

    Exact exchange and the kinetic energy density belong to orbitals: the kinetic label would contain their difference.
    """
    libxc = import_optional("pyscf.dft.libxc", "labels")
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
    mean_field = detach_file(import_optional("pyscf.dft", "labels").RKS(mol, xc=settings.xc))
    mean_field.grids.level = settings.grid_level
    mean_field.grids.build(with_non0tab=True)
    overlap = mean_field.get_ovlp()
    root = compute_inverse_root(overlap)
    density, weights, change = np.asarray(mean_field.get_init_guess(key=settings.initial_guess)), np.zeros(0), np.inf
    iterations: list[KohnShamIteration] = []
    focks: list[Array] = []
    errors: list[Array] = []
    for k in range(settings.max_iterations + 1):
        energies, fock = evaluate_density(mean_field, density)
        iterations.append(KohnShamIteration(np.asarray(density), energies, weights))
        focks.append(fock)
        commutator = fock @ density @ overlap
        errors.append(root @ (commutator - commutator.T) @ root)
        if k >= settings.min_labelled:
            change = energies["e_tot"] - iterations[-2].energies["e_tot"]
            if abs(change) < settings.energy_tolerance and np.linalg.norm(errors[-1]) < settings.commutator_tolerance:
                return KohnShamTrajectory(mean_field, mol, mean_field.grids, iterations, fock)
        weights = find_mixing_weights(errors, weights, settings)
        density = fill_orbitals(np.tensordot(weights, focks, axes=1), root, mol.nelectron)
    raise LabellingError(
        f"molecule {geometry.mol_id!r}: not converged after {settings.max_iterations} iterations (last energy change "
        f"{change:.2e} Ha, expected below {settings.energy_tolerance:.0e}; option max_iterations)"
    )


def evaluate_density(mean_field: Any, density: Array) -> tuple[dict[str, float], Array]:
    """Returns the Kohn-Sham energies of a density matrix in hartree, and its Fock matrix."""
    mol, core, effective = mean_field.mol, mean_field.get_hcore(), mean_field.get_veff(mean_field.mol, density)
    kinetic = mol.intor_symmetric("int1e_kin")
    energies = {
        "e_kin": float(np.vdot(kinetic, density)),
        "e_hartree": float(effective.ecoul),
        "e_xc": float(effective.exc),
        "e_ext": float(np.vdot(core - kinetic, density)),
    }
    electronic, nuclear = sum(energies.values()), float(mol.energy_nuc())
    energies |= {"e_electron": electronic, "e_nuc_nuc": nuclear, "e_tot": electronic + nuclear}
    return energies, core + np.asarray(effective)


def compute_inverse_root(overlap: Array) -> Array:
    """Returns S^(-1/2) of a symmetric positive matrix S."""
    values, vectors = np.linalg.eigh(overlap)
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T)


def fill_orbitals(fock: Array, root: Array, n_electrons: int) -> Any:
    """Returns the density matrix of a Fock matrix's lowest orbitals; `root` is S^(-1/2) of the orbital basis."""
    occupied = root @ np.linalg.eigh(root @ fock @ root)[1][:, : n_electrons // 2]
    # PySCF integrates densities of few orbitals faster than those of matrices
    tags = {"mo_coeff": occupied, "mo_occ": np.full(occupied.shape[1], 2.0)}
    return import_optional("pyscf.lib", "labels").tag_array(2.0 * occupied @ occupied.T, **tags)


def find_pulay_weights(errors: list[Array]) -> Array:
    """Returns pi that minimises |sum_k pi_k e_k| under sum_k pi_k = 1 (P. Pulay, J. Comput. Chem. 3, 556, 1982)."""
    vectors = np.stack([error.ravel() for error in errors])
    overlaps = vectors @ vectors.T
    # late errors are 1e-6 of the first ones: without scaling, the constraint dominates the system
    scale = float(np.diag(overlaps).min())
    if scale <= 0.0:
        return np.asarray(np.eye(len(errors))[int(np.diag(overlaps).argmin())])
    system = np.pad(overlaps / scale, (0, 1), constant_values=1.0)
    system[-1, -1] = 0.0
    weights = np.linalg.lstsq(system, np.eye(len(system))[-1], rcond=None)[0][:-1]
    # lstsq cuts nearly dependent directions, after which the sum may differ slightly from 1.
    return np.asarray(weights / weights.sum())


def find_mixing_weights(errors: list[Array], previous: Array, settings: KohnShamSettings) -> Array:
    """Returns Pulay's weights of all Fock matrices so far, from their commutators; 0 outside of the subspace.

    The gradient label of the next density is built with exactly these weights. Far from convergence they are mixed with
    the `previous` ones: without damping, the first steps rotate up to one electron pair into other orbitals, and energy
    differences over such a step do not follow from the gradients at its ends.
    """
    first, weights = max(0, len(errors) - settings.diis_space), np.zeros(len(errors))
    weights[first:] = find_pulay_weights(errors[first:])
    if len(previous) and np.linalg.norm(errors[-1]) > settings.damping_threshold:
        weights *= 1.0 - settings.damping
        weights[:-1] += settings.damping * previous
    return weights
