"""Loaders' workers: the same samples whatever their settings, and no files that stay open."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ofdft_norm import OFData
from ofdft_norm.config import LabelFiles, PackedLabels
from ofdft_norm.data.packed_writer import PackingPlan, pack_labels
from tests import processes
from tests.lightning.conftest import Setting, TinyModel
from tests.lightning.test_datamodule import assert_equal_batches

# --- the same samples -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Six molecules, whose statistics are fitted once for all tests."""
    return Setting(tmp_path_factory.mktemp("shared"))


def samples_of(loader: Any, in_order: bool) -> list[OFData]:
    samples = [sample for batch in loader for sample in batch.to_data_list()]
    return samples if in_order else sorted(samples, key=lambda s: (s.mol_id, int(s.scf_iteration)))


@pytest.mark.parametrize(
    "options",
    [
        {"multiprocessing_context": "fork", "num_workers": 2},
        # a worker of the tests' server gets what a spawned one gets, pickled, and need not import torch anew
        {"multiprocessing_context": "forkserver", "persistent_workers": True, "prefetch_factor": 5},
        {"multiprocessing_context": "spawn"},
        {"in_order": False, "num_workers": 2, "prefetch_factor": 1},
        pytest.param(
            {"pin_memory": True},
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, for page-locked memory"),
        ),
    ],
    ids=lambda options: "-".join(name if value in (True, False) else str(value) for name, value in options.items()),
)
def test_workers_yield_the_same_samples(shared: Setting, options: dict[str, Any]) -> None:
    processes.context()
    in_order = options.get("in_order", True)
    expected = samples_of(shared.datamodule(loader={"shuffle": False}).train_dataloader(), in_order)
    loader = shared.datamodule(loader={"num_workers": 1, **options, "shuffle": False}).train_dataloader()
    assert len(loader) == -(-len(expected) // 8)
    for _ in range(2 if loader.persistent_workers else 1):
        batches = list(loader)
        assert all(batch.coeffs.is_pinned() == loader.pin_memory for batch in batches)
        for found, sample in zip(samples_of(batches, in_order), expected, strict=True):
            assert_equal_batches(found, sample)
    del loader


# --- open files -------------------------------------------------------------------------------------------------------


def open_files(folder: Path) -> list[int]:
    """Returns how many files below a folder this process has open, and how many it has mapped into memory."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the folder itself was one of them
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [sum(link.startswith(f"{folder}/") for link in links), sum(f"{folder}/" in line for line in maps)]


class CountOpenFiles:
    """Adds to each sample what is open where it is transformed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, sample: OFData) -> OFData:
        sample.open_files = torch.tensor([open_files(self.folder)])
        return sample


class Watching(TinyModel):
    """Keeps how many files were open where each step's samples were read, and how many are in its own process."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.open_files: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.open_files += [*batch.open_files.tolist(), open_files(self.folder)]
        return super().training_step(batch, batch_idx)


def test_workers_collect_no_open_files(shared: Setting) -> None:
    paths, folder = sorted(shared.labels.iterdir()), shared.folder
    for path in paths:
        with zipfile.ZipFile(path) as file:
            file.extractall(folder / "folders" / path.name.removesuffix(".zip"))
    packed = pack_labels(PackingPlan(paths, shared.source().basis()), folder / "packed", progress=False)
    sources = {
        "labels": shared.source(),
        "folders": LabelFiles(str(folder / "folders"), shared.basis_info),
        "packed": PackedLabels(str(packed)),
    }
    for name, source in sources.items():
        datamodule = shared.datamodule(
            source=source,
            pre_transforms=[CountOpenFiles(folder / name)],
            loader={"num_workers": 2, "persistent_workers": True},
        )
        model = Watching(folder / name)
        shared.trainer(max_epochs=3, limit_val_batches=0).fit(model, datamodule=datamodule)
        n_arrays = len(list(packed.glob("*.npy"))) if name == "packed" else 0  # opened once in each process
        assert len(model.open_files) == 3 * (37 + 5)  # samples, where they are read, and steps
        assert max(model.open_files) == [n_arrays, n_arrays]
