"""The fit against a second implementation; precision, order of samples, passes, what is stored besides."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Subset
from torch_geometric.loader import DataLoader

from ofdft_norm import (
    BasisInfo,
    BasisTransforms,
    ConstantSampleWeigher,
    DatasetStatistics,
    LocalFrames,
    OFData,
    OFDataset,
    ProjectGradient,
)
from ofdft_norm.data import label_file
from ofdft_norm.data.elements import format_formula
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.fit_statistics import STATISTICS_VERSION
from ofdft_norm.statistics.reading import SampleBatch
from ofdft_norm.statistics.references import REFERENCES
from ofdft_norm.statistics.store import WeigherStatistics
from tests.naive_statistics import naive_statistics
from tests.statistics.common import FIELD_WEIGHERS, FIELDS, assert_close, assert_same_statistics, fit

Samples = Callable[..., list[OFData]]


class Batches:
    """An iterable of batches, with neither length nor index; counts how often it is read."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(self.batches)


@given(data=st.data(), seed=st.integers(0, 2**32 - 1), with_bias=st.booleans())
def test_every_statistic_agrees_with_plain_loops(
    some_bases: Any, scf_samples: Samples, data: st.DataObject, seed: int, with_bias: bool
) -> None:
    basis_info = data.draw(some_bases)
    z = basis_info.atomic_numbers.tolist()
    rng = np.random.default_rng(seed)
    molecules = [z, z, z[::-1], [*z, z[0]], [z[0]], [*z, *z, z[-1]], [z[-1]] * 3]
    samples = scf_samples(basis_info, rng, molecules, n_scf=3)
    samples[0].has_energy_label[:] = True
    names, equal = data.draw(st.sampled_from(["different", "equal", "none"])), data.draw(st.booleans())
    for sample in samples[: len(samples) if equal else 1]:
        sample.weight[:] = sample.other_weight[:] = 1.0
    for sample in samples if names != "different" else ():
        del sample.mol_id
        sample.update({"mol_id": "a"} if names == "equal" else {})
    batches = Batches(DataLoader(samples, data.draw(st.sampled_from([1, 2, 4, 50])), follow_batch=["coeffs"]))
    found = fit(data.draw(st.sampled_from([batches, samples])), basis_info, FIELD_WEIGHERS, with_bias=with_bias)
    for key, name in FIELDS.items():
        assert_close(found, key, naive_statistics(samples, basis_info, [s[name].item() for s in samples], with_bias))
        check_holders(found[key], samples, name, basis_info)


def check_holders(found: WeigherStatistics, samples: list[OFData], field: str, basis_info: BasisInfo) -> None:
    """The named molecules have the smallest and the largest gradient, of possibly several equal ones."""
    for dimension in range(basis_info.n_basis):
        entries = [
            (float(value), sample.get("mol_id") or f"sample {i}")
            for i, sample in enumerate(samples)
            if sample[field] > 0 and sample.has_energy_label
            for value in sample.gradient_label[sample.basis_function_ind == dimension]
        ]
        for names, limit in zip(found.gradient_holders or (), (min, max), strict=True):
            assert (limit(entries)[0], names[dimension]) in entries if entries else names[dimension] == ""


@pytest.fixture(scope="module")
def many_samples(basis_info: BasisInfo, scf_samples: Samples) -> list[OFData]:
    return scf_samples(basis_info, np.random.default_rng(0), [[1, 6, 8], [8, 1], [1], [6, 8, 8]] * 4, n_scf=5)


@pytest.fixture(scope="module")
def statistics_of_many(basis_info: BasisInfo, many_samples: list[OFData]) -> DatasetStatistics:
    return fit(many_samples, basis_info, FIELD_WEIGHERS)


@pytest.mark.parametrize("kind", ["one by one", "iterable", "shuffled", "workers", "mappings", "subset"])
def test_results_depend_neither_on_batches_nor_on_order_or_kind(
    kind: str, basis_info: BasisInfo, many_samples: list[OFData], statistics_of_many: DatasetStatistics
) -> None:
    def loader(batch_size: int, **options: Any) -> DataLoader:
        return DataLoader(many_samples, batch_size, follow_batch=["coeffs"], **options)

    data: Any = {
        "one by one": lambda: loader(1),
        "iterable": lambda: Batches(loader(6)),  # batches as they come, not the samples behind them
        "shuffled": lambda: loader(100, shuffle=True),
        "workers": lambda: loader(40, num_workers=1, multiprocessing_context="fork"),
        "mappings": lambda: [sample.to_dict() for sample in many_samples],
        "subset": lambda: Subset(many_samples, range(len(many_samples))),
    }[kind]()
    state = torch.get_rng_state()
    assert_same_statistics(fit(data, basis_info, FIELD_WEIGHERS), statistics_of_many)
    assert kind in ("iterable", "shuffled") or torch.equal(torch.get_rng_state(), state)


def test_both_passes_read_the_samples_that_a_loader_has_drawn(
    many_samples: list[OFData], basis_info: BasisInfo
) -> None:
    torch.manual_seed(1)
    loader = DataLoader(many_samples, 20, shuffle=True, drop_last=True, follow_batch=["coeffs"])
    found = fit(loader, basis_info, n_batches=2)
    torch.manual_seed(1)
    chosen = [many_samples[i] for batch in [*loader.batch_sampler][:2] for i in batch]
    assert_close(found, "constant", naive_statistics(chosen, basis_info, [1.0] * 40))


def test_label_files_are_read_molecule_by_molecule_and_twice(labels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    class_of_groups: Any = vars(label_file)["ZarrGroup"]
    paths = [*labels.write_several(), labels.write("oxygen.zarr.zip", (8, 8), 3)]
    dataset = OFDataset(paths, labels.basis_info, transform=ProjectGradient())
    expected = naive_statistics(list(dataset), labels.basis_info, [1.0] * len(dataset))
    monkeypatch.setattr(label_file, "ZarrGroup", lambda path: opened.append(Path(path)) or class_of_groups(path))
    assert_close(fit(dataset, labels.basis_info), "constant", expected)
    assert sorted(opened) == sorted([*paths, *paths])
    shuffled = DataLoader(dataset, 3, shuffle=True, follow_batch=["coeffs"])
    assert_close(fit(shuffled, labels.basis_info), "constant", expected)


def test_two_files_of_one_geometry_are_two_molecules(labels: Any) -> None:
    water = labels.write("water.zarr.zip")
    copy = water.with_name("copy.zarr.zip")
    copy.write_bytes(water.read_bytes())
    dataset = OFDataset([water, copy, labels.write("methane.zarr.zip", (6, 1, 1, 1, 1))], labels.basis_info)
    assert fit(dataset, labels.basis_info)["constant"].n_molecules == 3


@pytest.mark.parametrize("slope", [0.0, 0.7])
def test_micro_hartrees_on_top_of_a_hundred_thousand(basis_info: BasisInfo, make_sample: Any, slope: float) -> None:
    # energies t.n + slope.p + 1e-6 noise: residuals are 1e11 times smaller than the energies
    rng = np.random.default_rng(0)
    samples = []
    for i in range(200):
        sample = make_sample(basis_info, rng, [[8, 1, 1], [6, 1, 1, 1, 1], [6, 8], [1, 1]][i // 50], f"{i}")
        t = sum({1: -1e4, 6: -4e4, 8: -8e4}[z] for z in sample.atomic_numbers.tolist())
        sample.gradient_label = torch.full_like(sample.coeffs, slope)
        sample.energy_label = (t + slope * sample.coeffs.sum() + 1e-6 * rng.normal()).reshape(1)
        samples.append(sample)
    found = fit(samples, basis_info)
    expected = naive_statistics(samples, basis_info, [1.0] * len(samples))
    for name in ["atom_ref", "linear_ref"] if slope == 0 else ["atom_ref"]:
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
    found = fit(DataLoader(samples, 1, follow_batch=["coeffs"]), basis_info, [ConstantSampleWeigher(0.1)])
    for key in ("coeffs/std", "gradient_label/std", "gradient_max_after_atom_ref"):
        assert not found.load_statistic("constant_0.1", key).any(), key
    assert (found["constant_0.1"].coeffs.mean == 0.1).all()


def test_two_passes_and_what_residuals_add(basis_info: BasisInfo, samples: list[OFData]) -> None:
    loader = Batches(DataLoader(samples, 5, follow_batch=["coeffs"]))
    full = fit(loader, basis_info)
    assert loader.passes == 2
    short = fit(loader, basis_info, residuals=False)
    extra = set(full.keys_recursive()) - set(short.keys_recursive())
    folders = ("energy", *(f"energy_minus_{name}" for name in REFERENCES))
    assert extra == {f"constant/{folder}/{name}" for folder in folders for name in ("abs_max", "mae")}
    assert short["constant"].reference("linear_ref").worst == []
    assert fit(loader, basis_info, n_batches=1)["constant"].n_samples == 5
    with pytest.raises(StatisticsError, match="a loader of one pass"):
        fit(iter(loader), basis_info)


def test_a_fit_leaves_samples_alone(basis_info: BasisInfo, samples: list[OFData]) -> None:
    before = [sample.clone() for sample in samples]
    fit(samples, basis_info)
    for sample, copy in zip(samples, before, strict=True):
        assert str(sample) == str(copy)  # the same fields
        assert all(torch.equal(sample[name], copy[name]) for name in ("coeffs", "gradient_label", "energy_label"))


def test_statistics_have_basis_coordinates_and_given_attributes(labels: Any, tmp_path: Path) -> None:
    dataset = OFDataset(labels.write_several(), labels.basis_info)
    DatasetStatistics.from_dataset(tmp_path / "s", dataset, labels.basis_info, attributes={"who": "me"})
    attributes = DatasetStatistics(tmp_path / "s").attributes
    expected = {"who": "me", "statistics_version": STATISTICS_VERSION}
    assert attributes.items() >= {**expected, "basis_info": labels.basis_info.to_dict(), "coordinates": "raw"}.items()


def test_samples_in_different_coordinates_are_refused(labels: Any, make_batch: Any) -> None:
    raw = list(OFDataset(labels.write_several(), labels.basis_info))
    changed = [BasisTransforms([LocalFrames()])(sample) for sample in raw]
    found = fit(changed, labels.basis_info)
    assert found.attributes["coordinates"] == "local_frames"
    raw_batch, changed_batch = map(make_batch, (raw, changed))
    with pytest.raises(StatisticsError, match=r"coordinates \['local_frames', 'raw'\], expected one"):
        fit(Batches([raw_batch, changed_batch]), labels.basis_info)


def naive_worst(samples: Sequence[OFData], weights: Sequence[float], values: Any) -> list[tuple[Any, ...]]:
    """The worst sample of each molecule, of samples that count, by a plain sort."""
    value_of = dict(zip((1, 6, 8), values.tolist(), strict=True))
    worst: dict[str, tuple[Any, ...]] = {}
    for sample, weight in zip(samples, weights, strict=True):
        atoms = sample.atomic_numbers.tolist()
        residual = float(sample.energy_label) - sum(value_of[z] for z in atoms)
        found = (sample.mol_id, format_formula(atoms), int(sample.scf_iteration), float(sample.energy_label), residual)
        if weight > 0 and sample.has_energy_label and abs(residual) > abs(worst.get(sample.mol_id, (*found[:4], 0))[4]):
            worst[sample.mol_id] = found
    return sorted(worst.values(), key=lambda row: -abs(row[4]))[:10]


def test_worst_molecules_against_a_plain_sort(basis_info: BasisInfo, many_samples: list[OFData]) -> None:
    order = np.random.default_rng(0).permutation(len(many_samples))
    shuffled = [many_samples[i] for i in order]
    statistics = fit(shuffled, basis_info, FIELD_WEIGHERS)
    for key, name in FIELDS.items():
        reference = statistics[key].reference("linear_ref")
        expected = naive_worst(many_samples, [float(s[name]) for s in many_samples], reference.t_z)
        assert len(reference.worst) == len(expected) == 10
        for w, row in zip(reference.worst, expected, strict=True):
            assert (w.name, w.formula, w.scf_iteration, w.target) == row[:4]
            assert w.residual == pytest.approx(row[4], rel=1e-9, abs=1e-9)
            assert w.index is not None
            assert shuffled[w.index].mol_id == w.name


def test_samples_without_name_are_molecules_of_their_own(basis_info: BasisInfo, many_samples: list[OFData]) -> None:
    nameless = [s.clone() for s in many_samples[:12]]
    for sample in nameless:
        sample.pos = nameless[0].pos[:1].expand(len(sample.pos), 3)
        sample.has_energy_label = torch.tensor([True])
        del sample.mol_id, sample.scf_iteration
    found = fit(nameless, basis_info)["constant"]
    worst = found.reference("linear_ref").worst
    assert found.n_molecules == 12
    assert [w.name for w in worst] == [""] * 10
    assert len({w.index for w in worst}) == 10


def test_molecules_are_told_apart_by_name_elements_and_geometry(
    basis_info: BasisInfo, make_sample: Any, make_batch: Any
) -> None:
    one = make_sample(basis_info, np.random.default_rng(0), [8, 1, 1], "a")
    same, name, order, mirrored, moved = variants = [one.clone() for _ in range(5)]
    same.scf_iteration += 1
    same.coeffs += 1
    name.mol_id = "b"
    order.pos = order.pos.flip(0)
    mirrored.pos = -mirrored.pos
    moved.pos = moved.pos.clone()
    moved.pos[0, 0] = torch.nextafter(moved.pos[0, 0], torch.tensor(9.0).double())

    def keys(*samples: OFData) -> list[int]:
        return SampleBatch(make_batch(samples), "atomic_numbers", np.arange(len(samples))).molecules.tolist()

    first, second, *others = keys(one, *variants)
    assert first == second
    assert len({first, *others}) == 5
    zero, minus = (OFData(pos=sign * torch.zeros(3, 3, dtype=torch.float64)) for sign in (1, -1))
    one.pos, name.pos, name.mol_id = zero.pos, minus.pos, "a"
    assert len(set(keys(one, name))) == 1
    # frozen: ranks must agree
    sample = OFData.construct_new(BasisInfo([1], ["1x0e"]), [[0.1, 0.2, 0.3]], [1], torch.zeros(1), mol_id="a")
    assert keys(sample) == [6530721033060159750]
