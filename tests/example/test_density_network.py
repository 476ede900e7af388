"""The network: symmetries, its gradient, its inputs."""

from __future__ import annotations

import copy

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import BasisInfo, OFData
from ofdft_norm.example import DensityNetwork

BASIS = BasisInfo([1, 6, 8], ["2x0e+1x1o", "3x0e+2x1o+1x2e", "2x0e+1x1o+1x2e+1x3o"])


def network(seed: int = 0, basis: BasisInfo = BASIS) -> DensityNetwork:
    torch.manual_seed(seed)
    net = DensityNetwork(basis, width=8, n_layers=2, n_heads=2, n_gaussians=6, coeff_scale=2.0).double()
    for parameter in net.readout.parameters():  # it starts at zero, where every test would pass
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


def test_single_and_double_precision_agree(make_sample, make_batch):
    rng = np.random.default_rng(4)
    batch, net = make_batch([make_sample(BASIS, rng, numbers) for numbers in ([8, 1, 1], [6, 8])]), network()
    expected = net(batch, batch.coeffs)
    batch.pos = batch.pos.float()
    found = net.float()(batch, batch.coeffs.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_atoms_attend_to_each_other_by_distance(make_sample):
    sample, net = make_sample(BASIS, np.random.default_rng(5), [8, 1]), network()
    moved = copy.copy(sample)
    moved.pos = sample.pos.clone()
    moved.pos[1] += 1.0
    assert not torch.allclose(net(moved, moved.coeffs), net(sample, sample.coeffs), rtol=1e-4)


def test_derivatives_are_those_of_finite_differences_and_so_are_theirs(make_sample, make_batch):
    rng = np.random.default_rng(6)
    batch, net = make_batch([make_sample(BASIS, rng, numbers) for numbers in ([1, 1], [8])]), network()
    coeffs = batch.coeffs.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: net(batch, p), coeffs)
    assert torch.autograd.gradgradcheck(lambda p: net(batch, p), coeffs)


def test_every_parameter_takes_part_in_a_gradient_loss_though_elements_are_absent(make_sample):
    net, sample = network(), make_sample(BASIS, np.random.default_rng(0), [1, 1])
    coeffs = sample.coeffs.clone().requires_grad_()
    energy = net(sample, coeffs).sum()
    (gradient,) = torch.autograd.grad(energy, coeffs, create_graph=True)
    (energy + gradient.square().sum()).backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
