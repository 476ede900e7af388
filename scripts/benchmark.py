"""Measures the package on this machine; every number is a ratio of two things timed side by side.

    python scripts/benchmark.py fit                  # the statistics fit: time, memory, processes
    python scripts/benchmark.py fit --only memory    # one part of it
    python scripts/benchmark.py normalize            # normalising a batch: share of a training step, GPU bandwidth
    python scripts/benchmark.py references           # the fit of linear element references

Runs of the two things compared alternate, and the median of their ratios counts, so that a machine that is busy with
other work distorts little.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import zarr
from torch_geometric.data import Batch, Data
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
    OFData,
    OFDataset,
    OFDFTDataModule,
    ProjectGradient,
)
from ofdft_norm.config import AtomicReference, Rescaling, Statistics
from ofdft_norm.data.label_files import read_molecule
from ofdft_norm.data.label_writer import write_label_file
from ofdft_norm.models import DensityModule
from ofdft_norm.normalization.build import build_normalizer
from ofdft_norm.normalization.fit_linear_references import fit_linear_references
from ofdft_norm.normalization.transforms import NormalizeTransform

BASIS = BasisInfo(
    [1, 6, 7, 8, 9],
    ["6x0e+3x1o+1x2e", "11x0e+8x1o+7x2e+3x3o+2x4e", *["11x0e+8x1o+7x2e+4x3o+2x4e"] * 3],
)
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


class Row(NamedTuple):
    """One line of the table: what was compared, the medians of both times [s], of their ratio, and what is wanted."""

    what: str
    measured: float
    reference: float
    ratio: float
    wanted: str
    unit: str = "s"


def compare(measured: Callable[[], Any], reference: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Times two functions in turn; returns the medians of both times and of their ratio."""
    times = []
    for _ in range(repeats + 1):
        pair = []
        for function in (measured, reference):
            begin = time.perf_counter()
            function()
            pair.append(time.perf_counter() - begin)
        times.append(pair)
    times = times[1:]  # the first round warms caches up
    return median(m for m, _ in times), median(r for _, r in times), median(m / r for m, r in times)


# --- data -------------------------------------------------------------------------------------------------------------


def qm9_sized_molecule(rng: np.random.Generator, n_iterations: int) -> dict[str, np.ndarray]:
    """Draws labels of 9 H and 9 heavy atoms, about 1,180 functions; the last iteration is the ground state."""
    numbers = np.concatenate([rng.choice([6, 7, 8], 9, p=[0.8, 0.1, 0.1]), np.ones(9, dtype=np.int64)])
    n = int(BASIS.basis_dim_per_atom[BASIS.atom_indices(numbers)].sum())
    return {
        "atomic_numbers": numbers,
        "positions": rng.normal(size=(18, 3)) * 3,
        "coeffs": rng.normal(size=(n_iterations, n)),
        "gradient": rng.normal(size=(n_iterations, n)),
        "integrals": rng.uniform(0.1, 1, size=n),
        "energy": rng.normal(size=n_iterations) - 400,
    }


def samples_in_memory(n_molecules: int, n_iterations: int) -> list[OFData]:
    """Returns the samples of random molecules, iteration 0 without label."""
    rng = np.random.default_rng(0)
    samples = []
    for m in range(n_molecules):
        labels = qm9_sized_molecule(rng, n_iterations)
        for i in range(n_iterations):
            samples.append(
                OFData.construct_new(
                    BASIS,
                    labels["positions"],
                    labels["atomic_numbers"],
                    labels["coeffs"][i],
                    labels["coeffs"][-1],
                    labels["gradient"][i],
                    labels["energy"][i],
                    i > 0,
                    labels["integrals"],
                    f"molecule {m}",
                    i,
                )
            )
    return samples


def write_label_files(folder: Path, n_molecules: int, n_iterations: int) -> list[Path]:
    """Writes random label files of QM9's size, in the package's own layout."""
    rng = np.random.default_rng(0)
    paths = []
    for m in range(n_molecules):
        labels = qm9_sized_molecule(rng, n_iterations)
        labelled = np.arange(n_iterations) > 0
        path = folder / f"{m:06d}.zarr.zip"
        write_label_file(
            path,
            mol_id=f"molecule {m}",
            atomic_numbers=labels["atomic_numbers"],
            positions=labels["positions"],
            coeffs=labels["coeffs"],
            gradients={"grad_kin": labels["gradient"] * labelled[:, None]},
            dual_basis_integrals=labels["integrals"],
            energies={"e_kin": labels["energy"] * labelled},
            ks_energies={"e_kin": labels["energy"] * labelled},
            has_energy_label=labelled,
        )
        paths.append(path)
    return paths


class StreamedMolecules:
    """A label data set whose molecules are drawn when they are asked for."""

    def __init__(self, n_samples: int, n_iterations: int = 10) -> None:
        self.n_molecules = n_samples // n_iterations
        self.sample_offsets = np.arange(self.n_molecules + 1) * n_iterations
        self._batch = Batch.from_data_list(samples_in_memory(1, n_iterations), follow_batch=["coeffs"])

    def molecule_batch(self, molecule: int) -> OFData:
        """Returns the samples of one molecule; its labels differ from the others' by a shift."""
        batch = self._batch.clone()
        batch.coeffs = batch.coeffs + 1e-4 * molecule
        batch.energy_label = batch.energy_label + 1e-3 * molecule
        return batch


def streamed_loader(n_samples: int) -> Iterator[Any]:
    """Yields the same samples as `StreamedMolecules`, 130 to a batch, as a loader would."""
    molecules = StreamedMolecules(n_samples)
    for m in range(0, molecules.n_molecules, 13):
        batches = [molecules.molecule_batch(k) for k in range(m, min(m + 13, molecules.n_molecules))]
        yield Batch.from_data_list([s for b in batches for s in b.to_data_list()], follow_batch=["coeffs"])


# --- the parts of `fit` -----------------------------------------------------------------------------------------------


class JoiningLoader(DataLoader):
    """Does as PyG's, but a fit cannot know: it takes the batches as they come, with all their fields joined."""


def loader_rows(repeats: int) -> list[Row]:
    """(a) Fit of samples in memory over bare iteration of the same loader."""
    samples = samples_in_memory(1000, 8)
    plain, joining = (c(samples, batch_size=128, follow_batch=["coeffs"]) for c in (DataLoader, JoiningLoader))

    def iterate() -> None:
        for _ in plain:
            pass

    rows = []
    for what, loader, weighers, wanted in (
        ("one weigher", plain, ONE_WEIGHER, "<= 1.3"),
        ("four + three weighers", plain, SEVEN_WEIGHERS, "<= 2.0"),
        ("one weigher, joined batches", joining, ONE_WEIGHER, ""),
        ("four + three weighers, joined batches", joining, SEVEN_WEIGHERS, ""),
    ):
        times = compare(
            lambda data=loader, w=weighers: DatasetStatistics.from_dataset(None, data, BASIS, **w, **QUIET),
            iterate,
            repeats,
        )
        rows.append(Row(f"fit of 8,000 samples / bare loader: {what}", *times, wanted))
    return rows


def read_with_zarr(paths: Sequence[Path]) -> None:
    """Reads coefficients and gradients into NumPy, whole arrays, with the zarr library."""
    for path in paths:
        with zarr.storage.ZipStore(path, mode="r") as store:
            root = zarr.open_group(store, mode="r", zarr_format=2)
            for name in ("coeffs", "grad_kin"):
                np.asarray(root[f"of_labels/spatial/{name}"][...])


def read_with_own_reader(paths: Sequence[Path]) -> None:
    """Reads all of a sample's fields with the package's reader."""
    for path in paths:
        read_molecule(path, "e_kin", "grad_kin")


def file_rows(repeats: int) -> list[Row]:
    """(b) Fit from label files over reading the same files."""
    rows = []
    embedded = sorted((Path(ofdft_norm.data.__file__).parent / "embedded" / "labels").glob("*.zarr.zip"))
    with tempfile.TemporaryDirectory() as folder:
        written = write_label_files(Path(folder), 100, 10)
        for what, paths in (("QM9-sized files", written), ("embedded files", embedded)):
            if not paths:
                continue
            dataset = OFDataset(paths, BASIS, transform=ProjectGradient())
            fit = lambda d=dataset: DatasetStatistics.from_dataset(None, d, BASIS, **ONE_WEIGHER, **QUIET)  # noqa: E731
            times = compare(fit, lambda p=paths: read_with_zarr(p), repeats)
            rows.append(Row(f"fit / coeffs and gradients by zarr: {len(paths)} {what}", *times, "<= 1.2"))
            print(f"{what}: {1e3 * times[0] / len(paths):.2f} ms per file, {len(dataset) / times[0]:.0f} samples/s")
            times = compare(fit, lambda p=paths: read_with_own_reader(p), repeats)
            rows.append(Row(f"fit / all fields by the own reader: {len(paths)} {what}", *times, ""))
    return rows


def peak_memory(kind: str, n_samples: int) -> float:
    """Returns the peak memory [MiB] of a fresh process that fits streamed samples."""
    code = f"from benchmark import fit_streamed; fit_streamed({kind!r}, {n_samples})"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(out.stdout.split()[-1])


def fit_streamed(kind: str, n_samples: int) -> None:
    """Fits streamed samples and prints this process's peak memory [MiB]."""
    warnings.simplefilter("ignore", UserWarning)

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            return streamed_loader(n_samples)

    dataset: Any = StreamedMolecules(n_samples) if kind == "molecules" else Loader()
    DatasetStatistics.from_dataset(None, dataset, BASIS, **ONE_WEIGHER, **QUIET)
    # not getrusage: its maximum is inherited from the process that started this one
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)


def memory_rows(repeats: int) -> list[Row]:
    """(c) Peak memory at 100,000 samples over 10,000."""
    rows = []
    for kind in ("molecules", "loader"):
        large, small = peak_memory(kind, 100_000), peak_memory(kind, 10_000)
        rows.append(Row(f"peak memory, 100,000 / 10,000 samples: {kind}", large, small, large / small, "<= 1.1", "MiB"))
    return rows


def cache_rows(repeats: int) -> list[Row]:
    """(d) Reuse of cached statistics over fitting, on the embedded set."""
    from ofdft_norm.statistics.cache import dataset_fingerprint, load_or_fit

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
    """Fits label files as one of several processes; rank 0 writes its times."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=world_size)
    dataset = OFDataset(sorted(Path(folder).glob("*.zarr.zip")), BASIS, transform=ProjectGradient())
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


def process_rows(repeats: int) -> list[Row]:
    """(e) One process over two, on label files, one thread each."""
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        write_label_files(Path(folder), 300, 10)
        for _ in range(max(repeats // 2, 1)):
            pair = []
            for world_size in (1, 2):
                init, out = Path(folder) / "init", Path(folder) / "times"
                init.unlink(missing_ok=True)
                arguments = (world_size, str(init), folder, 2, str(out))
                torch.multiprocessing.spawn(fit_as_rank, args=arguments, nprocs=world_size)
                pair.append(median(map(float, out.read_text().split())))
            pairs.append(pair)
    one, two = (median(times) for times in zip(*pairs, strict=True))
    return [Row("fit from 300 files: one process / two", one, two, median(a / b for a, b in pairs), ">= 1.6")]


FIT_PARTS: dict[str, Callable[[int], list[Row]]] = {
    "loader": loader_rows,
    "files": file_rows,
    "memory": memory_rows,
    "cache": cache_rows,
    "processes": process_rows,
}


def run_fit(arguments: argparse.Namespace) -> list[Row]:
    """Runs the parts of the subcommand `fit`."""
    warnings.simplefilter("ignore", UserWarning)  # the random molecules have no F
    parts = [arguments.only] if arguments.only else list(FIT_PARTS)
    return [row for part in parts for row in FIT_PARTS[part](arguments.repeats)]


# --- `references` -----------------------------------------------------------------------------------------------------


def run_references(arguments: argparse.Namespace) -> list[Row]:
    """Fit of linear references over bare iteration of a PyG loader: molecules of 20 atoms in memory."""
    rng = np.random.default_rng(0)
    numbers = rng.choice([1, 6, 7, 8, 9], (20_000, 20), p=[0.5, 0.3, 0.1, 0.08, 0.02])
    data = [
        Data(atomic_numbers=torch.tensor(z), pos=torch.rand(len(z), 3), energy=torch.tensor([-5.0 * z.sum()]).double())
        for z in numbers
    ]
    loader = DataLoader(data, batch_size=32, shuffle=True)

    def iterate() -> None:
        for _ in loader:
            pass

    rows = []
    for log_metrics in (True, False):
        times = compare(
            lambda m=log_metrics: fit_linear_references(["energy"], data, 32, log_metrics=m), iterate, arguments.repeats
        )
        rows.append(Row(f"fit_linear_references(log_metrics={log_metrics}) / bare loader", *times, "<= 1.3"))
        print(f"log_metrics={log_metrics}: {len(data) / times[0]:.0f} molecules/s, bare {len(data) / times[1]:.0f}")
    return rows


# --- `normalize` ------------------------------------------------------------------------------------------------------


def run_normalize(arguments: argparse.Namespace) -> list[Row]:
    """Runs the parts of the subcommand `normalize`: the second one where there is a GPU."""
    warnings.simplefilter("ignore", UserWarning)  # the random molecules have no F
    torch.set_num_threads(1)  # as configs/train.yaml
    rows = step_rows(arguments.repeats)
    if torch.cuda.is_available():
        return rows + bandwidth_rows(arguments.repeats)
    print("no GPU: the bandwidth of normalising on one is not measured")
    return rows


def step_rows(repeats: int) -> list[Row]:
    """Normalising an epoch's batches, as `apply=batch` does, over the worked example's training steps on them."""
    datamodule = OFDFTDataModule(statistics=Statistics(progress=False), apply="batch")
    raw = list(datamodule.train_dataloader())
    normalize = NormalizeTransform(datamodule.normalizer, torch.float32, check_elements=False)
    batches = [normalize(batch) for batch in raw]
    model = DensityModule()
    model.normalizer = datamodule.normalizer
    model.build(datamodule.basis_info)
    optimizer = torch.optim.AdamW(model.parameters())

    def steps() -> None:
        for batch in batches:
            optimizer.zero_grad()
            model.loss(batch, *model(batch))["loss"].backward()
            optimizer.step()

    times = compare(lambda: [normalize(batch) for batch in raw], steps, repeats)
    return [Row(f"normalise {len(raw)} batches of 32 embedded samples / training steps", *times, "< 0.02")]


def bandwidth_rows(repeats: int) -> list[Row]:
    """Compiled normalisation on a GPU over a copy of as many bytes: about 1.2e6 coefficients."""
    samples = samples_in_memory(8, 8)
    statistics = DatasetStatistics.from_dataset(None, samples, BASIS, **ONE_WEIGHER, **QUIET)
    normalizer = build_normalizer(statistics, BASIS, AtomicReference(), Rescaling()).cuda()
    raw = Batch.from_data_list(samples * 16, follow_batch=["coeffs"]).cuda()
    fields, n = normalizer.inputs(raw), len(raw.energy_label)
    compiled = torch.compile(normalizer.normalize_fields, fullgraph=True)
    read = sum(value.nbytes for value in fields.values())
    written = sum(value.nbytes for value in compiled(fields, n).values())
    source = torch.empty((read + written) // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def timed(action: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(20):
                action()
            torch.cuda.synchronize()

        return run

    times = compare(timed(lambda: compiled(fields, n)), timed(lambda: target.copy_(source)), repeats)
    normalising, copying = (20e-9 * (read + written) / time for time in times[:2])
    print(f"{normalising:.0f} GB/s normalising, {copying:.0f} GB/s copying")
    return [Row("normalise on the GPU / copy of as many bytes, 20 times", *times, "<= 2")]


def print_table(rows: Sequence[Row]) -> None:
    """Prints the rows as a table."""
    width = max(len(row.what) for row in rows)
    print(f"{'':{width}}  {'measured':>13}  {'reference':>13}  {'ratio':>7}  wanted")
    for row in rows:
        times = f"{row.measured:9.3f} {row.unit:<3}  {row.reference:9.3f} {row.unit:<3}"
        print(f"{row.what:{width}}  {times}  {row.ratio:7.3f}  {row.wanted}")


def main() -> None:
    """Parses the command line and runs a subcommand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each comparison")
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="the fit of dataset statistics")
    fit.add_argument("--only", choices=list(FIT_PARTS), help="one part only")
    fit.set_defaults(run=run_fit)
    references = commands.add_parser("references", help="the fit of linear element references")
    references.set_defaults(run=run_references)
    normalize = commands.add_parser("normalize", help="normalising batches")
    normalize.set_defaults(run=run_normalize)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads, torch {torch.__version__}")
    print_table(arguments.run(arguments))


if __name__ == "__main__":
    main()
