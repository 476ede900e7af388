"""Pictures: what they draw is checked against the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import AtomRef, DatasetStatistics, DimensionWiseRescaling, Normalizer, OFDataset, ProjectGradient
from ofdft_norm.example.plots import (
    gradient_ranges,
    plot_energies,
    plot_gradient_ranges,
    plot_normalization,
    save_figure,
)
from ofdft_norm.example.results import SplitEnergies

KEY = "has_energy_label"


@pytest.fixture
def dataset(labels):
    return OFDataset(labels.write_several(), labels.basis_info, transform=ProjectGradient())


@pytest.fixture
def statistics(dataset, labels):
    return DatasetStatistics.from_dataset(None, dataset, labels.basis_info, progress=False)


def make_normalizer(statistics, basis_info, equivariant=False, scale=1.0, rescaling=True, reference=True):
    return Normalizer(
        AtomRef.from_dataset_statistics(statistics, basis_info, scalar_only=equivariant) if reference else None,
        DimensionWiseRescaling.from_dataset_statistics(statistics, basis_info, equivariant=equivariant)
        if rescaling
        else None,
        scale,
    )


@pytest.mark.parametrize(
    "options", [{}, {"equivariant": True}, {"scale": 3.0}, {"rescaling": False}, {"reference": False}]
)
def test_ranges_are_the_largest_gradients_of_the_normalised_samples(dataset, labels, statistics, options):
    normalizer = make_normalizer(statistics, labels.basis_info, **options)
    before, after = np.zeros((2, labels.basis_info.n_basis))
    for sample in dataset:
        if sample.has_energy_label.item():
            normalized = normalizer.normalize(sample)
            index = sample.basis_function_ind.numpy()
            np.maximum.at(before, index, sample.gradient_label.abs().numpy())
            np.maximum.at(after, index, normalized.gradient_label.abs().numpy())
    got_before, got_after = gradient_ranges(statistics, normalizer, KEY)
    np.testing.assert_allclose(got_before, before, rtol=1e-10)
    np.testing.assert_allclose(got_after, after, rtol=1e-8, atol=1e-12)


def test_gradient_plot_has_a_panel_for_each_element_with_its_data(labels, statistics, tmp_path):
    normalizer = make_normalizer(statistics, labels.basis_info)
    figure = plot_gradient_ranges(statistics, normalizer, labels.basis_info, KEY)
    before, after = gradient_ranges(statistics, normalizer, KEY)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["H", "C", "O"]
    for axes, index in zip(figure.axes, labels.basis_info.atom_ind_to_basis_function_ind, strict=True):
        drawn = [collection.get_offsets()[:, 1] for collection in axes.collections[1:]]
        np.testing.assert_allclose(drawn[0], before[index])
        np.testing.assert_allclose(drawn[1], after[index])
        assert axes.get_yscale() == "log"
        assert 0.05 in [line.get_ydata()[0] for line in axes.lines]
    assert [text.get_text() for text in figure.axes[1].texts] == ["s", "p", "d"]
    save_figure(figure, tmp_path / "a" / "gradients.png")
    assert (tmp_path / "a" / "gradients.png").read_bytes().startswith(b"\x89PNG")


def test_energy_plot_shows_the_error_of_each_sample_and_names_the_three_worst_molecules(tmp_path):
    molecules = ["a", "$b$", "a", "c", r"$\frac{$"]
    true = torch.tensor([-100.0, -50.0, -100.0, -76.0, -2.0], dtype=torch.float64)
    errors = torch.tensor([0.01, -0.03, 0.03, 0.001, 0.04], dtype=torch.float64)
    figure = plot_energies({"val": SplitEnergies(molecules, true + errors, true)}, "e_kin")
    axes: Any = figure.axes[0]
    drawn = axes.collections[0].get_offsets()
    order = ["$b$", "c", "a", r"$\frac{$"]  # of their mean errors, -30, 1, 20 and 40 mHa
    np.testing.assert_allclose(drawn, [[order.index(m), 1000 * e] for m, e in zip(molecules, errors, strict=True)])
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    assert [text.xy for text in axes.texts] == [(3, pytest.approx(40)), (0, pytest.approx(-30)), (2, pytest.approx(30))]
    assert axes.get_xlabel() == "4 molecules in the order of their mean error; the worst:\n1 $\\frac{$, 2 $b$, 3 a"
    assert axes.get_title(loc="left") == "val: error of e_kin, MAE 22.2 mHa"
    save_figure(figure, tmp_path / "energies.png")
    assert (tmp_path / "energies.png").stat().st_size > 1000


@pytest.mark.parametrize("rescaling", [True, False])
def test_normalisation_plot_shows_spreads_of_coefficients_and_energies(dataset, labels, statistics, rescaling):
    normalizer = make_normalizer(statistics, labels.basis_info, rescaling=rescaling)
    axes: Any = plot_normalization(statistics, normalizer, labels.basis_info, KEY).axes
    coefficients, energies = axes
    n = labels.basis_info.n_basis
    before = np.concatenate([c.get_offsets()[:, 1] for c in coefficients.collections[0::2]])
    after = np.concatenate([c.get_offsets()[:, 1] for c in coefficients.collections[1::2]])
    values: list[list[float]] = [[] for _ in range(n)]
    normalized: list[list[float]] = [[] for _ in range(n)]
    for sample in dataset:
        if sample.has_energy_label.item():
            new = normalizer.normalize(sample).coeffs
            for function, old_value, new_value in zip(sample.basis_function_ind, sample.coeffs, new, strict=True):
                values[function].append(float(old_value))
                normalized[function].append(float(new_value))
    np.testing.assert_allclose(before, [np.std(v) for v in values], rtol=1e-9)
    np.testing.assert_allclose(after, [np.std(v) for v in normalized], rtol=1e-9)
    names = [label.get_text() for label in energies.get_yticklabels()]
    labelled = np.array([s.energy_label.item() for s in dataset if s.has_energy_label.item()])
    assert names[0] == "as labelled"
    assert energies.patches[0].get_width() == pytest.approx(1000 * labelled.std(), rel=1e-9)
    assert "minus atom_ref" in names


def test_data_without_coefficients_have_energies_alone():
    stds = {"energy": 0.5, "energy_minus_linear_ref": 0.0}
    arrays = {f"constant/{name}/std": np.array(std) for name, std in stds.items()}
    arrays |= {f"constant/{name}/mean": np.array(0.0) for name in stds}
    arrays["constant/energy_minus_linear_ref/rms"] = np.array(0.0)
    figure = plot_normalization(DatasetStatistics.from_arrays(arrays), Normalizer(), None, "constant")
    energies: Any = figure.axes[0]
    assert [bar.get_width() for bar in energies.patches] == [500, 0]
    assert energies.get_xlim()[0] < 500 / 5  # no bar looks like nothing because the axis begins beside its end
