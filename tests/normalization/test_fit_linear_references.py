"""Fits of linear references, against dense numpy least squares on the same molecules."""

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

from ofdft_norm import ConstantSampleWeigher, OFDFTDataModule
from ofdft_norm.config import LinearReferencesConfig
from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.elements import formula
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.data.of_dataset import OFDataset
from ofdft_norm.errors import BatchError, ConfigError, StatisticsError
from ofdft_norm.normalization.fit_linear_references import fit_linear_references
from ofdft_norm.statistics.energy_fit import EnergyFit
from ofdft_norm.statistics.row_factor import RowLayout
from ofdft_norm.statistics.sample_weighers import SampleWeigher
from ofdft_norm.statistics.weighed_batch import WeighedBatch
from tests.processes import on_ranks

# Python 3.12 warns of forks of processes with threads; torch's loaders fork all the same
NO_FORK_WARNING = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

ENERGIES = {1: -0.5, 6: -37.8, 7: -54.6, 8: -75.1, 9: -99.7}


def molecules(n, seed=0, elements=(1, 6, 7, 8, 9), noise=0.01, offset=0.0):
    """Random molecules whose energies are inconsistent with any reference, so that a duplicate would show."""
    rng = np.random.default_rng(seed)
    data = []
    for i in range(n):
        z = rng.choice(elements, rng.integers(2, 12))
        energy = offset + sum(ENERGIES.get(int(a), -1.3 * a) for a in z) + noise * rng.normal()
        data.append(
            Data(atomic_numbers=torch.tensor(z), energy=torch.tensor([energy], dtype=torch.float64), mol_id=f"m{i}")
        )
    return data


def dense(data, target="energy", width=119, field="atomic_numbers"):
    """Returns the dense problem, counted atom by atom."""
    counts = np.zeros((len(data), width))
    for row, item in zip(counts, data, strict=True):
        for z in item[field].tolist():
            row[z] += 1
    return counts, np.array([float(item[target]) for item in data])


def naive(counts, y, weights=None):
    w = np.ones(len(y)) if weights is None else np.asarray(weights)
    seen = counts[w > 0].any(0)
    scale = np.sqrt(w)[:, None]
    x = np.zeros((counts.shape[1], *y.shape[1:]))
    x[seen] = np.linalg.lstsq(counts[:, seen] * scale, y * (scale if y.ndim == 2 else scale[:, 0]), rcond=1e-12)[0]
    return x


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    elements=st.lists(st.integers(1, 118), min_size=1, max_size=6, unique=True),
    n_targets=st.integers(1, 5),
    batch_size=st.sampled_from([1, 2, 7, 64]),
    weighted=st.booleans(),
    use_numpy=st.booleans(),
)
def test_random_compositions_agree_with_dense_least_squares(
    seed, n, elements, n_targets, batch_size, weighted, use_numpy
):
    rng = np.random.default_rng(seed)
    names = [f"y{t}" for t in range(n_targets)]
    data, weights = [], []
    for _ in range(n):
        z = torch.tensor(rng.choice(elements, rng.integers(1, 9)))
        values = {name: torch.tensor([rng.normal() * 100], dtype=torch.float64) for name in names}
        weights.append(float(rng.choice([0.0, 0.5, 1.0, 3.0])) if weighted else 1.0)
        data.append(Data(z=z, weight=torch.tensor(weights[-1], dtype=torch.float64), **values))
    weights[0], data[0].weight = 1.0, torch.tensor(1.0, dtype=torch.float64)
    fitted = fit_linear_references(
        names, data, batch_size, weights="weight" if weighted else None, use_numpy=use_numpy, seed=seed % 1000
    )

    counts, _ = dense(data, names[0], field="z")
    y = np.stack([dense(data, name, field="z")[1] for name in names], axis=1)
    w = np.array(weights)
    expected = naive(counts, y, w)
    residual = y - counts @ expected
    used = w > 0
    for t, name in enumerate(names):
        references, report = fitted[name], fitted[name].fit_report
        np.testing.assert_allclose(references.element_references.numpy(), expected[:, t], atol=1e-8, rtol=1e-9)
        assert references.seen_elements.numpy().tolist() == counts[used].any(0).tolist()
        assert report.rank == np.linalg.matrix_rank(counts[used])
        assert report.n_samples == used.sum()
        mean = np.average(y[:, t], weights=w)
        total = (w * (y[:, t] - mean) ** 2).sum()
        np.testing.assert_allclose(report.rmse, math.sqrt((w * residual[:, t] ** 2).sum() / w.sum()), atol=1e-8)
        np.testing.assert_allclose(report.mae, (w * np.abs(residual[:, t])).sum() / w.sum(), atol=1e-8)
        r2 = 1 - (w * residual[:, t] ** 2).sum() / total if used.sum() > 1 else math.nan
        np.testing.assert_allclose(report.r2, r2, atol=1e-8)


def test_standard_errors_are_those_of_the_textbook():
    data = molecules(60)
    report = fit_linear_references(["energy"], data, 16)["energy"].fit_report
    counts, y = dense(data)
    a = counts[:, sorted(ENERGIES)]
    residual = y - a @ np.linalg.solve(a.T @ a, a.T @ y)
    covariance = residual @ residual / (60 - 5) * np.linalg.inv(a.T @ a)
    np.testing.assert_allclose(report.standard_errors, np.sqrt(covariance.diagonal()), rtol=1e-6)
    assert (report.degrees_of_freedom, report.n_molecules) == (55, (a > 0).sum(0).tolist())
    np.testing.assert_allclose(report.condition_number, np.linalg.cond(a), rtol=1e-9)
    assert report.n_atoms == a.sum(0).tolist()


def test_the_embedded_set_agrees_with_numpy():
    paths = sorted((EMBEDDED_DATA / "labels").glob("*.zarr.zip"))
    dataset = OFDataset(paths, BasisInfo.from_json(EMBEDDED_DATA / "basis_info.json"), limit_scf_iterations=[-1])
    samples = [sample for sample in dataset if sample.has_energy_label]
    counts, y = dense(samples, "energy_label")
    references = fit_linear_references(["energy_label"], dataset, 16)["energy_label"]
    np.testing.assert_allclose(references.element_references.numpy(), naive(counts, y), rtol=0, atol=1e-9)
    assert references.fit_report.n_samples == len(samples) >= len(paths)
    # kinetic energies of atoms are close to minus their total energies (virial theorem)
    assert 37 < float(references.element_references[6]) < 39


def test_nothing_is_kept_of_each_sample():
    metric = EnergyFit(RowLayout(118), [ConstantSampleWeigher()], molecules=None)
    data = molecules(500)
    sizes = []
    for start in range(0, 500, 100):
        batch = Batch.from_data_list([Data(pos=torch.zeros(len(d.atomic_numbers), 3), **d) for d in data[start:][:100]])
        metric.update(WeighedBatch(batch, torch.ones(1, 100, dtype=torch.float64), None, ["energy"]))
        metric._reduce()
        sizes.append(sum(len(factor) for factor in metric.factors))
    assert sizes == [1] * 5
    assert not metric.molecules
    assert not metric.rows


def test_planted_references_come_back_from_large_energies():
    data = molecules(200, noise=0.0)
    for item in data:
        item.energy *= 300  # up to 3e5
    fitted = fit_linear_references(["energy"], data, 32)["energy"].element_references
    for z, energy in ENERGIES.items():
        assert float(fitted[z]) == pytest.approx(300 * energy, abs=1e-8)


@pytest.mark.parametrize("driver", [None, "gels", "gelsy", "gelsd", "gelss"])
def test_all_solvers_agree(driver):
    data = molecules(100)
    expected = fit_linear_references(["energy"], data, 32)["energy"].element_references
    fitted = fit_linear_references(["energy"], data, 32, use_numpy=False, driver=driver)["energy"]
    torch.testing.assert_close(fitted.element_references, expected, atol=1e-10, rtol=1e-13)


@pytest.mark.parametrize("driver", [None, "gels", "gelsy", "gelsd", "gelss"])
def test_all_solvers_take_the_minimum_norm(driver, caplog):
    data = [Data(z=torch.tensor([8, 1, 1] * n), energy=-76.0 * n + 0.01 * n**2) for n in range(1, 5)]
    by_numpy = fit_linear_references(["energy"], data, 2)["energy"]
    by_torch = fit_linear_references(["energy"], data, 2, use_numpy=False, driver=driver)["energy"]
    torch.testing.assert_close(by_torch.element_references, by_numpy.element_references, atol=1e-10, rtol=0)
    # the minimum norm shares a molecule's energy in proportion to the counts
    assert float(by_numpy.element_references[1] / by_numpy.element_references[8]) == pytest.approx(2, rel=1e-12)
    assert (by_numpy.fit_report.rank, "rank 1 for the 2 elements ['H', 'O']" in caplog.text) == (1, True)


@pytest.mark.parametrize("driver", ["gels", "gelsy", "gelsd", "gelss"])
def test_solvers_see_the_rank_of_singular_triangles(driver):
    # torch's gelsy, given the triangle itself, drops the second molecule
    data = [Data(z=torch.tensor(z), energy=e) for z, e in (([6, 7, 8, 9], -160.0), ([1, 6], 157.0))]
    counts, y = dense(data, field="z")
    fitted = fit_linear_references(["energy"], data, 1, use_numpy=False, driver=driver)["energy"]
    np.testing.assert_allclose(fitted.element_references.numpy(), naive(counts, y), atol=1e-10)


def test_use_numpy_ignores_the_driver_and_torch_refuses_unknown_ones():
    data = molecules(20)
    fit_linear_references(["energy"], data, 8, driver="nonsense")
    with pytest.raises(ConfigError, match="driver = 'nonsense': expected one of"):
        fit_linear_references(["energy"], data, 8, use_numpy=False, driver="nonsense")


def test_ridge_shrinks_as_the_augmented_system_says():
    data = molecules(30)
    counts, y = dense(data)
    a = counts[:, sorted(ENERGIES)]
    penalty = 0.1 * np.linalg.svd(a)[1][0]
    expected = np.linalg.lstsq(np.vstack([a, penalty * np.eye(5)]), np.concatenate([y, np.zeros(5)]), rcond=None)[0]
    fitted = fit_linear_references(["energy"], data, 8, ridge=0.1)["energy"]
    np.testing.assert_allclose(fitted.element_references[sorted(ENERGIES)].numpy(), expected, rtol=1e-10)
    assert fitted.fit_report.ridge == 0.1
    residual = y - a @ expected
    assert fitted.fit_report.rmse == pytest.approx(np.sqrt((residual**2).mean()), rel=1e-9)


# --- which samples are used ------------------------------------------------------------------------------------------


class Recording(torch.utils.data.Dataset):
    """Remembers which samples were asked for."""

    def __init__(self, data):
        self.data, self.asked = data, []

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.data[index]


def test_shuffle_seed_and_num_batches_choose_the_samples():
    data = Recording(molecules(50))
    options = {"batch_size": 8, "num_batches": 3, "log_metrics": False}

    def asked(**kwargs):
        data.asked = []
        fitted = fit_linear_references(["energy"], data, **options, **kwargs)["energy"]
        return data.asked, fitted.element_references

    first, references = asked(seed=3)
    again, same = asked(seed=3)
    other, different = asked(seed=4)
    assert first == again
    assert torch.equal(references, same)
    assert len(set(first)) == len(first) == 24
    assert set(first) != set(other)
    assert not torch.equal(references, different)
    assert asked(shuffle=False)[0] == list(range(24))
    counts, y = dense([data.data[i] for i in first])
    np.testing.assert_allclose(references.numpy(), naive(counts, y), atol=1e-9)


def test_the_global_random_state_is_left_alone():
    state = torch.random.get_rng_state()
    fit_linear_references(["energy"], molecules(10), 4)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_more_batches_than_exist_use_all_with_a_warning():
    data = molecules(10)
    with pytest.warns(UserWarning, match="num_batches = 4, but 10 samples make 3 batches of 4: all are used"):
        fitted = fit_linear_references(["energy"], data, 4, num_batches=4)["energy"]
    expected = fit_linear_references(["energy"], data, 4, num_batches=3)["energy"]
    assert torch.equal(fitted.element_references, expected.element_references)
    assert expected.fit_report.n_samples == 10


def test_metrics_are_of_the_samples_used(caplog):
    data = molecules(40)
    with caplog.at_level(logging.INFO, "ofdft_norm"):
        report = fit_linear_references(["energy"], data, 5, num_batches=3, shuffle=False)["energy"].fit_report
    counts, y = dense(data[:15])
    residual = y - counts @ naive(counts, y)
    assert report.mae == pytest.approx(np.abs(residual).mean(), rel=1e-7)
    assert f"MAE {report.mae:.6g}, RMSE {report.rmse:.6g}, R2 {report.r2:.6g}" in caplog.text
    worst = np.argsort(-np.abs(residual))[:10]
    assert [w.index for w in report.worst] == worst.tolist()
    np.testing.assert_allclose([w.residual for w in report.worst], residual[worst], atol=1e-9)
    assert report.worst[0].name == f"m{worst[0]}"
    assert report.worst[0].formula == formula(data[worst[0]].atomic_numbers.tolist())
    assert report.worst[0].target == y[worst[0]]


def test_without_metrics_nothing_is_measured_or_logged(caplog):
    with caplog.at_level(logging.INFO, "ofdft_norm"):
        report = fit_linear_references(["energy"], molecules(40), 5, log_metrics=False)["energy"].fit_report
    assert (report.mae, report.worst, "MAE" in caplog.text) == (None, [], False)
    assert report.rmse > 0


def test_the_data_are_read_once_more_for_metrics():
    data = Recording(molecules(64))
    fit_linear_references(["energy"], data, 8, log_metrics=False)
    assert sorted(data.asked) == list(range(64))
    data.asked = []
    fit_linear_references(["energy"], data, 8)
    assert sorted(data.asked) == sorted([*range(64), *range(64)])


def several_samples(n_molecules):
    """Samples of which every molecule has another number; their energies differ."""
    rng = np.random.default_rng(4)
    return [
        Data(
            z=first.atomic_numbers,
            pos=torch.full((len(first.atomic_numbers), 3), float(m)),
            energy=first.energy + rng.normal(),
            weight=rng.uniform(0.5, 2),
            mol_id=first.mol_id,
        )
        for m, first in enumerate(molecules(n_molecules))
        for _ in range(1 + m % 4)
    ]


@pytest.mark.parametrize("batch_size", [3, 100])
@pytest.mark.parametrize("weights", [None, "weight"])
def test_molecules_count_once_with_the_mean_of_their_samples(batch_size, weights):
    data = several_samples(20)
    counts, y = dense(data, field="z")
    w = np.array([1.0 if weights is None else d.weight for d in data])
    names = [d.mol_id for d in data]
    means = [np.average(y[[n == name for n in names]], weights=w[[n == name for n in names]]) for name in set(names)]
    rows = np.array([counts[names.index(name)] for name in set(names)])
    by_molecule = fit_linear_references(["energy"], data, batch_size, weights=weights, count_by="molecule")["energy"]
    np.testing.assert_allclose(by_molecule.element_references.numpy(), naive(rows, np.array(means)), atol=1e-9)
    report = by_molecule.fit_report
    assert (report.n_samples, report.rows, report.degrees_of_freedom) == (20, "molecules", 15)
    assert report.n_molecules == (rows[:, sorted(ENERGIES)] > 0).sum(0).tolist()
    by_sample = fit_linear_references(["energy"], data, batch_size, weights=weights)["energy"]
    np.testing.assert_allclose(by_sample.element_references.numpy(), naive(counts, y, w), atol=1e-9)
    assert (by_sample.fit_report.n_samples, by_sample.fit_report.rows) == (len(data), "samples")
    assert len({m.name for m in report.worst}) == len(report.worst) == 10


def test_the_data_module_and_the_function_give_the_same():
    data = several_samples(12)
    for count_by in ("molecule", "sample"):
        expected = fit_linear_references(["energy"], data, 7, count_by=count_by)["energy"]
        datamodule = OFDFTDataModule.wrap(
            train=data, energy_field="energy", reference=LinearReferencesConfig(count_by=count_by)
        )
        datamodule.setup("fit")
        found = datamodule.normalizer.reference
        np.testing.assert_allclose(found.element_references, expected.element_references, rtol=0, atol=1e-10)
        for name in ("n_samples", "rank", "degrees_of_freedom", "n_atoms", "n_molecules", "rows", "atomic_numbers"):
            assert getattr(found.fit_report, name) == getattr(expected.fit_report, name), name
        for name in ("mae", "rmse", "r2", "standard_errors", "condition_number"):
            np.testing.assert_allclose(
                getattr(found.fit_report, name), getattr(expected.fit_report, name), rtol=1e-9, err_msg=name
            )
        assert [m.index for m in found.fit_report.worst] == [m.index for m in expected.fit_report.worst]


def test_samples_without_label_and_of_weight_zero_are_left_out_whatever_they_hold():
    data = molecules(20)
    for item in data:
        item.has_energy_label = torch.tensor([True])
    data[3].has_energy_label = torch.tensor([False])
    data[3].energy = torch.tensor([torch.nan])

    class SkipTenth(SampleWeigher):
        def get_weights(self, batch):
            return torch.tensor([0.0 if name == "m10" else 2.0 for name in batch.mol_id])

        def summary_string(self):
            return "skip_tenth"

    data[10].atomic_numbers = torch.tensor([200, -1])
    fitted = fit_linear_references(["energy"], data, 7, weights=SkipTenth())["energy"]
    counts, y = dense([d for i, d in enumerate(data) if i not in (3, 10)])
    np.testing.assert_allclose(fitted.element_references.numpy(), naive(counts, y), atol=1e-9)
    assert fitted.fit_report.n_samples == 18


@pytest.mark.parametrize(
    "as_target",
    [
        lambda e: torch.tensor([e], dtype=torch.float64),
        lambda e: torch.tensor(e, dtype=torch.float64),
        lambda e: torch.tensor([[e]], dtype=torch.float64),
        float,
        np.float64,
        lambda e: np.array([e]),
    ],
)
def test_targets_of_every_scalar_shape_keep_their_digits(as_target):
    data = molecules(30, noise=1e-6, offset=1e4)
    expected = fit_linear_references(["energy"], data, 8)["energy"].element_references
    reshaped = [
        Data(z=d.atomic_numbers, pos=torch.zeros(len(d.atomic_numbers), 3), e=as_target(d.energy.item())) for d in data
    ]
    assert torch.equal(fit_linear_references(["e"], reshaped, 8)["e"].element_references, expected)


def test_mappings_float_numbers_and_other_field_names_work():
    data = molecules(30)
    expected = fit_linear_references(["energy"], data, 8)["energy"].element_references
    items = [{"species": d.atomic_numbers.float(), "energy": d.energy.item()} for d in data]
    fitted = fit_linear_references(["energy"], items, 8, atomic_numbers_field="species")["energy"]
    assert torch.equal(fitted.element_references, expected)
    assert fitted.atomic_numbers_field == "species"


@NO_FORK_WARNING
def test_workers_read_the_same_samples():
    data = molecules(30)
    expected = fit_linear_references(["energy"], data, 4)["energy"]
    fitted = fit_linear_references(["energy"], data, 4, num_workers=2)["energy"]
    assert torch.equal(fitted.element_references, expected.element_references)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_targets_that_are_not_finite_are_named(bad):
    data = molecules(10)
    for item in data:
        item.other = torch.tensor([1.0])
    data[7].other = torch.tensor([bad])
    with pytest.raises(StatisticsError, match=rf"\(sample 7\): field 'other' is {bad}"):
        fit_linear_references(["energy", "other"], data, 4)


def test_atomic_numbers_out_of_range_are_refused():
    data = molecules(10)
    with pytest.raises(StatisticsError, match=r"has the atomic number \d; expected 1 ... 6"):
        fit_linear_references(["energy"], data, 4, max_num_elements=6)
    data[2].atomic_numbers = torch.tensor([1, 0])
    with pytest.raises(StatisticsError, match=r"\(sample 2\) has the atomic number 0"):
        fit_linear_references(["energy"], data, 4)


def test_missing_and_malformed_fields_are_named():
    data = molecules(4)
    with pytest.raises(BatchError, match=r"sample \d lacks the field 'enrgy'; it has \['atomic_numbers', 'energy'"):
        fit_linear_references(["enrgy"], data, 2)
    data[1].energy = torch.zeros(1, 19)
    with pytest.raises(BatchError, match=r"sample 1 has in the field 'energy' a Tensor of shape \(1, 19\)"):
        fit_linear_references(["energy"], data, 2)
    with pytest.raises(BatchError, match=r"sample \d lacks the field 'atomic_numbers' \(or 'z'\)"):
        fit_linear_references(["energy"], [Data(energy=1.0)], 2)
    with pytest.raises(StatisticsError, match=r"'field_w' gave sample 0 .*the weight -1\.0"):
        fit_linear_references(["energy"], [Data(z=torch.tensor([1]), energy=1.0, w=-1.0)], 2, weights="w")


def test_arguments_out_of_range_are_refused():
    data = molecules(4)
    for kwargs in ({"batch_size": 0}, {"num_batches": 0}, {"ridge": -1.0}, {"max_num_elements": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(kwargs))} = .*: expected at least"):
            fit_linear_references(["energy"], data, **{"batch_size": 2, **kwargs})
    for targets in ("energy", [], ["energy", "energy"]):
        with pytest.raises(ConfigError, match="expected a list of different names"):
            fit_linear_references(targets, data, 2)
    with pytest.raises(StatisticsError, match="the data set is empty"):
        fit_linear_references(["energy"], [], 2)
    with pytest.raises(StatisticsError, match="no sample has a positive weight"):
        fit_linear_references(["energy"], [Data(z=torch.tensor([1]), energy=1.0, w=0.0)], 2, weights="w")
    with pytest.raises(ConfigError, match="a data set with a length"):
        fit_linear_references(["energy"], iter(data), 2)


# --- accumulators ----------------------------------------------------------------------------------------------------


def test_equal_targets_have_no_r2():
    data = [Data(z=torch.tensor([1] * n), energy=-12345.678) for n in (1, 2, 3)]
    assert math.isnan(fit_linear_references(["energy"], data, 2)["energy"].fit_report.r2)


def fit_on_rank(n):
    references = fit_linear_references(["energy"], molecules(n), 2, distributed=True)["energy"]
    bad = molecules(n)
    bad[n - 1].energy = torch.tensor([torch.nan])
    with pytest.raises(StatisticsError) as error:
        fit_linear_references(["energy"], bad, 2, distributed=True)
    return references.element_references.tolist(), references.fit_report.to_plain(), str(error.value)


@pytest.mark.parametrize("n", [7, 1])
def test_two_processes_fit_what_one_fits(n):
    (first, report, message), (second, other_report, other_message) = on_ranks(fit_on_rank, n)
    expected = fit_linear_references(["energy"], molecules(n), 2)["energy"]
    assert first == second
    np.testing.assert_allclose(first, expected.element_references.numpy(), atol=1e-9)
    for key in ("n_samples", "rank", "n_atoms", "n_molecules"):
        assert report[key] == other_report[key] == getattr(expected.fit_report, key)
    assert report["mae"] == pytest.approx(expected.fit_report.mae, rel=1e-6, abs=1e-10)
    if n == 7:  # a single molecule's residual is rounding alone
        assert [w["index"] for w in report["worst"]] == [w.index for w in expected.fit_report.worst]
    for text in (message, other_message):
        assert f"(sample {n - 1}): field 'energy' is nan" in text
