"""Loaders: the order of samples, the same samples from all workers, and a wrapped module's loaders as they are."""

import contextlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import _replace_dunder_methods
from lightning.pytorch.utilities.data import _update_dataloader
from torch.utils.data import BatchSampler, SequentialSampler, WeightedRandomSampler
from torch.utils.data import DataLoader as TorchLoader
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from ofdft_norm.data.dataset import OFDataset
from ofdft_norm.data.loader import LoaderConfig, wrap_loader
from ofdft_norm.data.pack import pack_labels
from ofdft_norm.data.packed import PackedDataset
from ofdft_norm.data.sample import collate_joined
from ofdft_norm.data.sources import SampleCheck
from tests import processes


@pytest.fixture
def datasets(paths: list[Path], basis_info: Any, tmp_path: Path) -> list[Any]:
    """Label files, and the same packed."""
    files = OFDataset(paths, basis_info)
    return [files, PackedDataset([pack_labels(files, tmp_path / "packed", progress=False)])]


# --- our loaders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packed", "options"),
    [
        # a worker of the tests' server gets what a spawned one gets, pickled, and need not import torch anew
        (False, {"multiprocessing_context": "forkserver", "persistent_workers": True, "prefetch_factor": 5}),
        (True, {"multiprocessing_context": "forkserver"}),
        (False, {"in_order": False, "num_workers": 2, "prefetch_factor": 1}),
        (True, {"num_workers": 0, "persistent_workers": True, "prefetch_factor": 2, "in_order": False}),
    ],
)
def test_workers_yield_the_same_samples(
    packed: bool, options: dict[str, Any], datasets: list[Any], assert_same_fields: Any
) -> None:
    processes.context()
    dataset, config = datasets[packed], LoaderConfig(batch_size=5, **{"num_workers": 1, **options})
    loader: Any = TorchLoader(dataset, collate_fn=collate_joined, **config.keywords())
    assert len(loader) == 3
    for _ in range(2 if loader.persistent_workers else 1):
        found = [sample for batch in loader for sample in batch.to_data_list()]
        if not config.in_order:
            found.sort(key=lambda s: ("wmf".index(s.mol_id[0]), int(s.scf_iteration)))
        for a, b in zip(found, dataset, strict=True):
            assert_same_fields(a, b)


def open_files(folder: Path) -> list[int]:
    """Returns how many files below a folder this process has open, and how many it has mapped into memory."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the folder itself was one of them
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [sum(link.startswith(f"{folder}/") for link in links), sum(f"{folder}/" in line for line in maps)]


@pytest.mark.parametrize("packed", [False, True])
def test_reading_collects_no_open_files(packed: bool, datasets: list[Any], tmp_path: Path) -> None:
    n_arrays = len(list((tmp_path / "packed").glob("*.npy"))) if packed else 0  # each opened once
    dataset = datasets[packed]
    del datasets[:]
    for _ in range(2):
        for _ in TorchLoader(dataset, 2, collate_fn=collate_joined):
            assert open_files(tmp_path) == [n_arrays, n_arrays]


# --- a wrapped module's loaders ---------------------------------------------------------------------------------------

CHECK = SampleCheck(energy="y", forces="force")


def check(sample: Any) -> Any:
    return CHECK(sample, "a sample")


def doubled(data: Any) -> Any:
    """Stands for normalisation: changes a field, adds one for each sample, needs another one, and has a copy."""
    data = data.__copy__()
    data.y = 2 * data.y
    data.seen = torch.full((data.num_graphs if hasattr(data, "ptr") else 1,), float(len(data.extra)))
    return data


def molecules(n: int = 11) -> list[Data]:
    rng = np.random.default_rng(0)
    out = []
    for number in range(n):
        n_atoms = int(rng.integers(1, 6))
        pos, force = (torch.from_numpy(rng.normal(size=(n_atoms, 3))) for _ in range(2))
        y, z = torch.tensor([rng.normal()]), torch.ones(n_atoms, dtype=torch.int64)
        out.append(Data(z=z, pos=pos, extra=pos.float(), force=force, y=y, number=number))
    return out


def numbers(samples: Sequence[Any]) -> list[tuple[int, float]]:
    """A collate function of another package."""
    assert all(type(sample) in (Data, AtomicData) for sample in samples)
    return [(sample.number, float(sample.y)) for sample in samples]


class AtomicData:
    """A sample of another class with fields, as MACE's, whose `keys` is a list."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    @property
    def keys(self) -> list[str]:
        return list(self.__dict__)


def loaders() -> dict[str, Any]:
    data = molecules()
    sampler = WeightedRandomSampler(torch.arange(11.0), 9, generator=torch.Generator().manual_seed(3))
    keys = {"follow_batch": ["force"], "exclude_keys": ["extra"]}
    return {
        "sampler": DataLoader(data, batch_size=2, sampler=sampler, drop_last=True, **keys),
        "batch_sampler": DataLoader(data, batch_sampler=BatchSampler([4, 2, 8, 1], 3, False)),
        "workers": DataLoader(data, batch_size=4, num_workers=1, persistent_workers=True),
    }


@pytest.mark.parametrize("kind", ["sampler", "batch_sampler", "workers"])
def test_batches_are_theirs_with_the_functions_applied(kind: str) -> None:
    theirs, expected = loaders()[kind], list(loaders()[kind])
    found = list(wrap_loader(wrap_loader(theirs, check=check), doubled, doubled))
    assert len(found) == len(theirs)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(b.number, a.number)
        assert torch.equal(b.y, 4 * a.y.double())
        assert set(b.keys()) - set(a.keys()) == {"seen"}
        assert ("extra" in b) == ("extra" in a)
        assert a.num_graphs == b.num_graphs
        if "force_batch" in a:
            assert torch.equal(b.force_batch, a.force_batch)
    assert len(next(iter(theirs)).y) == expected[0].num_graphs  # theirs still works, without the functions


@pytest.mark.parametrize("kind", [Data, AtomicData])
def test_another_collate_function_gets_changed_samples_of_its_own_class(kind: Any) -> None:
    data: Any = [kind(**sample.to_dict()) for sample in molecules()]
    theirs, expected = TorchLoader(data, batch_size=4, collate_fn=numbers), [2 * float(m.y) for m in data]
    found = [entry for batch in wrap_loader(theirs, doubled, check=check) for entry in batch]
    assert [number for number, _ in found] == list(range(11))
    np.testing.assert_allclose([y for _, y in found], expected)
    np.testing.assert_allclose([2 * float(sample.y) for sample in data], expected)  # not changed
    assert not wrap_loader(theirs).collate_fn.joins


class OwnLoader(DataLoader):
    """A loader class with an argument of its own."""

    def __init__(self, dataset: Any, scale: float, **options: Any) -> None:
        self.scale = scale
        super().__init__(dataset, **options)

    def __iter__(self) -> Any:
        return ((self.scale, batch) for batch in super().__iter__())


@pytest.mark.parametrize("inside_hook", [True, False])
@pytest.mark.parametrize("kind", ["pyg", "torch", "own"])
def test_a_loader_that_lightning_makes_anew_for_several_processes_keeps_the_functions(
    kind: str, inside_hook: bool
) -> None:
    by_kind: dict[str, Any] = {"own": {"scale": 3.0}, "torch": {"collate_fn": numbers}}
    options = by_kind.get(kind, {})
    make = partial({"own": OwnLoader, "torch": TorchLoader, "pyg": DataLoader}[kind], molecules(), batch_size=4)
    theirs = None if inside_hook else make(**options)
    with _replace_dunder_methods(TorchLoader, "dataset"), _replace_dunder_methods(BatchSampler):
        wrapped = wrap_loader(wrap_loader(theirs or make(**options), check=check), doubled)
    again = _update_dataloader(wrapped, SequentialSampler(range(6)))
    batches: list[Any] = list(again)
    if kind == "own":
        assert [scale for scale, _ in batches] == [3.0, 3.0]
        batches = [batch for _, batch in batches]
    found = [y for batch in batches for y in (batch.y.tolist() if kind != "torch" else [y for _, y in batch])]
    np.testing.assert_allclose(found, [2 * float(m.y) for m in molecules(6)])
    assert type(again).__name__ == {"own": "OwnLoader"}.get(kind, "DataLoader")
