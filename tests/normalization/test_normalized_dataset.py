"""Normalised batches: cast, post-transformed, followed, kept in memory; and other classes of samples."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm import (
    AtomRef,
    DimensionWiseRescaling,
    LinearReferences,
    Normalizer,
    OFData,
    fit_linear_references,
)
from ofdft_norm.data.sample import JoinedDataset, join_samples
from ofdft_norm.errors import BatchError, NormalizationError
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch, NormalizedDataset, batch_dtype, cast_floats

FIELDS = ("coeffs", "ground_state_coeffs", "gradient_label", "dual_basis_integrals", "energy_label", "pos")


class Samples(JoinedDataset):
    """Samples in memory, counting what is read."""

    def __init__(self, samples: Sequence[OFData]) -> None:
        self.samples = list(samples)
        self.read: list[Any] = []

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        self.read += indices
        return join_samples([self.samples[i] for i in indices])


@pytest.fixture
def raw(basis_info: Any, make_sample: Any) -> Samples:
    rng = np.random.default_rng(0)
    return Samples([make_sample(basis_info, rng, mol_id=f"m{i}") for i in range(5)])


@pytest.fixture
def normalizer(basis_info: Any) -> Normalizer:
    rng, n = np.random.default_rng(1), basis_info.n_basis
    reference = AtomRef(rng.normal(size=3) * 1e5, 0.0, rng.normal(size=n))
    return Normalizer(reference, DimensionWiseRescaling(rng.normal(size=n), np.ones(n), np.ones(n)), 0.1)


@pytest.mark.parametrize("keep_in_memory", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_batches_are_normalised_once_and_all_but_the_reference_energy_is_cast(
    dtype: torch.dtype, keep_in_memory: bool, raw: Samples, normalizer: Normalizer
) -> None:
    before = copy.deepcopy(raw.samples)
    dataset = NormalizedDataset(raw, NormalizeBatch(normalizer, dtype), keep_in_memory)
    for _ in range(2):
        batch = dataset.__getitems__([3, 0, 3])
        exact = normalizer.normalize(join_samples([raw.samples[i] for i in (3, 0, 3)]))
        for field in FIELDS:
            assert batch[field].dtype == dtype
            assert torch.equal(batch[field], exact[field].to(dtype))
        assert torch.equal(batch.energy_reference, exact.energy_reference)
        assert batch.atomic_numbers.dtype == torch.int64
        assert batch.mol_id == ["m3", "m0", "m3"]
        assert torch.equal(batch.coeffs_batch, exact.coeffs_batch)
        assert torch.equal(dataset[0].coeffs, batch[1].coeffs)
        assert not any(value.requires_grad for _, value in batch if isinstance(value, Tensor))
        batch.coeffs.zero_()  # the receiver's own
    assert keep_in_memory == (len(raw.read) == 2)
    assert all(torch.equal(old.coeffs, new.coeffs) for old, new in zip(before, raw.samples, strict=True))
    assert pickle.loads(pickle.dumps(dataset))[1].mol_id == "m1"
    with pytest.raises(NormalizationError, match="normalised already"):
        NormalizeBatch(normalizer)(batch)


def test_single_samples_are_normalised_like_batches(raw: Samples, normalizer: Normalizer) -> None:
    normalize = NormalizeBatch(normalizer, torch.float32)
    single, batch = normalize(raw.samples[2]), normalize(join_samples(raw.samples))
    assert torch.equal(single.coeffs, batch[2].coeffs)
    assert torch.equal(single.energy_reference, batch[2].energy_reference)


def test_only_checking_leaves_batches_raw(raw: Samples, normalizer: Normalizer) -> None:
    dataset = NormalizedDataset(raw, NormalizeBatch(normalizer, only_check=True))
    assert torch.equal(dataset.__getitems__([1, 2])[0].coeffs, raw.samples[1].coeffs)
    raw.samples[1].coeffs[0] = torch.nan
    with pytest.raises(NormalizationError, match="'coeffs' has nan"):
        dataset.__getitems__([1, 2])


class AddEdges:
    """Fully connected graphs, and an index with one entry for each basis function."""

    def __call__(self, sample: Data) -> Data:
        assert "normalized" in sample
        n = len(sample.pos)
        sample.edge_index = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
        sample.function_number = torch.arange(len(sample.coeffs))
        return sample


def test_post_transforms_get_normalised_samples_and_fields_are_followed(raw: Samples, normalizer: Normalizer) -> None:
    follow = ["atomic_numbers", "function_number"]
    for keep in (False, True):
        dataset = NormalizedDataset(raw, NormalizeBatch(normalizer, torch.float32, [AddEdges()], follow), keep)
        batch = dataset.__getitems__([4, 1])
        sizes = [len(raw.samples[i].pos) for i in (4, 1)]
        expected = [
            AddEdges()(normalizer.normalize(raw.samples[i])).edge_index + offset
            for i, offset in ((4, 0), (1, sizes[0]))
        ]
        assert torch.equal(batch.edge_index, torch.cat(expected, dim=1))
        assert torch.equal(batch.atomic_numbers_batch, torch.arange(2).repeat_interleave(torch.tensor(sizes)))
        assert torch.equal(batch.function_number_batch, batch.coeffs_batch)
        assert batch.atomic_numbers_ptr.tolist() == [0, sizes[0], sum(sizes)]
        assert torch.equal(batch.function_number, torch.cat([torch.arange(int(n)) for n in batch.coeffs_ptr.diff()]))
    with pytest.raises(BatchError, match=r"no field 'nothing'.*data\.loader\.follow_batch"):
        NormalizeBatch(normalizer, follow_batch=["nothing"])(join_samples(raw.samples))


def test_post_transforms_that_work_on_batches_get_them(raw: Samples, normalizer: Normalizer) -> None:
    class Count:
        works_on_batches = True

        def __call__(self, batch: Any) -> Any:
            batch.n_samples = batch.num_graphs
            return batch

    assert NormalizeBatch(normalizer, post_transforms=[Count()])(join_samples(raw.samples)).n_samples == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_energies_keep_their_digits_through_low_precision(
    dtype: torch.dtype, raw: Samples, normalizer: Normalizer
) -> None:
    sample = raw.samples[0]
    sample.energy_label = normalizer.reference.energy(sample) + 1e-3
    low = NormalizeBatch(copy.deepcopy(normalizer).to(dtype), dtype)(sample)
    energy = normalizer.denormalize_energy(low.energy_label, low)
    tolerance = 1e-10 if dtype == torch.float32 else 1e-5
    assert float(energy) == pytest.approx(float(sample.energy_label), rel=0, abs=tolerance)


def test_positions_stay_exact_beside_cast_ones_where_coordinates_depend_on_them(raw: Samples) -> None:
    batch = join_samples(raw.samples)
    cast_floats(batch, torch.bfloat16)
    assert batch.pos.dtype == torch.bfloat16
    assert torch.equal(batch[3].pos_float64, raw.samples[3].pos)
    plain = OFData(a=torch.zeros(2, dtype=torch.float64), n=torch.arange(2), pos=torch.zeros(1, 3), mol_id="water")
    cast_floats(plain, torch.float64)
    assert (plain.a.dtype, plain.n.dtype, plain.mol_id) == (torch.float64, torch.int64, "water")
    assert "pos_float64" not in plain


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("float64", "16-true", torch.float64),
        ("auto", None, torch.float32),
        ("auto", "64-true", torch.float64),
        ("auto", "bf16-true", torch.bfloat16),
        ("auto", "16-true", torch.float16),
        ("auto", "bf16-mixed", torch.float32),
    ],
)
def test_the_dtype_follows_the_weights(name: str, precision: str | None, expected: torch.dtype) -> None:
    assert batch_dtype(name, precision) == expected


def test_what_float16_cannot_hold_is_an_error_that_says_what_to_choose() -> None:
    sample = OFData(z=torch.tensor([8, 8]), pos=torch.zeros(2, 3), energy_label=torch.tensor([-1e5]).double())
    with pytest.raises(
        NormalizationError,
        match=r"'energy_label' has values up to 100000.*data\.dtype.*data/reference.*data\.energy_scale",
    ):
        NormalizeBatch(Normalizer(), torch.float16)(sample)
    references = LinearReferences([0.0, *[-5e4] * 118])
    for normalizer, dtype in (
        (Normalizer(references), torch.float16),
        (Normalizer(energy_scale=100.0), torch.float16),
        (Normalizer(), torch.bfloat16),
    ):
        assert NormalizeBatch(normalizer, dtype)(sample).energy_label.isfinite().all()


# --- samples of another class than PyG's, with a `get` that needs a default, such as fairchem's `AtomicData` ---


class AtomicData:
    """Fields as attributes, and the methods that fairchem's class has."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__["names"] = set()
        for name, value in fields.items():
            self[name] = value

    def keys(self) -> set[str]:
        return self.__dict__["names"]

    def get(self, key: str, default: Any) -> Any:
        return getattr(self, key, default)

    def __contains__(self, key: str) -> bool:
        return key in self.keys()

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value)
        self.keys().add(key)

    def __getattr__(self, key: str) -> Any:
        raise AttributeError(key)

    def __delitem__(self, key: str) -> None:
        delattr(self, key)
        self.keys().remove(key)


def collate(samples: Sequence[AtomicData]) -> AtomicData:
    """Joins samples as fairchem's `atomicdata_list_to_batch` does."""
    first = samples[0]
    joined: dict[str, Any] = {
        name: torch.cat([s[name] for s in samples]) if isinstance(first[name], Tensor) else [s[name] for s in samples]
        for name in first.keys()
    }
    joined["batch"] = torch.repeat_interleave(torch.cat([s["natoms"] for s in samples]))
    return AtomicData(**joined)


REFERENCES = {1: -0.5, 8: -75.0}


def samples(n: int) -> list[AtomicData]:
    rng = np.random.default_rng(0)
    out = []
    for _ in range(n):
        z = torch.from_numpy(rng.choice([1, 8], rng.integers(1, 5)))
        energy = sum(REFERENCES[int(i)] for i in z) + 0.01 * rng.normal()
        fields = {"pos": torch.zeros(len(z), 3), "natoms": torch.tensor([len(z)]), "batch": torch.zeros_like(z)}
        energies = torch.tensor([energy], dtype=torch.float64)
        out.append(AtomicData(atomic_numbers=z, energy=energies, forces=torch.ones(len(z), 3), dataset=["a"], **fields))
    return out


def as_pyg(data: Sequence[AtomicData]) -> list[Data]:
    return [Data(z=s.atomic_numbers, energy=s.energy, forces=s.forces) for s in data]


def test_references_are_fitted_and_applied() -> None:
    data = samples(20)
    references = fit_linear_references(["energy"], data, batch_size=4)["energy"]
    expected = fit_linear_references(["energy"], as_pyg(data), batch_size=4)["energy"]
    assert torch.equal(references.element_references, expected.element_references)
    batch = collate(data)
    left = references.dereference(batch.energy, batch)
    assert float(left.abs().max()) < 0.1
    torch.testing.assert_close(references(left, batch), batch.energy, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [collate, lambda data: data[0]])
def test_the_normaliser_goes_there_and_back_and_leaves_its_argument_alone(make: Any) -> None:
    raw = make(samples(5))
    references = torch.tensor([0, -0.5, *[0] * 6, -75.0], dtype=torch.float64)
    normalizer = Normalizer(LinearReferences(references), None, 0.1, energy_field="energy", forces_field="forces")
    energy, names = raw.energy.clone(), set(raw.keys())
    out: Any = normalizer.normalize(raw)
    assert type(out) is AtomicData
    sums = torch.zeros_like(energy).index_add(0, raw.batch, references[raw.atomic_numbers])
    torch.testing.assert_close(out.energy, (energy - sums) / 0.1, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(out.forces, torch.ones_like(out.forces) / 0.1)
    torch.testing.assert_close(normalizer.denormalize_energy(out.energy, out), energy, rtol=0, atol=1e-10)
    back: Any = normalizer.denormalize(out)
    torch.testing.assert_close(back.energy, energy, rtol=0, atol=1e-10)
    assert set(back.keys()) == names == set(raw.keys())
    assert torch.equal(raw.energy, energy)
    with pytest.raises(NormalizationError, match="normalised already"):
        normalizer.normalize(out)
