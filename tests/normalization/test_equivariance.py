"""Equivariant rescaling commutes with rotations of the molecule; e3nn's Wigner matrices are the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import (
    AtomRef,
    BasisInfo,
    DatasetStatistics,
    DimensionWiseRescaling,
    Normalizer,
    OFData,
    ProjectGradient,
)


def random_statistics(basis: BasisInfo, rng: np.random.Generator) -> DatasetStatistics:
    """Statistics that differ within each shell, so that a rescaling which follows them is not equivariant."""
    n = basis.n_basis
    arrays = {
        "coeffs/mean": rng.normal(size=n),
        "coeffs/std": rng.uniform(0.5, 100, n),
        "gradient_label/mean": rng.normal(size=n),
        "gradient_max_after_atom_ref": rng.uniform(0.01, 3, n),
        "gradient_max_after_scalar_atom_ref": rng.uniform(0.01, 3, n),
    }
    for name in ("atom_ref", "scalar_atom_ref"):
        arrays[f"{name}_atom_type_bias"] = rng.normal(size=basis.n_types)
        arrays[f"{name}_global_bias"] = np.array(rng.normal())
    return DatasetStatistics.from_arrays({f"has_energy_label/{key}": value for key, value in arrays.items()})


def rotated(sample: OFData, basis: BasisInfo, rotation: torch.Tensor) -> OFData:
    """Rotates positions and every per-function field, atom after atom."""
    matrices = [o3.Irreps(basis.irreps_per_atom[i]).D_from_matrix(rotation) for i in sample.atom_ind.tolist()]
    block = torch.block_diag(*[matrix.to(torch.float64) for matrix in matrices])
    out = sample.clone()
    for field in ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals"):
        out[field] = block @ sample[field]
    out.pos = sample.pos @ rotation.T
    return out


def deviation(normalizer: Normalizer, sample: OFData, basis: BasisInfo, rotation: torch.Tensor) -> float:
    """Largest difference between rotating after and before normalising, over all fields."""
    after = rotated(normalizer.normalize(sample), basis, rotation)
    before = normalizer.normalize(rotated(sample, basis, rotation))
    fields = ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals", "energy_label")
    return max(float((after[f] - before[f]).abs().max() / (1 + before[f].abs().max())) for f in fields)


def draw_case(data: st.DataObject, some_samples: Any) -> tuple[BasisInfo, OFData, np.random.Generator, torch.Tensor]:
    basis, samples, rng = data.draw(some_samples)
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    return basis, samples[0], rng, o3.rand_matrix(dtype=torch.float64)


@given(data=st.data())
def test_equivariant_rescaling_and_the_scalar_reference_commute_with_rotations(
    data: st.DataObject, some_samples: Any
) -> None:
    basis, sample, rng, rotation = draw_case(data, some_samples)
    statistics = random_statistics(basis, rng)
    normalizer = Normalizer(
        AtomRef.from_dataset_statistics(statistics, basis, scalar_only=True),
        DimensionWiseRescaling.from_dataset_statistics(statistics, basis, equivariant=True),
        0.3,
    )
    assert deviation(normalizer, sample, basis, rotation) < 1e-6  # e3nn's matrices are good to 1e-7


@pytest.mark.parametrize("part", ["rescaling", "reference"])
def test_dimension_wise_rescaling_and_the_full_reference_do_not(part: str, basis_info: Any, make_sample: Any) -> None:
    rng = np.random.default_rng(0)
    sample = make_sample(basis_info, rng, [6, 8, 1])
    statistics = random_statistics(basis_info, rng)
    normalizer = Normalizer(
        AtomRef.from_dataset_statistics(statistics, basis_info) if part == "reference" else None,
        DimensionWiseRescaling.from_dataset_statistics(statistics, basis_info) if part == "rescaling" else None,
    )
    torch.manual_seed(0)
    assert deviation(normalizer, sample, basis_info, o3.rand_matrix(dtype=torch.float64)) > 1e-2


@given(data=st.data())
def test_the_scalar_reference_is_invariant_under_rotations(data: st.DataObject, some_samples: Any) -> None:
    basis, sample, rng, rotation = draw_case(data, some_samples)
    reference = AtomRef.from_dataset_statistics(random_statistics(basis, rng), basis, scalar_only=True)
    before, after = reference.sample_forward(sample), reference.sample_forward(rotated(sample, basis, rotation))
    torch.testing.assert_close(before, after, rtol=1e-10, atol=1e-10)


@given(data=st.data())
def test_the_projection_of_gradients_commutes_with_rotations(data: st.DataObject, some_samples: Any) -> None:
    basis, sample, _, rotation = draw_case(data, some_samples)
    after = rotated(ProjectGradient()(sample), basis, rotation).gradient_label
    before = ProjectGradient()(rotated(sample, basis, rotation)).gradient_label
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
