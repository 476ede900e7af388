"""Errors in hartree, against a computation sample by sample in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ofdft_norm import AtomRef, BasisInfo, DimensionWiseRescaling, Normalizer
from ofdft_norm.example import LabelErrors
from ofdft_norm.example.label_errors import n_electrons
from tests.processes import on_ranks

BASIS = BasisInfo([1, 8], ["2x0e+1x1o", "3x0e+1x1o"])


def normalizer(energy_scale: float = 2.0) -> Normalizer:
    rng = np.random.default_rng(0)
    n = BASIS.n_basis
    return Normalizer(
        AtomRef(rng.normal(size=2), 0.3, rng.normal(size=n)),
        DimensionWiseRescaling(rng.normal(size=n), rng.uniform(0.5, 2, n), rng.uniform(0.01, 3, n)),
        energy_scale,
    )


def naive_errors(samples, energies, gradients):
    """Predicted energies [hartree] and raw gradients [hartree] against the raw samples' labels."""
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
    return {
        "energy_mae_mHa": 1000 * np.mean(absolute),
        "energy_median_mHa": 1000 * np.median(absolute),
        "energy_mae_within_molecule_mHa": 1000
        * np.mean(np.concatenate([np.abs(np.array(errors) - np.mean(errors)) for errors in by_molecule.values()])),
        "energy_rmse_mHa": 1000 * np.sqrt(np.mean(np.square(absolute))),
        "energy_mae_per_electron_mHa": 1000 * np.mean(per_electron),
        "gradient_mae_mHa": 1000 * np.mean(components),
        "gradient_norm_mHa": 1000 * np.mean(norms),
    }


def samples_and_predictions(make_sample, n=7):
    rng = np.random.default_rng(1)
    samples = [
        make_sample(BASIS, rng, rng.choice([1, 8], 1 + i % 3).tolist(), f"molecule_{i % 3}", has_energy_label=i != 2)
        for i in range(n)
    ]
    for sample in samples:
        sample.coeffs = sample.coeffs.abs()  # a positive number of electrons
    energies = [sample.energy_label.item() + rng.normal() for sample in samples]
    gradients = [sample.gradient_label.numpy() + rng.normal(size=len(sample.coeffs)) for sample in samples]
    return samples, energies, gradients


def predictions(make_batch, samples, energies, gradients, scale=2.0):
    batch = normalizer(scale).normalize(make_batch(samples))
    return (
        normalizer(scale),
        batch,
        torch.tensor(energies, dtype=torch.float64),
        torch.as_tensor(np.concatenate(gradients)),
    )


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_errors_are_those_of_raw_samples(make_sample, make_batch, batch_size, scale):
    samples, energies, gradients = samples_and_predictions(make_sample)
    metric = LabelErrors()
    for i in range(0, len(samples), batch_size):
        part = slice(i, i + batch_size)
        metric.update(*predictions(make_batch, samples[part], energies[part], gradients[part], scale))
    got = {name: float(value) for name, value in metric.compute().items()}
    assert got == pytest.approx(naive_errors(samples, energies, gradients), rel=1e-8)
    assert (metric.n_samples, metric.n_molecules) == (6, 3)


def test_labels_that_may_not_be_used_do_not_count_even_if_nan(make_sample, make_batch):
    samples, energies, gradients = samples_and_predictions(make_sample)
    samples[2].energy_label = torch.tensor([float("nan")], dtype=torch.float64)
    samples[2].gradient_label = torch.full_like(samples[2].gradient_label, float("nan"))
    gradients[2] = np.zeros_like(gradients[2])
    metric = LabelErrors()
    metric.update(*predictions(make_batch, samples, energies, gradients))
    got = {name: float(value) for name, value in metric.compute().items()}
    assert got == pytest.approx(naive_errors(samples, energies, gradients), rel=1e-8)


def test_without_labelled_samples_errors_are_nan(make_sample, make_batch):
    samples, energies, gradients = samples_and_predictions(make_sample)
    metric = LabelErrors()
    metric.update(*predictions(make_batch, samples[2:3], energies[2:3], gradients[2:3]))
    assert all(torch.isnan(value) for value in metric.compute().values())


def test_samples_without_a_molecules_name_are_molecules_of_their_own(make_sample, make_batch):
    samples, energies, gradients = samples_and_predictions(make_sample)
    for sample in samples:
        del sample.mol_id
    metric = LabelErrors()
    metric.update(*predictions(make_batch, samples, energies, gradients))
    assert metric.n_molecules == 6
    assert float(metric.compute()["energy_mae_within_molecule_mHa"]) == 0


def test_electrons_are_counted_in_original_coordinates(make_sample, make_batch):
    samples, _, _ = samples_and_predictions(make_sample)
    batch = normalizer().normalize(make_batch(samples))
    expected = [float(sample.dual_basis_integrals @ sample.coeffs) for sample in samples]
    assert n_electrons(normalizer(), batch).tolist() == pytest.approx(expected, rel=1e-10)


def errors_of_all_ranks(states: list[tuple[torch.Tensor, ...]]) -> dict[str, float]:
    metric = LabelErrors()
    metric.rows, metric.molecules = ([state] for state in states[dist.get_rank()])
    return {name: float(value) for name, value in metric.compute().items()}


def test_two_processes_give_the_errors_of_all_samples(make_sample, make_batch):
    samples, energies, gradients = samples_and_predictions(make_sample)
    states = []
    for part in (slice(0, 5), slice(5, None)):
        metric = LabelErrors()
        metric.update(*predictions(make_batch, samples[part], energies[part], gradients[part]))
        states.append((torch.cat(metric.rows), torch.cat(metric.molecules)))
    for got in on_ranks(errors_of_all_ranks, states):
        assert got == pytest.approx(naive_errors(samples, energies, gradients), rel=1e-8)
