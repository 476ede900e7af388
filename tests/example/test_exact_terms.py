"""Hartree, exchange-correlation, external and nuclear energy against the labels' own, and their derivative."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("pyscf")

from ofdft_norm import BasisInfo, BasisTransforms, OFData, OFDataset
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.errors import BasisError, BatchError
from ofdft_norm.example import ExactTerms


def labelled(name: str, energy_key: str = "e_kin") -> OFData:
    basis_info = BasisInfo.from_json(EMBEDDED_DATA / "basis_info.json")
    stored = OFDataset([EMBEDDED_DATA / "labels" / f"{name}.zarr.zip"], basis_info, energy_key)[3]
    return BasisTransforms([])(stored)


def in_order_xyz(sample: OFData) -> OFData:
    """The same density in a basis whose p functions stand in the order x, y, z."""
    given = sample.basis_info
    basis_info = BasisInfo(**{**given.to_dict(), "p_order": "xyz"})
    functions = sample.basis_function_ind.numpy()
    l, m = given.l_per_basis_func[functions], given.m_per_basis_func[functions]
    order = torch.arange(len(functions))
    for start in (i for i in range(len(l)) if l[i] == 1 and m[i] == -1):  # y, z, x
        order[start : start + 3] = start + torch.tensor([2, 0, 1])
    return OFData.construct_new(basis_info, sample.pos, sample.atomic_numbers, sample.coeffs[order])


def test_they_are_what_the_kinetic_label_leaves_of_the_total_energy() -> None:
    kinetic, total = (labelled("hydrogen_fluoride", key) for key in ("e_kin", "e_tot"))
    expected = float(total.energy_label - kinetic.energy_label)
    assert float(ExactTerms(kinetic)(kinetic.coeffs)) == pytest.approx(expected, abs=1e-7)


def test_they_are_the_same_in_either_order_of_p_functions() -> None:
    sample = labelled("hydrogen_fluoride")
    turned = in_order_xyz(sample)
    one, other = ExactTerms(sample, grid_level=0), ExactTerms(turned, grid_level=0)
    assert float(other(turned.coeffs)) == pytest.approx(float(one(sample.coeffs)), abs=1e-9)


def test_their_derivative_is_that_of_finite_differences() -> None:
    raw = labelled("hydrogen_fluoride")
    exact = ExactTerms(raw, grid_level=0)
    p = raw.coeffs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(3.0 * exact(p), p)
    direction = torch.randn(len(p), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction *= raw.coeffs.abs()
    step = 1e-4
    change = (exact(raw.coeffs + step * direction) - exact(raw.coeffs - step * direction)) / (2 * step)
    assert float(gradient @ direction) == pytest.approx(3.0 * float(change), rel=1e-6)


def test_what_they_cannot_be_made_of_is_refused(make_batch: Any) -> None:
    sample = labelled("water")
    with pytest.raises(BatchError, match="the batch has 2"):
        ExactTerms(make_batch([sample, sample]))
    sample.basis_info = BasisInfo(sample.basis_info.atomic_numbers, sample.basis_info.irreps_per_atom)
    with pytest.raises(BasisError, match=r"'water'.*exponents.*data\.source\.basis_info"):
        ExactTerms(sample)
