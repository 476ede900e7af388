"""Baselines and the results table: against NumPy, as text and as CSV."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from ofdft_norm import AtomRef, BasisInfo, DimensionWiseRescaling, LinearReferences, Normalizer
from ofdft_norm.example import LabelErrors
from ofdft_norm.example.results import (
    HEADINGS,
    CompositionAndXC,
    ResultRow,
    constant_per_element,
    evaluate,
    format_table,
    predicted_energies,
    read_csv,
    reference_only,
    write_csv,
)

BASIS = BasisInfo([1, 8], ["2x0e+1x1o", "3x0e+1x1o"])


@pytest.fixture
def normalizer():
    rng, n = np.random.default_rng(0), BASIS.n_basis
    rescaling = DimensionWiseRescaling(rng.normal(size=n), rng.uniform(0.5, 2, n), rng.uniform(0.01, 3, n))
    return Normalizer(AtomRef(rng.normal(size=2), 0.3, rng.normal(size=n)), rescaling, 1.7, basis_info=BASIS)


@pytest.fixture
def samples(make_sample):
    rng = np.random.default_rng(1)
    numbers = ([8, 1, 1], [1, 1], [8], [8, 8], [1, 8])
    return [make_sample(BASIS, rng, z, has_energy_label=i != 1) for i, z in enumerate(numbers)]


@pytest.fixture
def batches(samples, normalizer):
    return list(DataLoader([normalizer.normalize(sample) for sample in samples], 2, follow_batch=["coeffs"]))


def norm_of_projected(difference, w):
    return np.linalg.norm(difference - w * (w @ difference) / (w @ w))


def test_baselines_against_numpy(samples, batches, normalizer):
    references = torch.zeros(119, dtype=torch.float64)
    references[[1, 8]] = torch.tensor([-0.5, -75.0], dtype=torch.float64)
    predictors = {
        "constant": constant_per_element(LinearReferences(references), normalizer),
        "ref": reference_only(normalizer),
    }
    rows = {row.predictor: row for row in evaluate(predictors, batches, normalizer, "val")}

    errors: dict[str, list[float]] = {"constant": [], "ref": []}
    gradients: dict[str, list[float]] = {"constant": [], "ref": []}
    for sample in samples:
        if not sample.has_energy_label.item():
            continue
        label, gradient = sample.energy_label.item(), sample.gradient_label.numpy()
        w, z = sample.dual_basis_integrals.numpy(), sample.atomic_numbers.numpy()
        slope = normalizer.reference.g_z.numpy()[sample.basis_function_ind]
        reference = slope @ sample.coeffs.numpy() + 0.3 + normalizer.reference.t_z.numpy()[sample.atom_ind].sum()
        errors["constant"].append(abs((z == 1).sum() * -0.5 + (z == 8).sum() * -75.0 - label))
        errors["ref"].append(abs(reference - label))
        gradients["constant"].append(norm_of_projected(gradient, w))
        gradients["ref"].append(norm_of_projected(slope - gradient, w))
    for name, row in rows.items():
        assert row.n_samples == 4
        assert row.errors["energy_mae_mHa"] == pytest.approx(1000 * np.mean(errors[name]), rel=1e-9)
        assert row.errors["energy_rmse_mHa"] == pytest.approx(
            1000 * np.sqrt(np.mean(np.square(errors[name]))), rel=1e-9
        )
        assert row.errors["gradient_norm_mHa"] == pytest.approx(1000 * np.mean(gradients[name]), rel=1e-6)


def test_a_perfect_predictor_has_no_error(samples, batches, normalizer):
    def perfect(batch):
        return normalizer.denormalize(batch).energy_label, normalizer.gradient_difference(batch.gradient_label, batch)

    (row,) = evaluate({"perfect": perfect}, batches, normalizer, "test")
    assert row.errors == pytest.approx(dict.fromkeys(LabelErrors.names("hartree"), 0), abs=1e-9)
    energies = predicted_energies(lambda batch: (batch.energy_reference + 1, batch.coeffs), batches, normalizer)
    labels = [sample.energy_label.item() for sample in samples if sample.has_energy_label.item()]
    assert energies.true.tolist() == pytest.approx(labels, rel=1e-12)
    assert energies.molecules == [sample.mol_id for sample in samples if sample.has_energy_label.item()]


def test_planted_weights_of_composition_and_xc_come_back(make_sample, make_batch):
    rng = np.random.default_rng(0)
    weights = np.array([0.5, 60.0, -1.2, 0.25])  # of H, O, E_xc, and the constant
    samples, xc_energies = [], dict[tuple[str, int], float]()
    for i in range(20):
        numbers = rng.choice([1, 8], 1 + i % 4).tolist()
        sample = make_sample(BASIS, rng, numbers, mol_id=f"molecule_{i // 2}", scf_iteration=i, has_energy_label=i != 3)
        xc = float(rng.normal() * 10)
        energy = weights @ [numbers.count(1), numbers.count(8), xc, 1.0]
        sample.energy_label = torch.tensor([energy if i != 3 else 1e6], dtype=torch.float64)
        xc_energies |= {(sample.mol_id, i): xc} if i != 3 else {}
        samples.append(sample)
    batch = make_batch([Normalizer().normalize(sample) for sample in samples])
    baseline = CompositionAndXC(xc_energies, [batch], Normalizer(), BASIS.n_types)
    np.testing.assert_allclose(baseline.weights, weights, rtol=1e-8)
    energies, differences = baseline(batch)
    assert torch.isnan(energies).tolist() == [i == 3 for i in range(20)]
    assert torch.isnan(differences).all()


def test_table_and_csv_hold_the_rows(tmp_path):
    names = LabelErrors.names("eV")
    errors = {name: 1 / 3 + i for i, name in enumerate(names)}
    rows = [
        ResultRow("val", "constant per element", 3, 10, dict.fromkeys(names, 4567890.123), "eV"),
        ResultRow("test", "model", 2, 9, {**errors, "gradient_norm_meV": float("nan")}, "eV"),
    ]
    lines = format_table(rows).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("errors in meV")
    assert lines[2].strip() == "val (3 molecules)"
    shown = [f"{1 / 3 + LabelErrors.QUANTITIES.index(name):.1f}" for name in HEADINGS[LabelErrors]]
    assert lines[5].split() == ["model", *shown[:-1], "-"]

    path = tmp_path / "new folder" / "results.csv"
    write_csv(rows, path)
    assert repr(read_csv(path, "eV")) == repr(rows)  # NaN is not equal to itself
    with path.open(newline="") as file:
        assert [float(row["energy_mae_meV"]) for row in csv.DictReader(file)] == [4567890.123, 1 / 3]
