"""The density network's symmetries and derivatives; its Lightning module: loss, masking, checkpoints, modes."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import AtomRef, BasisInfo, DimensionWiseRescaling, Normalizer, OFData
from ofdft_norm.errors import ConfigError
from ofdft_norm.example import DensityModule, DensityNetwork

BASIS = BasisInfo([1, 6, 8], ["2x0e+1x1o", "3x0e+2x1o+1x2e", "2x0e+1x1o+1x2e+1x3o"])
OXIDES = BasisInfo([1, 8], ["2x0e+1x1o", "3x0e+1x1o"])
SMALL = {"width": 8, "n_layers": 1, "n_heads": 2, "n_gaussians": 4}


def network(seed: int = 0, basis: BasisInfo = BASIS) -> DensityNetwork:
    torch.manual_seed(seed)
    net = DensityNetwork(basis, width=8, n_layers=2, n_heads=2, n_gaussians=6, coeff_scale=2.0).double()
    for parameter in net.readout.parameters():  # it starts at zero, where every test would pass
        torch.nn.init.normal_(parameter, std=0.3)
    return net


@given(seed=st.integers(0, 1000), shift=st.tuples(*[st.floats(-50, 50)] * 3))
def test_energy_does_not_change_when_molecules_are_moved_and_their_atoms_reordered(make_sample, seed, shift):
    rng = np.random.default_rng(seed)
    sample = make_sample(BASIS, rng, rng.choice([1, 6, 8], 5).tolist())
    order, blocks = rng.permutation(5), sample.coeffs.split(BASIS.basis_dim_per_atom[sample.atom_ind].tolist())
    pos, coeffs = sample.pos[order] + torch.tensor(shift, dtype=torch.float64), torch.cat([blocks[i] for i in order])
    moved = OFData.construct_new(BASIS, pos, sample.atomic_numbers[order], coeffs)
    net = network()
    torch.testing.assert_close(net(moved, moved.coeffs), net(sample, sample.coeffs), rtol=1e-9, atol=1e-9)


def test_molecules_of_a_batch_do_not_see_each_other(make_sample, make_batch):
    rng = np.random.default_rng(3)
    samples = [make_sample(BASIS, rng, numbers) for numbers in ([8, 1, 1], [6], [1, 1], [6, 8])]
    batch, net = make_batch(samples), network()
    alone = torch.cat([net(sample, sample.coeffs) for sample in samples])
    torch.testing.assert_close(net(batch, batch.coeffs), alone, rtol=1e-10, atol=1e-10)


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


# --- module -----


@pytest.fixture
def module():
    rng, n = np.random.default_rng(0), OXIDES.n_basis
    torch.manual_seed(0)
    model = DensityModule(**SMALL, energy_weight=1.5, gradient_weight=0.7)
    model.build(OXIDES)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.normalizer = Normalizer(
        AtomRef(rng.normal(size=2), 0.3, rng.normal(size=n)),
        DimensionWiseRescaling(rng.normal(size=n), rng.uniform(0.5, 2, n), rng.uniform(0.01, 3, n)),
        2.0,
    )
    return model.double()


@pytest.fixture
def samples(make_sample):
    rng = np.random.default_rng(1)
    return [make_sample(OXIDES, rng, numbers) for numbers in ([8, 1, 1], [1, 1], [8], [8, 8])]


def test_prediction_is_the_derivative_of_the_denormalised_energy(module, samples):
    """Autograd through normalisation, network and denormalisation gives the denormalised gradient."""
    raw = copy.copy(samples[0])
    raw.coeffs = raw.coeffs.clone().requires_grad_()
    normalizer = module.normalizer
    scaled = normalizer.rescaling.scale_coeffs(raw.coeffs, raw)
    energy = 2.0 * module.network(raw, scaled).sum() + normalizer.reference.sample_forward(raw).sum()
    (expected,) = torch.autograd.grad(energy, raw.coeffs)
    got_energy, got = module.predict(normalizer.normalize(samples[0]))
    assert got_energy.item() == pytest.approx(energy.item(), rel=1e-10)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def naive_loss(module, samples):
    """Loss of labelled samples, one by one."""
    terms = []
    for sample in samples:
        if not sample.has_energy_label.item():
            continue
        energy, gradient = (x.detach().numpy() for x in module.predict(module.normalizer.normalize(sample)))
        w = sample.dual_basis_integrals.numpy()
        difference = gradient - sample.gradient_label.numpy()
        difference = difference - w * (w @ difference) / (w @ w)
        terms.append(1.5 * abs(energy[0] - sample.energy_label.item()) + 0.7 * np.linalg.norm(difference))
    return np.mean(terms)


def test_loss_is_the_mean_over_labelled_samples(module, samples, make_batch):
    samples[1].has_energy_label = torch.tensor([False])
    samples[1].energy_label = torch.full((1,), torch.nan, dtype=torch.float64)
    samples[1].gradient_label = torch.full_like(samples[1].gradient_label, torch.nan)
    batch = module.normalizer.normalize(make_batch(samples))
    loss = module.loss(batch, *module(batch))["loss"]
    assert loss.item() == pytest.approx(naive_loss(module, samples), rel=1e-8)
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


def test_a_batch_without_any_label_has_zero_loss_and_zero_gradients(module, samples, make_batch):
    batch = module.normalizer.normalize(make_batch(samples))
    batch.has_energy_label[:] = False
    loss = module.loss(batch, *module(batch))["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.any() for parameter in module.parameters())


def test_predictions_are_the_same_without_gradients_and_in_inference_mode(module, samples):
    module.eval()
    batches = [module.normalizer.normalize(sample) for sample in samples]
    expected = [module.predict(batch) for batch in batches]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = [module.predict(batch) for batch in batches]
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_network_is_built_once_for_one_basis(module, samples):
    module.build(OXIDES)
    with pytest.raises(ConfigError, match=r"data\.source\.basis_info"):
        module.build(BasisInfo([1], ["2x0e"]))
    with pytest.raises(ConfigError, match=r"model\.build"):
        DensityModule(**SMALL)(samples[0])
    with pytest.raises(ConfigError, match=r"model\.gradient_weight = -1"):
        DensityModule(gradient_weight=-1)
    with pytest.raises(ConfigError, match=r"model\.n_heads = 3"):
        DensityModule(width=8, n_heads=3)


def test_a_state_dict_builds_the_network_of_its_normaliser(module):
    n = OXIDES.n_basis
    module.normalizer = Normalizer(AtomRef(np.zeros(2), 0.3, np.zeros(n)), basis_info=OXIDES)
    loaded = DensityModule(**SMALL)
    loaded.load_state_dict(module.state_dict())
    assert loaded.network.dims.tolist() == module.network.dims.tolist()
    assert float(loaded.normalizer.reference.t_global) == 0.3
