"""References of several data sets, which a field of the samples names."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

from ofdft_norm import Normalizer, OFDFTDataModule
from ofdft_norm.config import LinearReferencesConfig, LoaderConfig
from ofdft_norm.errors import BatchError, ConfigError, NormalizationError, StatisticsError
from ofdft_norm.normalization.dataset_references import DatasetReferences, fit_references_by_dataset
from ofdft_norm.normalization.fit_linear_references import fit_linear_references
from ofdft_norm.normalization.normalizer_state import normalizer_from_state, normalizer_to_state
from tests.printed_tables import check_printed

SHIFTS: dict[str, dict[int, float]] = {"pbe": {1: -0.5, 6: -37.8, 8: -75.1}, "ccsd": {1: -0.6, 6: -37.5, 8: -75.0}}


def molecules(name: str, n: int, seed: int, elements: tuple[int, ...] = (1, 6, 8)) -> list[Data]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        z = rng.choice(elements, rng.integers(2, 9))
        energy = sum(SHIFTS[name][int(i)] for i in z) + 0.01 * rng.normal()
        energies = torch.tensor(energy, dtype=torch.float64)
        out.append(Data(z=torch.from_numpy(z), pos=torch.zeros(len(z), 3), energy=energies, dataset=name))
    return out


def both() -> list[Data]:
    a, b = molecules("pbe", 30, 0), molecules("ccsd", 20, 1)
    return [*a[:10], *b, *a[10:]]


@pytest.mark.parametrize("count_by", ["sample", "molecule"])
def test_data_sets_that_tell_all_have_the_references_of_a_fit_of_their_own(count_by: Any) -> None:
    references = fit_references_by_dataset(["energy"], both(), count_by=count_by)["energy"]
    values = []
    for name in SHIFTS:
        own = [m for m in both() if m.dataset == name]
        expected = fit_linear_references(["energy"], own, 4, count_by=count_by)["energy"]
        found = references.part(name)
        torch.testing.assert_close(found.element_references, expected.element_references, rtol=0, atol=1e-10)
        assert found.fit_report is not None
        assert expected.fit_report is not None
        assert found.fit_report.standard_errors == pytest.approx(expected.fit_report.standard_errors)
        values.append(expected.element_references)
    torch.testing.assert_close(references.common, sum(values) / 2, rtol=0, atol=1e-10)
    # what is left, all together
    left = [float(m.energy - references.energy(m)) for m in both()]
    expected_left = {"mean": np.mean(left), "std": np.std(left), "rms": np.sqrt(np.mean(np.square(left)))}
    assert references.residuals == pytest.approx({**expected_left, "mae": np.mean(np.abs(left))}, abs=1e-10)


def by_brute_force(data: list[Data]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Common references and shifts: the best fit, of these the smallest shifts, of these the smallest references."""
    names, elements = sorted({m.dataset for m in data}), [1, 6, 8]
    k = len(elements)
    rows = np.zeros((len(data), k * (1 + len(names))))
    for row, m in zip(rows, data, strict=True):
        counts = [int((m.z == z).sum()) for z in elements]
        d = names.index(m.dataset)
        row[:k] = counts
        row[k * (1 + d) : k * (2 + d)] = counts
    energies = np.array([float(m.energy) for m in data])
    first = np.linalg.lstsq(rows, energies, rcond=1e-12)[0]
    _, s, vt = np.linalg.svd(rows)
    free = vt[(s > 1e-10 * s[0]).sum() :].T  # (columns, m): x + free y fits alike
    y, *_ = np.linalg.lstsq(free[k:], -first[k:], rcond=1e-10)
    x = first + free @ y
    _, s, vt = np.linalg.svd(free[k:])
    still = free @ vt[(s > 1e-10).sum() :].T
    if still.size:
        x = x + still @ np.linalg.lstsq(still[:k], -x[:k], rcond=1e-10)[0]
    return x[:k], {name: x[:k] + x[k * (1 + d) : k * (2 + d)] for d, name in enumerate(names)}


@pytest.mark.parametrize(
    ("pbe", "ccsd"),
    [
        ((1, 6, 8), (1, 6, 8)),
        ((1, 6, 8), (1, 8)),  # no carbon in one
        ((1, 6), (8,)),  # nothing in common
    ],
)
@pytest.mark.parametrize("one_composition", [False, True])
def test_shifts_that_the_data_do_not_tell_are_smallest(pbe: Any, ccsd: Any, one_composition: bool) -> None:
    data = molecules("pbe", 12, 0, pbe) + molecules("ccsd", 12, 1, ccsd)
    if one_composition:  # the second data set tells one number
        for m in data[12:]:
            m.z = data[12].z
    common, expected = by_brute_force(data)
    references = fit_references_by_dataset(["energy"], data)["energy"]
    np.testing.assert_allclose(references.common[[1, 6, 8]], common, atol=1e-8)
    for name, elements in (
        ("pbe", {int(z) for m in data[:12] for z in m.z}),
        ("ccsd", {int(z) for m in data[12:] for z in m.z}),
    ):
        part = references.part(name)
        assert set(part.seen_elements.nonzero().squeeze(1).tolist()) == elements
        for z, value in zip([1, 6, 8], expected[name], strict=True):
            assert float(part.element_references[z]) == pytest.approx(value if z in elements else 0.0, abs=1e-8)


@pytest.fixture(scope="module")
def references() -> DatasetReferences:
    return fit_references_by_dataset(["energy"], both())["energy"]


@settings(max_examples=20, deadline=None)
@given(choice=st.lists(st.integers(0, 49), min_size=1, max_size=6), scale=st.floats(0.01, 10))
def test_normalising_goes_there_and_back(references: DatasetReferences, choice: list[int], scale: float) -> None:
    normalizer = Normalizer(references, energy_scale=scale, energy_field="energy")
    data = both()
    batch = Batch.from_data_list([data[i] for i in choice])
    out = normalizer.normalize(batch)
    expected = torch.tensor(
        [sum(references.part(data[i].dataset).element_references[int(z)] for z in data[i].z) for i in choice]
    )
    torch.testing.assert_close(out.energy_reference, expected.double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(normalizer.denormalize_energy(out.energy, out), batch.energy, rtol=0, atol=1e-10)
    single = normalizer.normalize(data[choice[0]])
    torch.testing.assert_close(single.energy_reference, expected[:1].double(), rtol=0, atol=1e-10)


def test_the_data_module_fits_scales_and_keeps_them(references: DatasetReferences) -> None:
    reference = LinearReferencesConfig(by="dataset", count_by="sample")
    loader = LoaderConfig(batch_size=8)
    datamodule = OFDFTDataModule.wrap(
        train=both(), energy_field="energy", reference=reference, energy_scale="std", loader=loader, dtype="float64"
    )
    datamodule.setup("fit")
    normalizer = datamodule.normalizer
    found = normalizer.reference
    assert isinstance(found, DatasetReferences)
    for name in SHIFTS:
        torch.testing.assert_close(
            found.part(name).element_references, references.part(name).element_references, rtol=0, atol=1e-10
        )
    assert float(normalizer.energy_scale) == pytest.approx(references.residuals["std"], rel=1e-9)
    stds = datamodule.statistics.load_statistic("constant", "energy_minus_linear_ref_by_field/std")
    assert float(stds) == float(normalizer.energy_scale)
    normalised = torch.cat([batch.energy for batch in datamodule.train_dataloader()])
    assert float(normalised.std(correction=0)) == pytest.approx(1, rel=1e-6)
    restored = normalizer_from_state(copy.deepcopy(normalizer_to_state(normalizer))).reference
    assert isinstance(restored, DatasetReferences)
    for name in SHIFTS:
        assert torch.equal(restored.part(name).element_references, found.part(name).element_references)
    assert restored.summary("hartree") == found.summary("hartree")
    assert restored.residuals == found.residuals


def test_the_summary_shows_common_references_shifts_and_fits(references: DatasetReferences) -> None:
    text = references.summary("hartree")
    lines = text.splitlines()
    assert lines[0].split() == ["element", "common", "[hartree]", "data", "set", "shift", "[hartree]"]
    shifts = [line.split() for line in lines[1:3]]
    assert [(symbol, name) for symbol, _, name, _ in shifts] == [("H", "ccsd"), ("H", "pbe")]
    (_, common, _, ccsd), (_, _, _, pbe) = shifts
    assert float(common) + float(pbe) == pytest.approx(float(references.part("pbe").element_references[1]), abs=2e-6)
    assert float(ccsd) == pytest.approx(-float(pbe), abs=2e-6)
    check_printed(text, data=r"[A-Z][a-z]?|molecule.*|-|\d+|ccsd.*|pbe.*")
    assert sum("fit of 'energy' on" in line for line in lines) == 2


def test_what_does_not_fit_is_refused(references: DatasetReferences) -> None:
    carbon = Data(z=torch.tensor([6, 7]), dataset="pbe")
    with pytest.raises(NormalizationError, match=r"data set 'pbe': no reference energy for the elements \[7\]"):
        references.energy(carbon)
    with pytest.raises(NormalizationError, match=r"names the data sets \['hf'\], but there are references of"):
        references.energy(Data(z=torch.tensor([6]), dataset="hf"))
    with pytest.raises(BatchError, match="lacks the field 'dataset', which names its data set"):
        references.energy(Data(z=torch.tensor([6])))
    with pytest.raises(BatchError, match="lacks the field 'level'"):
        fit_references_by_dataset(["energy"], both(), "level")
    unlabelled = [
        Data(z=torch.tensor([1]), energy=torch.tensor(0.0), dataset="hf", has_energy_label=torch.tensor([False]))
    ]
    labelled = [copy.copy(m) for m in both()]
    for m in labelled:
        m.has_energy_label = torch.tensor([True])
    with pytest.raises(StatisticsError, match=r"data sets \['hf'\] .* have no sample with a label"):
        fit_references_by_dataset(["energy"], labelled + unlabelled)
    with pytest.raises(ConfigError, match=r"data\.reference\.by fits references for each data set"):
        LinearReferencesConfig(by="dataset", base="b.pt")


def test_integers_name_data_sets_too() -> None:
    data = [copy.copy(m) for m in both()]
    for m in data:
        m.level = torch.tensor([3 if m.dataset == "pbe" else 7])
    references = fit_references_by_dataset(["energy"], data, "level")["energy"]
    assert references.names == ["3", "7"]
    assert float(references.energy(data[0])) == pytest.approx(float(data[0].energy), abs=0.1)
