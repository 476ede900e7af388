"""The network: symmetries, its gradient, its inputs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import BasisInfo, OFData
from ofdft_norm.example import DensityNetwork

BASIS = BasisInfo([1, 6, 8], ["2x0e+1x1o", "3x0e+2x1o+1x2e", "2x0e+1x1o+1x2e+1x3o"])


def network(seed: int = 0, basis: BasisInfo = BASIS) -> DensityNetwork:
    torch.manual_seed(seed)
    net = DensityNetwork(basis, width=8, rank=3, n_radial=6, cutoff=8.0, coeff_scale=2.0).double()
    for parameter in net.parameters():  # the readout starts at zero, where every test would pass
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def blocks(sample: OFData) -> list[torch.Tensor]:
    sizes = BASIS.basis_dim_per_atom[sample.atom_ind].tolist()
    return list(sample.coeffs.split(sizes))


@given(seed=st.integers(0, 1000), shift=st.tuples(*[st.floats(-50, 50)] * 3))
def test_energy_does_not_change_under_translations(make_sample, seed, shift):
    sample = make_sample(BASIS, np.random.default_rng(seed))
    moved = copy.copy(sample)
    moved.pos = sample.pos + torch.tensor(shift, dtype=torch.float64)
    net = network()
    torch.testing.assert_close(net(moved, moved.coeffs), net(sample, sample.coeffs), rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 1000))
def test_energy_does_not_change_when_atoms_are_reordered(make_sample, seed):
    rng = np.random.default_rng(seed)
    sample = make_sample(BASIS, rng, rng.choice([1, 6, 8], 5).tolist())
    order = rng.permutation(5)
    shuffled = OFData.construct_new(
        BASIS, sample.pos[order], sample.atomic_numbers[order], torch.cat([blocks(sample)[i] for i in order])
    )
    net = network()
    torch.testing.assert_close(net(shuffled, shuffled.coeffs), net(sample, sample.coeffs), rtol=1e-10, atol=1e-10)


def test_molecules_of_a_batch_do_not_see_each_other(make_sample, make_batch):
    rng = np.random.default_rng(3)
    samples = [make_sample(BASIS, rng, numbers) for numbers in ([8, 1, 1], [6], [1, 1], [6, 8])]
    batch, net = make_batch(samples), network()
    alone = torch.cat([net(sample, sample.coeffs) for sample in samples])
    torch.testing.assert_close(net(batch, batch.coeffs), alone, rtol=1e-10, atol=1e-10)


def test_energy_does_not_change_under_rotations(make_sample):
    """e3nn rotates the coefficients; its axes are y, z, x, its l = 1 is in that order, too."""
    e3nn = pytest.importorskip("e3nn.o3")
    sample, axes = make_sample(BASIS, np.random.default_rng(11), [8, 6, 1, 1]), [1, 2, 0]
    rotation = e3nn.angles_to_matrix(*torch.tensor([0.3, 1.1, -2.0], dtype=torch.float64))
    wigner = [e3nn.Irrep(l, 1).D_from_matrix(rotation[axes][:, axes]) for l in range(4)]
    wigner[1] = rotation
    turned_blocks = [
        torch.block_diag(*(wigner[l] for l in e3nn.Irreps(str(BASIS.irreps_per_atom[element])).ls)) @ block
        for block, element in zip(blocks(sample), sample.atom_ind.tolist(), strict=True)
    ]
    turned = OFData.construct_new(BASIS, sample.pos @ rotation.T, sample.atomic_numbers, torch.cat(turned_blocks))
    net = network()
    for quadratic in net.quadratics:  # these parts treat every component on its own
        torch.nn.init.zeros_(quadratic.diagonal)
        torch.nn.init.zeros_(quadratic.linear)
    torch.testing.assert_close(net(turned, turned.coeffs), net(sample, sample.coeffs), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(turned.coeffs, sample.coeffs)


def test_every_parameter_takes_part_though_elements_are_absent(make_sample):
    net, sample = network(), make_sample(BASIS, np.random.default_rng(0), [1, 1])
    net(sample, sample.coeffs).sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
