"""The results table: baselines against numpy, text and CSV."""

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
    WITHOUT_NETWORK,
    ResultRow,
    constant_per_element,
    evaluate,
    format_table,
    predicted_energies,
    read_csv,
    reference_only,
    write_csv,
)
from tests.printed_tables import check_printed

BASIS = BasisInfo([1, 8], ["2x0e+1x1o", "3x0e+1x1o"])
SCALE = 1.7


@pytest.fixture
def normalizer():
    rng, n = np.random.default_rng(0), BASIS.n_basis
    rescaling = DimensionWiseRescaling(rng.normal(size=n), rng.uniform(0.5, 2, n), rng.uniform(0.01, 3, n))
    return Normalizer(AtomRef(rng.normal(size=2), 0.3, rng.normal(size=n)), rescaling, SCALE)


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


def test_baselines_are_what_they_say(samples, batches, normalizer):
    references = torch.zeros(119, dtype=torch.float64)
    references[[1, 8]] = torch.tensor([-0.5, -75.0], dtype=torch.float64)
    predictors = {"constant": constant_per_element(LinearReferences(references)), "ref": reference_only(normalizer)}
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
        original = normalizer.denormalize(batch)
        return original.energy_label, original.gradient_label

    (row,) = evaluate({"perfect": perfect}, batches, normalizer, "test")
    assert row.errors == pytest.approx(dict.fromkeys(LabelErrors.names("hartree"), 0), abs=1e-9)


def test_energies_are_collected_in_hartree_from_labelled_samples(samples, batches, normalizer):
    energies = predicted_energies(lambda batch: (batch.energy_reference + 1, batch.coeffs), batches, normalizer)
    labels = [sample.energy_label.item() for sample in samples if sample.has_energy_label.item()]
    assert energies.true.tolist() == pytest.approx(labels, rel=1e-12)
    assert (energies.predicted - energies.reference).tolist() == pytest.approx([1] * 4, rel=1e-9)
    assert energies.molecules == [sample.mol_id for sample in samples if sample.has_energy_label.item()]


def rows():
    errors = {name: 1 / 3 + i for i, name in enumerate(LabelErrors.names("hartree"))}
    return [
        ResultRow(
            "val", "reference only", 3, 10, {name: 100.25 + i for i, name in enumerate(LabelErrors.names("hartree"))}
        ),
        ResultRow("test", "model", 2, 9, {**errors, "gradient_norm_mHa": float("nan")}),
    ]


def test_table_lines_up_and_names_its_units():
    table = format_table(rows())
    check_printed(table)
    lines = table.splitlines()
    assert lines[0].split("  ")[0] == "errors in mHa"
    assert lines[1] == "val: 3 molecules, 10 samples"
    assert lines[2].split()[:2] == ["reference", "only"]
    assert lines[3] == "test: 2 molecules, 9 samples"
    assert len({len(lines[i]) for i in (0, 2, 4)}) == 1
    shown = [f"{1 / 3 + LabelErrors.QUANTITIES.index(name):.1f}" for name in HEADINGS]
    assert lines[4].split() == ["model", *shown[:-1], "-"]


def test_large_errors_and_all_predictors_fit_on_a_screen():
    errors = dict.fromkeys(LabelErrors.names("eV"), 4567890.123)
    predictors = [*WITHOUT_NETWORK, "reference only", "model"]
    check_printed(format_table([ResultRow("test", p, 1, 1, errors, "eV") for p in predictors], WITHOUT_NETWORK))


def test_errors_are_shown_in_the_unit_of_the_energies():
    errors = {name: 1.0 for name in LabelErrors.names("eV")}
    assert "energy_mae_meV" in errors
    assert format_table([ResultRow("test", "model", 2, 9, errors, "eV")]).startswith("errors in meV")


def test_csv_holds_every_digit(tmp_path):
    path = tmp_path / "new folder" / "results.csv"
    write_csv(rows(), path)
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [(r["split"], r["predictor"], int(r["n_molecules"]), int(r["n_samples"])) for r in read] == [
        ("val", "reference only", 3, 10),
        ("test", "model", 2, 9),
    ]
    for line, row in zip(read, rows(), strict=True):
        read_errors = [float(line[name]) for name in LabelErrors.names("hartree")]
        np.testing.assert_array_equal(read_errors, list(row.errors.values()))  # NaN equals NaN here
    assert [p.name for p in path.parent.iterdir()] == ["results.csv"]
    assert repr(read_csv(path, "hartree")) == repr(rows())  # NaN again
