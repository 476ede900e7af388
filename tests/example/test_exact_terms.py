"""Hartree, exchange-correlation, external and nuclear energy against the labels' own, and their derivative."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyscf")

from ofdft_norm import BasisInfo, BasisTransforms, OFData
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.packed import PackedDataset, PackedSet
from ofdft_norm.errors import BasisError, BatchError
from ofdft_norm.example import ExactTerms
from ofdft_norm.labelling import make_labels, read_geometries


def labelled(name: str) -> OFData:
    """A labelled sample of an embedded molecule, in the density basis."""
    packed = PackedSet(EMBEDDED)
    index = np.array([packed.names().index(f"{name}.zarr.zip")])
    return PackedDataset([packed], [index], transform=BasisTransforms([]))[3]


def test_they_are_the_total_energy_minus_the_kinetic_label(tmp_path: Any) -> None:
    (tmp_path / "hf.xyz").write_text("2\n\nH 0 0 0\nF 0 0 0.92\n")
    labels = make_labels(read_geometries(tmp_path / "hf.xyz")[0])
    basis = PackedSet(EMBEDDED).basis_info
    sample = OFData.construct_new(basis, labels.positions, labels.atomic_numbers, labels.coeffs[3])
    expected = labels.energies["e_tot"][3] - labels.energies["e_kin"][3]
    assert float(ExactTerms(sample)(sample.coeffs)) == pytest.approx(expected, abs=1e-7)


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


def test_several_molecules_and_a_basis_without_exponents_are_refused(make_batch: Any) -> None:
    sample = labelled("water")
    with pytest.raises(BatchError, match="the batch has 2"):
        ExactTerms(make_batch([sample, labelled("ammonia")]))
    sample.basis_info = BasisInfo(sample.basis_info.atomic_numbers, sample.basis_info.irreps_per_atom)
    with pytest.raises(BasisError, match=r"'water'.*exponents.*data\.source\.basis_info"):
        ExactTerms(sample)
