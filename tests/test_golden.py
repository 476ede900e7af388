"""Frozen results of version 0.1.0: the fit of the embedded labels, both linear references, files that stay readable.

The files in ``golden/`` were written by version 0.1.0 and are never written again.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    DimensionWiseRescaling,
    GroundStateOnlySampleWeigher,
    HasEnergyLabelSampleWeigher,
    InitialGuessOnlySampleWeigher,
    LinearReferences,
    MinSCFIterationSampleWeigher,
    OFData,
    OFDataset,
    OFDFTDataModule,
    ProjectGradient,
    fit_linear_references,
)
from ofdft_norm.config import EmbeddedLabels
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.example import DensityModule
from ofdft_norm.normalization.summary import summary_table

GOLDEN = Path(__file__).parent / "golden"
REFERENCES: dict[str, Any] = json.loads((GOLDEN / "embedded_references.json").read_text())
CHECKPOINT = GOLDEN / "checkpoint_0_1_0.ckpt"
EXACT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-11}


@pytest.fixture(scope="module")
def basis_info() -> BasisInfo:
    return BasisInfo.from_json(EMBEDDED_DATA / "basis_info.json")


@pytest.fixture(scope="module")
def dataset(basis_info: BasisInfo) -> OFDataset:
    paths = [EMBEDDED_DATA / "labels" / name for name in REFERENCES["train"]]
    return OFDataset(paths, basis_info, transform=ProjectGradient())


@pytest.fixture(scope="module")
def samples(dataset: OFDataset) -> list[OFData]:
    return list(dataset)


def fit(data: Any, basis_info: BasisInfo) -> DatasetStatistics:
    return DatasetStatistics.from_dataset(
        None,
        data,
        basis_info,
        [
            ConstantSampleWeigher(),
            HasEnergyLabelSampleWeigher(),
            MinSCFIterationSampleWeigher(3),
            GroundStateOnlySampleWeigher() * HasEnergyLabelSampleWeigher(),
        ],
        [ConstantSampleWeigher(), InitialGuessOnlySampleWeigher(), MinSCFIterationSampleWeigher(3)],
        progress=False,
    )


@pytest.fixture(scope="module")
def statistics(dataset: OFDataset, basis_info: BasisInfo) -> DatasetStatistics:
    return fit(dataset, basis_info)


def assert_golden(found: DatasetStatistics) -> None:
    with np.load(GOLDEN / "embedded_statistics.npz") as golden:
        for key in golden.files:
            value = found.load_statistic(*key.split("/", 1))
            np.testing.assert_allclose(value, golden[key], **EXACT, err_msg=key)


def test_statistics_from_label_files(statistics: DatasetStatistics) -> None:
    assert_golden(statistics)


def test_statistics_from_samples(samples: list[OFData], basis_info: BasisInfo) -> None:
    assert_golden(fit(samples, basis_info))


def test_statistics_from_a_shuffled_loader(samples: list[OFData], basis_info: BasisInfo) -> None:
    torch.manual_seed(0)
    assert_golden(fit(DataLoader(samples, 32, shuffle=True, follow_batch=["coeffs"]), basis_info))


def test_worst_molecules(statistics: DatasetStatistics) -> None:
    found = statistics.attributes["worst_molecules"]
    for key, molecules in REFERENCES["worst_molecules"].items():
        assert_same_molecules(found[key], molecules)


def assert_same_molecules(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a["name"], a["formula"], a["scf_iteration"]) == (b["name"], b["formula"], b["scf_iteration"])
        np.testing.assert_allclose([a["target"], a["residual"]], [b["target"], b["residual"]], **EXACT)


def linear_by_molecule(statistics: DatasetStatistics, basis_info: BasisInfo, _: list[OFData]) -> LinearReferences:
    return LinearReferences.from_dataset_statistics(statistics, basis_info)


def linear_by_sample(_: DatasetStatistics, __: BasisInfo, samples: list[OFData]) -> LinearReferences:
    return fit_linear_references(["energy_label"], samples, batch_size=64)["energy_label"]


@pytest.mark.parametrize(("count_by", "make"), [("molecule", linear_by_molecule), ("sample", linear_by_sample)])
def test_linear_references(
    count_by: str,
    make: Callable[..., LinearReferences],
    statistics: DatasetStatistics,
    basis_info: BasisInfo,
    samples: list[OFData],
) -> None:
    golden, found = REFERENCES[count_by], make(statistics, basis_info, samples)
    values = {int(z): value for z, value in golden["element_references"].items()}
    assert found.seen_elements.nonzero().squeeze(1).tolist() == sorted(values)
    np.testing.assert_allclose(found.element_references[sorted(values)], [values[z] for z in sorted(values)], **EXACT)
    report, expected = found.fit_report, golden["report"]
    assert report is not None
    for name in ("n_samples", "rank", "degrees_of_freedom", "atomic_numbers", "n_atoms", "n_molecules", "null_space"):
        assert getattr(report, name) == expected[name], name
    for name in ("condition_number", "mae", "rmse", "r2", "standard_errors"):
        np.testing.assert_allclose(getattr(report, name), expected[name], **EXACT, err_msg=name)


def test_reads_the_store_of_0_1_0(tmp_path: Path, basis_info: BasisInfo) -> None:
    with zipfile.ZipFile(GOLDEN / "statistics_0_1_0.zarr.zip") as archive:
        archive.extractall(tmp_path / "statistics.zarr")
    found = DatasetStatistics(tmp_path / "statistics.zarr")
    with np.load(GOLDEN / "embedded_statistics.npz") as golden:
        for key in found.keys_recursive():
            np.testing.assert_allclose(found.load_statistic(*key.split("/", 1)), golden[key], **EXACT, err_msg=key)
    assert len(found.keys_recursive()) > 30
    rescaling = DimensionWiseRescaling.from_dataset_statistics(found, basis_info)
    assert rescaling.branches() == {"gradient": 249, "coefficient": 0, "unscaled": 228}
    assert "which molecules set lambda is not known" in summary_table(found, basis_info, rescaling)
    values = REFERENCES["molecule"]["element_references"]
    references = LinearReferences.from_dataset_statistics(found, basis_info)
    assert float(references.element_references[6]) == pytest.approx(values["6"], abs=1e-11)
    assert references.summary("hartree").fit.degrees_of_freedom == 65


def test_reads_the_checkpoint_of_0_1_0(samples: list[OFData], dataset: OFDataset) -> None:
    golden = json.loads((GOLDEN / "checkpoint_0_1_0.json").read_text())
    datamodule = OFDFTDataModule.load_from_checkpoint(CHECKPOINT, source=EmbeddedLabels(), dtype="float64")
    assert datamodule.fingerprint == golden["fingerprint"]
    raw = next(s for s in samples if s.mol_id == golden["molecule"] and int(s.scf_iteration) == golden["scf_iteration"])
    batch = next(iter(DataLoader([datamodule.normalizer.normalize(raw)], 1, follow_batch=["coeffs"])))
    found = {
        "energy_label": batch.energy_label,
        "coeffs_norm": batch.coeffs.norm(),
        "gradient_norm": batch.gradient_label.norm(),
        "integrals_norm": batch.dual_basis_integrals.norm(),
        "energy_reference": batch.energy_reference,
    }
    for name, value in found.items():
        np.testing.assert_allclose(float(value), golden[name], **EXACT, err_msg=name)
    with np.load(GOLDEN / "embedded_statistics.npz") as statistics:
        for key in datamodule.statistics.keys_recursive():
            value = datamodule.statistics.load_statistic(*key.split("/", 1))
            np.testing.assert_allclose(value, statistics[key], **EXACT, err_msg=key)

    model = DensityModule.load_from_checkpoint(CHECKPOINT, map_location="cpu", weights_only=True)
    for name in ("coeffs", "pos", "dual_basis_integrals", "ground_state_coeffs", "gradient_label", "energy_label"):
        batch[name] = batch[name].float()
    prediction = model.predict_step(batch, 0)
    # a float32 network
    assert float(prediction["energy"]) == pytest.approx(golden["predicted_energy"], abs=1e-5)
    assert float(prediction["gradient"].norm()) == pytest.approx(golden["predicted_gradient_norm"], rel=1e-5)
