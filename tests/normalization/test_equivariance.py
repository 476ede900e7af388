"""Equivariant rescaling commutes with rotations of the molecule; e3nn's Wigner matrices are the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import AtomRef, BasisInfo, DatasetStatistics, DimensionWiseRescaling, Normalizer, OFData

FIELDS = ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals")


def rotated(sample: OFData, basis: BasisInfo, rotation: torch.Tensor) -> OFData:
    """Rotates positions and every per-function field, atom after atom; p functions are in the order x, y, z."""
    matrices = [o3.Irreps(basis.irreps_per_atom[i]).D_from_matrix(rotation) for i in sample.atom_ind.tolist()]
    block = torch.block_diag(*[matrix.to(torch.float64) for matrix in matrices])
    out = sample.clone()
    for field in FIELDS:
        out[field] = block @ sample[field]
    out.pos = sample.pos @ rotation.T
    return out


@given(data=st.data(), seed=st.integers(0, 1000))
def test_equivariant_rescaling_and_the_scalar_reference_commute_with_rotations(
    data: st.DataObject, seed: int, some_samples: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    torch.manual_seed(seed)
    # from statistics that differ within each shell
    n = basis.n_basis
    arrays = {name: rng.normal(size=n) for name in ("coeffs/mean", "gradient_label/mean")}
    arrays |= {name: rng.uniform(0.01, 3, n) for name in ("coeffs/std", "gradient_max_after_scalar_atom_ref")}
    arrays |= {
        "scalar_atom_ref_atom_type_bias": rng.normal(size=basis.n_types),
        "scalar_atom_ref_global_bias": np.ones(()),
    }
    statistics = DatasetStatistics.from_arrays({f"has_energy_label/{key}": value for key, value in arrays.items()})
    reference = AtomRef.from_dataset_statistics(statistics, basis, scalar_only=True)
    normalizer = Normalizer(
        reference, DimensionWiseRescaling.from_dataset_statistics(statistics, basis, equivariant=True)
    )
    rotation = o3.rand_matrix(dtype=torch.float64)
    after = rotated(normalizer.normalize(samples[0]), basis, rotation)
    before = normalizer.normalize(rotated(samples[0], basis, rotation))
    for field in (*FIELDS, "energy_label", "energy_reference"):  # e3nn's matrices are good to 1e-7
        torch.testing.assert_close(
            after[field], before[field], rtol=0, atol=1e-6 * (1 + float(before[field].abs().max()))
        )
