"""Densities away from the SCF path: Fock matrices with random local potentials.

An SCF path holds densities of one kind, and a functional that learns them alone is not bounded from below elsewhere: an
optimisation of the density leaves the path and finds no minimum. A density that diagonalises F + V, for any local
potential V, has a known kinetic gradient: it minimises T_s + tr((F - T + V) Gamma), so dT/dp = -(v_eff + v), up to a
multiple of w. STRUCTURES25 adds such densities to its labels (Remme et al., JACS 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.files import optional_module
from ofdft_norm.labelling.geometries import seeded_generator
from ofdft_norm.labelling.kohn_sham import (
    KohnShamIteration,
    KohnShamTrajectory,
    evaluate_orbitals,
    inverse_root,
    lowest_orbitals,
)

Array = npt.NDArray[np.float64]
# a second density has this share of each potential, to compare energies with gradients
COMPARED_SHARE = 0.9


@dataclass(frozen=True)
class PerturbedDensities:
    """Densities of perturbed Fock matrices, and the potentials (n_density, n_basis) that were added, in hartree.

    A potential sum_mu c_mu w_mu enters as its integrals with the basis functions, S c: a dual vector, as gradients are.
    """

    densities: list[KohnShamIteration]
    potentials: Array


def perturb(trajectory: KohnShamTrajectory, mol: Any, strengths: Array, name: str) -> PerturbedDensities:
    """Adds a random local potential for each strength to the converged Fock matrix, and fills its lowest orbitals.

    The coefficients of a potential in the density basis (`mol`) are normal variables with the strength [hartree] as
    standard deviation. Returns the densities, and after them those of `COMPARED_SHARE` of the same potentials. The name
    of the molecule is the seed.
    """
    if not len(strengths):
        return PerturbedDensities([], np.zeros((0, mol.nao)))
    generator = seeded_generator(name)
    coeffs = strengths[:, None] * generator.normal(size=(len(strengths), mol.nao))
    coeffs = np.concatenate([coeffs, COMPARED_SHARE * coeffs])
    mean_field, orbital_mol = trajectory.mean_field, trajectory.mol
    rows, columns = np.tril_indices(orbital_mol.nao)
    packed = optional_module("pyscf.df.incore", "labels").aux_e2(orbital_mol, mol, "int3c1e", aosym="s2ij") @ coeffs.T
    root, occupied = inverse_root(mean_field.get_ovlp()), []
    for values in packed.T:
        fock = trajectory.fock.copy()
        fock[rows, columns] += values
        fock[columns, rows] = fock[rows, columns]
        occupied.append(lowest_orbitals(fock, root, orbital_mol.nelectron))
    energies = evaluate_orbitals(mean_field, np.stack(occupied))
    pairs = zip(occupied, energies, strict=True)
    densities = [KohnShamIteration(2.0 * own @ own.T, found, np.zeros(0)) for own, found in pairs]
    return PerturbedDensities(densities, coeffs @ mol.intor_symmetric("int1e_ovlp"))
