"""One unit from labels to results: which values depend on it, and which do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.units import Hartree

from ofdft_norm import OFDFTDataModule
from ofdft_norm.config import LinearReferencesConfig, StatisticsConfig
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.example.callbacks import normalization_scalars


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
    assert "eV" in ev.summary()
    assert "Ha" not in ev.summary()


def test_given_references_are_converted_from_their_own_unit(setting: Any) -> None:
    values = {"H": 0.5, "C": 37.8, "N": 54.5, "O": 75.0}
    given = {unit: LinearReferencesConfig(values=values, unit=unit) for unit in ("hartree", "eV", None)}
    found = {
        unit: in_unit(setting, "eV", reference=reference, rescaling=None).normalizer.reference.element_references[6]
        for unit, reference in given.items()
    }
    assert found == {"hartree": pytest.approx(37.8 * Hartree), "eV": 37.8, None: 37.8}


@pytest.mark.parametrize("reference", [{"values": {"H": 0.5, "C": 37.8, "N": 54.5, "O": 75.0}}, {"ridge": 0.3}])
def test_scale_summary_and_loggers_have_the_residuals_of_the_reference_in_use(reference: Any, setting: Any) -> None:
    config = LinearReferencesConfig(**reference)
    datamodule = in_unit(setting, "hartree", reference=config, rescaling=None, energy_scale="std")
    energies = datamodule.normalizer.reference.element_references
    left = np.array(
        [
            float(sample.energy_label) - sum(float(energies[z]) for z in sample.atomic_numbers.tolist())
            for sample in datamodule.parts["train"]
            if sample.has_energy_label.item()
        ]
    )
    scalars = normalization_scalars(datamodule)
    assert scalars["normalization/reference_residual_mean_mHa"] == pytest.approx(1000 * left.mean(), rel=1e-10)
    assert scalars["normalization/reference_residual_std_mHa"] == pytest.approx(1000 * left.std(), rel=1e-10)
    assert float(datamodule.normalizer.energy_scale) == pytest.approx(left.std(), rel=1e-10)
    assert f"{left.std():.5f}" in datamodule.summary()


def test_statistics_and_checkpoints_of_another_unit_are_refused(setting: Any, tmp_path: Path) -> None:
    hartree = in_unit(setting, "hartree")
    hartree.statistics.save_to(tmp_path / "statistics.zarr")
    given = StatisticsConfig(path=str(tmp_path / "statistics.zarr"))
    with pytest.raises(StatisticsError, match=r"taken with unit = hartree, .* has eV: .*\(config: data.unit\)"):
        in_unit(setting, "eV", statistics=given)
    assert in_unit(setting, "hartree", statistics=given).normalizer.unit == "hartree"
    with pytest.raises(ConfigError, match=r"unit = 'hartree' there, 'eV' here"):
        setting.datamodule(unit="eV").load_state_dict(hartree.state_dict())
