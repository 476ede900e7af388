"""The Lightning module: loss, masking, checkpoints, modes without gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ofdft_norm import AtomRef, BasisInfo, DimensionWiseRescaling, Normalizer
from ofdft_norm.errors import ConfigError
from ofdft_norm.example import DensityModule

BASIS = BasisInfo([1, 8], ["2x0e+1x1o", "3x0e+1x1o"])
SMALL = {"width": 8, "n_layers": 1, "n_heads": 2, "n_gaussians": 4}


@pytest.fixture
def module():
    rng, n = np.random.default_rng(0), BASIS.n_basis
    torch.manual_seed(0)
    model = DensityModule(**SMALL, energy_weight=1.5, gradient_weight=0.7)
    model.build(BASIS)
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
    return [make_sample(BASIS, rng, numbers) for numbers in ([8, 1, 1], [1, 1], [8], [8, 8])]


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
    module.build(BASIS)
    with pytest.raises(ConfigError, match=r"data\.source\.basis_info"):
        module.build(BasisInfo([1], ["2x0e"]))
    with pytest.raises(ConfigError, match=r"model\.build"):
        DensityModule(**SMALL)(samples[0])
    with pytest.raises(ConfigError, match=r"model\.gradient_weight = -1"):
        DensityModule(gradient_weight=-1)
    with pytest.raises(ConfigError, match=r"model\.n_heads = 3"):
        DensityModule(width=8, n_heads=3)


def test_a_state_dict_builds_the_network_of_its_normaliser(module):
    n = BASIS.n_basis
    module.normalizer = Normalizer(AtomRef(np.zeros(2), 0.3, np.zeros(n)), basis_info=BASIS)
    loaded = DensityModule(**SMALL)
    loaded.load_state_dict(module.state_dict())
    assert loaded.network.dims.tolist() == module.network.dims.tolist()
    assert float(loaded.normalizer.reference.t_global) == 0.3
