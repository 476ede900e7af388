"""Packed labels: reading samples and batches, packing, the fit over them."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ofdft_norm import DatasetStatistics, OFDataset
from ofdft_norm.benchmarks.comparison import Row, compare
from ofdft_norm.benchmarks.fit import ONE_WEIGHER, QUIET, SEVEN_WEIGHERS, peak_memory, speed_up
from ofdft_norm.benchmarks.random_labels import BASIS, write_label_files, write_packed_set
from ofdft_norm.data.label_files import read_molecule
from ofdft_norm.data.packed_dataset import PackedDataset
from ofdft_norm.data.packed_writer import PackingPlan, pack_labels

N_MOLECULES, N_ITERATIONS = 300, 10


def reading_rows(folder: Path, paths: Sequence[Path], repeats: int) -> list[Row]:
    """Random samples from packed labels and from zip files; batches of 128 and copies of as many bytes.

    Args:
        folder: Folder of packed sets.
        paths: Label files.
        repeats: Rounds, in each of which both sides are timed.
    """
    zipped, packed = OFDataset(paths, BASIS), PackedDataset([folder / "packed"])
    order = np.random.default_rng(0).permutation(len(packed))

    def samples(dataset: Any, indices: Any) -> Callable[[], Any]:
        return lambda: [dataset[int(i)] for i in indices]

    times = compare(samples(zipped, order[:50]), samples(packed, order[:50]), repeats)
    many = compare(samples(packed, order[:1000]), samples(packed, order[:1000]), repeats)
    print(f"a random sample: {20 * times[0]:.2f} ms from zip files, {1e3 * many[0]:.0f} us packed")
    batches = [order[first : first + 128] for first in range(0, len(order) - 127, 128)]
    copies = [[v for v in packed.batch(b).to_dict().values() if isinstance(v, torch.Tensor)] for b in batches]
    n_bytes = sum(value.nbytes for batch in copies for value in batch)

    def each(action: Callable[[Any], Any], items: Sequence[Any]) -> Callable[[], None]:
        def run() -> None:
            for item in items:  # results are dropped, as training drops batches
                action(item)

        return run

    joined = compare(each(packed.batch, batches), each(lambda batch: [v.clone() for v in batch], copies), repeats)
    print(f"batches of 128: {1e-9 * n_bytes / joined[0]:.1f} GB/s joined, {1e-9 * n_bytes / joined[1]:.1f} GB/s copied")
    return [
        Row("50 random samples: zip files / packed", *times, ">= 20"),
        Row(f"{len(batches)} random batches of 128: packed / copy of the bytes", *joined, "<= 2"),
    ]


def packing_rows(folder: Path, paths: Sequence[Path], repeats: int) -> list[Row]:
    """Packing over reading the label files.

    Args:
        folder: Folder of packed sets.
        paths: Label files.
        repeats: Rounds, in each of which both sides are timed.
    """
    n = 0

    def pack() -> None:
        nonlocal n
        n += 1
        pack_labels(PackingPlan(paths[:100], BASIS), folder / f"packed_{n}", progress=False)

    times = compare(pack, lambda: [read_molecule(path, "e_kin", "grad_kin") for path in paths[:100]], min(repeats, 5))
    print(f"packing: {1e3 * times[0] / 100:.2f} ms for each molecule of {N_ITERATIONS} samples")
    return [Row("packing 100 files / reading them", *times, "")]


def numpy_sums(packed: PackedDataset) -> None:
    """Sums all that a fit reads, block by block, as NumPy does it.

    Args:
        packed: The packed set.
    """
    arrays = packed.sets[0].arrays
    for name in ("coeffs", "grad_kin"):
        values = arrays[name]
        for first in range(0, len(values), 2**20):
            block = values[first : first + 2**20]
            block.sum(), np.square(block).sum(), np.abs(block).max()
    for name in ("dual_basis_integrals", "ground_state_coeffs", "e_kin"):
        arrays[name].sum()


def fit_rows(folder: Path, paths: Sequence[Path], repeats: int) -> list[Row]:
    """The fit over NumPy's sums of the same bytes; storing the statistics of seven weighers over that fit.

    Args:
        folder: Folder of packed sets.
        paths: Label files.
        repeats: Rounds, in each of which both sides are timed.
    """
    packed = PackedDataset([folder / "packed"])

    def fit(weighers: dict[str, Any], path: Path | None = None) -> DatasetStatistics:
        return DatasetStatistics.from_dataset(path, packed, BASIS, **weighers, **QUIET)

    statistics = fit(SEVEN_WEIGHERS)
    rows = []
    for what, weighers in (("one weigher", ONE_WEIGHER), ("four + three weighers", SEVEN_WEIGHERS)):
        times = compare(partial(fit, weighers), lambda: numpy_sums(packed), repeats)
        wanted = "<= 2" if weighers is ONE_WEIGHER else ""
        rows.append(Row(f"fit of {len(packed)} packed samples / NumPy's sums: {what}", *times, wanted))
    times = compare(
        lambda: statistics.save_to(folder / "statistics.zarr.zip", overwrite=True), lambda: fit(SEVEN_WEIGHERS), repeats
    )
    return [*rows, Row("store the statistics of seven weighers / fit them", *times, "<= 0.1 s")]


def process_rows(folder: Path, paths: Sequence[Path], repeats: int) -> list[Row]:
    """One process over two, one thread each.

    Args:
        folder: Folder of packed sets.
        paths: Label files.
        repeats: Rounds, in each of which both sides are timed.
    """
    packed = write_packed_set(folder / "large", 10 * N_MOLECULES, N_ITERATIONS)
    return [Row("fit of packed labels: one process / two", *speed_up(packed, repeats), ">= 1.8")]


def memory_rows(folder: Path, paths: Sequence[Path], repeats: int) -> list[Row]:
    """Peak memory of the fit of 100,000 samples of about 130 functions over that of 10,000, each in a fresh process.

    Args:
        folder: Folder of packed sets.
        paths: Label files.
        repeats: Rounds, in each of which both sides are timed.
    """
    large, small = (
        peak_memory(str(write_packed_set(folder / f"packed_{n}", n // 10, 10, (1, 1))), n) for n in (100_000, 10_000)
    )
    return [
        Row("peak memory of the packed fit, 100,000 / 10,000 samples", large, small, large / small, "<= 1.1", "MiB")
    ]


PARTS: dict[str, Callable[[Path, Sequence[Path], int], list[Row]]] = {
    "reading": reading_rows,
    "packing": packing_rows,
    "fit": fit_rows,
    "processes": process_rows,
    "memory": memory_rows,
}


def measure(repeats: int, parts: Sequence[str] = tuple(PARTS)) -> list[Row]:
    """Measures some of `PARTS` on random labels of QM9's size.

    Args:
        repeats: Rounds, in each of which both sides are timed.
        parts: Names of `PARTS`.
    """
    warnings.simplefilter("ignore", UserWarning)  # the random molecules have no F
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_label_files(Path(folder), N_MOLECULES, N_ITERATIONS)
        pack_labels(PackingPlan(paths, BASIS), Path(folder) / "packed", progress=False)
        return [row for part in parts for row in PARTS[part](Path(folder), paths, repeats)]
