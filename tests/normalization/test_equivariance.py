"""Equivariant rescaling commutes with rotations of the molecule; e3nn's Wigner matrices are the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import AtomRef, BasisInfo, DatasetStatistics, DimensionWiseRescaling, Normalizer, OFData

FIELDS = ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals")


def build(basis: BasisInfo, rng: np.random.Generator, scalar_reference: bool, equivariant: bool) -> Normalizer:
    """From statistics that differ within each shell, so that a rescaling which follows them is not equivariant."""
    n = basis.n_basis
    arrays = {name: rng.normal(size=n) for name in ("coeffs/mean", "gradient_label/mean")}
    arrays["coeffs/std"] = rng.uniform(0.5, 100, n)
    for name in ("atom_ref", "scalar_atom_ref"):
        arrays[f"gradient_max_after_{name}"] = rng.uniform(0.01, 3, n)
        arrays[f"{name}_atom_type_bias"] = rng.normal(size=basis.n_types)
        arrays[f"{name}_global_bias"] = np.array(rng.normal())
    statistics = DatasetStatistics.from_arrays({f"has_energy_label/{key}": value for key, value in arrays.items()})
    reference = AtomRef.from_dataset_statistics(statistics, basis, scalar_only=scalar_reference)
    rescaling = DimensionWiseRescaling.from_dataset_statistics(statistics, basis, equivariant=equivariant)
    return Normalizer(reference, rescaling, 0.3)


def rotated(sample: OFData, basis: BasisInfo, rotation: torch.Tensor) -> OFData:
    """Rotates positions and every per-function field, atom after atom; p functions are in the order x, y, z."""
    matrices = [o3.Irreps(basis.irreps_per_atom[i]).D_from_matrix(rotation) for i in sample.atom_ind.tolist()]
    block = torch.block_diag(*[matrix.to(torch.float64) for matrix in matrices])
    out = sample.clone()
    for field in FIELDS:
        out[field] = block @ sample[field]
    out.pos = sample.pos @ rotation.T
    return out


def deviation(normalizer: Normalizer, sample: OFData, basis: BasisInfo, rotation: torch.Tensor) -> float:
    """Largest difference between rotating after and before normalising, over all fields."""
    after = rotated(normalizer.normalize(sample), basis, rotation)
    before = normalizer.normalize(rotated(sample, basis, rotation))
    fields = (*FIELDS, "energy_label", "energy_reference")
    return max(float((after[f] - before[f]).abs().max() / (1 + before[f].abs().max())) for f in fields)


@given(data=st.data(), seed=st.integers(0, 1000))
def test_equivariant_rescaling_and_the_scalar_reference_commute_with_rotations(
    data: st.DataObject, seed: int, some_samples: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    torch.manual_seed(seed)
    normalizer = build(basis, rng, scalar_reference=True, equivariant=True)
    # e3nn's matrices are good to 1e-7
    assert deviation(normalizer, samples[0], basis, o3.rand_matrix(dtype=torch.float64)) < 1e-6


@pytest.mark.parametrize("scalar_reference", [False, True])
def test_dimension_wise_rescaling_and_the_full_reference_do_not(
    scalar_reference: bool, basis_info: Any, make_sample: Any
) -> None:
    rng = np.random.default_rng(0)
    sample = make_sample(basis_info, rng, [6, 8, 1])
    torch.manual_seed(0)
    normalizer = build(basis_info, rng, scalar_reference, equivariant=not scalar_reference)
    assert deviation(normalizer, sample, basis_info, o3.rand_matrix(dtype=torch.float64)) > 1e-2
