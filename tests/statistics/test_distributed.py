"""The fit by several real processes."""

import os
import re
import signal
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    HasEnergyLabelSampleWeigher,
    InitialGuessOnlySampleWeigher,
    OFDataset,
    ProjectGradient,
)
from ofdft_norm.errors import LabelFileError, StatisticsError
from ofdft_norm.statistics.cache import load_or_fit
from ofdft_norm.statistics.distributed import find_ranks
from ofdft_norm.statistics.fit_statistics import StatisticsConfig
from tests.processes import on_ranks

WEIGHERS = [HasEnergyLabelSampleWeigher(), ConstantSampleWeigher()]
MOLECULES = [(8, 1, 1), (6, 1, 1, 1, 1), (6, 8, 1, 1), (8, 8), (6, 6, 1, 1), (6, 8, 8), (1, 1)]


def fit(path: Path | None, files: list[Path], basis_info: BasisInfo, in_memory: bool = False) -> DatasetStatistics:
    dataset: Any = OFDataset(files, basis_info, transform=ProjectGradient())
    return DatasetStatistics.from_dataset(
        path,
        list(dataset) if in_memory else dataset,
        basis_info,
        WEIGHERS,
        initial_guess_sample_weighers=[InitialGuessOnlySampleWeigher()],
        progress=False,
    )


def fits_of(path: Path | None, files: list[Path], basis_info: BasisInfo) -> dict[str, DatasetStatistics]:
    """Fits all files, fewer than ranks, and samples in memory."""
    return {
        "all": fit(path, files, basis_info),
        "one": fit(None, files[2:3], basis_info),
        "memory": fit(None, files, basis_info, in_memory=True),
    }


def fit_all(folder: Path, files: list[Path], basis_info: BasisInfo) -> dict[str, Any]:
    """Fits good files, files of which one is bad, and files that one rank lacks."""
    good, bad = files[:-1], files[-1]
    fits = fits_of(folder / "written.zarr", good, basis_info)
    with pytest.raises(LabelFileError) as unreadable:
        fit(folder / "bad.zarr", [*good, bad], basis_info)
    with pytest.raises(StatisticsError) as conflict:  # other statistics stand there: only rank 0 sees them
        fit(folder / "written.zarr", good[:3], basis_info)

    def cached(n: int) -> Any:
        config = StatisticsConfig(dir=str(folder / f"cache_{n}"), progress=False)
        paths = good[: len(good) - n * find_ranks().rank]
        return load_or_fit(lambda: OFDataset(paths, basis_info), basis_info, config, {})

    first, second = cached(0), cached(0)
    with pytest.raises(StatisticsError) as different:
        cached(1)
    return {
        "arrays": {f"{name}:{key}": array for name, found in fits.items() for key, array in found.to_arrays().items()},
        "attributes": {name: found.attributes for name, found in fits.items()},
        "reused": (first.reused, second.reused, second.statistics.equals(first.statistics)),
        "errors": [str(error.value) for error in (unreadable, conflict, different)],
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, make_label_arrays: Any, write_arrays: Any, basis_info: Any) -> Any:
    """Seven molecules, and a bad one at the end."""
    folder, rng = tmp_path_factory.mktemp("labels"), np.random.default_rng(0)
    paths = []
    for i, numbers in enumerate([*MOLECULES, (8, 1, 1)]):
        arrays = make_label_arrays(basis_info, rng, numbers, 3 + i % 3, f"molecule {i}")
        if i == len(MOLECULES):
            arrays["of_labels/spatial/grad_kin"][2, 5] = np.nan
        paths.append(write_arrays(folder / f"{i}.zarr.zip", arrays))
    return paths


@pytest.mark.filterwarnings("ignore:the basis has the elements")
def test_ranks_agree_with_a_single_process(tmp_path: Path, files: list[Path], basis_info: BasisInfo) -> None:
    ranks = on_ranks(fit_all, tmp_path, files, basis_info, world_size=3)
    for name, alone in fits_of(None, files[:-1], basis_info).items():
        arrays = alone.to_arrays()
        for key, expected in arrays.items():
            found = [rank["arrays"][f"{name}:{key}"] for rank in ranks]
            assert all(f.tobytes() == found[0].tobytes() for f in found), (name, key)
            weigher, kind, *_ = key.split("/")
            size = np.max(np.abs(expected))
            if "energy" in kind or "bias" in kind:  # energies minus a reference come close to zero
                size = arrays[f"{weigher}/energy/abs_max"]
            if key.endswith("_factor"):  # rows may be rotated where the rank is deficient
                found, expected, size = [found[0].T @ found[0]], expected.T @ expected, size**2
            np.testing.assert_allclose(found[0], expected, rtol=1e-12, atol=1e-12 * size, err_msg=key)
        assert all(rank["attributes"] == ranks[0]["attributes"] for rank in ranks)
        attributes = ranks[0]["attributes"][name]
        assert attributes["gradient_holders"] == alone.attributes["gradient_holders"]
        for weigher, molecules in alone.attributes["worst_molecules"].items():
            theirs = attributes["worst_molecules"][weigher]
            assert {(m["name"], m["index"]) for m in molecules} == {(m["name"], m["index"]) for m in theirs}
    written = DatasetStatistics(tmp_path / "written.zarr").to_arrays()
    assert all(written[key].tobytes() == ranks[0]["arrays"][f"all:{key}"].tobytes() for key in written)
    for rank in ranks:
        assert rank["reused"] == (False, True, True)
        unreadable, conflict, different = rank["errors"]
        assert re.search(rf"{files[-1]}.*molecule 7.*grad_kin", unreadable)
        assert "already holds other statistics" in conflict
        assert re.search(r"ranks 0 and 1 have different \['samples'\], such as .*6\.zarr\.zip", different)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache_0", "written.zarr"]


class Stopping(list[Any]):
    """Samples; a process that reads one of them stops."""

    def __init__(self, samples: Any, folder: Path, rank: int) -> None:
        super().__init__(samples)
        self.folder, self.rank = folder, rank

    def __getitem__(self, index: Any) -> Any:
        if self.rank == 1 and not (self.folder / "stopped").exists():
            (self.folder / "stopped").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
            (self.folder / "awake").write_text("")
        return super().__getitem__(index)


def wake(folder: Path) -> None:
    """Wakes the process that stops, or is about to."""
    for _ in range(600):
        if (folder / "awake").exists():
            return
        if (folder / "stopped").exists() and (pid := (folder / "stopped").read_text()):
            os.kill(int(pid), signal.SIGCONT)
        time.sleep(0.1)


def fit_with_one_that_stops(folder: Path, files: list[Path], basis_info: BasisInfo) -> str:
    """Returns this rank's error; rank 0 wakes the other when it has given up."""
    samples, rank = list(OFDataset(files[:3], basis_info)), find_ranks().rank
    try:
        config = StatisticsConfig(dir=str(folder), rank_timeout=1.5 / 60, progress=False)
        load_or_fit(lambda: Stopping(samples, folder, rank), basis_info, config, {})
    except StatisticsError as error:
        return str(error)
    finally:
        if rank == 0:
            wake(folder)
    return "no error"


def free_group() -> bool:
    group = weakref.ref(find_ranks().group)
    dist.destroy_process_group()
    return group() is None


def test_the_group_of_a_fit_ends_with_the_default_group() -> None:
    assert on_ranks(free_group) == [True, True]


def test_a_rank_that_hangs_is_missed_by_the_others(tmp_path: Path, files: list[Path], basis_info: BasisInfo) -> None:
    errors = on_ranks(fit_with_one_that_stops, tmp_path, files, basis_info, world_size=3)
    for error in errors:
        assert "not all ranks answered within 0.025 minutes" in error
        assert "(config: data.statistics.rank_timeout)" in error
    assert re.search(r"Ranks? (1|1, 2|2, 1) failed", errors[0])
