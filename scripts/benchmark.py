"""Measures the package on this machine; every number is a ratio of two alternating measurements.

    python scripts/benchmark.py                          # all
    python scripts/benchmark.py --only fit packed_reading
    OMP_NUM_THREADS=1 python scripts/benchmark.py --only pre_transforms

The result is the median of the ratios, so that other work of the machine changes it little. `pre_transforms` counts
processor time, also of waiting threads: use one thread.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import zarr
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader as TorchDataLoader
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from ofdft_norm import (
    BasisInfo,
    BasisTransforms,
    ConstantSampleWeigher,
    DatasetStatistics,
    GroundStateOnlySampleWeigher,
    HasEnergyLabelSampleWeigher,
    InitialGuessOnlySampleWeigher,
    LocalFrames,
    MinSCFIterationSampleWeigher,
    NaturalReparametrization,
    OFData,
    OFDataset,
    OFDFTDataModule,
    ProjectGradient,
    fit_linear_references,
)
from ofdft_norm.config import AtomRefConfig, LabelFiles, RescalingConfig, StatisticsConfig
from ofdft_norm.data.label_file import LabelFileContent, read_molecule, write_label_file
from ofdft_norm.data.pack import pack_labels
from ofdft_norm.data.packed import META, PackedDataset
from ofdft_norm.data.sample import collate_joined, join_samples
from ofdft_norm.example import DensityModule
from ofdft_norm.normalization.build_normalizer import NormalizerSettings, build_normalizer
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch, NormalizedDataset
from ofdft_norm.transforms.coordinates import forget_molecules, list_molecules
from ofdft_norm.transforms.overlap import compute_overlap

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
BATCH_SIZE = 128
FOLDER = Path(tempfile.gettempdir())  # replaced by `main`


class Row(NamedTuple):
    """A line of the table: medians of both times [s] and of their ratio, and the wanted ratio."""

    what: str
    measured: float
    reference: float
    ratio: float
    wanted: str = ""


def compare(
    measured: Callable[[], Any],
    reference: Callable[[], Any],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, float]:
    """Times two functions in turn; returns the medians of both times and of their ratio."""
    times = []
    for _ in range(repeats + 1):
        pair = []
        for function in (measured, reference):
            begin = clock()
            function()
            pair.append(clock() - begin)
        times.append(pair)
    times = times[1:]  # the first round fills caches
    return median(m for m, _ in times), median(r for _, r in times), median(m / r for m, r in times)


def iterate(loader: Any) -> None:
    """Passes over a loader."""
    for _ in loader:
        pass


# --- random labels of the size of QM9's -------------------------------------------------------------------------------


def draw_molecule(rng: np.random.Generator, n_iterations: int, n_atoms: tuple[int, int] = (9, 9)) -> dict[str, Any]:
    """Draws labels of heavy atoms and H: (9, 9) have about 1,180 functions, (1, 1) have 130."""
    numbers = np.concatenate([rng.choice([6, 7, 8], n_atoms[0], p=[0.8, 0.1, 0.1]), np.ones(n_atoms[1], dtype=int)])
    n = int(BASIS.basis_dim_per_atom[BASIS.atom_indices(numbers)].sum())
    return {
        "atomic_numbers": numbers,
        "positions": rng.normal(size=(len(numbers), 3)) * 3,
        "coeffs": rng.normal(size=(n_iterations, n)),
        "gradient": rng.normal(size=(n_iterations, n)),
        "integrals": rng.uniform(0.1, 1, size=n),
        "energy": rng.normal(size=n_iterations) - 2 * numbers.sum(),
    }


@cache
def samples_in_memory(n_molecules: int, n_iterations: int) -> list[OFData]:
    """Draws samples; iteration 0 has no label."""
    rng = np.random.default_rng(0)
    samples = []
    for m in range(n_molecules):
        drawn = draw_molecule(rng, n_iterations)
        for i in range(n_iterations):
            labels = drawn["coeffs"][i], drawn["coeffs"][-1], drawn["gradient"][i], drawn["energy"][i], i > 0
            others = drawn["integrals"], f"molecule {m}", i
            samples.append(OFData.construct_new(BASIS, drawn["positions"], drawn["atomic_numbers"], *labels, *others))
    return samples


@cache
def label_files(n_molecules: int = 300, n_atoms: tuple[int, int] = (9, 9), n_iterations: int = 10) -> list[Path]:
    """Writes label files of drawn molecules."""
    rng, paths = np.random.default_rng(0), []
    for m in range(n_molecules):
        drawn, labelled = draw_molecule(rng, n_iterations, n_atoms), np.arange(n_iterations) > 0
        energies = {"e_kin": drawn["energy"] * labelled}
        path = FOLDER / f"labels_{n_molecules}_{n_atoms[0]}" / f"{m:06d}.zarr.zip"
        geometry, gradients = (drawn["atomic_numbers"], drawn["positions"]), drawn["gradient"] * labelled[:, None]
        labels: Any = drawn["coeffs"], {"grad_kin": gradients}, drawn["integrals"], energies, energies, labelled
        content = LabelFileContent(f"molecule {m}", *geometry, *labels)
        write_label_file(path, content)
        paths.append(path)
    return paths


@cache
def packed_set(n_molecules: int = 300, n_atoms: tuple[int, int] = (9, 9)) -> Path:
    """Packs label files of drawn molecules."""
    dataset = OFDataset(label_files(n_molecules, n_atoms), BASIS)
    return pack_labels(dataset, FOLDER / f"packed_{n_molecules}_{n_atoms[0]}", progress=False)


def fit(dataset: Any, weighers: dict[str, Any] = ONE_WEIGHER, **options: Any) -> DatasetStatistics:
    """Fits without a second pass."""
    return DatasetStatistics.from_dataset(None, dataset, BASIS, **weighers, **{**QUIET, **options})


# --- what is measured -------------------------------------------------------------------------------------------------


def fit_rows(repeats: int) -> list[Row]:
    """Fit of samples in memory, and of their loader, over bare iteration of the loader."""
    samples = samples_in_memory(1000, 8)
    loader = DataLoader(samples, batch_size=BATCH_SIZE, follow_batch=["coeffs"])
    rows = []
    for what, data, weighers, wanted in (
        ("samples, one weigher", samples, ONE_WEIGHER, ""),
        ("samples, four + three weighers", samples, SEVEN_WEIGHERS, ""),
        ("the loader, one weigher", loader, ONE_WEIGHER, "<= 2.0"),
        ("the loader, four + three weighers", loader, SEVEN_WEIGHERS, "<= 3.5"),
    ):
        times = compare(partial(fit, data, weighers), partial(iterate, loader), repeats)
        rows.append(Row(f"fit / bare loader: {what}", *times, wanted))
    return rows


def file_rows(repeats: int) -> list[Row]:
    """Fit from label files over reading the same files with zarr, and with the package's reader."""

    def read_with_zarr() -> None:
        for path in paths:
            with zarr.storage.ZipStore(path, mode="r") as store:
                root: Any = zarr.open_group(store, mode="r", zarr_format=2)
                for name in ("coeffs", "grad_kin"):
                    np.asarray(root[f"of_labels/spatial/{name}"][...])

    paths = label_files()[:100]

    def fit_files() -> None:
        fit(OFDataset(paths, BASIS, transform=ProjectGradient()))

    by_zarr = compare(fit_files, read_with_zarr, repeats)
    own = compare(fit_files, lambda: [read_molecule(path, "e_kin", "grad_kin") for path in paths], repeats)
    return [
        Row("fit of 100 label files / coeffs and gradients by zarr", *by_zarr, "<= 0.6"),
        Row("fit of 100 label files / all fields by our reader", *own),
    ]


def cache_rows(repeats: int) -> list[Row]:
    """Setup with cached statistics over a first fit."""
    folders = iter(range(10_000))

    (FOLDER / "basis_info.json").write_text(json.dumps(BASIS.to_dict()))
    source = LabelFiles(str(label_files()[0].parent), str(FOLDER / "basis_info.json"))

    def setup(folder: str) -> None:
        statistics = StatisticsConfig(dir=str(FOLDER / folder), progress=False)
        OFDFTDataModule(source, statistics=statistics, pre_transforms=[ProjectGradient()]).setup("fit")

    times = compare(lambda: setup("cache"), lambda: setup(f"new_{next(folders)}"), repeats)
    return [Row("setup: cached statistics / first fit", *times, "<= 0.02")]


def fit_as_rank(rank: int, world_size: int, meeting: str, folder: str, out: str) -> None:
    """Fits label files, or a packed set, as one of several processes; rank 0 writes its times."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    packed = (Path(folder) / META).exists()
    times = []
    for _ in range(4):
        paths = sorted(Path(folder).glob("*.zarr.zip"))
        dataset = PackedDataset([folder]) if packed else OFDataset(paths, BASIS, transform=ProjectGradient())
        if world_size > 1:
            dist.barrier()
        begin = time.perf_counter()
        fit(dataset)
        times.append(time.perf_counter() - begin)
    if rank == 0:
        Path(out).write_text(str(min(times[1:])))
    if world_size > 1:
        dist.destroy_process_group()


def process_rows(repeats: int) -> list[Row]:
    """One process over two, one thread each."""
    rows = []
    for what, folder in (("label files", label_files()[0].parent), ("packed labels", packed_set(3000))):
        pairs = []
        for _ in range(max(repeats // 2, 1)):
            pair = []
            with tempfile.TemporaryDirectory() as meeting:
                for world_size in (1, 2):
                    out = f"{meeting}/time_{world_size}"
                    spawn(fit_as_rank, (world_size, f"{meeting}/init", str(folder), out), nprocs=world_size)
                    pair.append(float(Path(out).read_text()))
            pairs.append(pair)
        one, two = (min(times) for times in zip(*pairs, strict=True))
        rows.append(Row(f"fit of {what}: one process / two", one, two, one / two, ">= 1.7"))
    return rows


def memory_rows(repeats: int) -> list[Row]:
    """Peak memory [MiB] of the fit of 40,000 packed samples over that of 10,000, each in a new process."""
    code = """
import sys, warnings; from pathlib import Path; warnings.simplefilter("ignore")
from ofdft_norm.data.packed import PackedDataset; sys.path.insert(0, {scripts!r}); import benchmark
packed = PackedDataset([{folder!r}]); benchmark.fit(packed)  # kept: its files stay mapped
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print((int(status["VmHWM"].split()[0]) - int(status["RssFile"].split()[0])) / 1024)  # mapped files are the page cache's
"""
    peaks: list[float] = []
    for n_molecules in (4000, 1000):
        folder = str(packed_set(n_molecules, (1, 1)))
        command = [sys.executable, "-c", code.format(scripts=str(Path(__file__).parent), folder=folder)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks.append(float(found.split()[-1]))
    return [Row("peak memory [MiB], 40,000 / 10,000 packed samples", peaks[0], peaks[1], peaks[0] / peaks[1], "<= 1.1")]


def packed_reading_rows(repeats: int) -> list[Row]:
    """Random samples from packed labels and label files; batches over copies of their bytes; packing over reading."""
    paths = label_files()
    zipped, packed = OFDataset(paths, BASIS), PackedDataset([packed_set()])
    order = np.random.default_rng(0).permutation(len(packed)).tolist()
    batches = [order[first : first + BATCH_SIZE] for first in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE)]
    tensors = [[v for v in packed.__getitems__(b).to_dict().values() if torch.is_tensor(v)] for b in batches]

    def samples(dataset: Any) -> None:
        _ = [dataset[i] for i in order[:50]]

    def join() -> None:
        for batch in batches:  # each is freed before the next one, as in training
            packed.__getitems__(batch)

    def copy() -> None:
        for batch in tensors:
            _ = [value.clone() for value in batch]

    numbers = iter(range(10_000))

    def pack() -> None:
        pack_labels(OFDataset(paths[:100], BASIS), FOLDER / f"again_{next(numbers)}", progress=False)

    def read() -> None:
        _ = [read_molecule(path, "e_kin", "grad_kin") for path in paths[:100]]

    return [
        Row("50 random samples: label files / packed", *compare(lambda: samples(zipped), lambda: samples(packed), 5)),
        Row("random packed batches of 128 / copy of their bytes", *compare(join, copy, repeats), "<= 2"),
        Row("packing 100 label files / reading them", *compare(pack, read, min(repeats, 5))),
    ]


def packed_fit_rows(repeats: int) -> list[Row]:
    """The fit of packed labels over NumPy's sums of the same bytes; storing statistics over that fit."""
    packed = PackedDataset([packed_set()])

    def sums() -> None:
        arrays = packed.sets[0].arrays
        for name in ("coeffs", "grad_kin"):
            for first in range(0, len(arrays[name]), 2**20):
                block = arrays[name][first : first + 2**20]
                block.sum(), np.square(block).sum(), np.abs(block).max()
        for name in ("dual_basis_integrals", "e_kin"):
            arrays[name].sum()

    statistics, path = fit(packed, SEVEN_WEIGHERS), FOLDER / "statistics.zarr.zip"
    rows = [
        Row(
            f"fit of {len(packed)} packed samples / NumPy's sums: {what}",
            *compare(partial(fit, packed, w), sums, repeats),
        )
        for what, w in (("one weigher", ONE_WEIGHER), ("four + three", SEVEN_WEIGHERS))
    ]
    times = compare(lambda: statistics.save_to(path, overwrite=True), partial(fit, packed, SEVEN_WEIGHERS), repeats)
    return [*rows, Row("store the statistics of seven weighers / fit them", *times)]


def make_normalizer(samples: Any) -> Any:
    """Fits the atomic reference and dimension-wise rescaling."""
    settings = NormalizerSettings(AtomRefConfig(), RescalingConfig(), 1.0, False, "error", "hartree")
    return build_normalizer(fit(samples, residuals=True), BASIS, settings)


def loader_rows(repeats: int) -> list[Row]:
    """The training loader of one worker, from packed labels and from label files: normalised over not normalised."""
    sources = {"packed": PackedDataset([packed_set()]), "label files": OFDataset(label_files()[:100], BASIS)}
    normalize = NormalizeBatch(make_normalizer(sources["packed"]), torch.float32)
    rows = []
    for name, source in sources.items():
        order = np.random.default_rng(0).permutation(len(source)).tolist()[: 1000 if name == "packed" else 256]
        loaders = [
            TorchDataLoader(dataset, BATCH_SIZE, sampler=order, collate_fn=collate_joined)
            for dataset in (NormalizedDataset(source, normalize), source)
        ]
        times = compare(partial(iterate, loaders[0]), partial(iterate, loaders[1]), repeats)
        rows.append(Row(f"{name}: batches normalised / not normalised", *times))

    def one_by_one() -> None:
        samples = (normalize(sources["label files"][i]) for i in range(256))
        for _ in range(2):
            join_samples([next(samples) for _ in range(BATCH_SIZE)])

    packed_loader = TorchDataLoader(
        NormalizedDataset(sources["packed"], normalize), BATCH_SIZE, sampler=range(256), collate_fn=collate_joined
    )
    times = compare(one_by_one, partial(iterate, packed_loader), repeats)
    return [*rows, Row("one sample at a time from label files / packed batches", *times, ">= 20")]


def normalize_rows(repeats: int) -> list[Row]:
    """Normalising an epoch's batches over training steps; on a GPU, over a copy of as many bytes."""
    datamodule = OFDFTDataModule(statistics=StatisticsConfig(progress=False), apply="batch")
    raw = list(datamodule.train_dataloader())
    normalize = NormalizeBatch(datamodule.normalizer, torch.float32)
    batches, model = [normalize(batch.clone()) for batch in raw], DensityModule()
    model.model_normalizer.set_copy(datamodule.normalizer)
    model.build(datamodule.basis_info)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters())

    def steps() -> None:
        for batch in batches:
            optimizer.zero_grad()
            model.loss(batch, *model(batch))["loss"].backward()
            optimizer.step()

    times = compare(lambda: [normalize(batch.clone()) for batch in raw], steps, repeats)
    rows = [Row(f"normalise {len(raw)} embedded batches / training steps", *times, "< 0.02")]
    if not torch.cuda.is_available():
        print("no GPU: the bandwidth of normalising on one is not measured")
        return rows
    samples = samples_in_memory(1000, 8)[:64]
    normalizer = make_normalizer(samples).cuda()
    batch = Batch.from_data_list(samples * 16, follow_batch=["coeffs"]).cuda()
    source = torch.empty(2 * batch.coeffs.nbytes, dtype=torch.uint8, device="cuda")

    def timed(action: Callable[[], Any]) -> None:
        for _ in range(20):
            action()
        torch.cuda.synchronize()

    times = compare(
        partial(timed, lambda: normalizer.normalize(batch.clone(), check=False)), partial(timed, source.clone), repeats
    )
    return [*rows, Row("normalise on the GPU / copy of coefficients and gradients", *times)]


def reference_rows(repeats: int) -> list[Row]:
    """Fit of linear references over bare iteration of a PyG loader: molecules of 20 atoms in memory."""
    rng = np.random.default_rng(0)
    numbers = rng.choice([1, 6, 7, 8, 9], (20_000, 20), p=[0.5, 0.3, 0.1, 0.08, 0.02])
    data = [
        Data(atomic_numbers=torch.tensor(z), pos=torch.rand(len(z), 3), energy=torch.tensor([-5.0 * z.sum()]).double())
        for z in numbers
    ]
    loader = DataLoader(data, batch_size=32, shuffle=True)
    fit_all = partial(fit_linear_references, ["energy"], data, 32, log_metrics=False)
    return [Row("fit_linear_references / bare loader", *compare(fit_all, partial(iterate, loader), repeats), "<= 1.3")]


def pre_transform_rows(repeats: int) -> list[Row]:
    """Changes of basis over one diagonalisation of each molecule's overlap, in processor time."""
    torch.set_num_threads(1)
    basis_info = BasisInfo.from_atomic_numbers_with_even_tempered_basis([1, 6])
    chains = {
        "natural": [NaturalReparametrization()],
        "local frames, natural": [LocalFrames(), NaturalReparametrization()],
    }
    rows = []
    for n_heavy, n_hydrogen, n_molecules in ((3, 4, 100), (9, 9, 12)):
        rng = np.random.default_rng(0)
        batches = [random_densities(basis_info, n_heavy, n_hydrogen, rng) for _ in range(n_molecules)]
        overlaps = [compute_overlap(list_molecules(batch)[0][0]) for batch in batches]
        for name, chain in chains.items():

            def transform_all(transform: Any = BasisTransforms(chain), batches: Any = batches) -> None:  # noqa: B008
                forget_molecules()
                for batch in batches:
                    transform(batch.__copy__())

            def diagonalise(overlaps: Any = overlaps) -> None:
                for overlap in overlaps:
                    np.linalg.eigh(overlap)

            times = compare(transform_all, diagonalise, repeats, time.process_time)
            what = f"{name}: {n_molecules} molecules of {len(overlaps[0])} functions / eigh of each overlap"
            rows.append(Row(what, *times, "<= 1.3"))
    return rows


def random_densities(basis_info: BasisInfo, n_heavy: int, n_hydrogen: int, rng: np.random.Generator) -> Any:
    """Draws ten densities of C and H atoms on a coarse grid, none of them too close."""
    numbers = [6] * n_heavy + [1] * n_hydrogen
    cells = rng.choice(27, len(numbers), replace=False)
    pos = 2.6 * np.stack(np.unravel_index(cells, (3, 3, 3)), axis=1) + rng.uniform(-0.3, 0.3, (len(numbers), 3))
    n = int(basis_info.basis_dim_per_atom[basis_info.atom_indices(np.array(numbers))].sum())
    ground_state = rng.normal(size=n)
    labels = ((rng.normal(size=n), ground_state, rng.normal(size=n)) for _ in range(10))
    return join_samples([OFData.construct_new(basis_info, pos, numbers, *of_sample) for of_sample in labels])


PARTS: dict[str, Callable[[int], list[Row]]] = {
    "fit": fit_rows,
    "files": file_rows,
    "cache": cache_rows,
    "processes": process_rows,
    "memory": memory_rows,
    "packed_reading": packed_reading_rows,
    "packed_fit": packed_fit_rows,
    "loader": loader_rows,
    "normalize": normalize_rows,
    "references": reference_rows,
    "pre_transforms": pre_transform_rows,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the parts that the command line names, and prints a table."""
    global FOLDER
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each comparison")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to measure")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", UserWarning)  # the random molecules have no F
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads, torch {torch.__version__}")
    torch.set_num_threads(1)  # as configs/train.yaml
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        FOLDER = Path(folder)
        for part in options.only:
            rows += PARTS[part](options.repeats)
    print("   ratio    wanted  measured [s]  reference [s]")
    for row in rows:
        print(f"{row.ratio:8.3f}  {row.wanted:>8}  {row.measured:12.3f}  {row.reference:13.3f}  {row.what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
