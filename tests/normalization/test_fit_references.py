"""Fits of linear references, against dense numpy least squares on the same molecules."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

from ofdft_norm import LinearReferences, Normalizer, fit_linear_references, fit_references_by_dataset
from ofdft_norm.data.elements import formula
from ofdft_norm.errors import BatchError, ConfigError, NormalizationError, StatisticsError
from ofdft_norm.statistics.weighers import SampleWeigher
from tests.processes import on_ranks

ENERGIES = {1: -0.5, 6: -37.8, 7: -54.6, 8: -75.1, 9: -99.7}
ELEMENTS = sorted(ENERGIES)


def molecules(n: int, noise: float = 0.01, offset: float = 0.0) -> list[Data]:
    """Random molecules whose energies are inconsistent with any reference, so that a duplicate would show."""
    rng = np.random.default_rng(0)
    data = []
    for i in range(n):
        z = torch.tensor(rng.choice(ELEMENTS, rng.integers(2, 12)))
        energy = offset + sum(ENERGIES[int(a)] for a in z) + noise * rng.normal()
        data.append(Data(z=z, energy=torch.tensor([energy], dtype=torch.float64), mol_id=f"m{i}"))
    return data


def fit(data: Any, batch_size: int = 8, **options: Any) -> LinearReferences:
    return fit_linear_references(["energy"], data, batch_size, **options)["energy"]


def dense(data: list[Data], target: str = "energy") -> tuple[np.ndarray, np.ndarray]:
    """The dense problem, counted atom by atom."""
    counts = np.zeros((len(data), 119))
    for row, item in zip(counts, data, strict=True):
        for z in item.z.tolist():
            row[z] += 1
    return counts, np.array([float(item[target]) for item in data])


def naive(counts: np.ndarray, y: np.ndarray, weights: Any = None) -> np.ndarray:
    scale = np.sqrt(np.ones(len(y)) if weights is None else weights)
    x, seen = np.zeros(119), counts[scale > 0].any(0)
    x[seen] = np.linalg.lstsq(counts[:, seen] * scale[:, None], y * scale, rcond=1e-12)[0]
    return x


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    elements=st.lists(st.integers(1, 118), min_size=1, max_size=6, unique=True),
    n_targets=st.integers(1, 4),
    batch_size=st.sampled_from([1, 7, 64]),
    weighted=st.booleans(),
    use_numpy=st.booleans(),
)
def test_random_compositions_agree_with_dense_least_squares(
    seed: int, n: int, elements: list[int], n_targets: int, batch_size: int, weighted: bool, use_numpy: bool
) -> None:
    rng = np.random.default_rng(seed)
    names = [f"y{t}" for t in range(n_targets)]
    w = rng.choice([0.0, 0.5, 1.0, 3.0], n) if weighted else np.ones(n)
    w[0] = 1.0
    data = []
    for weight in w.tolist():
        values = {name: torch.tensor([rng.normal() * 100], dtype=torch.float64) for name in names}
        z = torch.tensor(rng.choice(elements, rng.integers(1, 9)))
        data.append(Data(z=z, weight=torch.tensor(weight, dtype=torch.float64), **values))
    options: dict[str, Any] = {"weights": "weight" if weighted else None, "use_numpy": use_numpy}
    fitted = fit_linear_references(names, data, batch_size, seed=seed % 1000, **options)
    used = w > 0
    for name in names:
        counts, y = dense(data, name)
        expected, report = naive(counts, y, w), fitted[name].fit_report
        np.testing.assert_allclose(fitted[name].element_references.numpy(), expected, atol=1e-8, rtol=1e-9)
        assert fitted[name].seen_elements.numpy().tolist() == counts[used].any(0).tolist()
        assert (report.rank, report.n_rows) == (np.linalg.matrix_rank(counts[used]), used.sum())
        residual, mean = y - counts @ expected, np.average(y, weights=w)
        np.testing.assert_allclose(report.rmse, math.sqrt(np.average(residual**2, weights=w)), atol=1e-8)
        np.testing.assert_allclose(report.mae, np.average(np.abs(residual), weights=w), atol=1e-8)
        total = w @ (y - mean) ** 2
        r2 = 1 - w @ residual**2 / total if used.sum() > 1 else math.nan
        np.testing.assert_allclose(report.r2, r2, atol=1e-8)


def test_standard_errors_are_those_of_the_textbook() -> None:
    data = molecules(60)
    report = fit(data).fit_report
    counts, y = dense(data)
    a = counts[:, ELEMENTS]
    residual = y - a @ np.linalg.solve(a.T @ a, a.T @ y)
    covariance = residual @ residual / (60 - 5) * np.linalg.inv(a.T @ a)
    np.testing.assert_allclose(report.standard_errors, np.sqrt(covariance.diagonal()), rtol=1e-6)
    assert (report.degrees_of_freedom, report.n_molecules) == (55, (a > 0).sum(0).tolist())
    np.testing.assert_allclose(report.condition_number, np.linalg.cond(a), rtol=1e-9)
    assert report.n_atoms == a.sum(0).tolist()


def test_planted_references_come_back_from_large_energies() -> None:
    data = molecules(200, noise=0.0)
    for item in data:
        item.energy *= 300  # up to 3e5
    fitted = fit(data).element_references
    assert fitted[ELEMENTS].tolist() == pytest.approx([300 * ENERGIES[z] for z in ELEMENTS], abs=1e-8)


SINGULAR = [
    molecules(100),
    [Data(z=torch.tensor([8, 1, 1] * n), energy=-76.0 * n + 0.01 * n**2) for n in range(1, 5)],
    # torch's gelsy, given the triangle itself, drops the second molecule
    [Data(z=torch.tensor(z), energy=e) for z, e in (([6, 7, 8, 9], -160.0), ([1, 6], 157.0))],
]


@pytest.mark.parametrize("driver", [None, "gels", "gelsy", "gelsd", "gelss"])
@pytest.mark.parametrize("data", SINGULAR)
def test_all_solvers_take_the_minimum_norm(data: list[Data], driver: str | None, caplog: Any) -> None:
    references = fit(data, use_numpy=False, driver=driver)
    np.testing.assert_allclose(references.element_references.numpy(), naive(*dense(data)), atol=1e-9)
    assert fit(data, driver="ignored where numpy solves").fit_report.rank == references.fit_report.rank
    assert ("rank 1 for the 2 elements ['H', 'O']" in caplog.text) == (data is SINGULAR[1])


def test_ridge_shrinks_as_the_augmented_system() -> None:
    data = molecules(30)
    counts, y = dense(data)
    a = counts[:, ELEMENTS]
    penalty = 0.1 * np.linalg.svd(a)[1][0]
    expected = np.linalg.lstsq(np.vstack([a, penalty * np.eye(5)]), np.concatenate([y, np.zeros(5)]), rcond=None)[0]
    fitted = fit(data, ridge=0.1)
    np.testing.assert_allclose(fitted.element_references[ELEMENTS].numpy(), expected, rtol=1e-10)
    rmse = np.sqrt(((y - a @ expected) ** 2).mean())
    assert (fitted.fit_report.ridge, fitted.fit_report.rmse) == (0.1, pytest.approx(rmse, rel=1e-9))


# --- which samples are used -----


class Recording:
    """Remembers which samples were asked for."""

    def __init__(self, data: list[Data]) -> None:
        self.data = data
        self.asked: list[Any] = []

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Data:
        self.asked.append(index)
        return self.data[index]


def test_shuffle_seed_and_num_batches_choose_the_samples() -> None:
    data = Recording(molecules(50))

    def asked(**options: Any) -> tuple[list[int], torch.Tensor]:
        data.asked = []
        references = fit(data, num_batches=3, log_metrics=False, **options).element_references
        return data.asked, references

    state = torch.random.get_rng_state()
    (first, references), (again, same), (other, different) = asked(seed=3), asked(seed=3), asked(seed=4)
    assert first == again
    assert torch.equal(references, same)
    assert len(set(first)) == len(first) == 24
    assert set(first) != set(other)
    assert not torch.equal(references, different)
    assert asked(shuffle=False)[0] == list(range(24))
    np.testing.assert_allclose(references.numpy(), naive(*dense([data.data[i] for i in first])), atol=1e-9)
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.warns(UserWarning, match="num_batches = 9, but 50 samples make 7 batches of 8: all are used"):
        assert fit(data, num_batches=9).fit_report.n_rows == 50


@pytest.mark.parametrize("log_metrics", [True, False])
def test_metrics_are_of_the_samples_used(log_metrics: bool, caplog: Any) -> None:
    data = molecules(40)
    with caplog.at_level(logging.INFO, "ofdft_norm"):
        report = fit(data, 5, num_batches=3, shuffle=False, log_metrics=log_metrics).fit_report
    counts, y = dense(data[:15])
    residual = y - counts @ naive(counts, y)
    assert report.rmse == pytest.approx(np.sqrt((residual**2).mean()), rel=1e-7)
    if not log_metrics:
        assert (report.mae, report.worst, caplog.text) == (None, [], "")
        return
    assert report.mae == pytest.approx(np.abs(residual).mean(), rel=1e-7)
    assert f"rank 5 of 5, R2 {report.r2:.6f}, MAE {report.mae:.3g}, RMSE {report.rmse:.3g}" in caplog.text
    worst = np.argsort(-np.abs(residual))[:10]
    assert [w.index for w in report.worst] == worst.tolist()
    np.testing.assert_allclose([w.residual for w in report.worst], residual[worst], atol=1e-9)
    first, z = report.worst[0], data[worst[0]].z.tolist()
    assert (first.name, first.formula, first.target) == (f"m{worst[0]}", formula(z), y[worst[0]])


@pytest.mark.parametrize("batch_size", [3, 100])
@pytest.mark.parametrize("weights", [None, "weight"])
def test_molecules_count_once_with_the_mean_of_their_samples(batch_size: int, weights: str | None) -> None:
    rng, data = np.random.default_rng(4), []
    for m, first in enumerate(molecules(20)):
        fields = {"z": first.z, "pos": torch.full((len(first.z), 3), float(m)), "mol_id": first.mol_id}
        for _ in range(1 + m % 4):
            data.append(Data(energy=first.energy + rng.normal(), weight=rng.uniform(0.5, 2), **fields))
    counts, y = dense(data)
    w = np.array([1.0 if weights is None else d.weight for d in data])
    own = [np.array([d.mol_id == name for d in data]) for name in sorted({d.mol_id for d in data})]
    rows = np.array([counts[mask][0] for mask in own])
    means = np.array([np.average(y[mask], weights=w[mask]) for mask in own])
    by_molecule = fit(data, batch_size, weights=weights, count_by="molecule")
    np.testing.assert_allclose(by_molecule.element_references.numpy(), naive(rows, means), atol=1e-9)
    report = by_molecule.fit_report
    assert (report.n_rows, report.rows, report.degrees_of_freedom) == (20, "molecules", 15)
    assert report.n_molecules == (rows[:, ELEMENTS] > 0).sum(0).tolist()
    assert len({m.name for m in report.worst}) == len(report.worst) == 10
    by_sample = fit(data, batch_size, weights=weights)
    np.testing.assert_allclose(by_sample.element_references.numpy(), naive(counts, y, w), atol=1e-9)
    assert (by_sample.fit_report.n_rows, by_sample.fit_report.rows) == (len(data), "samples")


def test_samples_without_label_and_of_weight_zero_are_left_out_whatever_they_hold() -> None:
    class SkipTenth(SampleWeigher):
        def get_weights(self, batch: Any) -> torch.Tensor:
            return torch.tensor([0.0 if name == "m10" else 2.0 for name in batch.mol_id])

        def summary_string(self) -> str:
            return "skip_tenth"

    data = molecules(20)
    for i, item in enumerate(data):
        item.has_energy_label = torch.tensor([i != 3])
    data[3].energy, data[3].z = torch.tensor([torch.nan]), torch.tensor([16])
    data[10].z = torch.tensor([200, -1])
    fitted = fit(data, weights=SkipTenth())
    counts, y = dense([d for i, d in enumerate(data) if i not in (3, 10)])
    np.testing.assert_allclose(fitted.element_references.numpy(), naive(counts, y), atol=1e-9)
    assert (fitted.fit_report.n_rows, bool(fitted.seen_elements[16])) == (18, False)
    assert fitted.fit_report.n_atoms == counts.sum(0)[ELEMENTS].tolist()


def as_data(target: Any) -> Any:
    return lambda d: Data(z=d.z, pos=torch.zeros(len(d.z), 3), energy=target(d.energy.item()))


FORMS = [
    as_data(lambda e: torch.tensor([e], dtype=torch.float64)),
    as_data(lambda e: torch.tensor(e, dtype=torch.float64)),
    as_data(lambda e: torch.tensor([[e]], dtype=torch.float64)),
    as_data(float),
    as_data(np.float64),
    as_data(lambda e: np.array([e])),
    lambda d: {"z": d.z.float(), "energy": d.energy.item()},
]


@pytest.mark.parametrize("form", FORMS)
def test_targets_and_samples_of_every_form_keep_their_digits(form: Any) -> None:
    data = molecules(30, noise=1e-6, offset=1e4)
    assert torch.equal(fit([form(d) for d in data]).element_references, fit(data).element_references)
    other = fit([{"species": d.z, "energy": d.energy} for d in data], atomic_numbers_field="species")
    assert other.atomic_numbers_field == "species"


# Python 3.12 warns of forks of processes with threads; torch's loaders fork all the same
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_read_the_same_samples() -> None:
    data = molecules(30)
    assert torch.equal(fit(data, num_workers=2).element_references, fit(data).element_references)


def test_equal_targets_have_no_r2() -> None:
    data = [Data(z=torch.tensor([1] * n), energy=-12345.678) for n in (1, 2, 3)]
    assert math.isnan(fit(data).fit_report.r2)


HYDROGEN = {"z": torch.tensor([1]), "energy": 1.0}


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([Data(**HYDROGEN), Data(z=torch.tensor([1]), energy=math.nan)], {}, StatisticsError, r"sample 1.*is nan"),
        ([Data(z=torch.tensor([1]), energy=math.inf)], {}, StatisticsError, "sample 0.*is inf"),
        (
            [Data(z=torch.tensor([8]), energy=1.0)],
            {"max_num_elements": 6},
            StatisticsError,
            r"number 8; expected 1 \.{3} 6",
        ),
        ([Data(z=torch.tensor([1, 0]), energy=1.0)], {}, StatisticsError, "sample 0.*number 0"),
        ([Data(z=torch.tensor([1]), enrgy=1.0)], {}, BatchError, r"sample 0.*'energy'; it has \['enrgy', 'z'\]"),
        ([Data(z=torch.tensor([1]), energy=torch.zeros(1, 19))], {}, BatchError, r"sample 0.*shape \(1, 19\)"),
        ([Data(energy=1.0)], {}, BatchError, r"sample 0 lacks the field 'atomic_numbers' \(or 'z'\)"),
        ([Data(**HYDROGEN, w=-1.0)], {"weights": "w"}, StatisticsError, r"'field_w' gave sample 0 .*-1\.0"),
        ([Data(**HYDROGEN, w=0.0)], {"weights": "w"}, StatisticsError, "'field_w' gives no sample"),
        ([], {}, StatisticsError, "no sample"),
        (iter([]), {}, ConfigError, "with a length and an index"),
        *(([Data(**HYDROGEN)], {name: 0}, ConfigError, f"{name} = 0") for name in ("batch_size", "num_batches")),
        *(([Data(**HYDROGEN)], {name: -1}, ConfigError, f"{name} = -1") for name in ("ridge", "max_num_elements")),
        ([Data(**HYDROGEN)], {"use_numpy": False, "driver": "nonsense"}, ConfigError, "driver = 'nonsense'"),
        *(([], {"targets": t}, ConfigError, "list of different names") for t in ("energy", [], ["a", "a"])),
    ],
)
def test_bad_samples_and_arguments_are_named(data: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit_linear_references(**{"targets": ["energy"], "dataset": data, "batch_size": 2, **options})


def fit_on_rank(n: int) -> tuple[list[float], dict[str, Any], str]:
    references, bad = fit(molecules(n), 2, distributed=True), molecules(n)
    bad[n - 1].energy = torch.tensor([torch.nan])
    with pytest.raises(StatisticsError) as error:
        fit(bad, 2, distributed=True)
    return references.element_references.tolist(), references.fit_report.to_plain(), str(error.value)


@pytest.mark.parametrize("n", [7, 1])
def test_two_processes_fit_what_one_fits(n: int) -> None:
    (first, report, message), (second, other_report, other_message) = on_ranks(fit_on_rank, n)
    expected = fit(molecules(n), 2)
    assert first == second
    np.testing.assert_allclose(first, expected.element_references.numpy(), atol=1e-9)
    for key in ("n_rows", "rank", "n_atoms", "n_molecules"):
        assert report[key] == other_report[key] == getattr(expected.fit_report, key)
    assert report["mae"] == pytest.approx(expected.fit_report.mae, rel=1e-6, abs=1e-10)
    if n == 7:  # a single molecule's residual is rounding alone
        assert [w["index"] for w in report["worst"]] == [w.index for w in expected.fit_report.worst]
    for text in (message, other_message):
        assert f"(sample {n - 1}): field 'energy' is nan" in text


# --- references of several data sets -----

SHIFTS: dict[str, dict[int, float]] = {"pbe": {1: -0.5, 6: -37.8, 8: -75.1}, "ccsd": {1: -0.6, 6: -37.5, 8: -75.0}}


def of_dataset(name: str, n: int, seed: int, elements: tuple[int, ...] = (1, 6, 8)) -> list[Data]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        z = torch.from_numpy(rng.choice(elements, rng.integers(2, 9)))
        energy = torch.tensor(sum(SHIFTS[name][int(i)] for i in z) + 0.01 * rng.normal(), dtype=torch.float64)
        out.append(Data(z=z, pos=torch.zeros(len(z), 3), energy=energy, dataset=name))
    return out


def both() -> list[Data]:
    a, b = of_dataset("pbe", 30, 0), of_dataset("ccsd", 20, 1)
    return [*a[:10], *b, *a[10:]]


@pytest.mark.parametrize("count_by", ["sample", "molecule"])
def test_data_sets_that_determine_all_have_the_references_of_a_fit_of_their_own(count_by: Any) -> None:
    references = fit_references_by_dataset(["energy"], both(), count_by=count_by)["energy"]
    values = []
    for name in SHIFTS:
        expected, found = fit([m for m in both() if m.dataset == name], count_by=count_by), references.part(name)
        torch.testing.assert_close(found.element_references, expected.element_references, rtol=0, atol=1e-10)
        assert found.fit_report.standard_errors == pytest.approx(expected.fit_report.standard_errors)
        values.append(expected.element_references)
    torch.testing.assert_close(references.common, sum(values) / 2, rtol=0, atol=1e-10)
    left = np.array([float(m.energy - references.energy(m)) for m in both()])
    residuals = {"mean": left.mean(), "std": left.std(), "rms": np.sqrt((left**2).mean()), "mae": np.abs(left).mean()}
    assert references.residuals == pytest.approx(residuals, abs=1e-10)
    # there and back, in a batch and alone
    normalizer = Normalizer(references, energy_scale=0.3, energy_field="energy")
    batch = Batch.from_data_list([both()[i] for i in (3, 45, 12)])
    out = normalizer.normalize(batch)
    sums = [sum(references.part(d.dataset).element_references[d.z]) for d in batch.to_data_list()]
    torch.testing.assert_close(out.energy_reference, torch.stack(sums), rtol=0, atol=1e-10)
    torch.testing.assert_close(normalizer.denormalize_energy(out.energy, out), batch.energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(normalizer.normalize(both()[45]).energy_reference[0], sums[1], rtol=0, atol=1e-10)


def by_brute_force(data: list[Data]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Common references and shifts: the best fit, of these the smallest shifts, of these the smallest references."""
    names, elements = sorted({m.dataset for m in data}), [1, 6, 8]
    k = len(elements)
    rows = np.zeros((len(data), k * (1 + len(names))))
    for row, m in zip(rows, data, strict=True):
        counts, d = [int((m.z == z).sum()) for z in elements], names.index(m.dataset)
        row[:k] = row[k * (1 + d) : k * (2 + d)] = counts
    first = np.linalg.lstsq(rows, np.array([float(m.energy) for m in data]), rcond=1e-12)[0]
    _, s, vt = np.linalg.svd(rows)
    free = vt[(s > 1e-10 * s[0]).sum() :].T  # (columns, m): x + free y fits alike
    x = first + free @ np.linalg.lstsq(free[k:], -first[k:], rcond=1e-10)[0]
    _, s, vt = np.linalg.svd(free[k:])
    still = free @ vt[(s > 1e-10).sum() :].T
    x = x + still @ np.linalg.lstsq(still[:k], -x[:k], rcond=1e-10)[0] if still.size else x
    return x[:k], {name: x[:k] + x[k * (1 + d) : k * (2 + d)] for d, name in enumerate(names)}


@settings(max_examples=30)
@given(
    pbe=st.sampled_from([(1, 6, 8), (1, 6), (8,)]),
    ccsd=st.sampled_from([(1, 6, 8), (1, 8), (6,)]),
    one_composition=st.booleans(),
)
def test_undetermined_shifts_are_the_smallest(pbe: Any, ccsd: Any, one_composition: bool) -> None:
    data = of_dataset("pbe", 12, 0, pbe) + of_dataset("ccsd", 12, 1, ccsd)
    if one_composition:  # the second data set determines one number
        for m in data[12:]:
            m.z = data[12].z
    common, expected = by_brute_force(data)
    references = fit_references_by_dataset(["energy"], data)["energy"]
    np.testing.assert_allclose(references.common[[1, 6, 8]], common, atol=1e-8)
    for name, own in (("pbe", data[:12]), ("ccsd", data[12:])):
        elements, part = {int(z) for m in own for z in m.z}, references.part(name)
        assert set(part.seen_elements.nonzero().squeeze(1).tolist()) == elements
        for z, value in zip([1, 6, 8], expected[name], strict=True):
            assert float(part.element_references[z]) == pytest.approx(value if z in elements else 0.0, abs=1e-8)


def test_what_does_not_fit_is_refused() -> None:
    data = both()
    references = fit_references_by_dataset(["energy"], data)["energy"]
    for fields, error, message in (
        ({"z": [6, 7], "dataset": "pbe"}, NormalizationError, r"data set 'pbe': .*elements \[7\]"),
        ({"z": [6], "dataset": "hf"}, NormalizationError, r"data sets \['hf'\], but references exist for"),
        ({"z": [6]}, BatchError, "lacks the field 'dataset'"),
    ):
        with pytest.raises(error, match=message):
            references.energy(Data(**{**fields, "z": torch.tensor(fields["z"])}))
    with pytest.raises(BatchError, match="'level'"):
        fit_references_by_dataset(["energy"], data, "level")
    with pytest.raises(ConfigError, match="ridg = 1"):
        fit_references_by_dataset(["energy"], data, ridg=1)
    for i, m in enumerate(data):
        m.has_energy_label, m.level = torch.tensor([m.dataset == "pbe"]), torch.tensor([3 if i < 10 else 7])
    with pytest.raises(StatisticsError, match=r"data sets \['ccsd'\] .* no sample with a label"):
        fit_references_by_dataset(["energy"], data)
    assert fit_references_by_dataset(["energy"], data, "level")["energy"].names == ["3", "7"]
