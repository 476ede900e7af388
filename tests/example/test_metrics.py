"""Errors in hartree, against a computation sample by sample in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ofdft_norm import AtomRef, BasisInfo, DimensionWiseRescaling, Normalizer
from ofdft_norm.example import LabelErrors
from tests.processes import on_ranks

BASIS = BasisInfo([1, 8], ["2x0e+1x1o", "3x0e+1x1o"])


def make_normalizer(energy_scale: float = 2.0) -> Normalizer:
    rng, n = np.random.default_rng(0), BASIS.n_basis
    return Normalizer(
        AtomRef(rng.normal(size=2), 0.3, rng.normal(size=n)),
        DimensionWiseRescaling(rng.normal(size=n), rng.uniform(0.5, 2, n), rng.uniform(0.01, 3, n)),
        energy_scale,
    )


def naive_errors(samples, energies, gradients):
    """Predicted energies and gradients [hartree] against the raw samples' labels."""
    absolute, per_electron, norms, components = [], [], [], []
    by_molecule: dict[str, list[float]] = {}
    for sample, energy, gradient in zip(samples, energies, gradients, strict=True):
        if not sample.has_energy_label.item():
            continue
        w, p = sample.dual_basis_integrals.numpy(), sample.coeffs.numpy()
        difference = gradient - sample.gradient_label.numpy()
        difference = difference - w * (w @ difference) / (w @ w)
        absolute.append(abs(energy - sample.energy_label.item()))
        by_molecule.setdefault(sample.mol_id, []).append(energy - sample.energy_label.item())
        per_electron.append(absolute[-1] / (w @ p))
        norms.append(np.sqrt((difference**2).sum()))
        components.extend(np.abs(difference))
    within = np.concatenate([np.abs(np.array(errors) - np.mean(errors)) for errors in by_molecule.values()])
    return {
        "energy_mae_mHa": 1000 * np.mean(absolute),
        "energy_median_mHa": 1000 * np.median(absolute),
        "energy_mae_within_molecule_mHa": 1000 * np.mean(within),
        "energy_rmse_mHa": 1000 * np.sqrt(np.mean(np.square(absolute))),
        "energy_mae_per_electron_mHa": 1000 * np.mean(per_electron),
        "gradient_mae_mHa": 1000 * np.mean(components),
        "gradient_norm_mHa": 1000 * np.mean(norms),
    }


@pytest.fixture
def predicted(make_sample):
    """Samples of three molecules, the third sample without label, and predictions."""
    rng = np.random.default_rng(1)
    numbers = [rng.choice([1, 8], 1 + i % 3).tolist() for i in range(7)]
    samples = [make_sample(BASIS, rng, z, f"molecule_{i % 3}", has_energy_label=i != 2) for i, z in enumerate(numbers)]
    for sample in samples:
        sample.coeffs = sample.coeffs.abs()  # a positive number of electrons
    energies = [sample.energy_label.item() + rng.normal() for sample in samples]
    gradients = [sample.gradient_label.numpy() + rng.normal(size=len(sample.coeffs)) for sample in samples]
    samples[2].energy_label = torch.full((1,), torch.nan, dtype=torch.float64)
    samples[2].gradient_label = torch.full_like(samples[2].gradient_label, torch.nan)
    return samples, energies, gradients


def update(metric, make_batch, samples, energies, gradients, scale=2.0):
    """Gives a metric a batch of predictions as a model does: normalised gradients."""
    normalizer, predicted_gradients = make_normalizer(scale), []
    for sample, gradient in zip(samples, gradients, strict=True):
        with_gradient = sample.clone()
        with_gradient.gradient_label = torch.as_tensor(gradient)
        with_gradient.energy_label, with_gradient.has_energy_label = torch.zeros(1), torch.tensor([True])
        predicted_gradients.append(normalizer.normalize(with_gradient).gradient_label)
    batch = normalizer.normalize(make_batch(samples))
    difference = normalizer.gradient_difference(torch.cat(predicted_gradients), batch)
    metric.update(normalizer, batch, torch.tensor(energies, dtype=torch.float64), difference)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_errors_are_those_of_raw_samples(make_batch, predicted, batch_size, scale):
    metric = LabelErrors()
    for i in range(0, 7, batch_size):
        update(metric, make_batch, *(values[i : i + batch_size] for values in predicted), scale)
    got = {name: float(value) for name, value in metric.compute().items()}
    assert got == pytest.approx(naive_errors(*predicted), rel=1e-8)
    assert metric.sizes() == (3, 6)


def test_without_labelled_samples_errors_are_nan_and_nameless_samples_are_molecules(make_batch, predicted):
    metric = LabelErrors()
    update(metric, make_batch, *(values[2:3] for values in predicted))
    assert all(torch.isnan(value) for value in metric.compute().values())
    for sample in predicted[0]:
        del sample.mol_id
    update(metric, make_batch, *predicted)
    assert metric.sizes() == (6, 6)
    assert float(metric.compute()["energy_mae_within_molecule_mHa"]) == 0


def errors_of_all_ranks(states: list[tuple[torch.Tensor, ...]]) -> dict[str, float]:
    metric = LabelErrors()
    metric.rows, metric.molecules = ([state] for state in states[dist.get_rank()])
    return {name: float(value) for name, value in metric.compute().items()}


def test_two_processes_give_the_errors_of_all_samples(make_batch, predicted):
    states = []
    for part in (slice(0, 5), slice(5, None)):
        metric = LabelErrors()
        update(metric, make_batch, *(values[part] for values in predicted))
        states.append((torch.cat(metric.rows), torch.cat(metric.molecules)))
    for got in on_ranks(errors_of_all_ranks, states):
        assert got == pytest.approx(naive_errors(*predicted), rel=1e-8)
