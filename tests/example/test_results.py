"""Errors, baselines and the table of results, against NumPy sample by sample."""

import csv

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch_geometric.loader import DataLoader

from ofdft_norm import AtomRef, BasisInfo, DimensionWiseRescaling, Normalizer
from ofdft_norm.example import LabelErrors
from ofdft_norm.example.results import (
    ResultRow,
    describe_accuracy,
    evaluate,
    fit_baseline,
    format_table,
    make_reference_predictor,
    read_csv,
    write_csv,
)
from tests.processes import on_ranks

BASIS = BasisInfo([1, 8], ["2x0e+1x1o", "3x0e+1x1o"])


def make_normalizer(energy_scale: float = 2.0) -> Normalizer:
    rng, n = np.random.default_rng(0), BASIS.n_basis
    rescaling = DimensionWiseRescaling(rng.normal(size=n), rng.uniform(0.5, 2, n), rng.uniform(0.01, 3, n))
    return Normalizer(AtomRef(rng.normal(size=2), 0.3, rng.normal(size=n)), rescaling, energy_scale, basis_info=BASIS)


def naive_errors(samples, energies, gradients):
    """Predicted energies and gradients [hartree] against the raw samples' labels."""
    errors, electrons, differences, at_ground_state = [], [], [], []
    by_molecule: dict[str, list[float]] = {}
    for sample, energy, gradient in zip(samples, energies, gradients, strict=True):
        if not sample.has_energy_label.item():
            continue
        w, difference = sample.dual_basis_integrals.numpy(), gradient - sample.gradient_label.numpy()
        differences.append(difference - w * (w @ difference) / (w @ w))
        errors.append(energy - sample.energy_label.item())
        if not sample.perturbed.item():
            by_molecule.setdefault(sample.mol_id, []).append(errors[-1])
        if (sample.coeffs == sample.ground_state_coeffs).all():
            at_ground_state.append(errors[-1])
        electrons.append(w @ sample.coeffs.numpy())
    along_path = np.concatenate([np.abs(np.array(own) - np.mean(own)) for own in by_molecule.values()])
    return {
        "energy_mae_mHa": 1000 * np.mean(np.abs(errors)),
        "energy_median_mHa": 1000 * np.median(np.abs(errors)),
        "energy_rmse_mHa": 1000 * np.sqrt(np.mean(np.square(errors))),
        "energy_mae_ground_state_mHa": 1000 * np.mean(np.abs(at_ground_state)),
        "energy_mae_along_path_mHa": 1000 * np.mean(along_path),
        "energy_mae_per_electron_mHa": 1000 * np.mean(np.abs(errors) / np.array(electrons)),
        "gradient_mae_mHa": 1000 * np.mean(np.abs(np.concatenate(differences))),
        "gradient_norm_mHa": 1000 * np.mean([np.linalg.norm(difference) for difference in differences]),
    }


@pytest.fixture
def predicted(make_sample):
    """Samples of three molecules, the third sample without label, and predictions."""
    rng = np.random.default_rng(1)
    numbers = [rng.choice([1, 8], 1 + i % 3).tolist() for i in range(7)]
    samples = [make_sample(BASIS, rng, z, f"molecule_{i % 3}", has_energy_label=i != 2) for i, z in enumerate(numbers)]
    for i, sample in enumerate(samples):
        sample.coeffs = sample.coeffs.abs()  # a positive number of electrons
        sample.ground_state_coeffs = sample.coeffs + (i < 4)
        sample.perturbed = torch.tensor([i == 1])
    energies = [sample.energy_label.item() + rng.normal() for sample in samples]
    gradients = [sample.gradient_label.numpy() + rng.normal(size=len(sample.coeffs)) for sample in samples]
    samples[2].energy_label = torch.full((1,), torch.nan, dtype=torch.float64)
    samples[2].gradient_label = torch.full_like(samples[2].gradient_label, torch.nan)
    return samples, energies, gradients


def update(metric, make_batch, samples, energies, gradients, scale=2.0):
    """Gives a metric a batch of predictions as a model does."""
    normalizer = make_normalizer(scale)
    predicted = torch.tensor(energies, dtype=torch.float64), torch.tensor(np.concatenate(gradients))
    metric.update(normalizer, normalizer.normalize(make_batch(samples)), *predicted)


@pytest.mark.parametrize(("batch_size", "scale"), [(1, 1.0), (2, 2.5), (7, 2.5)])
def test_errors_are_those_of_raw_samples(make_batch, predicted, batch_size, scale):
    metric = LabelErrors()
    for i in range(0, 7, batch_size):
        update(metric, make_batch, *(values[i : i + batch_size] for values in predicted), scale)
    got = {name: float(value) for name, value in metric.compute().items()}
    assert got == pytest.approx(naive_errors(*predicted), rel=1e-8)
    assert (len(torch.cat(metric.molecules).unique()), len(torch.cat(metric.rows))) == (3, 6)


def test_without_labelled_samples_errors_are_nan_and_nameless_samples_are_molecules(make_batch, predicted):
    metric = LabelErrors()
    update(metric, make_batch, *(values[2:3] for values in predicted))
    assert all(torch.isnan(value) for value in metric.compute().values())
    for sample in predicted[0]:
        del sample.mol_id
    update(metric, make_batch, *predicted)
    assert len(torch.cat(metric.molecules).unique()) == 6
    assert float(metric.compute()["energy_mae_along_path_mHa"]) == 0


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


# --- baselines and table ----------------------------------------------------------------------------------------------


def test_the_reference_and_its_parity_against_numpy(predicted):
    samples, normalizer = predicted[0], make_normalizer()
    batches = list(DataLoader([normalizer.normalize(sample) for sample in samples], 2, follow_batch=["coeffs"]))
    slopes = [normalizer.reference.g_z.numpy()[sample.basis_function_ind] for sample in samples]
    energies = [
        slope @ sample.coeffs.numpy() + 0.3 + normalizer.reference.t_z.numpy()[sample.atom_ind].sum()
        for sample, slope in zip(samples, slopes, strict=True)
    ]
    predictor = make_reference_predictor(normalizer)
    [row, *of_elements], (of_energies, gradients) = evaluate({"ref": predictor}, batches, normalizer, "val")
    assert row.errors == pytest.approx(naive_errors(samples, energies, slopes), rel=1e-6)
    assert [row.group for row in of_elements] == ["element=H", "element=O"]
    assert all(np.isnan(row.errors["energy_mae_mHa"]) for row in of_elements)

    labelled = [i for i, sample in enumerate(samples) if sample.has_energy_label.item()]
    labels, zeros = of_energies
    np.testing.assert_allclose(labels, [samples[i].energy_label.item() - energies[i] for i in labelled], atol=1e-9)
    np.testing.assert_allclose(zeros, 0, atol=1e-9)
    for found, own in zip(gradients, ([samples[i].gradient_label.numpy() for i in range(7)], slopes), strict=True):
        w = [sample.dual_basis_integrals.numpy() for sample in samples]
        expected = [own[i] - w[i] * (w[i] @ own[i]) / (w[i] @ w[i]) for i in labelled]
        np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-6, atol=1e-9)
    own_functions = np.concatenate([samples[i].basis_function_ind.numpy() for i in labelled])
    for atom, of_element in enumerate(of_elements):
        of_atoms = np.isin(own_functions, BASIS.atom_ind_to_basis_function_ind[atom])
        assert of_element.n_samples == sum(atom in samples[i].atom_ind for i in labelled)
        mean = np.abs(gradients[1] - gradients[0])[of_atoms].mean()
        assert of_element.errors["gradient_mae_mHa"] == pytest.approx(1000 * mean, rel=1e-6)


def test_linear_baselines_find_planted_weights_at_ground_states(make_sample, make_batch):
    rng = np.random.default_rng(0)
    weights = np.array([0.5, 60.0, 0.25, -1.2, 0.7])  # of H, O, the constant and two energies
    samples, stored = [], [dict[tuple[str, int], float](), dict[tuple[str, int], float]()]
    for i in range(24):
        numbers = rng.choice([1, 8], 1 + i % 4).tolist()
        sample = make_sample(BASIS, rng, numbers, mol_id=f"molecule_{i // 2}", scf_iteration=i, has_energy_label=i != 3)
        sample.ground_state_coeffs = sample.coeffs + (i % 2 == 0)
        others = rng.normal(size=2) * 10
        energy = weights @ [numbers.count(1), numbers.count(8), 1.0, *others]
        sample.energy_label = torch.tensor([energy if i % 2 and i != 3 else 1e6], dtype=torch.float64)
        for known, value in zip(stored, others, strict=True):
            known |= {(sample.mol_id, i): float(value)} if i != 3 else {}
        samples.append(sample)
    batch = make_batch([Normalizer().normalize(sample) for sample in samples])
    energies, differences = fit_baseline(stored, [batch], Normalizer(basis_info=BASIS))(batch)
    used = batch.has_energy_label & (batch.scf_iteration % 2 == 1)
    np.testing.assert_allclose(energies[used], batch.energy_label[used], rtol=1e-8)
    assert torch.isnan(energies).tolist() == [i == 3 for i in range(24)]
    assert torch.isnan(differences).all()


def test_table_and_csv_hold_the_rows(tmp_path):
    names = LabelErrors.names("eV")
    errors = {name: 1 / 3 + i for i, name in enumerate(names)}
    missing = {**errors, "gradient_mae_meV": float("nan")}
    rows = [
        ResultRow("val", "model", "", 3, 10, errors, "eV"),
        ResultRow("test", "composition", "", 1, 10, dict.fromkeys(names, 4567890.123), "eV"),
        ResultRow("test", "model", "", 1, 9, missing, "eV"),
        ResultRow("test", "model", "element=O", 1, 9, missing, "eV"),
        ResultRow("test_molecules", "model", "", 2, 9, {**errors, "energy_mae_ground_state_meV": 50.0}, "eV"),
    ]
    assert max(map(len, format_table(rows).splitlines())) <= 80
    accuracy = "model minus chemical accuracy (43.5 meV): test -40.2, test_molecules +6.5 meV"
    assert describe_accuracy(rows) == accuracy

    path = tmp_path / "new folder" / "results.csv"
    write_csv(rows, path)
    assert repr(read_csv(path, "eV")) == repr(rows)  # NaN is not equal to itself
    with path.open(newline="") as file:
        assert [float(row["energy_mae_meV"]) for row in csv.DictReader(file)][1:3] == [4567890.123, 1 / 3]
