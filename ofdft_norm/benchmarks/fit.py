"""The fit of dataset statistics: time, memory, processes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import zarr
from torch.multiprocessing.spawn import spawn
from torch_geometric.loader import DataLoader

import ofdft_norm.data
from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    GroundStateOnlySampleWeigher,
    HasEnergyLabelSampleWeigher,
    InitialGuessOnlySampleWeigher,
    MinSCFIterationSampleWeigher,
    OFDataset,
    ProjectGradient,
)
from ofdft_norm.benchmarks.comparison import Row, compare
from ofdft_norm.benchmarks.random_labels import (
    BASIS,
    StreamedMolecules,
    samples_in_memory,
    streamed_loader,
    write_label_files,
)
from ofdft_norm.data.label_files import read_molecule
from ofdft_norm.data.packed import META
from ofdft_norm.data.packed_dataset import PackedDataset
from ofdft_norm.statistics.cache import dataset_fingerprint, load_or_fit

ONE_WEIGHER: dict[str, Any] = {"atom_ref_fit_sample_weighers": [HasEnergyLabelSampleWeigher()]}
SEVEN_WEIGHERS: dict[str, Any] = {
    "atom_ref_fit_sample_weighers": [
        ConstantSampleWeigher(),
        HasEnergyLabelSampleWeigher(),
        MinSCFIterationSampleWeigher(3),
        GroundStateOnlySampleWeigher(),
    ],
    "initial_guess_sample_weighers": [
        ConstantSampleWeigher(),
        InitialGuessOnlySampleWeigher(),
        MinSCFIterationSampleWeigher(3),
    ],
}
QUIET: dict[str, Any] = {"progress": False, "residuals": False}


def loader_rows(repeats: int) -> list[Row]:
    """(a) Fit of samples in memory, and of their loader, over bare iteration of the loader.

    Args:
        repeats: Rounds, in each of which both sides are timed.
    """
    samples = samples_in_memory(1000, 8)
    loader = DataLoader(samples, batch_size=128, follow_batch=["coeffs"])

    def iterate() -> None:
        for _ in loader:
            pass

    rows = []
    for what, data, weighers, wanted in (
        ("samples, one weigher", samples, ONE_WEIGHER, "<= 1.5"),
        ("samples, four + three weighers", samples, SEVEN_WEIGHERS, "<= 2.5"),
        ("the loader, one weigher", loader, ONE_WEIGHER, ""),
        ("the loader, four + three weighers", loader, SEVEN_WEIGHERS, ""),
    ):
        fit = partial(DatasetStatistics.from_dataset, None, data, BASIS, **weighers, **QUIET)
        times = compare(fit, iterate, repeats)
        rows.append(Row(f"fit of 8,000 samples / bare loader: {what}", *times, wanted))
    return rows


def read_with_zarr(paths: Sequence[Path]) -> None:
    """Reads coefficients and gradients into NumPy, whole arrays, with the zarr library.

    Args:
        paths: Label files.
    """
    for path in paths:
        with zarr.storage.ZipStore(path, mode="r") as store:
            root: Any = zarr.open_group(store, mode="r", zarr_format=2)
            for name in ("coeffs", "grad_kin"):
                np.asarray(root[f"of_labels/spatial/{name}"][...])


def read_with_own_reader(paths: Sequence[Path]) -> None:
    """Reads all of a sample's fields with the package's reader.

    Args:
        paths: Label files.
    """
    for path in paths:
        read_molecule(path, "e_kin", "grad_kin")


def file_rows(repeats: int) -> list[Row]:
    """(b) Fit from label files over reading the same files.

    Args:
        repeats: Rounds, in each of which both sides are timed.
    """
    rows = []
    embedded = sorted((Path(ofdft_norm.data.__file__).parent / "embedded" / "labels").glob("*.zarr.zip"))
    with tempfile.TemporaryDirectory() as folder:
        written = write_label_files(Path(folder), 100, 10)
        for what, paths in (("QM9-sized files", written), ("embedded files", embedded)):
            if not paths:
                continue
            dataset = OFDataset(paths, BASIS, transform=ProjectGradient())
            fit = partial(DatasetStatistics.from_dataset, None, dataset, BASIS, **ONE_WEIGHER, **QUIET)
            times = compare(fit, partial(read_with_zarr, paths), repeats)
            rows.append(Row(f"fit / coeffs and gradients by zarr: {len(paths)} {what}", *times, "<= 0.7"))
            print(f"{what}: {1e3 * times[0] / len(paths):.2f} ms per file, {len(dataset) / times[0]:.0f} samples/s")
            times = compare(fit, partial(read_with_own_reader, paths), repeats)
            rows.append(Row(f"fit / all fields by the own reader: {len(paths)} {what}", *times, ""))
    return rows


def peak_memory(kind: str, n_samples: int) -> float:
    """Returns the peak memory [MiB] of a fresh process that fits streamed samples.

    Args:
        kind: ``molecules``, ``loader`` or the path of a packed set.
        n_samples: Number of samples.
    """
    code = f"from ofdft_norm.benchmarks.fit import fit_streamed; fit_streamed({kind!r}, {n_samples})"
    out = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return float(out.stdout.split()[-1])


def fit_streamed(kind: str, n_samples: int) -> None:
    """Fits streamed samples, or the packed set of that name, and prints this process's peak memory [MiB].

    Args:
        kind: ``molecules``, ``loader`` or the path of a packed set.
        n_samples: Number of samples; a packed set has its own.
    """
    warnings.simplefilter("ignore", UserWarning)

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            return streamed_loader(n_samples)

    kinds: dict[str, Callable[[], Any]] = {"molecules": lambda: StreamedMolecules(n_samples), "loader": Loader}
    dataset: Any = kinds[kind]() if kind in kinds else PackedDataset([kind])
    DatasetStatistics.from_dataset(None, dataset, BASIS, **ONE_WEIGHER, **QUIET)
    # not getrusage: its maximum is inherited from the process that started this one. Mapped files are the page cache's
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print((int(status["VmHWM"].split()[0]) - int(status["RssFile"].split()[0])) / 1024)


def memory_rows(repeats: int) -> list[Row]:
    """(c) Peak memory at 100,000 samples over 10,000.

    Args:
        repeats: Rounds, in each of which both sides are timed.
    """
    rows = []
    for kind in ("molecules", "loader"):
        large, small = peak_memory(kind, 100_000), peak_memory(kind, 10_000)
        rows.append(Row(f"peak memory, 100,000 / 10,000 samples: {kind}", large, small, large / small, "<= 1.1", "MiB"))
    return rows


def cache_rows(repeats: int) -> list[Row]:
    """(d) Reuse of cached statistics over fitting, on the embedded set.

    Args:
        repeats: Rounds, in each of which both sides are timed.
    """
    folder = Path(ofdft_norm.data.__file__).parent / "embedded"
    paths = sorted((folder / "labels").glob("*.zarr.zip"))
    basis = BasisInfo.from_json(folder / "basis_info.json")
    dataset = OFDataset(paths, basis, transform=ProjectGradient())

    def fit() -> DatasetStatistics:
        return DatasetStatistics.from_dataset(None, dataset, basis, progress=False)

    with tempfile.TemporaryDirectory() as cache:

        def reuse() -> None:
            _, reused = load_or_fit(dataset_fingerprint(dataset, basis, {}), Path(cache), fit)
            reuses.append(reused)

        reuses: list[bool] = []
        times = compare(reuse, fit, repeats)
    if not all(reuses[1:]):
        raise RuntimeError("the cache was not used")
    return [Row(f"reuse of cached statistics / fit: {len(paths)} embedded files", *times, "<= 0.1")]


def fit_as_rank(rank: int, world_size: int, init_file: str, folder: str, repeats: int, out: str) -> None:
    """Fits label files, or a packed set, as one of several processes; rank 0 writes its times.

    Args:
        rank: Number of this process.
        world_size: Number of processes.
        init_file: File over which they meet.
        folder: Folder of label files, or a packed set.
        repeats: Number of fits.
        out: Where rank 0 writes its times [s].
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=world_size)
    dataset: Any = (
        PackedDataset([folder])
        if (Path(folder) / META).exists()
        else OFDataset(sorted(Path(folder).glob("*.zarr.zip")), BASIS, transform=ProjectGradient())
    )
    times = []
    for _ in range(repeats + 1):
        if world_size > 1:
            dist.barrier()
        begin = time.perf_counter()
        DatasetStatistics.from_dataset(None, dataset, BASIS, **ONE_WEIGHER, **QUIET)
        times.append(time.perf_counter() - begin)
    if rank == 0:
        Path(out).write_text(" ".join(map(str, times[1:])))
    if world_size > 1:
        dist.destroy_process_group()


def speed_up(folder: Path, repeats: int) -> tuple[float, float, float]:
    """Fits a folder's labels by one process and by two, one thread each; returns both times and their ratio.

    Args:
        folder: Folder of label files, or a packed set.
        repeats: Twice the number of comparisons.
    """
    pairs = []
    for _ in range(max(repeats // 2, 1)):
        pair = []
        with tempfile.TemporaryDirectory() as meeting:
            for world_size in (1, 2):
                out = Path(meeting) / f"times_{world_size}"
                arguments = (world_size, f"{meeting}/init", str(folder), 3, str(out))
                spawn(fit_as_rank, args=arguments, nprocs=world_size)
                pair.append(min(map(float, out.read_text().split())))
        pairs.append(pair)
    one, two = (min(times) for times in zip(*pairs, strict=True))
    return one, two, one / two


def process_rows(repeats: int) -> list[Row]:
    """(e) One process over two, on label files, one thread each.

    Args:
        repeats: Rounds, in each of which both sides are timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_label_files(Path(folder), 300, 10)
        return [Row("fit from 300 files: one process / two", *speed_up(Path(folder), repeats), ">= 1.6")]


PARTS: dict[str, Callable[[int], list[Row]]] = {
    "loader": loader_rows,
    "files": file_rows,
    "memory": memory_rows,
    "cache": cache_rows,
    "processes": process_rows,
}


def measure(repeats: int, parts: Sequence[str]) -> list[Row]:
    """Measures some of `PARTS`.

    Args:
        repeats: Rounds, in each of which both sides are timed.
        parts: Names of `PARTS`.
    """
    warnings.simplefilter("ignore", UserWarning)  # the random molecules have no F
    return [row for part in parts for row in PARTS[part](repeats)]
