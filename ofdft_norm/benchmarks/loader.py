"""The training loader of one worker: from memory, packed labels and zip files, with and without normalising."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch_geometric.loader import DataLoader as PygDataLoader

from ofdft_norm import (
    AtomRef,
    DatasetStatistics,
    DimensionWiseRescaling,
    HasEnergyLabelSampleWeigher,
    Normalizer,
    OFDataset,
    ProjectGradient,
)
from ofdft_norm.benchmarks.comparison import Row, compare
from ofdft_norm.benchmarks.random_labels import BASIS, write_label_files
from ofdft_norm.data.packed_dataset import PackedDataset
from ofdft_norm.data.packed_writer import PackingPlan, pack_labels
from ofdft_norm.data.transformed_dataset import JoinSamples, TransformedDataset
from ofdft_norm.normalization.transforms import NormalizeTransform

BATCH_SIZE = 128


class Unchanged:
    """Stands where the normaliser would."""

    works_on_batches = True

    def __call__(self, sample: Any) -> Any:
        """Returns the sample."""
        return sample


def iterate(loader: Iterable[Any]) -> Callable[[], None]:
    """Returns a pass over a loader.

    Args:
        loader: What is passed over.
    """

    def run() -> None:
        for _ in loader:
            pass

    return run


def measure(repeats: int) -> list[Row]:
    """Measures loaders of the same 1,000 samples of QM9's size, in random order.

    Args:
        repeats: Rounds, in each of which both sides are timed.
    """
    warnings.simplefilter("ignore", UserWarning)  # the random molecules have no F
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_label_files(Path(folder), 100, 10)
        pack_labels(
            PackingPlan(paths, BASIS, pre_transforms=[ProjectGradient()]), Path(folder) / "packed", progress=False
        )
        zipped, packed = OFDataset(paths, BASIS, transform=ProjectGradient()), PackedDataset([Path(folder) / "packed"])
        return rows({"memory": list(zipped), "packed": packed, "zip": zipped}, repeats)


def rows(sources: dict[str, Any], repeats: int) -> list[Row]:
    """Compares the loaders of several sources.

    Args:
        sources: Data sets of the same samples, by name.
        repeats: Rounds, in each of which both sides are timed.
    """
    weighers = [HasEnergyLabelSampleWeigher()]
    statistics = DatasetStatistics.from_dataset(None, sources["packed"], BASIS, weighers, progress=False)
    normalize = NormalizeTransform(
        Normalizer(
            AtomRef.from_dataset_statistics(statistics, BASIS),
            DimensionWiseRescaling.from_dataset_statistics(statistics, BASIS),
        )
    )
    order = np.random.default_rng(0).permutation(len(sources["packed"])).tolist()

    def joined(source: str, transform: Any, n: int = len(order)) -> Callable[[], None]:
        dataset = TransformedDataset(sources[source], transform)
        return iterate(DataLoader(dataset, BATCH_SIZE, sampler=order[:n], collate_fn=JoinSamples(["coeffs"])))

    def one_by_one(source: str, n: int) -> Callable[[], None]:
        dataset = TransformedDataset(sources[source], normalize)
        return iterate(PygDataLoader(dataset, BATCH_SIZE, sampler=order[:n], follow_batch=["coeffs"]))

    measured = []
    for source in sources:
        n = 2 * BATCH_SIZE if source == "zip" else len(order)
        times = compare(joined(source, normalize, n), joined(source, Unchanged(), n), repeats)
        measured.append(Row(f"{source}: batches normalised / not normalised", *times, "<= 1.15"))
        before = compare(one_by_one(source, n), joined(source, normalize, n), repeats)
        measured.append(Row(f"{source}: samples normalised one by one / batches", *before, ""))
        rates = [f"{n / time:.0f}" for time in (before[0], times[0], times[1])]
        print(f"{source}: {rates[0]} samples/s one by one, {rates[1]} normalised in batches, {rates[2]} not normalised")
    n = 2 * BATCH_SIZE
    times = compare(one_by_one("zip", n), joined("packed", normalize, n), repeats)
    return [*measured, Row("one sample at a time from zip, as STRUCTURES25 does / packed", *times, ">= 20")]
