"""One unit from labels to results: what changes with it, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.units import Hartree

from ofdft_norm import DatasetStatistics, OFDFTDataModule
from ofdft_norm.config import LinearReferencesConfig, StatisticsConfig
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.example.callbacks import normalization_scalars
from ofdft_norm.example.plots import plot_normalization
from ofdft_norm.normalization.summary import summary_table


def in_unit(setting: Any, unit: Any, **options: Any) -> OFDFTDataModule:
    datamodule = setting.datamodule(unit=unit, dtype="float64", loader={"shuffle": False}, **options)
    datamodule.setup("fit")
    return datamodule


def test_label_files_are_read_in_the_unit_that_is_asked_for(setting: Any) -> None:
    hartree, ev = in_unit(setting, "hartree"), in_unit(setting, "eV", energy_scale=Hartree)
    assert hartree.fingerprint != ev.fingerprint
    for a, b in zip(hartree.train_dataloader(), ev.train_dataloader(), strict=True):
        # with the same scale in another unit, the network sees the same numbers
        for field in ("coeffs", "gradient_label", "energy_label", "dual_basis_integrals"):
            torch.testing.assert_close(a[field], b[field], rtol=1e-7, atol=1e-7)
        energies = [d.normalizer.denormalize_energy(x.energy_label, x) for d, x in ((hartree, a), (ev, b))]
        torch.testing.assert_close(Hartree * energies[0], energies[1], rtol=1e-12, atol=1e-9)
        gradients = [d.normalizer.denormalize_gradient(x.gradient_label, x) for d, x in ((hartree, a), (ev, b))]
        torch.testing.assert_close(Hartree * gradients[0], gradients[1], rtol=1e-9, atol=1e-9)
    table = summary_table(ev.statistics, ev.basis_info)
    assert "has_energy_label [eV]  " in table
    assert "Ha" not in table


def test_given_references_are_converted_from_their_own_unit(setting: Any) -> None:
    values = {"H": 0.5, "C": 37.8, "N": 54.5, "O": 75.0}
    given = {unit: LinearReferencesConfig(values=values, unit=unit) for unit in ("hartree", "eV", None)}
    found = {
        unit: in_unit(setting, "eV", reference=reference, rescaling=None).normalizer.reference.element_references[6]
        for unit, reference in given.items()
    }
    assert found == {"hartree": pytest.approx(37.8 * Hartree), "eV": 37.8, None: 37.8}


@pytest.mark.parametrize(
    ("name", "reference"),
    [("given_ref", {"values": {"H": 0.5, "C": 37.8, "N": 54.5, "O": 75.0}}), ("linear_ref_with_ridge", {"ridge": 0.3})],
)
def test_scale_summary_and_loggers_tell_what_the_reference_in_use_leaves(
    name: str, reference: Any, setting: Any
) -> None:
    config = LinearReferencesConfig(**reference)
    datamodule = in_unit(setting, "hartree", reference=config, rescaling=None, energy_scale="std")
    energies = datamodule.normalizer.reference.element_references
    left = np.array(
        [
            float(sample.energy_label) - sum(float(energies[z]) for z in sample.atomic_numbers.tolist())
            for sample in datamodule.raw_datasets["train"]
            if sample.has_energy_label.item()
        ]
    )
    scalars = normalization_scalars(datamodule)
    assert scalars["normalization/reference_residual_mean_mHa"] == pytest.approx(1000 * left.mean(), rel=1e-10)
    assert scalars["normalization/reference_residual_std_mHa"] == pytest.approx(1000 * left.std(), rel=1e-10)
    assert float(datamodule.normalizer.energy_scale) == pytest.approx(left.std(), rel=1e-10)
    row = next(line.split() for line in datamodule.summary().splitlines() if line.startswith(name))
    assert row[1:3] == [f"{left.mean():.5f}", f"{left.std():.5f}"]
    figure = plot_normalization(datamodule.statistics, datamodule.normalizer, None, datamodule.weigher_key, name)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[-1] == f"minus {name} (in use)"
    assert not any("in use" in label for label in labels[:-1])
    stored = datamodule.statistics.path
    assert stored is not None
    assert f"has_energy_label/energy_minus_{name}/std" not in DatasetStatistics(stored)  # others share the cache


def test_statistics_and_checkpoints_of_another_unit_are_refused(setting: Any, tmp_path: Path) -> None:
    hartree = in_unit(setting, "hartree")
    hartree.statistics.save_to(tmp_path / "statistics.zarr")
    given = StatisticsConfig(path=str(tmp_path / "statistics.zarr"))
    with pytest.raises(StatisticsError, match=r"taken with unit = hartree, .* has eV: .*\(config: data.unit\)"):
        in_unit(setting, "eV", statistics=given)
    assert in_unit(setting, "hartree", statistics=given).normalizer.unit == "hartree"
    with pytest.raises(ConfigError, match=r"unit = 'hartree' there, 'eV' here"):
        setting.datamodule(unit="eV").load_state_dict(hartree.state_dict())
    old = hartree.state_dict()  # of a version that knew no unit
    del old["labels"], old["normalizer"]["unit"]
    again = setting.datamodule()
    again.load_state_dict(old)
    assert again.normalizer.unit == "hartree"


def test_an_unknown_unit_is_refused(setting: Any) -> None:
    with pytest.raises(ConfigError, match=r"data.unit = 'ev': should be 'hartree', 'eV' or 'kcal/mol'"):
        setting.datamodule(unit="ev")
