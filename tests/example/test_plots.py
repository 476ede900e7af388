"""Pictures: what they draw is checked against the data."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ofdft_norm import AtomRef, DatasetStatistics, DimensionWiseRescaling, Normalizer, OFDataset, ProjectGradient
from ofdft_norm.example.plots import (
    compute_gradient_ranges,
    plot_gradient_ranges,
    plot_learning_curves,
    plot_normalization,
    plot_parity,
    save_figure,
)


@pytest.fixture
def make(labels):
    """Makes a data module with a normaliser for random labels."""
    dataset = OFDataset(labels.write_several(), labels.basis_info, transform=ProjectGradient())
    statistics = DatasetStatistics.from_dataset(None, dataset, labels.basis_info, progress=False)
    fitted = (statistics, labels.basis_info)

    def call(equivariant=False, scale=1.0, rescaling=True, reference=True):
        normalizer = Normalizer(
            AtomRef.from_dataset_statistics(*fitted, scalar_only=equivariant) if reference else None,
            DimensionWiseRescaling.from_dataset_statistics(*fitted, equivariant=equivariant) if rescaling else None,
            scale,
        )
        own = {"statistics": statistics, "normalizer": normalizer, "basis_info": labels.basis_info, "unit": "hartree"}
        datamodule = SimpleNamespace(**own, weigher_key="has_energy_label", settings=SimpleNamespace(reference=None))
        datamodule.samples = [sample for sample in dataset if sample.has_energy_label.item()]
        datamodule.normalized = [normalizer.normalize(sample) for sample in datamodule.samples]
        return datamodule

    return call


def by_dimension(samples, field, reduced):
    """A value of each basis function, from the entries of a field of all samples."""
    index = np.concatenate([sample.basis_function_ind.numpy() for sample in samples])
    values = np.concatenate([sample[field].numpy() for sample in samples])
    return [reduced(values[index == dimension]) for dimension in range(index.max() + 1)]


@pytest.mark.parametrize(
    "options", [{}, {"equivariant": True}, {"scale": 3.0}, {"rescaling": False}, {"reference": False}]
)
def test_ranges_are_the_largest_gradients_of_the_normalised_samples(make, options):
    datamodule = make(**options)
    before, after = compute_gradient_ranges(datamodule)
    for got, samples in ((before, datamodule.samples), (after, datamodule.normalized)):
        largest = by_dimension(samples, "gradient_label", lambda values: np.abs(values).max())
        np.testing.assert_allclose(got, largest, rtol=1e-8, atol=1e-12)


def test_gradient_plot_has_a_panel_for_each_element_with_its_data(make, labels, tmp_path):
    figure, (before, after) = plot_gradient_ranges(make()), compute_gradient_ranges(make())
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


def test_parity_plot_shows_labels_and_predictions_of_each_split(tmp_path):
    many = np.linspace(-1, 1, 15_000)
    splits = {"test": (np.array([1.0, 2.0]), np.array([1.5, 2.0])), "test_molecules": (many, many)}
    figure = plot_parity({r"energy of $\frac{$ [Ha]": splits})
    axes: Any = figure.axes[0]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [[1, 1.5], [2, 2]])
    np.testing.assert_allclose(axes.collections[1].get_offsets(), np.stack([many, many], axis=1)[::2])
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["test: MAE 0.25", "test_molecules: MAE 0"]
    assert axes.get_xlim() == axes.get_ylim()
    save_figure(figure, tmp_path / "parity.png")
    assert (tmp_path / "parity.png").stat().st_size > 1000


def test_learning_curves_have_a_panel_for_each_quantity_and_a_line_for_each_name():
    epochs = np.arange(3)
    figure = plot_learning_curves({"loss": {"train": (epochs, 1.0 / (1 + epochs))}, "errors": {"a": (epochs, epochs)}})
    first, second = figure.axes
    np.testing.assert_allclose(first.lines[0].get_xydata(), [[0, 1], [1, 1 / 2], [2, 1 / 3]])
    assert second.get_legend().get_texts()[0].get_text() == "a"
    assert second.get_xlabel() == "epoch"


@pytest.mark.parametrize("rescaling", [True, False])
def test_normalisation_plot_shows_spreads_of_coefficients_and_energies(make, rescaling):
    datamodule = make(rescaling=rescaling)
    axes: Any = plot_normalization(datamodule).axes
    coefficients, energies = axes
    for first, samples in enumerate((datamodule.samples, datamodule.normalized)):
        drawn = np.concatenate([points.get_offsets()[:, 1] for points in coefficients.collections[first + 1 :: 3]])
        np.testing.assert_allclose(drawn, by_dimension(samples, "coeffs", np.std), rtol=1e-9)
    names = [label.get_text() for label in energies.get_yticklabels()]
    assert names[0] == "atomic (in use)"
    before, after = (energies.collections[i].get_offsets()[0, 0] for i in (0, 1))
    spread = np.std([sample.energy_label.item() for sample in datamodule.samples])
    assert before == pytest.approx(1000 * spread, rel=1e-9)
    assert after == pytest.approx(1000 * datamodule.statistics["has_energy_label"].residual("atom_ref").std, rel=1e-9)
    np.testing.assert_allclose(sorted(energies.lines[0].get_xdata()), sorted([max(after, 1.6), before]))
    assert energies.get_xlim()[0] == pytest.approx(1.6)  # chemical accuracy
