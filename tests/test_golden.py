"""Frozen results of version 0.3.0: the fit of the embedded labels in natural coordinates, with and without frames.

They are frozen again only with new embedded labels; the naive statistics of other tests hold for any labels.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from ofdft_norm import (
    BasisInfo,
    BasisTransforms,
    ConstantSampleWeigher,
    DatasetStatistics,
    GroundStateOnlySampleWeigher,
    HasEnergyLabelSampleWeigher,
    InitialGuessOnlySampleWeigher,
    LinearReferences,
    MinSCFIterationSampleWeigher,
    NaturalReparametrization,
    OFData,
    OFDFTDataModule,
    ProjectGradient,
    fit_linear_references,
)

GOLDEN = Path(__file__).parent / "golden"
REFERENCES: dict[str, Any] = json.loads((GOLDEN / "embedded_references.json").read_text())
EXACT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-11}
# the embedded labels went from natural coordinates to the density basis, to local frames and back
TRANSFORMED: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-9}


@pytest.fixture(scope="module")
def natural() -> Iterator[OFDFTDataModule]:
    """The embedded labels in natural coordinates, without local frames; each molecule is diagonalised once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ofdft_norm.transforms.coordinates._CACHE_BYTES", 2**30)
        yield OFDFTDataModule(pre_transforms=[BasisTransforms([NaturalReparametrization()]), ProjectGradient()])


@pytest.fixture(scope="module")
def samples(natural) -> list[OFData]:
    return list(natural.parts["train"])


def fit(data: Any, basis_info: BasisInfo | None) -> DatasetStatistics:
    labelled = HasEnergyLabelSampleWeigher()
    weighers = [ConstantSampleWeigher(), labelled, MinSCFIterationSampleWeigher(3)]
    weighers.append(GroundStateOnlySampleWeigher() * labelled)
    initial_guess = [ConstantSampleWeigher(), InitialGuessOnlySampleWeigher(), MinSCFIterationSampleWeigher(3)]
    return DatasetStatistics.from_dataset(None, data, basis_info, weighers, initial_guess, progress=False)


@pytest.fixture(scope="module")
def statistics(natural) -> DatasetStatistics:
    return fit(natural.parts["train"], natural.basis_info)


def assert_golden(found: DatasetStatistics) -> None:
    with np.load(GOLDEN / "embedded_statistics.npz") as golden:
        for key in golden.files:
            value, expected = found.load_statistic(*key.split("/", 1)), golden[key]
            np.testing.assert_allclose(value, expected, **TRANSFORMED, err_msg=key)


def test_statistics(natural, statistics, samples):
    """Of whole molecules, of single samples, and of a loader that shuffles them."""
    torch.manual_seed(0)
    loader = DataLoader(samples, 32, shuffle=True, follow_batch=["coeffs"])
    for found in (statistics, *(fit(data, natural.basis_info) for data in (samples, loader))):
        assert_golden(found)


def test_worst_molecules(statistics):
    for key, molecules in REFERENCES["worst_molecules"].items():
        reference = statistics[key].reference("linear_ref")
        for a, b in zip(reference.worst, molecules, strict=True):
            assert (a.name, a.formula, a.scf_iteration) == (b["name"], b["formula"], b["scf_iteration"])
            np.testing.assert_allclose([a.target, a.residual], [b["target"], b["residual"]], **EXACT)


@pytest.mark.parametrize("count_by", ["molecule", "sample"])
def test_linear_references(count_by, natural, statistics, samples):
    golden = REFERENCES[count_by]
    if count_by == "molecule":
        found = LinearReferences.from_dataset_statistics(statistics, natural.basis_info)
    else:
        found = fit_linear_references(["energy_label"], samples, batch_size=64)["energy_label"]
    values = {int(z): value for z, value in golden["element_references"].items()}
    assert found.seen_elements.nonzero().squeeze(1).tolist() == sorted(values)
    np.testing.assert_allclose(found.element_references[sorted(values)], [values[z] for z in sorted(values)], **EXACT)
    report, expected = found.fit_report, golden["report"]
    for name in ("rank", "degrees_of_freedom", "atomic_numbers", "n_atoms", "n_molecules", "null_space"):
        assert getattr(report, name) == expected[name], name
    assert report.n_rows == expected["n_samples"]
    for name in ("condition_number", "mae", "rmse", "r2", "standard_errors"):
        np.testing.assert_allclose(getattr(report, name), expected[name], **EXACT, err_msg=name)


def test_the_default_fit(tmp_path, monkeypatch):
    """Local frames, natural reparametrisation, projection: frozen by version 0.3.0."""
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path))
    datamodule = OFDFTDataModule(dtype="float64")
    datamodule.setup("fit")
    with np.load(GOLDEN / "default_statistics.npz") as golden:
        for key in golden.files:
            value = datamodule.statistics.load_statistic(*key.split("/", 1))
            np.testing.assert_allclose(value, golden[key], **EXACT, err_msg=key)
    for part in datamodule.parts.names():
        found = [datamodule.normalizer.range_excess(batch) for batch in datamodule.part_dataloader(part)]
        assert (max(float(of_batch.excess.max()) for of_batch in found) == 0) == (part == "train")
    for name, expected in json.loads((GOLDEN / "default_samples.json").read_text()).items():
        sample = next(s for s in datamodule.datasets["val"] if f"{s.mol_id}@{int(s.scf_iteration)}" == name)
        assert float(sample.energy_reference) == pytest.approx(expected["energy_reference"], rel=1e-11)
        for field in ("energy_label", "coeffs", "gradient_label", "dual_basis_integrals"):
            assert float(sample[field].norm()) == pytest.approx(expected[field], rel=1e-9), field
