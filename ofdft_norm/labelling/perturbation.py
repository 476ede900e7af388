"""Densities away from the SCF path, of Fock matrices with random local potentials V (Remme et al., JACS 2025).

Training on them bounds a functional from below beside that path. The density of the lowest orbitals of F + V minimises
T_s + tr((F - T + V) Gamma), so its kinetic gradient is known: dT/dp = -(v_eff + v), up to a multiple of w.
"""

from typing import Any

import numpy as np

from ofdft_norm.data.files import import_optional
from ofdft_norm.labelling.geometries import Array, make_seeded_generator
from ofdft_norm.labelling.kohn_sham import (
    KohnShamIteration,
    KohnShamTrajectory,
    compute_inverse_root,
    evaluate_density,
    fill_orbitals,
)

COMPARED_SHARE = 0.9  # a second density has this share of each potential, to compare energies with gradients


def perturb(
    trajectory: KohnShamTrajectory, mol: Any, strengths: Array, name: str
) -> tuple[list[KohnShamIteration], Array]:
    """Adds a random local potential for each strength to the converged Fock matrix, and fills its lowest orbitals.

    The coefficients of a potential in the density basis (`mol`) are normal variables with the strength [hartree] as
    standard deviation; the name of the molecule is the seed. Returns the densities, and after them those of
    `COMPARED_SHARE` of the same potentials; and the potentials' integrals with the basis functions, (n_density,
    n_basis) in hartree: dual vectors, as gradients are.
    """
    if not len(strengths):
        return [], np.zeros((0, mol.nao))
    coeffs = strengths[:, None] * make_seeded_generator(name).normal(size=(len(strengths), mol.nao))
    coeffs = np.concatenate([coeffs, COMPARED_SHARE * coeffs])
    mean_field, orbital_mol = trajectory.mean_field, trajectory.mol
    rows, columns = np.tril_indices(orbital_mol.nao)
    packed = import_optional("pyscf.df.incore", "labels").aux_e2(orbital_mol, mol, "int3c1e", aosym="s2ij") @ coeffs.T
    root, densities = compute_inverse_root(mean_field.get_ovlp()), []
    for values in packed.T:
        fock = trajectory.fock.copy()
        fock[rows, columns] += values
        fock[columns, rows] = fock[rows, columns]
        density = fill_orbitals(fock, root, orbital_mol.nelectron)
        energies, _ = evaluate_density(mean_field, density)
        densities.append(KohnShamIteration(np.asarray(density), energies, np.zeros(0)))
    return densities, coeffs @ mol.intor_symmetric("int1e_ovlp")
