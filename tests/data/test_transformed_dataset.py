from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader as PygDataLoader

from ofdft_norm import AtomRef, DimensionWiseRescaling, Normalizer, OFData, OFDataset, ProjectGradient
from ofdft_norm.data.packed_dataset import PackedDataset
from ofdft_norm.data.packed_writer import PackingPlan, pack_labels
from ofdft_norm.data.transformed_dataset import CopyThen, JoinSamples, TransformedDataset
from ofdft_norm.normalization.transforms import NormalizeTransform

ORDER = [7, 0, 11, 3, 3, 5, 10, 1]


class Doubled:
    """A transform for single samples alone."""

    def __call__(self, sample: OFData) -> OFData:
        assert sample.energy_label.shape == (1,)
        sample.energy_label = 2 * sample.energy_label
        return sample


@pytest.fixture
def normalize(basis_info: Any) -> NormalizeTransform:
    rng = np.random.default_rng(0)
    n = basis_info.n_basis
    reference = AtomRef(torch.randn(basis_info.n_types).double(), torch.tensor(0.3).double(), torch.randn(n).double())
    rescaling = DimensionWiseRescaling(*(torch.from_numpy(rng.uniform(0.5, 2, size=n)) for _ in range(3)))
    return NormalizeTransform(Normalizer(reference, rescaling, 0.2), torch.float64)


@pytest.fixture(params=["label files", "packed", "memory", "transformed memory", "single transforms"])
def raw(request: pytest.FixtureRequest, labels: Any, basis_info: Any, tmp_path: Path) -> Any:
    """The same twelve samples behind several data sets; the last have another energy."""
    paths = labels.write_several()
    files = OFDataset(paths, basis_info, transform=ProjectGradient())
    if request.param == "packed":
        pack_labels(PackingPlan(paths, basis_info), tmp_path / "packed", progress=False)
        return PackedDataset([tmp_path / "packed"], transform=ProjectGradient())
    choices: dict[str, Callable[[], Any]] = {
        "label files": lambda: files,
        "memory": lambda: list(files),
        "transformed memory": lambda: TransformedDataset(
            list(OFDataset(paths, basis_info)), CopyThen(ProjectGradient())
        ),
        "single transforms": lambda: TransformedDataset(list(files), CopyThen(Doubled())),
    }
    return choices[request.param]()


def assert_close(a: Any, b: Any) -> None:
    assert set(a.keys()) == set(b.keys())
    for field in a.keys():
        if isinstance(a[field], torch.Tensor) and a[field].is_floating_point():
            torch.testing.assert_close(a[field], b[field], rtol=1e-13, atol=1e-12)
        else:
            assert torch.equal(a[field], b[field]) if isinstance(a[field], torch.Tensor) else a[field] == b[field]


@pytest.mark.parametrize("keep", [False, True])
def test_a_batch_is_its_normalised_samples_joined(keep: bool, raw: Any, normalize: NormalizeTransform) -> None:
    before = [sample.clone() for sample in raw]
    dataset = TransformedDataset(raw, normalize, keep)
    samples = [dataset[i] for i in ORDER]
    expected = [Batch.from_data_list(samples[i : i + 3], follow_batch=["coeffs"]) for i in range(0, 8, 3)]
    settings: dict[str, Any] = {"sampler": ORDER, "batch_size": 3}
    loaders = {
        "joined": DataLoader(dataset, collate_fn=JoinSamples(["coeffs"]), **settings),
        "pyg": PygDataLoader(dataset, follow_batch=["coeffs"], **settings),
        "subset": DataLoader(Subset(dataset, range(12)), collate_fn=JoinSamples(["coeffs"]), **settings),
        "samples": DataLoader([dataset[i] for i in range(12)], collate_fn=JoinSamples(["coeffs"]), **settings),
    }
    for loader in loaders.values():
        batches = list(loader)
        assert len(batches) == 3
        for a, b in zip(batches, expected, strict=True):
            assert type(a) is type(b)
            assert_close(a, b)
            for of_a, of_b in zip(a.to_data_list(), b.to_data_list(), strict=True):
                assert_close(of_a, of_b)
    for a, b in zip(raw, before, strict=True):
        assert_close(a, b)  # what is in memory stays as it is


def test_a_batch_is_normalised_once(raw: Any, normalize: NormalizeTransform, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = NormalizeTransform.forward

    def counted(self: NormalizeTransform, sample: Any) -> Any:
        calls.append(sample.energy_label.numel())
        return forward(self, sample)

    monkeypatch.setattr(NormalizeTransform, "forward", counted)
    dataset = TransformedDataset(raw, normalize)
    for _ in DataLoader(dataset, batch_size=5, collate_fn=JoinSamples(["coeffs"])):
        pass
    assert calls == [5, 5, 2]
    calls.clear()
    kept = TransformedDataset(raw, normalize, keep_in_memory=True)
    for _ in range(2):
        for _ in DataLoader(kept, batch_size=5, collate_fn=JoinSamples(["coeffs"])):
            pass
    assert calls == [1] * 12


def test_selected_samples_are_a_sequence(raw: Any, normalize: NormalizeTransform) -> None:
    dataset = TransformedDataset(raw, normalize)
    selected = dataset.__getitems__(ORDER)
    assert len(selected) == 8
    assert_close(selected[2], dataset[11])
    assert_close(selected[-1], dataset[1])
    assert [int(s.scf_iteration) for s in selected[1:3]] == [int(dataset[i].scf_iteration) for i in (0, 11)]
    assert_close(dataset.batch([-1], ["coeffs"]), dataset.batch([11], ["coeffs"]))


def test_kept_samples_are_not_pickled(raw: Any, normalize: NormalizeTransform) -> None:
    dataset = TransformedDataset(raw, normalize, keep_in_memory=True)
    size = len(pickle.dumps(dataset))
    _ = [dataset[i] for i in range(12)]
    assert len(pickle.dumps(dataset)) < size + 100
