"""The fit against a second implementation; precision, order of samples, passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.loader import DataLoader

from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    HasEnergyLabelSampleWeigher,
    InitialGuessOnlySampleWeigher,
    OFData,
    OFDataset,
    ProjectGradient,
    SampleWeigher,
)
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics import energy_fit, fit
from ofdft_norm.statistics.references import REFERENCES

Samples = Callable[..., list[OFData]]


def fit_quietly(dataset: Any, basis_info: BasisInfo, weighers: Sequence[SampleWeigher], **kwargs: Any) -> Any:
    return DatasetStatistics.from_dataset(None, dataset, basis_info, weighers, progress=False, **kwargs)


def every_element(basis_info: BasisInfo) -> list[list[int]]:
    z = basis_info.atomic_numbers.tolist()
    return [z, [*z, z[0]], [z[0]], [*z, *z, z[-1]], [z[-1]] * 3]


@given(data=st.data(), seed=st.integers(0, 2**32 - 1), with_bias=st.booleans())
def test_every_statistic_agrees_with_plain_loops(
    some_bases: Any,
    scf_samples: Samples,
    naive: Any,
    assert_close: Any,
    field_weighers: list[SampleWeigher],
    data: st.DataObject,
    seed: int,
    with_bias: bool,
) -> None:
    basis_info = data.draw(some_bases)
    rng = np.random.default_rng(seed)
    samples = scf_samples(basis_info, rng, every_element(basis_info), n_scf=3)
    samples[0].weight[:] = 1.0
    samples[0].has_energy_label[:] = True
    batch_size = data.draw(st.sampled_from([1, 2, 4, 50]))
    loader = DataLoader(samples, batch_size, follow_batch=["coeffs"])
    found = fit_quietly(loader, basis_info, field_weighers, with_bias=with_bias)
    for weigher, weights in (
        ("field", [s.weight.item() for s in samples]),
        ("other", [s.other_weight.item() for s in samples]),
    ):
        assert_close(found, weigher, naive(samples, basis_info, weights, with_bias))


def test_results_do_not_depend_on_batches_or_order(
    basis_info: BasisInfo,
    scf_samples: Samples,
    field_weighers: list[SampleWeigher],
    assert_same_statistics: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), every_element(basis_info) * 4, n_scf=5)
    whole = fit_quietly(samples, basis_info, field_weighers)
    monkeypatch.setattr(energy_fit, "ROWS_PER_REDUCTION", 7)
    torch.manual_seed(0)
    loaders = [DataLoader(samples, n, shuffle=n != 6, follow_batch=["coeffs"]) for n in (1, 3, 6, 100)]
    for loader in loaders:
        other = fit_quietly(loader, basis_info, field_weighers)
        assert_same_statistics(other.to_arrays(), whole.to_arrays())


def test_a_loader_that_can_be_read_only_once(
    basis_info: BasisInfo, scf_samples: Samples, field_weighers: list[SampleWeigher], assert_close: Any, naive: Any
) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), every_element(basis_info), n_scf=2)
    order = np.random.default_rng(1).permutation(len(samples))
    loader = DataLoader([samples[i] for i in order], 4, follow_batch=["coeffs"])
    found = fit_quietly(iter(loader), basis_info, field_weighers[1:], residuals=False)
    expected = naive(samples, basis_info, [s.other_weight.item() for s in samples])
    expected = {k: v for k, v in expected.items() if "energy" not in k or k.split("/")[-1] not in ("abs_max", "mae")}
    for key, value in expected.items():
        np.testing.assert_allclose(found.load_statistic("other", key), value, rtol=1e-9, atol=1e-8, err_msg=key)
    with pytest.raises(StatisticsError, match="used up by an earlier pass"):
        fit_quietly(iter(loader), basis_info, field_weighers[1:])


def test_label_files_molecule_by_molecule(labels: Any, naive: Any, assert_close: Any) -> None:
    paths = [*labels.write_several(), labels.write("oxygen.zarr.zip", (8, 8), 3)]
    dataset = OFDataset(paths, labels.basis_info, transform=ProjectGradient())
    samples = list(dataset)
    expected = naive(samples, labels.basis_info, [1.0] * len(samples))
    assert_close(fit_quietly(dataset, labels.basis_info, [ConstantSampleWeigher()]), "constant", expected)
    torch.manual_seed(0)
    loader = DataLoader(dataset, 3, shuffle=True, follow_batch=["coeffs"])
    assert_close(fit_quietly(loader, labels.basis_info, [ConstantSampleWeigher()]), "constant", expected)


def test_two_files_of_one_geometry_are_two_molecules(labels: Any) -> None:
    water = labels.write("water.zarr.zip")
    copies = [water.rename(water.with_name(f"{i}.zarr.zip")) if i == 0 else None for i in range(1)]
    copy = copies[0].with_name("copy.zarr.zip")
    copy.write_bytes(copies[0].read_bytes())
    dataset = OFDataset([copies[0], copy, labels.write("methane.zarr.zip", (6, 1, 1, 1, 1))], labels.basis_info)
    found = fit_quietly(dataset, labels.basis_info, [HasEnergyLabelSampleWeigher()])
    assert found.load_statistic("has_energy_label", "n_molecules") == 3


def test_initial_guess_delta(basis_info: BasisInfo, scf_samples: Samples) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), every_element(basis_info), n_scf=2)
    found = fit_quietly(
        samples, basis_info, [ConstantSampleWeigher()], initial_guess_sample_weighers=[InitialGuessOnlySampleWeigher()]
    )
    column = 3
    deltas = []
    for sample in samples:
        if sample.scf_iteration.item() == 0:
            delta = (sample.coeffs - sample.ground_state_coeffs).numpy()
            deltas += delta[sample.basis_function_ind.numpy() == column].tolist()
    expected = {"mean": np.mean(deltas), "std": np.std(deltas), "abs_max": np.abs(deltas).max()}
    for name, value in expected.items():
        stored = found.load_statistic("initial_guess_only", f"initial_guess_delta/{name}")
        assert stored.shape == (basis_info.n_basis,)
        assert stored[column] == pytest.approx(value, rel=1e-12)
    assert found.load_statistic("initial_guess_only", "n_samples") == len(samples) // 2


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.0, 0.7])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_micro_hartrees_on_top_of_a_hundred_thousand(
    basis_info: BasisInfo, make_sample: Any, naive: Any, slope: float, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # energies t.n + slope.p + 1e-6 noise: what the reference leaves is 1e11 times smaller than the energies
    monkeypatch.setattr(energy_fit, "ROWS_PER_REDUCTION", 40)
    rng = np.random.default_rng(0)
    samples = []
    for i in range(200):
        sample = make_sample(basis_info, rng, [[8, 1, 1], [6, 1, 1, 1, 1], [6, 8], [1, 1]][i // 50], f"{i}")
        t = sum({1: -1e4, 6: -4e4, 8: -8e4}[z] for z in sample.atomic_numbers.tolist())
        sample.gradient_label = torch.full_like(sample.coeffs, slope)
        sample.energy_label = (t + slope * sample.coeffs.sum() + 1e-6 * rng.normal()).reshape(1)
        samples.append(sample)
    loader = DataLoader(samples, batch_size, follow_batch=["coeffs"])
    found = fit_quietly(loader, basis_info, [ConstantSampleWeigher()])
    expected = naive(samples, basis_info, [1.0] * len(samples))
    references = ["atom_ref", "linear_ref"] if slope == 0 else ["atom_ref"]
    for name in references:
        assert expected[f"energy_minus_{name}/std"] < 2e-6
        for statistic in ("mean", "std", "rms", "mae", "abs_max"):
            key = f"energy_minus_{name}/{statistic}"
            assert float(found.load_statistic("constant", key)) == pytest.approx(expected[key], abs=1e-9), key


def test_equal_values_have_no_spread(basis_info: BasisInfo, make_sample: Any) -> None:
    rng = np.random.default_rng(0)
    samples = []
    for i in range(70):
        sample = make_sample(basis_info, rng, [8, 1, 6], f"{i}", energy_label=-0.1)
        sample.coeffs = torch.full_like(sample.coeffs, 0.1)
        sample.gradient_label = torch.full_like(sample.coeffs, 0.3)
        samples.append(sample)
    found = fit_quietly(DataLoader(samples, 1, follow_batch=["coeffs"]), basis_info, [ConstantSampleWeigher(0.1)])
    for key in ("coeffs/std", "gradient_label/std", "gradient_max_after_atom_ref"):
        assert not found.load_statistic("constant_0.1", key).any(), key
    assert (found.load_statistic("constant_0.1", "coeffs/mean") == 0.1).all()


# --- passes -----------------------------------------------------------------------------------------------------------


class CountingLoader:
    """Counts how often it is read."""

    def __init__(self, samples: list[OFData]) -> None:
        self.loader = DataLoader(samples, 4, follow_batch=["coeffs"])
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(self.loader)


def test_without_residuals_the_data_are_read_once(basis_info: BasisInfo, scf_samples: Samples) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), every_element(basis_info), n_scf=3)
    once, twice = CountingLoader(samples), CountingLoader(samples)
    short = fit_quietly(once, basis_info, [ConstantSampleWeigher()], residuals=False)
    full = fit_quietly(twice, basis_info, [ConstantSampleWeigher()])
    assert (once.passes, twice.passes) == (1, 2)
    extra = set(full.keys_recursive()) - set(short.keys_recursive())
    folders = ("energy", *(f"energy_minus_{name}" for name in REFERENCES))
    assert extra == {f"constant/{folder}/{name}" for folder in folders for name in ("abs_max", "mae")}


def test_first_batches_only(basis_info: BasisInfo, scf_samples: Samples) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), every_element(basis_info), n_scf=3)
    loader = DataLoader(samples, 5, follow_batch=["coeffs"])
    found = fit_quietly(loader, basis_info, [ConstantSampleWeigher()], n_batches=2)
    assert found.load_statistic("constant", "n_samples") == 10


def test_a_fit_leaves_samples_and_threads_alone(basis_info: BasisInfo, scf_samples: Samples) -> None:
    samples = scf_samples(basis_info, np.random.default_rng(0), every_element(basis_info), n_scf=2)
    before = [{name: s[name].clone() for name in s.keys() if isinstance(s[name], torch.Tensor)} for s in samples]
    torch.set_num_threads(2)
    try:
        fit_quietly(samples, basis_info, [ConstantSampleWeigher()])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    for sample, fields in zip(samples, before, strict=True):
        for name, value in fields.items():
            assert torch.equal(sample[name], value), name


def test_progress_and_attributes(labels: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = labels.write_several()
    dataset = OFDataset(paths, labels.basis_info)
    DatasetStatistics.from_dataset(tmp_path / "s", dataset, labels.basis_info, attributes={"who": "me"})
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "samples/s" in shown
    assert "molecules/s" in shown
    attributes = DatasetStatistics(tmp_path / "s").attributes
    assert attributes["who"] == "me"
    assert attributes["statistics_version"] == fit.STATISTICS_VERSION
    assert attributes["weighers"] == ["has_energy_label"]
    assert attributes["basis_info"] == labels.basis_info.to_dict()
    assert attributes["fitted_on"]["folders"] == [str(paths[0].parent)]
    assert attributes["created_by"].startswith("ofdft_norm")
    assert attributes["created_at"][:2] == "20"
