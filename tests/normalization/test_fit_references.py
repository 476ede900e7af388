"""Fits of linear references against dense numpy least squares on the same molecules, and their reports."""

import logging
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

from ofdft_norm import LinearReferences, fit_linear_references, fit_references_by_dataset
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
        np.add.at(row, item.z.numpy(), 1)
    return counts, np.array([float(item[target]) for item in data])


def naive(counts: np.ndarray, y: np.ndarray, weights: Any = None, ridge: float = 0.0) -> np.ndarray:
    scale = np.sqrt(np.ones(len(y)) if weights is None else weights)
    x, seen = np.zeros(119), counts[scale > 0].any(0)
    a = counts[:, seen] * scale[:, None]
    a = np.vstack([a, ridge * np.linalg.svd(a)[1][0] * np.eye(seen.sum())])
    x[seen] = np.linalg.lstsq(a, np.concatenate([y * scale, np.zeros(seen.sum())]), rcond=1e-12)[0]
    return x


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    elements=st.lists(st.integers(1, 118), min_size=1, max_size=6, unique=True),
    n_targets=st.integers(1, 4),
    batch_size=st.sampled_from([1, 7, 64]),
    weighted=st.booleans(),
    driver=st.sampled_from([None, "gels", "gelsy", "gelsd", "gelss"]),
    ridge=st.sampled_from([0.0, 0.0, 0.1]),
)
def test_random_compositions_agree_with_dense_least_squares(
    seed, n, elements, n_targets, batch_size, weighted, driver, ridge
):
    rng = np.random.default_rng(seed)
    names = [f"y{t}" for t in range(n_targets)]
    w = rng.choice([0.0, 0.5, 1.0, 3.0], n) if weighted else np.ones(n)
    w[0] = 1.0
    data = []
    for weight in w.tolist():
        values = {name: torch.tensor([rng.normal() * 100], dtype=torch.float64) for name in names}
        z = torch.tensor(rng.choice(elements, rng.integers(1, 9)))
        data.append(Data(z=z, weight=torch.tensor(weight, dtype=torch.float64), **values))
    options: dict[str, Any] = {"weights": "weight" if weighted else None, "ridge": ridge, "seed": seed % 1000}
    fitted = fit_linear_references(names, data, batch_size, use_numpy=driver is None, driver=driver, **options)
    used = w > 0
    for name in names:
        counts, y = dense(data, name)
        expected, report = naive(counts, y, w, ridge), fitted[name].fit_report
        np.testing.assert_allclose(fitted[name].element_references.numpy(), expected, atol=1e-8, rtol=1e-9)
        assert fitted[name].seen_elements.numpy().tolist() == counts[used].any(0).tolist()
        rank, n_rows, rows = np.linalg.matrix_rank(counts[used]), used.sum(), counts[used][:, counts[used].any(0)]
        assert (report.rank, report.n_rows, report.degrees_of_freedom) == (rank, n_rows, n_rows - rank)
        assert (report.n_atoms, report.n_molecules) == (rows.sum(0).tolist(), (rows > 0).sum(0).tolist())
        residual, mean = y - counts @ expected, np.average(y, weights=w)
        np.testing.assert_allclose(report.rmse, math.sqrt(np.average(residual**2, weights=w)), atol=1e-8)
        np.testing.assert_allclose(report.mae, np.average(np.abs(residual), weights=w), atol=1e-8)
        total = w @ (y - mean) ** 2
        r2 = 1 - w @ residual**2 / total if used.sum() > 1 else math.nan
        np.testing.assert_allclose(report.r2, r2, atol=1e-8)
        a = rows * np.sqrt(w[used])[:, None]
        singular, inverse = np.linalg.svd(a)[1], np.linalg.pinv(a, rcond=1e-12)
        np.testing.assert_allclose(report.condition_number, singular[0] / singular[rank - 1], rtol=1e-9)
        variance = w @ residual**2 / (n_rows - rank) if n_rows > rank else math.nan
        errors = np.sqrt(variance * (inverse @ inverse.T).diagonal())
        np.testing.assert_allclose(report.standard_errors, errors, rtol=1e-6, atol=1e-6)


# --- which samples are used -----


class Recording(list[Data]):
    """Remembers which samples were asked for."""

    asked: list[Any]

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        return super().__getitem__(index)


def test_shuffle_seed_and_num_batches_choose_the_samples(caplog):
    data = Recording(molecules(50))

    def asked(**options: Any) -> tuple[list[int], torch.Tensor]:
        data.asked = []
        references = fit(data, num_batches=3, log_metrics=False, **options)
        assert (references.fit_report.mae, references.fit_report.worst) == (None, [])
        return data.asked, references.element_references

    state = torch.random.get_rng_state()
    with caplog.at_level(logging.INFO, "ofdft_norm"):
        (first, references), (again, same), (other, different) = asked(seed=3), asked(seed=3), asked(seed=4)
    assert (first, len(set(first)), len(first), caplog.text) == (again, 24, 24, "")
    assert torch.equal(references, same)
    assert set(first) != set(other)
    assert not torch.equal(references, different)
    assert asked(shuffle=False)[0] == list(range(24))
    np.testing.assert_allclose(references.numpy(), naive(*dense([data[i] for i in first])), atol=1e-9)
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.warns(UserWarning, match="num_batches = 9, but 50 samples make 7 batches"):
        assert fit(data, num_batches=9).fit_report.n_rows == 50


@pytest.mark.parametrize(("batch_size", "weights"), [(3, None), (100, "weight")])
def test_molecules_count_once_with_the_mean_of_their_samples(batch_size, weights):
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


class SkipTenth(SampleWeigher):
    def get_weights(self, batch: Any) -> torch.Tensor:
        return torch.tensor([0.0 if name == "m10" else 2.0 for name in batch.mol_id])

    def summary_string(self) -> str:
        return "skip_tenth"


def test_samples_without_label_and_of_weight_zero_are_left_out_whatever_they_hold():
    data = molecules(20)
    for i, item in enumerate(data):
        item.has_energy_label = torch.tensor([i != 3])
    data[3].energy, data[3].z = torch.tensor([torch.nan]), torch.tensor([16])
    data[10].z = torch.tensor([200, -1])
    fitted = fit(data, weights=SkipTenth())
    counts, y = dense([d for i, d in enumerate(data) if i not in (3, 10)])
    np.testing.assert_allclose(fitted.element_references.numpy(), naive(counts, y), atol=1e-9)
    assert (fitted.fit_report.n_rows, bool(fitted.seen_elements[16])) == (18, False)


FORMS: list[Any] = [
    lambda e: torch.tensor([e], dtype=torch.float64),
    lambda e: torch.tensor(e, dtype=torch.float64),
    lambda e: torch.tensor([[e]], dtype=torch.float64),
    float,
    np.float64,
    lambda e: np.array([e]),
]


@pytest.mark.parametrize("form", FORMS)
def test_targets_and_samples_of_every_form_keep_their_digits(form):
    data = molecules(30, noise=1e-6, offset=1e4)
    expected = fit(data).element_references
    np.testing.assert_allclose(expected.numpy(), naive(*dense(data)), atol=1e-8)
    samples = [{"species": d.z.float(), "pos": torch.zeros(len(d.z), 3), "energy": form(d.energy.item())} for d in data]
    found = fit([Data(**sample) for sample in samples], atomic_numbers_field="species")
    assert found.atomic_numbers_field == "species"
    assert torch.equal(found.element_references, expected)
    assert torch.equal(fit(samples, atomic_numbers_field="species").element_references, expected)


def hydrogen(**fields: Any) -> Data:
    return Data(**{"z": torch.tensor([1]), "energy": 1.0, **fields})


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([hydrogen(), hydrogen(energy=math.nan)], {}, StatisticsError, r"sample 1.*is nan"),
        ([hydrogen(z=torch.tensor([8]))], {"max_num_elements": 6}, StatisticsError, r"number 8; expected 1 \.{3} 6"),
        ([Data(z=torch.tensor([1]), enrgy=1.0)], {}, BatchError, r"sample 0.*'energy'; it has \['enrgy', 'z'\]"),
        ([hydrogen(energy=torch.zeros(1, 19))], {}, BatchError, r"sample 0.*shape \(1, 19\)"),
        ([Data(energy=1.0)], {}, BatchError, r"sample 0 lacks the field 'atomic_numbers'"),
        ([hydrogen(w=-1.0)], {"weights": "w"}, StatisticsError, r"'field_w' gave sample 0 .*-1\.0"),
        ([hydrogen(w=0.0)], {"weights": "w"}, StatisticsError, "'field_w' gives no sample"),
        ([], {}, StatisticsError, "no sample"),
        (iter([]), {}, ConfigError, "with a length and an index"),
        *(([hydrogen()], {name: 0}, ConfigError, f"{name} = 0") for name in ("batch_size", "num_batches")),
        *(([hydrogen()], {name: -1}, ConfigError, f"{name} = -1") for name in ("ridge", "max_num_elements")),
        ([hydrogen()], {"use_numpy": False, "driver": "nonsense"}, ConfigError, "driver = 'nonsense'"),
        *(([], {"targets": t}, ConfigError, "list of different names") for t in ("energy", [], ["a", "a"])),
    ],
)
def test_bad_samples_and_arguments_are_named(data, options, error, message):
    with pytest.raises(error, match=message):
        fit_linear_references(**{"targets": ["energy"], "dataset": data, "batch_size": 2, **options})


def fit_on_rank(n: int) -> tuple[list[float], dict[str, Any], str]:
    references, bad = fit(molecules(n), 2, distributed=True), molecules(n)
    bad[n - 1].energy = torch.tensor([torch.nan])
    with pytest.raises(StatisticsError) as error:
        fit(bad, 2, distributed=True)
    return references.element_references.tolist(), asdict(references.fit_report), str(error.value)


@pytest.mark.parametrize("n", [7, 1])
def test_two_processes_fit_what_one_fits(n):
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
    rng, data = np.random.default_rng(seed), []
    for _ in range(n):
        z = torch.from_numpy(rng.choice(elements, rng.integers(2, 9)))
        energy = torch.tensor(sum(SHIFTS[name][int(i)] for i in z) + 0.01 * rng.normal(), dtype=torch.float64)
        data.append(Data(z=z, pos=torch.zeros(len(z), 3), energy=energy, dataset=name))
    return data


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
    count_by=st.sampled_from(["sample", "molecule"]),
)
def test_references_by_data_set_fit_best_with_the_smallest_shifts(pbe, ccsd, one_composition, count_by):
    data = of_dataset("pbe", 12, 0, pbe) + of_dataset("ccsd", 12, 1, ccsd)
    if one_composition:  # the second data set determines one number
        for m in data[12:]:
            m.z, m.pos = data[12].z, data[12].pos
    common, expected = by_brute_force(data)
    data = data[:6] + data[12:] + data[6:12]
    references = fit_references_by_dataset(["energy"], data, count_by=count_by)["energy"]
    np.testing.assert_allclose(references.common[[1, 6, 8]], common, atol=1e-8)
    for name in ("pbe", "ccsd"):
        own, part = [m for m in data if m.dataset == name], references.select_dataset(name)
        elements = {int(z) for m in own for z in m.z}
        assert set(part.seen_elements.nonzero().squeeze(1).tolist()) == elements
        for z, value in zip([1, 6, 8], expected[name], strict=True):
            assert float(part.element_references[z]) == pytest.approx(value if z in elements else 0.0, abs=1e-8)
        errors = fit(own, count_by=count_by).fit_report.standard_errors
        assert part.fit_report.standard_errors == pytest.approx(errors)
    batch = Batch.from_data_list(data)
    sums = torch.stack([references.select_dataset(m.dataset).element_references[m.z].sum() for m in data])
    torch.testing.assert_close(references.energy(batch), sums, rtol=0, atol=1e-10)
    left = (batch.energy - sums).numpy()
    residuals = {"mean": left.mean(), "std": left.std(), "rms": np.sqrt((left**2).mean()), "mae": np.abs(left).mean()}
    assert references.residuals == pytest.approx(residuals, abs=1e-8)


def test_what_does_not_fit_is_refused():
    data = of_dataset("pbe", 20, 0) + of_dataset("ccsd", 20, 1)
    references = fit_references_by_dataset(["energy"], data)["energy"]
    for fields, error, message in (
        ({"z": [6, 7], "dataset": "pbe"}, NormalizationError, r"data set 'pbe': .*elements \[7\]"),
        ({"z": [6], "dataset": "hf"}, NormalizationError, r"data sets \['hf'\], expected"),
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


# --- reports -----


@pytest.mark.parametrize(
    ("compositions", "undetermined"),
    [
        ([[6] * n + [1] * 4 * n + [8] for n in (1, 2, 3)], ["H", "C"]),
        ([[8, 1, 1]], ["H", "O"]),
        ([[6, 1, 1, 1, 1], [6, 1, 1, 1], [8, 1, 1], [8]], []),
    ],
)
def test_elements_that_the_data_do_not_determine_are_marked(compositions, undetermined, caplog):
    data = [hydrogen(z=torch.tensor(z), energy=float(i)) for i, z in enumerate(compositions)]
    lines = fit(data).summary().splitlines()
    assert [line.split()[0] for line in lines if "not determined alone" in line] == undetermined
    assert ("minimum norm is chosen" in caplog.text) == bool(undetermined)


def test_references_by_data_set_have_a_table_of_shifts():
    data = [
        Data(z=torch.tensor(z), energy=-float(sum(z)) * factor, level=level)
        for level, factor in (("pbe", 1.0), ("hf", 2.0))
        for z in ([1], [8], [1, 8])
    ]
    text = fit_references_by_dataset(["energy"], data, "level")["energy"].summary("hartree")
    lines = [line.split() for line in text.splitlines()]
    assert lines[1] == ["H", "hf", "-1.500000", "-0.500000"]
    assert lines[4] == ["O", "pbe", "-12.000000", "+4.000000"]
    assert text.count("fit on 3 samples: rank 2 of 2") == 2
