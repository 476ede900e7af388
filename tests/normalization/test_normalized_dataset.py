"""Normalised batches: cast, post-transformed, followed, kept in memory; and other classes of samples."""

import copy
import pickle
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm import LinearReferences, Normalizer, OFData, fit_linear_references
from ofdft_norm.data.sample import JoinedDataset, join_samples
from ofdft_norm.errors import BatchError, NormalizationError
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch, NormalizedDataset

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
def raw(basis_info, make_sample) -> Samples:
    rng = np.random.default_rng(0)
    return Samples([make_sample(basis_info, rng, mol_id=f"m{i}") for i in range(5)])


@pytest.fixture
def normalizer(basis_info, make_normalizer) -> Normalizer:
    normalizer = make_normalizer(basis_info)
    normalizer.reference.t_z *= 1e3
    return normalizer


@pytest.mark.parametrize("keep_in_memory", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_batches_are_normalised_once_and_all_but_the_reference_energy_is_cast(dtype, keep_in_memory, raw, normalizer):
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
        single = dataset.transform(raw.samples[0])
        for field in ("coeffs", "energy_reference"):
            assert torch.equal(dataset[0][field], batch[1][field])
            assert torch.equal(single[field], batch[1][field])
        assert not any(value.requires_grad for _, value in batch if isinstance(value, Tensor))
        batch.coeffs.zero_()  # the receiver's own
    assert keep_in_memory == (len(raw.read) == 2)
    assert all(torch.equal(old.coeffs, new.coeffs) for old, new in zip(before, raw.samples, strict=True))
    assert pickle.loads(pickle.dumps(dataset))[1].mol_id == "m1"
    with pytest.raises(NormalizationError, match="normalised already"):
        NormalizeBatch(normalizer)(batch)


def test_only_checking_leaves_batches_raw(raw, normalizer):
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


def test_post_transforms_get_normalised_samples_and_fields_are_followed(raw, normalizer):
    follow = ["atomic_numbers", "function_number"]
    for keep in (False, True):
        dataset = NormalizedDataset(raw, NormalizeBatch(normalizer, torch.float32, [AddEdges()], follow), keep)
        batch = dataset.__getitems__([4, 1])
        expected = join_samples([AddEdges()(normalizer.normalize(raw.samples[i])) for i in (4, 1)])
        assert torch.equal(batch.edge_index, expected.edge_index)
        assert torch.equal(batch.atomic_numbers_batch, expected.batch)
        assert torch.equal(batch.atomic_numbers_ptr, expected.ptr)
        assert torch.equal(batch.function_number_batch, batch.coeffs_batch)
        assert torch.equal(batch.function_number, expected.function_number)
    with pytest.raises(BatchError, match=r"no field 'nothing'.*data\.loader\.follow_batch"):
        NormalizeBatch(normalizer, follow_batch=["nothing"])(join_samples(raw.samples))


@pytest.mark.parametrize("keep", [False, True])
def test_post_transforms_see_each_batch_also_of_samples_that_are_kept(keep, raw, normalizer):
    class Number:
        works_on_batches = True
        calls = 0

        def __call__(self, batch: Any) -> Any:
            self.calls += 1
            batch.call, batch.n_samples = self.calls, batch.num_graphs
            return batch

    dataset = NormalizedDataset(raw, NormalizeBatch(normalizer, post_transforms=[Number()]), keep)
    for call, samples in enumerate(([1, 2, 4], [1, 2], [1, 3]), 1):
        batch = dataset.__getitems__(samples)
        assert (batch.call, batch.n_samples) == (call, len(samples))
    assert raw.read == ([1, 2, 4, 3] if keep else [1, 2, 4, 1, 2, 1, 3])


def test_an_overflow_of_float16_is_refused():
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


class AtomicData(SimpleNamespace):
    """Fields as attributes, and the methods that fairchem's class has."""

    def keys(self) -> set[str]:
        return set(vars(self))

    def get(self, key: str, default: Any) -> Any:
        return getattr(self, key, default)

    def __contains__(self, key: str) -> bool:
        return key in vars(self)

    def __getitem__(self, key: str) -> Any:
        return vars(self)[key]

    def __setitem__(self, key: str, value: Any) -> None:
        vars(self)[key] = value

    def __delitem__(self, key: str) -> None:
        del vars(self)[key]


@pytest.mark.parametrize("n", [1, 5])
def test_references_and_normalisers_take_samples_of_another_class(n):
    rng, references = np.random.default_rng(0), torch.tensor([0, -0.5, *[0] * 6, -75.0], dtype=torch.float64)
    data = []
    for _ in range(20):
        z = torch.from_numpy(rng.choice([1, 8], rng.integers(1, 5)))
        energy, forces = references[z].sum()[None] + 0.01 * rng.normal(), torch.ones(len(z), 3)
        data.append(AtomicData(atomic_numbers=z, energy=energy, forces=forces, batch=torch.zeros_like(z)))
    fitted = fit_linear_references(["energy"], data, batch_size=4)["energy"]
    torch.testing.assert_close(fitted.element_references[[1, 8]], references[[1, 8]], rtol=0, atol=0.1)
    # joined as fairchem does
    raw = AtomicData(**{name: torch.cat([sample[name] for sample in data[:n]]) for name in data[0].keys()})
    raw.batch = torch.arange(n).repeat_interleave(torch.tensor([len(sample.forces) for sample in data[:n]]))
    left = fitted.dereference(raw.energy, raw)
    torch.testing.assert_close(fitted(left, raw), raw.energy, rtol=0, atol=1e-12)
    normalizer = Normalizer(LinearReferences(references), None, 0.1, energy_field="energy", forces_field="forces")
    energy, names = raw.energy.clone(), raw.keys()
    out: Any = normalizer.normalize(raw)
    assert type(out) is AtomicData
    sums = torch.zeros_like(energy).index_add(0, raw.batch, references[raw.atomic_numbers])
    torch.testing.assert_close(out.energy, (energy - sums) / 0.1, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(out.forces, torch.ones_like(out.forces) / 0.1)
    torch.testing.assert_close(normalizer.denormalize_energy(out.energy, out), energy, rtol=0, atol=1e-10)
    assert torch.equal(normalizer.denormalize_forces(out.forces, out), raw.forces.double())
    back: Any = normalizer.denormalize(out)
    torch.testing.assert_close(back.energy, energy, rtol=0, atol=1e-10)
    assert back.keys() == names == raw.keys()
    assert torch.equal(raw.energy, energy)
    with pytest.raises(NormalizationError, match="normalised already"):
        normalizer.normalize(out)
    raw.forces = raw.forces[:, :2]
    with pytest.raises(NormalizationError, match=r"'forces' has shape .*expected \(\d+, 3\)"):
        normalizer.normalize(raw)
