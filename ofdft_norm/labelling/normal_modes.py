"""Geometries of a molecule at a temperature: normal modes of the relaxed geometry, with classical amplitudes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.files import optional_module
from ofdft_norm.labelling.geometries import Geometry, seeded_generator
from ofdft_norm.labelling.kohn_sham import build_molecule, without_file

Array = npt.NDArray[np.float64]
BOLTZMANN = 3.166811563e-6  # hartree / K, CODATA 2018
DALTON = 1822.888486209  # electron masses, CODATA 2018


def relax(geometry: Geometry, basis: str = "6-31G*", tolerance: float = 1e-5) -> Geometry:
    """Returns the geometry of minimal Hartree-Fock energy; `tolerance` is the largest gradient [hartree/bohr]."""

    def energy_and_gradient(positions: Array) -> tuple[float, Array]:
        mean_field = _hartree_fock(replace(geometry, positions=positions.reshape(-1, 3)), basis)
        return mean_field.e_tot, mean_field.nuc_grad_method().kernel().ravel()

    minimize = optional_module("scipy.optimize", "labels").minimize
    start, options = geometry.positions.ravel(), {"gtol": tolerance}
    found = minimize(energy_and_gradient, start, jac=True, method="BFGS", options=options)
    return replace(geometry, positions=found.x.reshape(-1, 3))


def sample_normal_modes(
    relaxed: Geometry, n_samples: int, temperature: float = 300.0, basis: str = "6-31G*"
) -> list[Geometry]:
    """Returns geometries of the classical harmonic ensemble of a relaxed molecule, named ``<mol_id>_000`` and so on.

    Mass-weighted displacements are normal variables with the covariance k T K^+, where K is the mass-weighted Hessian
    of the Hartree-Fock energy without translations and rotations: each normal mode has the variance k T / omega^2. They
    are a symmetric root of this matrix times random numbers, so that they do not depend on the signs of modes, nor on
    the choice among degenerate ones. The name of the molecule is the seed.
    """
    mean_field = _hartree_fock(relaxed, basis)
    hessian = np.asarray(mean_field.Hessian().kernel()).transpose(0, 2, 1, 3)
    masses = np.repeat(mean_field.mol.atom_mass_list(isotope_avg=True) * DALTON, 3)
    n = len(masses)
    outer = _rigid_motions(relaxed.positions, masses)
    others = np.eye(n) - outer @ outer.T
    weighted = others @ (hessian.reshape(n, n) / np.sqrt(np.outer(masses, masses))) @ others
    values, vectors = np.linalg.eigh(weighted)
    kept = np.sort(np.argsort(np.abs(values))[outer.shape[1] :])  # the rigid motions have the value 0
    amplitudes = np.sqrt(BOLTZMANN * temperature / values[kept])
    root = (vectors[:, kept] * amplitudes) @ vectors[:, kept].T
    generator = seeded_generator(relaxed.mol_id)
    moved = generator.normal(size=(n_samples, n)) @ root / np.sqrt(masses)
    return [
        replace(relaxed, mol_id=f"{relaxed.mol_id}_{i:03}", positions=relaxed.positions + step.reshape(-1, 3))
        for i, step in enumerate(moved)
    ]


def _hartree_fock(geometry: Geometry, basis: str) -> Any:
    """Returns PySCF's converged restricted Hartree-Fock calculation."""
    mean_field = without_file(build_molecule(geometry, basis).RHF())
    mean_field.conv_tol = 1e-11
    mean_field.kernel()
    return mean_field


def _rigid_motions(positions: Array, masses: Array) -> Array:
    """Returns an orthonormal basis (3 n_atom, 6) of mass-weighted translations and rotations; 5 of linear molecules."""
    weights, centred = np.sqrt(masses), positions - np.average(positions, axis=0, weights=masses[::3])
    motions = [weights * np.tile(axis, len(positions)) for axis in np.eye(3)]
    motions += [weights * np.cross(axis, centred).ravel() for axis in np.eye(3)]
    vectors, sizes, _ = np.linalg.svd(np.stack(motions, axis=1), full_matrices=False)
    return np.asarray(vectors[:, sizes > 1e-6 * sizes[0]])
